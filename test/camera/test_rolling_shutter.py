"""Rows that are exposed one after the other: where they see points, and what the middle row would have seen."""

from dataclasses import replace

import pytest
import torch

from imatching_ros.camera import rolling_shutter
from imatching_ros.camera.model import Camera
from imatching_ros.core import geometry
from imatching_ros.core.errors import CameraError

GLOBAL = Camera(320, 240, 256.0, 256.0, 159.5, 119.5, "plumb_bob", (0.1, -0.05, 0.001, 0.0))
ROLLING = replace(GLOBAL, readout_s=0.02)
TWIST = torch.tensor([0.4, -0.2, 0.3, 0.3, 2.0, -0.5], dtype=torch.float64)  # walking, 120 degrees/s


def points() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    uv = torch.rand(200, 2, generator=generator, dtype=torch.float64) * torch.tensor([260.0, 180.0]) + 30
    depth = 1 + 4 * torch.rand(200, generator=generator, dtype=torch.float64)
    return geometry.back_project(GLOBAL, uv, depth)


def expose(points_C: torch.Tensor, twist: torch.Tensor) -> torch.Tensor:
    """Raw px (N, 2): the row at which the camera, under way, sees each point, found by iterating until it stays."""
    uv = GLOBAL.project(points_C)
    for _ in range(20):
        delay_s = (uv[:, 1:] / (GLOBAL.height - 1) - 0.5) * ROLLING.readout_s
        uv = GLOBAL.project(geometry.act(geometry.inverse(geometry.exp(twist * delay_s)), points_C))
    return uv


def test_points_are_put_where_the_middle_row_sees_them():
    points_C = points()
    uv = expose(points_C, TWIST)
    ideal = geometry.project(GLOBAL, points_C)
    assert float((GLOBAL.undistort(uv) - ideal).norm(dim=1).median()) > 2  # px, without the correction
    found = rolling_shutter.undistort(ROLLING, uv, TWIST, points_C[:, 2])
    # The depth is that of the middle row, not of the point's own.
    assert float((found - ideal).norm(dim=1).max()) < 0.05


def test_a_prediction_lies_in_the_row_that_sees_the_point():
    points_C = points()
    uv, inside = rolling_shutter.see(ROLLING, points_C, TWIST)
    assert inside.all() and float((uv - expose(points_C, TWIST)).norm(dim=1).max()) < 0.3


def test_a_global_shutter_and_a_camera_at_rest_change_nothing():
    points_C = points()
    uv = GLOBAL.project(points_C)
    same = rolling_shutter.undistort(GLOBAL, uv, TWIST, points_C[:, 2])
    assert same.equal(GLOBAL.undistort(uv)) and rolling_shutter.see(GLOBAL, points_C, TWIST)[0].allclose(uv)
    still = rolling_shutter.undistort(ROLLING, uv, torch.zeros(6), points_C[:, 2])
    assert torch.allclose(still, GLOBAL.undistort(uv), atol=1e-9)


def test_a_readout_time_that_cannot_be_is_refused():
    with pytest.raises(CameraError, match="readout time is -0.01 s, expected 0"):
        replace(GLOBAL, readout_s=-0.01)
