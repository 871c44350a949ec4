"""Is the covariance of bundle adjustment true? The NEES of the newest keyframe's pose on rendered scenes with exact truth.

The normalised estimation error squared is e^T C^-1 e, with e the error of the newest keyframe's pose relative to the newest pose that
its window holds, and C the covariance that bundle adjustment gives of it. Its mean is 6 when C is true, above 6 when C is too small.
Windows that share keyframes share errors, so the 95 % interval counts only as many windows as there are without common keyframes.

example:
  python -m imatching_ros bench nees renderings --seeds 61,62,63 --matchers klt,expectation
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import add_config_options, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where the rendered recordings are kept, or come to"
    )
    parser.add_argument(
        "--seeds", default="61,62,63", metavar="N,...", help="of the scenes, three for each (default 61,62,63)"
    )
    parser.add_argument("--modes", default="rgbd,stereo", metavar="MODE,...", help="default rgbd,stereo")
    parser.add_argument("--matchers", default="klt,expectation", metavar="NAME,...", help="default klt,expectation")
    parser.add_argument("--frames", type=int, metavar="N", help="shorter recordings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import cv2

    from ..experiments.consistency import measure_consistency, summarise
    from ..experiments.scenes import consistency, render
    from ..recordings.base import SourceOptions
    from ..recordings import open_source

    cv2.setNumThreads(1)
    base = read_config(args).with_values({"learning.mode": "'off'"})
    paths = [
        render(args.folder, name, rendering, args.frames)
        for seed in map(int, args.seeds.split(","))
        for name, rendering in consistency(seed).items()
    ]
    rows = []
    for matcher in args.matchers.split(","):
        for mode in args.modes.split(","):
            found = []
            for path in paths:
                source = open_source(path, SourceOptions(mode=mode))
                found.append(measure_consistency(source, base.with_values({"matcher.name": matcher})))
                rows.append({"matcher": matcher, "mode": mode, "recording": path.name} | summarise(found[-1:]))
            rows.append({"matcher": matcher, "mode": mode, "recording": "all"} | summarise(found))
    print(_table(rows))
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'matcher':>12} {'mode':>7} {'recording':>18} {'windows':>8} {'mean NEES (6)':>14} {'95 % interval':>16} {'median (5.3)':>13} "
        f"{'if independent':>15} {'position (3)':>13} {'rotation (3)':>13} {'rms error / claimed, mm':>24}"
    ]
    for r in rows:
        lines.append(
            f"{r['matcher']:>12} {r['mode']:>7} {r['recording']:>18} {r['windows']:>8} {r['nees']:>14.2f} "
            f"{r['low']:>7.2f} ..{r['high']:>6.2f} {r['median']:>13.2f} {r['naive']:>15.1f} {r['position_nees']:>13.2f} {r['rotation_nees']:>13.2f} "
            f"{r['error_mm']:>15.1f} /{r['claimed_mm']:>7.1f}"
        )
    return "\n".join(lines)
