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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import geometry
from .arguments import add_config_options, read_config
from .progress import Progress
from ...core.config import Config
from ...core.types import BAResult
from ...pipeline import Pipeline
from ..recordings.base import Source, SourceOptions
from ..recordings.opening import open_source
from ..experiments.renderings import consistency, written

_LEAST_KEYFRAMES = 3


@dataclass(frozen=True)
class Consistency:
    """What the windows of one run say."""

    nees: Tensor  # (N,) float64 of the newest keyframe's pose, 6 degrees of freedom
    naive: Tensor  # (N,) the same if observations were independent: without `BAResult.inflation`
    position: Tensor  # (N,) of its position alone, 3 degrees of freedom
    rotation: Tensor  # (N,) of its rotation alone, 3
    error_m: Tensor  # (N,)
    claimed_m: Tensor  # (N,) root of the trace of the position's covariance
    independent: int  # how many windows there are without common keyframes


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

    cv2.setNumThreads(1)
    base = read_config(args).with_values({"learning.mode": "'off'"})
    paths = [
        written(args.folder, name, rendering, args.frames)
        for seed in map(int, args.seeds.split(","))
        for name, rendering in consistency(seed).items()
    ]
    rows = []
    for matcher in args.matchers.split(","):
        for mode in args.modes.split(","):
            found = []
            for path in paths:
                source = open_source(path, SourceOptions(mode=mode))
                found.append(measure(source, base.with_values({"matcher.name": matcher})))
                rows.append({"matcher": matcher, "mode": mode, "recording": path.name} | summarise(found[-1:]))
            rows.append({"matcher": matcher, "mode": mode, "recording": "all"} | summarise(found))
    print(_table(rows))
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def measure(source: Source, config: Config) -> Consistency:
    """Runs odometry over a recording with exact truth at every frame."""
    truth = source.groundtruth()
    true_poses = dict(zip(truth.stamps_ns.tolist(), torch.as_tensor(truth.T_WC, dtype=torch.float64)))
    pipeline, values = Pipeline(config), []
    try:
        with Progress(f"{source.name} {source.mode} {config.matcher.name}", source.length) as progress:
            for i, frame in enumerate(source):
                result = pipeline.process(frame).bundle
                if result is not None and result.covariance_newest is not None and len(result.T_WC) >= _LEAST_KEYFRAMES:
                    problem, _, _ = pipeline.window.snapshot(frame.camera)
                    held = int(problem.fixed.nonzero()[-1]) if bool(problem.fixed.any()) else 0
                    stamps = [pipeline.window.keyframes[k].stamp_ns for k in (held, -1)]
                    true = geometry.relative(*(true_poses[stamp] for stamp in stamps))
                    values.append(_compare(geometry.relative(result.T_WC[held], result.T_WC[-1]), true, result))
                progress.update(i + 1)
    finally:
        pipeline.close()
    columns = torch.stack(values).T if values else torch.zeros(6, 0, dtype=torch.float64)
    return Consistency(*columns, -(-len(values) // config.odometry.window_keyframes))


def _compare(estimate: Tensor, true: Tensor, result: BAResult) -> Tensor:
    """NEES of the pose, the same for independent observations, NEES of position and of rotation, error in metres and the claimed one, (6,)."""
    e, covariance = geometry.local(estimate, true), result.covariance_newest
    blocks = (slice(0, 6), slice(0, 3), slice(3, 6))
    nees = [e[block] @ torch.linalg.solve(covariance[block, block], e[block]) for block in blocks]
    return torch.stack(
        [nees[0], nees[0] * result.inflation, *nees[1:], e[:3].norm(), covariance[:3, :3].trace().sqrt()]
    )


def summarise(runs: list[Consistency]) -> dict[str, Any]:
    """The mean over all windows of some runs, and the interval in which it lies with 95 % when covariances are true."""
    from scipy.stats import chi2

    nees = torch.cat([r.nees for r in runs])
    independent = sum(r.independent for r in runs)
    low, high = (
        float(chi2.ppf(q, 6 * independent) / independent) if independent else float("nan") for q in (0.025, 0.975)
    )
    mean = float(nees.mean()) if len(nees) else float("nan")
    return {
        "windows": len(nees),
        "nees": mean,
        "low": low,
        "high": high,
        "inside": low <= mean <= high,
        "median": float(nees.median()) if len(nees) else float("nan"),
        "naive": float(torch.cat([r.naive for r in runs]).mean()),
        "position_nees": float(torch.cat([r.position for r in runs]).mean()),
        "rotation_nees": float(torch.cat([r.rotation for r in runs]).mean()),
        "error_mm": 1e3 * float(torch.cat([r.error_m for r in runs]).square().mean().sqrt()),
        "claimed_mm": 1e3 * float(torch.cat([r.claimed_m for r in runs]).square().mean().sqrt()),
    }


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
