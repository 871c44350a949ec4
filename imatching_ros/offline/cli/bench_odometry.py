"""Accuracy of the poses as published, the time of every part of a frame, and recovery from faults, for several matchers.

Without learning nothing is random, so it is run with the first seed only. `identity_deg` is the rotation between frames that no odometry at
all would have left.

example:
  python -m imatching_ros bench odometry data/kitti_mono_turn data/tartanair_hospital=mono --rendered renderings --matchers expectation,klt,sift
  python -m imatching_ros bench odometry data/kitti_mono_turn --faults
  python -m imatching_ros bench odometry data/kitti_mono_turn --jumps 50
  python -m imatching_ros bench odometry data/tartanair_hospital=mono --realtime 60 --rate-hz 10 --learnings off,thread
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core import geometry
from .arguments import add_config_options, add_source_options, read_config, source_options
from .progress import Progress
from ...core.config import Config
from ...core.types import Frame, OdometryOutput
from ...core.timing import Clock
from ...core.errors import ConfigError
from ...pipeline import Pipeline
from ..recordings.base import MODES, Source
from ..recordings.opening import open_source
from ..recordings.truth import Trajectory
from ..experiments.renderings import ACCURACY, written
from ..experiments.faults import judge, make_faults
from ..experiments.jumps import jump_about
from ..experiments.realtime import watch

MOST_APART = 0.1  # share of the frames by which what two matchers tracked may differ


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
        help="instead of accuracy: what is said of a frame after the camera has jumped, N times",
    )
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, on a machine that others use too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add_source_options(parser)
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import cv2

    cv2.setNumThreads(1)
    if args.clock == "cpu":
        Clock.read = staticmethod(time.process_time)
    base = read_config(args)
    rows: list[dict[str, Any]] = []
    matchers = list(filter(None, args.matchers.split(","))) or [base.matcher.name]
    for name, source in recordings(args):
        for matcher in matchers:
            for learning in args.learnings.split(","):
                for seed in list(map(int, args.seeds.split(",")))[: 1 if learning == "off" else None]:
                    config = base.with_values(
                        {"matcher.name": matcher, "learning.mode": f"'{learning}'", "seed": str(seed)}
                    )
                    case = {"source": name, "mode": source.mode, "matcher": matcher, "learning": learning, "seed": seed}
                    if args.faults:
                        rows += _recoveries(case, source, config, args.fault_at)
                    elif args.jumps:
                        rows.append(case | jump_about(source, config, args.jumps))
                    elif args.realtime:
                        rows.append(case | watch(source, config, args.realtime, args.rate_hz))
                    else:
                        rows.append(case | measure(source, config))
    print(_table(rows))
    for line in compare(rows, matchers):
        print(line)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def recordings(args: argparse.Namespace) -> Iterator[tuple[str, Source]]:
    """(name, recording) of everything that was asked for."""
    options = source_options(args)
    wanted = []
    for text in args.sources:
        path, equals, mode = text.rpartition("=")
        if equals and mode not in MODES:
            raise ConfigError(f"{text}: expected SOURCE=MODE with one of the modes {', '.join(MODES)}")
        wanted.append((Path(path if equals else text), mode if equals else options.mode))
    if args.rendered is not None:
        wanted += [
            (written(args.rendered, name, rendering), mode)
            for name, rendering in ACCURACY.items()
            for mode in rendering.modes
        ]
    if not wanted:
        raise ConfigError("nothing to run on; give recordings, or --rendered FOLDER")
    for path, mode in wanted:
        yield path.name, open_source(path, replace(options, mode=mode))


def compare(rows: list[dict[str, Any]], matchers: list[str]) -> list[str]:
    """One line for every other matcher and learning mode: the geometric mean of the first matcher's ATE over theirs, case by case.

    Cases in which one of the two tracked much less are left out: errors over half a path are no measure of those over all of it.
    """
    key = ("source", "mode", "learning", "seed")
    ates = {(r["matcher"], tuple(r[k] for k in key)): r["ate_m"] for r in rows if r.get("ate_m")}
    shares = {(r["matcher"], tuple(r[k] for k in key)): r["tracked"] / r["frames"] for r in rows if r.get("ate_m")}
    cases = list(dict.fromkeys(tuple(r[k] for k in key) for r in rows))
    lines = []
    for learning in dict.fromkeys(case[2] for case in cases):
        mine = [case for case in cases if case[2] == learning]
        for other in matchers[1:]:
            both = [case for case in mine if (matchers[0], case) in ates and (other, case) in ates]
            apart = [case for case in both if abs(shares[matchers[0], case] - shares[other, case]) > MOST_APART]
            ratios = [ates[matchers[0], case] / ates[other, case] for case in both if case not in apart]
            told = (
                f"; left out, since they tracked different shares of the frames: {', '.join(f'{c[0]} ({c[1]})' for c in apart)}"
                if apart
                else ""
            )
            if ratios:
                lines.append(
                    f"learning {learning}: ATE of {matchers[0]} over that of {other}, geometric mean of {len(ratios)} of {len(mine)} cases: "
                    f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.3f}{told}"
                )
    return lines


def drive(
    source: Iterable[Frame],
    config: Config,
    change: Callable[[int, Frame], Frame | None] | None = None,
) -> list[OdometryOutput | None]:
    """Every frame through a fresh pipeline; None for frames that `change` makes vanish."""
    pipeline = Pipeline(config)
    outputs: list[OdometryOutput | None] = []
    try:
        with Progress(
            f"{getattr(source, 'name', 'frames')} {config.matcher.name}", getattr(source, "length", None)
        ) as progress:
            for i, frame in enumerate(source):
                changed = frame if change is None else change(i, frame)
                outputs.append(None if changed is None else pipeline.process(changed))
                progress.update(i + 1)
    finally:
        pipeline.close()
    return outputs


def measure(source: Source, config: Config) -> dict[str, Any]:
    """One run, scored against the truth and timed."""
    from ..evaluation.trajectory import score_trajectory

    outputs = [o for o in drive(source, config) if o is not None]
    tracked = [o for o in outputs if o.T_WC is not None]
    first = next((i for i, o in enumerate(outputs) if o.T_WC is not None), None)
    row: dict[str, Any] = {
        "frames": len(outputs),
        "tracked": len(tracked),
        "first": first,
        "lost": None if first is None else len(outputs) - first - len(tracked),
        "keyframes": sum(o.is_keyframe for o in outputs),
        "maps": 1 + max(o.map_id for o in outputs),
    }
    truth = source.groundtruth()
    if truth is not None and len(tracked) > 2:
        estimate = Trajectory(np.array([o.stamp_ns for o in tracked]), np.stack([o.T_WC.numpy() for o in tracked]))
        score = score_trajectory(estimate, truth, tracked[-1].metric)
        if not isinstance(score, str):
            row |= {
                "ate_m": score.ate["rmse"],
                "ate_percent": score.ate["percent_of_path"],
                "rpe_deg": float(np.sqrt(np.mean(score.rpe_rot_deg**2))),
                "identity_deg": _turned_deg(score.truth),
            }
    return row | timings(outputs)


def _turned_deg(truth: Trajectory) -> float:
    """RMS rotation from one true pose to the next: the relative error of the identity."""
    T_WC = torch.as_tensor(truth.T_WC).double()
    return float(torch.rad2deg(geometry.local(T_WC[:-1], T_WC[1:])[:, 3:].square().sum(1).mean().sqrt()))


def timings(outputs: list[OdometryOutput]) -> dict[str, float]:
    """Median and 95th percentile, ms: of every part, of the way to the pose (`front`), and of keyframe work."""
    parts: dict[str, list[float]] = {}
    for output in outputs:
        for name, value in output.timings_ms.items():
            parts.setdefault(name, []).append(value)
        parts.setdefault("front", []).append(sum(v for k, v in output.timings_ms.items() if k != "keyframe"))
    return {f"{name}_p{q}": float(np.percentile(values, q)) for name, values in parts.items() for q in (50, 95)}


def _recoveries(case: dict[str, Any], source: Source, config: Config, at: int) -> list[dict[str, Any]]:
    return [case | vars(judge(fault, drive(source, config, fault.apply))) for fault in make_faults(at)]


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
