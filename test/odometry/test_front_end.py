"""What share of landmarks is usual, what a pose's share says against it, and whether those found lie together."""

import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.odometry.front_end import InlierRatio
from imatching_ros.odometry.front_end import LandmarkMatches
from imatching_ros.odometry.front_end import LandmarkSearch
from imatching_ros.odometry.front_end import PoseEstimate
from imatching_ros.odometry.local_map import Keyframe, Window
from odometry_scenes import CAMERA, configure


def seen(residual_px, unmatched: int) -> tuple[LandmarkMatches, PoseEstimate]:
    count = len(residual_px)
    rows = torch.arange(count + unmatched)
    matches = LandmarkMatches(rows[:count], torch.zeros(count, 2), torch.ones(count), torch.ones(count), rows[count:])
    residual = torch.as_tensor(residual_px, dtype=torch.float64)
    return matches, PoseEstimate(geometry.identity(), residual < 3, residual, torch.eye(6, dtype=torch.float64))


def test_shares_are_measured_by_what_is_usual():
    ratio = InlierRatio()
    usual = seen([1.0] * 8 + [5.0], 1)  # 8 of 10
    assert ratio.relative(*usual, 3.0) == 1.0  # nothing is known yet
    ratio.update(*usual, 3.0)
    assert ratio.usual == pytest.approx(0.8)
    few = seen([1.0] * 2 + [5.0] * 2, 6)
    assert ratio.relative(*few, 3.0) == pytest.approx(0.25) and ratio.relative(*few, 6.0) == pytest.approx(0.5)
    ratio.update(*few, 3.0)
    assert ratio.usual == pytest.approx(0.74)
    ratio.reset()
    assert ratio.relative(*few, 3.0) == 1.0


def test_landmarks_without_a_residual_are_not_found():
    ratio = InlierRatio()
    ratio.update(*seen([1.0, 1.0], 0), 3.0)
    assert ratio.relative(*seen([1.0, float("nan")], 0), 3.0) == pytest.approx(0.5)


@pytest.mark.parametrize("together, expected", [(True, 1.0), (False, 0.25)])
def test_support_tells_a_hidden_part_from_scattered_agreement(together, expected):
    x, y = torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij")
    points = (
        torch.stack([(x - 9.5) / 20, (y - 9.5) / 25, torch.full_like(x, 1, dtype=torch.float64)], -1)
        .reshape(-1, 3)
        .double()
    )
    right = (x.flatten() < 5) if together else torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.25
    order = torch.cat([right.nonzero()[:, 0], (~right).nonzero()[:, 0]])
    window = Window()
    window.add_keyframe(Keyframe(0, 0, torch.zeros(1, 240, 320, dtype=torch.uint8), None), geometry.identity())
    rows = window.add_landmarks(0, torch.zeros(400, 2), None)
    window.set_positions(rows, points[order])
    matches, estimate = seen([1.0] * int(right.sum()), int((~right).sum()))
    assert LandmarkSearch(configure(), None).support(window, CAMERA, matches, estimate) == pytest.approx(
        expected, abs=0.1
    )
