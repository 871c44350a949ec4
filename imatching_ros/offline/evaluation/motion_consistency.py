"""Whether the covariance of the published motion is true: its NEES over one second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core import geometry
from ...core.types import OdometryOutput, TrackingState
from ..recordings.truth import Trajectory

SPAN_NS = 1_000_000_000
SPAN_TOLERANCE_NS = 50_000_000


@dataclass(frozen=True)
class MotionConsistency:
    """Means over pairs of frames one second apart: 6, 3 and 3 where the covariance is true."""

    pairs: int
    nees: float
    nees_rotation: float
    nees_position: float


def measure_motion_consistency(outputs: Sequence[OdometryOutput], truth: Trajectory) -> MotionConsistency | None:
    """NEES (normalized estimation error squared, Bar-Shalom et al. 2001) of the published motion over one second.

    The frames of a pair are TRACKING in the same map, one second apart to 5 %, and their truth is known. Where odometry is
    not metric, one scale is fitted to all pairs: a scale that drifts is an error.

    Returns:
        None without a pair.
    """
    matrices, known = truth.at(np.array([o.stamp_ns for o in outputs], np.int64))
    T_true = geometry.from_matrix(torch.from_numpy(matrices))
    pairs = _find_pairs(outputs, known)
    if not pairs:
        return None
    motions = [motion_with_covariance(outputs[i], outputs[j]) for i, j in pairs]
    moved, covariance = torch.stack([m for m, _ in motions]), torch.stack([c for _, c in motions])
    true = geometry.relative(*(T_true[list(k)] for k in zip(*pairs)))
    scale = 1.0 if outputs[pairs[-1][1]].metric else _fit_scale(moved, true)
    parts = (slice(0, 6), slice(3, 6), slice(0, 3))
    return MotionConsistency(len(pairs), *(nees(moved, covariance, true, scale, part) for part in parts))


def nees(moved: Tensor, covariance: Tensor, true: Tensor, scale: float, part: slice = slice(None)) -> float:
    """Mean NEES of motions (N, 7), in units of the map, with covariances (N, 6, 6) against the true ones (N, 7).

    `scale`: metres per unit. `part`: of [rho, phi].
    """
    unit = torch.tensor([scale] * 3 + [1.0] * 3, dtype=torch.float64)
    error = geometry.local(torch.cat([moved[:, :3] * scale, moved[:, 3:]], 1), true)[:, part]
    covariance = (unit[:, None] * covariance * unit)[:, part, part]
    return float((error[:, None] @ torch.linalg.solve(covariance, error[..., None])).mean())


def motion_with_covariance(first: OdometryOutput, last: OdometryOutput) -> tuple[Tensor, Tensor]:
    """The motion (7,) between two frames of a map and its covariance (6, 6), both of which must have a pose.

    The covariance is the growth of that of the map and drift, plus what each pose adds to it by its own matches: what the two poses
    share has cancelled. It belongs to the perturbation `motion * Exp([rho, phi])`.
    """
    assert first.T_WC is not None and first.covariance is not None and first.covariance_in_map is not None
    assert last.T_WC is not None and last.covariance is not None and last.covariance_in_map is not None
    adjoint = geometry.adjoint(geometry.relative(last.T_WC, first.T_WC))
    before = adjoint @ (first.covariance - first.covariance_in_map) @ adjoint.T
    values, vectors = torch.linalg.eigh(last.covariance - last.covariance_in_map - before)
    # A window that is known better than the one before takes nothing away.
    growth = vectors @ torch.diag(values.clamp_min(0)) @ vectors.T
    in_map = last.covariance_in_map + adjoint @ first.covariance_in_map @ adjoint.T
    return geometry.relative(first.T_WC, last.T_WC), growth + in_map


def _find_pairs(outputs: Sequence[OdometryOutput], known: np.ndarray) -> list[tuple[int, int]]:
    """Indices of the frames, and of those closest to one second later."""
    stamps_ns = np.array([o.stamp_ns for o in outputs], np.int64)
    pairs = []
    for i, first in enumerate(outputs):
        off_ns = np.abs(stamps_ns - stamps_ns[i] - SPAN_NS)
        j = int(off_ns.argmin())
        last, close = outputs[j], off_ns[j] <= SPAN_TOLERANCE_NS
        tracking = first.state is last.state is TrackingState.TRACKING and first.map_id == last.map_id
        if tracking and close and known[[i, j]].all() and first.T_WC is not None and last.T_WC is not None:
            pairs.append((i, j))
    return pairs


def _fit_scale(moved: Tensor, true: Tensor) -> float:
    """Metres per unit of the map, from lengths alone, symmetric in both (Horn 1987)."""
    return float((true[:, :3].square().sum() / moved[:, :3].square().sum().clamp_min(1e-24)).sqrt())
