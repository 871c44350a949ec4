"""Rolling shutter: the rows of an image are exposed one after the other, while the camera moves.

The pose of an image is that of its middle row. A row is exposed from the pose that the constant-velocity twist reaches by then.
Points are moved to where the middle row's pose would have seen them once, when they are measured, so that all that follows deals with one
pose an image. This is the per-row model of Hedborg et al., Rolling Shutter Bundle Adjustment, CVPR 2012, with the velocity held.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..core import geometry
from .model import Camera

FAR_AWAY = 1e6  # depth of points that a translation does not shift, in baselines or metres


def undistort(camera: Camera, uv: Tensor, twist: Tensor, depth: Tensor) -> Tensor:
    """Raw px (N, 2) -> ideal px (N, 2) float64, as the pose of the middle row would have seen the points.

    Differentiable in uv.

    Args:
        twist: (6,) or (N, 6), [rho, phi] per second in the camera's frame. depth: (N,) along the optical axis, in the unit of the twist;
            where it is not above zero, points are taken to be far away.
    """
    ideal = camera.undistort(uv.double())
    if camera.readout_s == 0:
        return ideal
    depth = torch.where(depth > 0, depth, FAR_AWAY)
    points_C = geometry.back_project(camera, ideal, depth)
    return geometry.project(camera, geometry.act(_row_pose(camera, uv, twist), points_C))


def see(camera: Camera, points_C: Tensor, twist: Tensor) -> tuple[Tensor, Tensor]:
    """Points (..., 3) in the middle row's frame -> raw px (..., 2) where their own rows see them, and which (...,) lie in the image.

    `twist`: (6,) or (..., 6), as in `undistort`. The row is that of the middle row's projection; the next iteration would move it by
    less than a hundredth of the shift.
    """
    uv, inside = geometry.see(camera, points_C)
    if camera.readout_s == 0:
        return uv, inside
    return geometry.see(camera, geometry.act(geometry.inverse(_row_pose(camera, uv, twist)), points_C))


def skew_px(camera: Camera, twist: Tensor, readout_s: float, depth: float = math.inf) -> float:
    """By how much a readout time shifts the outermost rows of points at a depth at a twist (6,) per second, or the worst of (N, 6), at most, px.

    `depth` is in the unit of the twist; by default the points are so far away that rotation alone shifts them.
    """
    numbers = twist.numpy(force=True)  # a frame asks several times; torch takes longer to begin
    rate = np.linalg.norm(numbers[..., 3:], axis=-1) + np.linalg.norm(numbers[..., :3], axis=-1) / max(depth, 1e-9)
    return float(rate.max()) * readout_s / 2 * camera.fx


def _row_pose(camera: Camera, uv: Tensor, twist: Tensor) -> Tensor:
    """Poses (..., 7) of the camera, in the frame of the middle row, when the rows of raw px (..., 2) were exposed."""
    row = uv[..., 1:].double().clamp(0, camera.height - 1)
    delay_s = (row / (camera.height - 1) - 0.5) * camera.readout_s
    return geometry.exp(torch.as_tensor(twist).double() * delay_s)
