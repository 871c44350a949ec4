"""Frames whose state is TRACKING although the motion over the last ten frames is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...core import geometry
from ...core.types import OdometryOutput, TrackingState
from ..recordings.truth import Trajectory
from .motion_consistency import motion_with_covariance, nees

FRAMES = 10  # over which motion is compared with the truth
MAX_ROTATION_DEG = 5.0
MAX_TRANSLATION = 0.2  # of the true translation; and more than
MIN_DEPTH_SHARE = 0.02  # of the median depth, below which a translation is too small to be judged relative to itself
MAX_SCALE_CHANGE = 1.3
CHI2_95_6 = 12.59  # 95 % quantile of chi-square with 6 degrees of freedom


@dataclass(frozen=True)
class TrackingErrors:
    """Indices of frames, and the largest errors of the motion over `FRAMES` frames that end at the judged ones."""

    judged: tuple[int, ...]  # TRACKING, as was the frame `FRAMES` before in the same map; the truth of both is known
    wrong: tuple[int, ...]  # of these
    uncovered: tuple[int, ...]  # of these, where the covariance of the motion does not contain the error
    rotation_deg: float  # 0 where none is judged
    scale_change: float  # factor from 1 on, noise left out


def find_tracking_errors(
    outputs: Sequence[OdometryOutput], median_depths: Sequence[float], truth: Trajectory, every: bool = False
) -> TrackingErrors:
    """Compares the published motion over `FRAMES` frames with the truth.

    A frame is wrong when the rotation is off by more than 5 degrees, the translation by more than 20 % of itself and 2 % of the median depth,
    or the scale changed by more than 1.3. A change of scale that makes no more than errors of 2 % of the median depth in both motions is noise.

    Args:
        outputs: one per frame. median_depths: of the map as seen from each frame, in units of the map.
        every: judge all frames with a pose, whatever their state.
    """
    matrices, known = truth.at(np.array([o.stamp_ns for o in outputs], np.int64))
    T_true = geometry.from_matrix(torch.from_numpy(matrices))
    scales = _Scales()
    judged, wrong, uncovered, rotations_deg, changes = [], [], [], [0.0], [1.0]
    for i in range(FRAMES, len(outputs)):
        first, last = outputs[i - FRAMES], outputs[i]
        tracking = every or first.state is last.state is TrackingState.TRACKING
        if not tracking or first.map_id != last.map_id or not known[[i - FRAMES, i]].all():
            continue
        if first.T_WC is None or last.T_WC is None:
            continue
        judged.append(i)
        moved, true = geometry.relative(first.T_WC, last.T_WC), geometry.relative(T_true[i - FRAMES], T_true[i])
        rotations_deg.append(_rotation_error_deg(moved, true))
        scale = scales.before(i, last, moved[:3], true[:3])
        change, off = scales.compare(i, last, moved[:3], true[:3], median_depths[i])
        changes.append(change)
        if change > MAX_SCALE_CHANGE or off or rotations_deg[-1] > MAX_ROTATION_DEG:
            wrong.append(i)
            covariance = motion_with_covariance(first, last)[1]
            error = moved[:3] * scale.tolerance  # of the motion that the scale was measured by, and not of this one
            covariance[:3, :3] += torch.outer(error, error)
            if nees(moved[None], covariance[None], true[None], scale.value) > CHI2_95_6:
                uncovered.append(i)
    return TrackingErrors(tuple(judged), tuple(wrong), tuple(uncovered), max(rotations_deg), max(changes))


def _rotation_error_deg(moved: Tensor, true: Tensor) -> float:
    return float(torch.rad2deg(geometry.log_so3(geometry.relative(moved, true)[3:]).norm()))


@dataclass(frozen=True)
class _Scale:
    """Metres per unit of the map, as one motion shows it."""

    value: float
    tolerance: float  # relative: an error of this share of the motion is noise


class _Scales:
    """Judges translations by the scale of the map, which only the truth gives where odometry is not metric.

    The scale before a motion is that of the last motion in the same map that ended before it began and was long enough. What may be off in
    that motion makes its scale uncertain, more so the shorter it was.
    """

    def __init__(self) -> None:
        self._measured: dict[int, dict[int, _Scale]] = {}  # map -> {index of the last frame: scale}

    def before(self, i: int, output: OdometryOutput, moved: Tensor, true: Tensor) -> _Scale:
        """The scale before the motion `moved` (3,), which ended at frame i; its own where none is known."""
        in_map = self._measured.setdefault(output.map_id, {})
        known = [scale for end, scale in in_map.items() if end <= i - FRAMES]
        own = _Scale(float(true.norm()) / max(float(moved.norm()), 1e-12), 0.0)
        return _Scale(1.0, 0.0) if output.metric else known[-1] if known else own

    def compare(
        self, i: int, output: OdometryOutput, moved: Tensor, true: Tensor, median_depth: float
    ) -> tuple[float, bool]:
        """Compares the translation `moved` (3,), which ended at frame i, with the true one (3,) in metres.

        Returns:
            The factor from 1 on by which the scale has changed, 1 where that may be noise; whether the translation is off otherwise.
        """
        length, true_length = max(float(moved.norm()), 1e-12), float(true.norm())
        own, reference = _Scale(true_length / length, 0.0), self.before(i, output, moved, true)
        least_m = MIN_DEPTH_SHARE * median_depth * reference.value
        noise_m = least_m + reference.tolerance * length * reference.value
        scale, changed = reference.value, 1.0
        if true_length > least_m:
            self._measured[output.map_id][i] = replace(own, tolerance=least_m / true_length)
            change = own.value / reference.value
            if abs(true_length - length * reference.value) > noise_m:
                changed = max(change, 1 / change)
            if not output.metric:  # what remains is the direction
                scale, noise_m = max(float(moved @ true), 0.0) / length**2, least_m
        off_m = float((moved * scale - true).norm())
        return changed, off_m > MAX_TRANSLATION * true_length and off_m > noise_m
