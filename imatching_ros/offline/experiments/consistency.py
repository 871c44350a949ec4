"""The NEES of the newest keyframe's pose: whether the covariance of bundle adjustment is true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core import geometry
from ...core.config import Config
from ...core.types import BAResult, Frame, OdometryOutput
from ...pipeline import Pipeline
from ..recordings.base import Source
from .odometry_runs import drive


@dataclass(frozen=True)
class Consistency:
    """The windows of one run; N of them have a covariance."""

    nees: Tensor  # (N,) float64 of the newest keyframe's pose, 6 degrees of freedom
    naive: Tensor  # (N,) the same if observations were independent: without `BAResult.covariance_scale`
    position: Tensor  # (N,) of its position alone, 3 degrees of freedom
    rotation: Tensor  # (N,) of its rotation alone, 3
    error_m: Tensor  # (N,)
    claimed_m: Tensor  # (N,) root of the trace of the position's covariance
    independent: int  # how many windows there are without common keyframes


def measure_consistency(source: Source, config: Config) -> Consistency:
    """Runs odometry over a recording with exact truth at every frame."""
    least_keyframes = 3  # with two, the covariance is that of one pair
    truth = source.groundtruth()
    assert truth is not None, "rendered recordings have truth"
    true_poses = dict(zip(truth.stamps_ns.tolist(), torch.as_tensor(truth.T_WC, dtype=torch.float64)))
    values: list[Tensor] = []

    def observe(pipeline: Pipeline, frame: Frame, output: OdometryOutput) -> None:
        result = output.bundle
        if result is None or result.covariance_newest is None or len(result.T_WC) < least_keyframes:
            return
        problem = pipeline.window.snapshot(frame.camera)
        assert problem is not None, "the window was just solved"
        fixed = problem[0].fixed
        held = int(fixed.nonzero()[-1]) if bool(fixed.any()) else 0
        true = [true_poses[pipeline.window.keyframes[k].stamp_ns] for k in (held, -1)]
        estimate = geometry.relative(result.T_WC[held], result.T_WC[-1])
        values.append(_compare(estimate, geometry.relative(*true), result))

    drive(source, config, observe=observe)
    columns = torch.stack(values).T if values else torch.zeros(6, 0, dtype=torch.float64)
    return Consistency(*columns, -(-len(values) // config.odometry.window_keyframes))


def _compare(estimate: Tensor, true: Tensor, result: BAResult) -> Tensor:
    """NEES of the pose, the same for independent observations, NEES of position and of rotation, error in metres and the claimed one, (6,)."""
    e, covariance = geometry.local(estimate, true), result.covariance_newest
    assert covariance is not None
    blocks = (slice(0, 6), slice(0, 3), slice(3, 6))
    nees = [e[block] @ torch.linalg.solve(covariance[block, block], e[block]) for block in blocks]
    return torch.stack(
        [nees[0], nees[0] * result.covariance_scale, *nees[1:], e[:3].norm(), covariance[:3, :3].trace().sqrt()]
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
