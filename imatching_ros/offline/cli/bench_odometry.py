"""Accuracy of the poses as published, the time of every part of a frame, and recovery from faults, for several matchers.

Without learning nothing is random, so it is run with the first seed only. `identity_deg` is the rotation between frames that no odometry at
all would have left.

example:
  python -m imatching_ros bench odometry data/kitti_mono_turn data/tartanair_hospital=mono --rendered renderings --matchers expectation,klt,sift
  python -m imatching_ros bench odometry data/kitti_mono_turn --faults
  python -m imatching_ros bench odometry data/kitti_mono_turn --jumps 50
  python -m imatching_ros bench odometry data/tartanair_hospital=rgbd --moving-object
  python -m imatching_ros bench odometry data/tartanair_hospital=mono --realtime 60 --rate-hz 10 --learnings off,thread
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_config_options, add_source_options, open_recordings, read_config

if TYPE_CHECKING:
    from ...core.config import Config
    from ..recordings.base import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE[=MODE]", help="recordings with ground truth; a mode goes before --mode"
    )
    parser.add_argument(
        "--rendered",
        type=Path,
        metavar="FOLDER",
        help="also the five rendered recordings, which are kept in this folder",
    )
    parser.add_argument("--matchers", default="", metavar="NAME,...", help="default: the configured one")
    parser.add_argument("--learnings", default="off", metavar="MODE,...", help="off, sync, thread (default off)")
    parser.add_argument("--seeds", default="0", metavar="N,...", help="default 0")
    parser.add_argument(
        "--realtime",
        type=float,
        metavar="S",
        help="instead of accuracy: frames lost and memory while a camera plays so long",
    )
    parser.add_argument("--rate-hz", type=float, default=10.0, help="of that camera (default 10)")
    parser.add_argument(
        "--faults",
        action="store_true",
        help="instead of accuracy: what happens after dropped, black, covered frames ...",
    )
    parser.add_argument(
        "--fault-at", type=int, default=50, metavar="I", help="frame at which faults begin (default 50)"
    )
    parser.add_argument(
        "--jumps",
        type=int,
        metavar="N",
        help="instead of accuracy: the state and pose of a frame after the camera has jumped, N times",
    )
    parser.add_argument(
        "--moving-object",
        action="store_true",
        help="accuracy while a textured thing moves before the camera, one run for each way in which it does",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add_source_options(parser)
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import cv2

    from ...matching.weights import choose_matcher
    from ..experiments.odometry_runs import compare_ates

    cv2.setNumThreads(1)
    base = read_config(args)
    rows: list[dict[str, Any]] = []
    matchers = list(filter(None, args.matchers.split(","))) or [choose_matcher(base.matcher).name]
    for name, source in open_recordings(args):
        for matcher in matchers:
            for learning in args.learnings.split(","):
                for seed in list(map(int, args.seeds.split(",")))[: 1 if learning == "off" else None]:
                    config = base.with_values(
                        {"matcher.name": matcher, "learning.mode": f"'{learning}'", "seed": str(seed)}
                    )
                    case = {"source": name, "mode": source.mode, "matcher": matcher, "learning": learning, "seed": seed}
                    rows += [case | row for row in _measure(args, source, config)]
    print(_table(rows))
    for line in compare_ates(rows, matchers):
        print(line)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _measure(args: argparse.Namespace, source: Source, config: Config) -> list[dict[str, Any]]:
    """The rows of one case: accuracy, or what the options name instead."""
    from ..experiments.faults import judge, make_faults
    from ..experiments.jumps import jump_about
    from ..experiments.moving_object import WithObject, make_objects
    from ..experiments.odometry_runs import drive, measure
    from ..experiments.realtime import play_recording

    if args.faults:
        return [vars(judge(f, drive(source, config, change=f.apply))) for f in make_faults(args.fault_at)]
    if args.jumps:
        return [jump_about(source, config, args.jumps)]
    if args.moving_object:
        return [{"object": o.name} | measure(WithObject(source, o, config.seed), config) for o in make_objects()]
    if args.realtime:
        return [play_recording(source, config, args.realtime, args.rate_hz)]
    return [measure(source, config)]


def _table(rows: list[dict[str, Any]]) -> str:
    """Columns as wide as they need to be."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = [names] + [[_short(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[k]) for line in text) for k in range(len(names))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in text)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3g}"
    return "-" if value is None else str(value)
