"""When a map with one camera can start."""

import torch

from imatching_ros.core import geometry
from imatching_ros.core.config import Config
from imatching_ros.odometry.initialization import MonoInitializer, InitialViews, View
from imatching_ros.matching.klt import KltMatcher
from odometry_scenes import CAMERA


class Still:
    """A frame of which only the camera is asked."""

    camera = CAMERA


def view(points, T_WC, noise_px=0.1, seed=0):
    uv = geometry.project(CAMERA, geometry.act(geometry.inverse(T_WC), points))
    uv = uv + noise_px * torch.randn(uv.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return View(Still(), None, None, uv.float(), torch.ones(len(uv), dtype=torch.bool), torch.full((len(uv),), 0.5))


def test_points_beyond_fifty_baselines_start_a_map():
    config = Config().with_values({"odometry.start_parallax": 0.01})
    torch.manual_seed(0)
    points = torch.rand(200, 3, dtype=torch.float64) * torch.tensor([40.0, 30.0, 95.0]) + torch.tensor(
        [-20.0, -15.0, 25.0]
    )
    start = MonoInitializer(config.odometry, config.bundle, KltMatcher())
    T = geometry.exp(torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64))
    start._views = [view(points, geometry.identity()), view(points, T, seed=1)]
    found = start._solve(1.0)
    assert isinstance(found, InitialViews), found
    assert float(found.T_WC[-1, 0] / found.T_WC[-1, :3].norm()) > 0.99
