"""The usual ratio of inliers, a pose's ratio relative to it, and whether its inliers lie together."""

from dataclasses import replace

import pytest
import torch

from imatching_ros.camera import rolling_shutter
from imatching_ros.core import geometry
from imatching_ros.core.timing import Clock
from imatching_ros.core.types import Frame
from imatching_ros.matching.base import Features
from imatching_ros.matching.klt import KltMatcher
from imatching_ros.odometry.front_end import (
    FeatureFrame,
    FrontEnd,
    LandmarkMatches,
    Localization,
)
from imatching_ros.odometry.local_map import Keyframe, Window
from imatching_ros.odometry.motion import TrackedFrame
from imatching_ros.odometry.pose_estimator import PoseEstimate
from odometry_scenes import CAMERA, STEP_NS, configure


@pytest.fixture
def front_end() -> FrontEnd:
    return FrontEnd(configure(), KltMatcher())


def seen(residual_px, unmatched: int) -> Localization:
    count = len(residual_px)
    rows = torch.arange(count + unmatched)
    matches = LandmarkMatches(rows[:count], torch.zeros(count, 2), torch.ones(count), torch.ones(count), rows[count:])
    residual = torch.as_tensor(residual_px, dtype=torch.float64)
    estimate = PoseEstimate(geometry.identity(), residual < 3, residual, torch.eye(6, dtype=torch.float64))
    return Localization(Window(), matches, estimate)


def ratio(front_end: FrontEnd, found: Localization, within_px: float) -> float:
    return front_end.inlier_ratio(found.matches, found.estimate, within_px)


def test_ratios_are_relative_to_the_usual_one(front_end):
    usual = seen([1.0] * 8 + [5.0], 1)  # 8 of 10
    assert ratio(front_end, usual, 3.0) == 1.0  # nothing is known yet
    front_end.learn_inlier_ratio(usual)
    assert front_end.usual_inlier_ratio == pytest.approx(0.8)
    few = seen([1.0] * 2 + [5.0] * 2, 6)
    assert ratio(front_end, few, 3.0) == pytest.approx(0.25) and ratio(front_end, few, 6.0) == pytest.approx(0.5)
    front_end.learn_inlier_ratio(few)
    assert front_end.usual_inlier_ratio == pytest.approx(0.74)


def test_landmarks_without_a_residual_are_no_inliers(front_end):
    front_end.learn_inlier_ratio(seen([1.0, 1.0], 0))
    assert ratio(front_end, seen([1.0, float("nan")], 0), 3.0) == pytest.approx(0.5)


@pytest.mark.parametrize("together, expected", [(True, 1.0), (False, 0.25)])
def test_support_tells_a_hidden_part_from_scattered_agreement(front_end, together, expected):
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
    found = seen([1.0] * int(right.sum()), int((~right).sum()))
    assert front_end.neighbour_support(window, CAMERA, found.matches, found.estimate) == pytest.approx(
        expected, abs=0.1
    )


@pytest.mark.parametrize(
    "agree, together, strict, verified",
    [
        (4, 0.5, False, True),  # .4 of the usual share
        (4, 0.5, True, False),
        (6, 0.5, True, True),
        (2, 0.9, False, True),  # something hides the rest
        (2, 0.9, True, False),  # which confirms nothing after an interruption
        (2, 0.5, False, False),
    ],
)
def test_which_poses_are_verified_at_once(front_end, monkeypatch, agree, together, strict, verified):
    front_end.learn_inlier_ratio(seen([1.0] * 10, 0))
    found = seen([1.0] * agree, 10 - agree)
    monkeypatch.setattr(front_end, "search", lambda *_: found.matches)
    monkeypatch.setattr(front_end, "estimate", lambda *_: found.estimate)
    monkeypatch.setattr(front_end, "neighbour_support", lambda *_: together)
    image = torch.zeros(1, 240, 320, dtype=torch.uint8)
    current = FeatureFrame(Frame(1, STEP_NS, image, CAMERA), image, Features({}, 240, 320, 0))
    last = TrackedFrame(0, 0, current.features, geometry.identity(), torch.zeros(1, 2), torch.ones(1))
    result = front_end.track(Window(), last, current, [geometry.identity()], strict, Clock())
    assert result is not None and (result.cause is None) == verified


@pytest.mark.parametrize("readout_s", (0.0, 0.025))
def test_a_rolling_shutter_is_resolved_by_the_velocity_that_it_shows(front_end, readout_s):
    """A camera that begins to turn with 150 degrees/s, nothing of which is predicted."""
    camera = replace(CAMERA, readout_s=0.025)
    twist = torch.tensor([0.3, 0, 0, 0, 2.6, 0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    uv = torch.rand(300, 2, generator=generator, dtype=torch.float64) * torch.tensor([200.0, 230.0])
    points_C = geometry.back_project(CAMERA, uv, 1 + 3 * torch.rand(300, generator=generator, dtype=torch.float64))
    T_true = geometry.exp(twist * STEP_NS * 1e-9)
    uv, inside = rolling_shutter.see(camera, points_C, twist)
    image = torch.zeros(1, 240, 320, dtype=torch.uint8)
    window = Window()
    window.add_keyframe(Keyframe(0, 0, image, Features({}, 240, 320, 0)), geometry.identity())
    rows = window.add_landmarks(0, torch.zeros(300, 2), None)
    window.set_positions(rows, geometry.act(T_true, points_C))
    matches = LandmarkMatches(rows, uv.float(), torch.ones(300), torch.full((300,), 0.5), rows[:0])
    frame = Frame(1, STEP_NS, image, replace(CAMERA, readout_s=readout_s))
    current = FeatureFrame(frame, image, Features({}, 240, 320, 0))
    last = TrackedFrame(0, 0, current.features, geometry.identity(), uv.float(), points_C[:, 2])
    loose = front_end.estimate(window, current, matches, T_true)
    assert loose is not None
    moved, found = front_end.resolve_shutter(last, current, Localization(window, matches, loose))
    off_deg = float(torch.rad2deg(geometry.local(T_true, found.estimate.T_WC)[3:].norm()))
    if readout_s == 0:
        assert off_deg > 0.3 and found.estimate is loose
    else:
        assert off_deg < 0.05 and int(found.estimate.inlier.sum()) == 300
        assert torch.allclose(moved.twist, twist, atol=0.02)
