"""Odometry and a learning window with images that are halved for matching: everything else is in pixels of the camera."""

from __future__ import annotations

import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.core.config import Config
from imatching_ros.core.types import Frame, LearningSample
from imatching_ros.learning.rematching import extract, rematch
from imatching_ros.learning.sample import next_sample
from imatching_ros.matching import create_matcher
from imatching_ros.odometry.odometry import Odometry
from imatching_ros.offline.simulation.sequence import simulated_frames

FRAMES = 8


@pytest.fixture(scope="module")
def room() -> list[tuple[Frame, torch.Tensor]]:
    return list(simulated_frames("room", FRAMES, 0, (240, 320)))


def track(room: list, max_width: int) -> tuple[Odometry, torch.Tensor, LearningSample | None]:
    """All frames, the pose of the last one in the frame of the first (7,), and the newest window."""
    config = Config().with_values(
        {"odometry.mode": "rgbd", "matcher.precision": "float32", "matcher.max_width": max_width}
    )
    odometry, sample = Odometry(config, create_matcher(config.matcher)), None
    for frame, _ in room:
        output = odometry.track(frame)
        odometry.extend()
        sample = next_sample(odometry) or sample
    return odometry, output.T_WC, sample


def test_poses_and_windows_are_in_pixels_of_the_camera(room):
    odometry, T_WC, sample = track(room, 160)
    truth = geometry.compose(geometry.inverse(room[0][1].double()), room[-1][1].double())
    path_m = (room[-1][1] - room[0][1])[:3].norm()
    assert (T_WC - truth)[:3].norm() < 0.06 * path_m
    keyframe = odometry.window.keyframes[-1]
    assert keyframe.features.scale == 2 and keyframe.image.shape[-1] == 320
    # The window's observations span the whole image, and a rematch returns to them.
    assert sample is not None and sample.uv_px[:, 0].max() > 200
    found = rematch(odometry.matcher, sample, extract(odometry.matcher, sample), odometry.config.learning)
    moved_px = (found.uv - sample.uv_px).norm(dim=1)
    assert moved_px.median() < 0.5


def test_nothing_changes_below_the_width(room):
    assert torch.equal(track(room[:4], 320)[1], track(room[:4], 0)[1])
