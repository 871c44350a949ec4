"""When a map with one camera can start."""

import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.odometry.initialization import TwoViews, two_view_geometry
from odometry_scenes import CAMERA


def pixels(points: torch.Tensor, T_WC: torch.Tensor, seed: int = 0) -> torch.Tensor:
    uv = geometry.project(CAMERA, geometry.act(geometry.inverse(T_WC), points))
    return uv + 0.1 * torch.randn(uv.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def move(*twist: float) -> torch.Tensor:
    return geometry.exp(torch.tensor(twist, dtype=torch.float64))


@pytest.fixture
def points() -> torch.Tensor:
    """Up to 120 m away."""
    unit = torch.rand(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return unit * torch.tensor([40.0, 30.0, 95.0]) + torch.tensor([-20.0, -15.0, 25.0])


def solve(points: torch.Tensor, T: torch.Tensor) -> TwoViews | str:
    return two_view_geometry(CAMERA, pixels(points, geometry.identity()), pixels(points, T, seed=1), 3.0, 50)


def test_points_beyond_fifty_baselines_start_a_map(points):
    found = solve(points, move(1.0, 0, 0, 0, 0, 0))
    assert isinstance(found, TwoViews), found
    assert float(found.T_last[0] / found.T_last[:3].norm()) > 0.99 and int(found.inlier.sum()) > 150


def test_a_rotation_and_a_plane_start_none(points):
    assert "no parallax" in str(solve(points, move(0, 0, 0, 0, 0.1, 0)))
    plane = torch.cat([points[:, :2] / 5, torch.full((200, 1), 10.0, dtype=torch.float64)], 1)
    assert isinstance(solve(plane, move(1.0, 0, 0, 0, 0, 0)), str)
