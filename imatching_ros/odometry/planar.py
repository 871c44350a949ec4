"""The base of a wheeled robot stays on a plane: a soft prior on the height, roll and pitch of the map.

Bundle adjustment leaves one rigid motion of its window free, and holds it at the pose of a keyframe whose error is the drift so far. The prior acts there:
after each keyframe a Kalman filter compares height and tilt of the newest pose with the plane, and the whole map is moved by the correction. No
reprojection residual changes, so the learner's gradient stays exact.

The filter keeps the covariance of the drift since the plane was found. A ramp is not drift: where the tilt or the height contradicts the plane by more than
both explain, a new plane begins at the pose, level as the first one if it is nearly so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import geometry
from ..core.residuals import RobustKernel
from ..core.types import BAResult, BAStatus
from .motion import PoseCovariance

NO_MOUNTING = "the pose of the camera on the base is not known"


class PlanarMotion:
    """Only the base's up axis in the camera matters: on a plane the height of the camera stays as it is.

    Attributes:
        problem: why it is not used; empty when it is.
    """

    # Of the base against its plane: suspension, unevenness and an inexact mounting.
    TILT_SIGMA = math.radians(0.5)
    HEIGHT_SIGMA = 0.005  # of the median depth, for the map of one camera has no metres
    CHI2_99_9 = 16.27  # 99.9 % quantile of chi-square with 3 degrees of freedom
    LEVEL = math.radians(2.0)  # a new plane tilted by less is parallel to the first one
    KERNEL = RobustKernel("geman_mcclure", 2.0)

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._up_C: Tensor | None = None
        self._why = NO_MOUNTING
        self.begin()

    @property
    def problem(self) -> str:
        return self._why if self._enabled and self._up_C is None else ""

    @property
    def used(self) -> bool:
        return self._enabled and self._up_C is not None

    def describe(self) -> str:
        """`off`, `used`, or why it is not used."""
        return "used" if self.used else self.problem or "off"

    def mount(self, T_BC: Tensor | None, why: str = NO_MOUNTING) -> None:
        """Takes over the pose (7,) of the camera in the base, whose z axis is up; None: it is not known, and `why`."""
        up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        self._up_C = None if T_BC is None else geometry.rotate(geometry.inverse(T_BC)[3:], up)
        self._why = why

    def begin(self) -> None:
        """Time starts again: the next plane is the one of the start."""
        self._first_up_W: Tensor | None = None
        self.begin_map()

    def begin_map(self) -> None:
        """Another map, which begins at a plane of its own."""
        self._origin_W: Tensor | None = None
        self._up_W = torch.zeros(3, dtype=torch.float64)
        self._covariance = PoseCovariance()

    def rescale(self, factor: float, centre: Tensor) -> None:
        """The same plane in a map that is scaled about a point (3,)."""
        if self._origin_W is not None:
            self._origin_W = centre + (self._origin_W - centre) * factor
            self._covariance.rescale(factor, centre)

    def correct(self, T_WC: Tensor, result: BAResult, keyframe_dropped: bool, median_depth: float) -> Tensor | None:
        """The motion (7,) of the map that brings it towards the plane; None where it stays.

        Args:
            T_WC: (M, 7) keyframes as the newest bundle adjustment left them.
            result: of that, in the scale of the map.
        """
        if not self._enabled or self._up_C is None:
            return None
        if self._origin_W is None:
            self._find_plane(T_WC[0], self._up_C)
        self._covariance.propagate(result, keyframe_dropped)
        if result.status is BAStatus.DEGENERATE:
            return None
        newest = T_WC[-1]
        height = median_depth * self.HEIGHT_SIGMA
        noise = torch.tensor([height, self.TILT_SIGMA, self.TILT_SIGMA], dtype=torch.float64).square().diag()
        H, e = self._measure(newest, self._up_C)
        distance = self._covariance.distance(H, e, noise)
        if distance > self.CHI2_99_9:
            self._find_plane(newest, self._up_C)
            return None
        weight = float(self.KERNEL.weight(torch.tensor(distance)))
        corrected = geometry.retract(newest, self._covariance.correct(H, e, noise / weight))
        T = geometry.compose(corrected, geometry.inverse(newest))
        self._covariance.move(T)
        return T

    def _find_plane(self, T_WC: Tensor, up_C: Tensor) -> None:
        """The plane on which the base stands at a pose (7,): a slope, or level again, by the tilt's drift since it was level."""
        up_W, drift = geometry.rotate(T_WC[3:], up_C), torch.zeros(6, 6, dtype=torch.float64)
        if self._first_up_W is None:
            self._first_up_W = up_W
        elif float(geometry.angle(up_W, self._first_up_W)) < self.LEVEL:
            up_W, axes = self._first_up_W, _across(up_C)
            drift[3:, 3:] = self.TILT_SIGMA**2 * axes.T @ axes
        self._origin_W, self._up_W = T_WC[:3].clone(), up_W
        self._covariance = PoseCovariance()
        self._covariance.add(drift, T_WC)

    def _measure(self, T_WC: Tensor, up_C: Tensor) -> tuple[Tensor, Tensor]:
        """Of height and tilt about two axes at a pose (7,): the derivative H (3, 6) by its twist, and the error (3,), plane minus pose."""
        assert self._origin_W is not None, "the plane is found first"
        plane_C = geometry.rotate(geometry.inverse(T_WC)[3:], self._up_W)
        axes = _across(up_C)
        H = T_WC.new_zeros(3, 6)
        H[0, :3], H[1:, 3:] = plane_C, torch.linalg.cross(axes, plane_C.expand_as(axes))
        height = (T_WC[:3] - self._origin_W) @ self._up_W
        return H, -torch.cat([height[None], axes @ plane_C])


def _across(up: Tensor) -> Tensor:
    """(2, 3): two axes at right angles to a unit vector (3,) and to each other."""
    return torch.linalg.svd(up[None]).Vh[1:]
