"""Accuracy of the poses as published, the time of every part of a frame, and recovery from faults, for several matchers.

example:
  python -m imatching_ros bench odometry data/kitti_mono_turn data/tartanair_hospital --matchers expectation,klt,sift
  python -m imatching_ros bench odometry data/kitti_mono_turn --faults
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...commands.arguments import add_config_options, add_source_options, read_config, source_options
from ...commands.progress import Progress
from ...config import Config
from ...datatypes import Frame, OdometryOutput
from ...clock import Clock
from ...pipeline import Pipeline
from ...sources.base import Source
from ...sources.opening import open_source
from ...sources.truth import Trajectory
from .faults import judge, make_faults


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="recordings with ground truth")
    parser.add_argument("--matchers", default="", metavar="NAME,...", help="default: the configured one")
    parser.add_argument("--learnings", default="off", metavar="MODE,...", help="off, sync, thread (default off)")
    parser.add_argument("--seeds", default="0", metavar="N,...", help="default 0")
    parser.add_argument("--faults", action="store_true", help="instead of accuracy: what happens after dropped, black, covered frames ...")
    parser.add_argument("--fault-at", type=int, default=50, metavar="I", help="frame at which faults begin (default 50)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, on a machine that others use too")
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
    for path in args.sources:
        source = open_source(path, source_options(args))
        for matcher in filter(None, args.matchers.split(",")) if args.matchers else [base.matcher.name]:
            for learning in args.learnings.split(","):
                for seed in map(int, args.seeds.split(",")):
                    config = base.with_values({"matcher.name": matcher, "learning.mode": f"'{learning}'", "seed": str(seed)})
                    case = {"source": path.name, "mode": source.mode, "matcher": matcher, "learning": learning, "seed": seed}
                    rows += _recoveries(case, source, config, args.fault_at) if args.faults else [case | measure(source, config)]
    print(_table(rows))
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def drive(source: Iterable[Frame], config: Config, change: Callable[[int, Frame], Frame | None] | None = None) -> list[OdometryOutput | None]:
    """Every frame through a fresh pipeline; None for frames that `change` makes vanish."""
    pipeline = Pipeline(config)
    outputs: list[OdometryOutput | None] = []
    try:
        with Progress(f"{getattr(source, 'name', 'frames')} {config.matcher.name}", getattr(source, "length", None)) as progress:
            for i, frame in enumerate(source):
                changed = frame if change is None else change(i, frame)
                outputs.append(None if changed is None else pipeline.process(changed))
                progress.update(i + 1)
    finally:
        pipeline.close()
    return outputs


def measure(source: Source, config: Config) -> dict[str, Any]:
    """One run, scored against the truth and timed."""
    from ...evaluation.trajectory import score_trajectory

    outputs = [o for o in drive(source, config) if o is not None]
    tracked = [o for o in outputs if o.T_WC is not None]
    first = next((i for i, o in enumerate(outputs) if o.T_WC is not None), None)
    row: dict[str, Any] = {
        "frames": len(outputs), "first": first, "lost": None if first is None else len(outputs) - first - len(tracked),
        "keyframes": sum(o.is_keyframe for o in outputs), "maps": 1 + max(o.map_id for o in outputs),
    }
    truth = source.groundtruth()
    if truth is not None and len(tracked) > 2:
        estimate = Trajectory(np.array([o.stamp_ns for o in tracked]), np.stack([o.T_WC.numpy() for o in tracked]))
        score = score_trajectory(estimate, truth, tracked[-1].metric)
        if not isinstance(score, str):
            row |= {"ate_m": score.ate["rmse"], "ate_percent": 100 * score.ate["rmse"] / truth.path_length_m,
                    "rpe_deg": float(np.sqrt(np.mean(score.rpe_rot_deg**2)))}
    return row | timings(outputs)


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
