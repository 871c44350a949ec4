"""The motion between two views, and when it is not determined."""

import pytest
import torch

from imatching_ros.bundle import RotationPrior
from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig
from imatching_ros.odometry.two_view import PairMatches, TwoViews, two_view_geometry
from odometry_scenes import CAMERA


def pixels(points: torch.Tensor, T_WC: torch.Tensor, seed: int, noise_px: float) -> torch.Tensor:
    uv = geometry.project(CAMERA, geometry.act(geometry.inverse(T_WC), points))
    return uv + noise_px * torch.randn(uv.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def move(*twist: float) -> torch.Tensor:
    return geometry.exp(torch.tensor(twist, dtype=torch.float64))


@pytest.fixture
def points() -> torch.Tensor:
    """Up to 120 m away."""
    unit = torch.rand(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return unit * torch.tensor([40.0, 30.0, 95.0]) + torch.tensor([-20.0, -15.0, 25.0])


def solve(
    points: torch.Tensor,
    T: torch.Tensor,
    noise_px: float = 0.1,
    seed: int = 0,
    wanted_px: float = 3.0,
    turned: RotationPrior | None = None,
) -> TwoViews | str:
    a, b = pixels(points, geometry.identity(), seed, noise_px), pixels(points, T, seed + 1, noise_px)
    sigma = torch.full((len(points),), noise_px, dtype=torch.float64)
    return two_view_geometry(CAMERA, PairMatches(a, b, sigma, sigma), wanted_px, 50, BundleConfig(), turned=turned)


def test_points_beyond_fifty_baselines_start_a_map(points):
    found = solve(points, move(1.0, 0, 0, 0, 0, 0))
    assert isinstance(found, TwoViews), found
    assert float(found.T_last[0] / found.T_last[:3].norm()) > 0.99 and int(found.inlier.sum()) > 150


def test_a_rotation_and_a_plane_start_none(points):
    assert "no parallax" in str(solve(points, move(0, 0, 0, 0, 0.1, 0)))
    plane = torch.cat([points[:, :2] / 5, torch.full((200, 1), 10.0, dtype=torch.float64)], 1)
    assert isinstance(solve(plane, move(1.0, 0, 0, 0, 0, 0)), str)


def boxes_on_a_wall(seed: int) -> torch.Tensor:
    """95 points at the side of the image, 15 % of them far behind the others, which are in one plane."""
    g = torch.Generator().manual_seed(seed)
    xy = torch.rand(95, 2, generator=g, dtype=torch.float64) * torch.tensor([1.2, 2.0]) - torch.tensor([1.6, 1.0])
    behind = torch.rand(95, 1, generator=g, dtype=torch.float64) < 0.15
    return torch.cat([xy, 4 + 0.1 * xy[:, :1]], 1) * (1 + 0.8 * behind)


@pytest.mark.parametrize("twist", [(0.12, 0.02, 0.05, 0, 0.13, 0), (0.1, 0.05, -0.08, 0, -0.13, 0)])
def test_near_a_plane_no_motion_is_wrong(twist):
    T, right = move(*twist), 0
    for seed in range(12):
        points = boxes_on_a_wall(seed)
        found = solve(points, T, noise_px=0.3, seed=2 * seed, wanted_px=2.0)
        if isinstance(found, TwoViews):
            assert float(geometry.log_so3(geometry.relative(found.T_last, T)[3:]).norm()) < 0.017, seed
            right += 1
    assert right >= 1


def measured(T: torch.Tensor, sigma: float = 1e-3) -> RotationPrior:
    return RotationPrior(T[3:], sigma**2 * torch.eye(3, dtype=torch.float64))


def test_near_a_plane_a_measured_rotation_tells_the_motions_apart():
    T, alone, known = move(0.12, 0.02, 0.05, 0, 0.13, 0), 0, 0
    for seed in range(6):
        alone += isinstance(solve(boxes_on_a_wall(seed), T, 0.5, seed), TwoViews)
        found = solve(boxes_on_a_wall(seed), T, 0.5, seed, turned=measured(T))
        if isinstance(found, TwoViews):
            known += 1
            assert float(geometry.log_so3(geometry.relative(found.T_last, T)[3:]).norm()) < 5e-3
    assert known > alone


def test_a_motion_whose_rotation_is_not_the_measured_one_starts_no_map(points):
    T, other = move(1.0, 0, 0, 0, 0, 0), move(0, 0, 0, 0.05, 0, 0)
    assert isinstance(solve(points, T, turned=measured(T)), TwoViews)
    assert isinstance(solve(points, T, turned=measured(other)), str)
