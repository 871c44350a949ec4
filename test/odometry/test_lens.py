"""Landmarks that stand still while those next to them move are noticed; a far part of the scene and a camera at rest are not."""

import numpy as np
import pytest

from imatching_ros.core.types import TrackingState
from imatching_ros.odometry import state as states
from imatching_ros.odometry.lens import FRAMES_BACK, StandingLandmarks

WIDTH, HEIGHT, COUNT = 320, 240, 300


def watch(step_px, frames=20):
    """After frames in which landmarks (N,) move to the right by `step_px` (N,)."""
    rng = np.random.default_rng(0)
    uv, id, found = rng.uniform((0, 0), (WIDTH, HEIGHT), (COUNT, 2)), np.arange(COUNT), StandingLandmarks()
    for k in range(frames):
        seen = rng.random(COUNT) < 0.9
        noise = rng.normal(0, 0.3, (COUNT, 2))
        found.add(id[seen], (uv + noise + k * np.stack([step_px, 0 * step_px], 1))[seen], WIDTH)
    return found


@pytest.mark.parametrize("share, suspected", ((0.0, False), (0.05, True)))
def test_landmarks_on_the_lens_are_noticed(share, suspected):
    on_lens = np.random.default_rng(1).random(COUNT) < share
    found = watch(np.where(on_lens, 0.0, 3.0))
    assert found.suspected == suspected and (found.share > 0) == suspected


def test_a_far_part_of_the_scene_and_a_camera_at_rest_are_not_on_the_lens():
    rng = np.random.default_rng(0)
    left = rng.uniform((0, 0), (WIDTH, HEIGHT), (COUNT, 2))[:, 0] < WIDTH / 2
    edge = watch(np.where(left, 2.0, 4.0))
    assert not edge.suspected
    assert watch(np.zeros(COUNT)).share == 0 and watch(np.full(COUNT, 0.5)).share == 0


def test_far_things_between_near_ones_are_not_on_the_lens():
    """As in a clutter, where a thing may be five times as far as those around it."""
    far = np.random.default_rng(1).random(COUNT) < 0.1
    assert not watch(np.where(far, 0.6, 3.0)).suspected


def test_nothing_is_suspected_of_a_few_frames_and_it_is_forgotten_in_time():
    on_lens = np.arange(COUNT) % 15 == 0
    assert watch(np.where(on_lens, 0.0, 3.0), frames=FRAMES_BACK).share == 0
    found = watch(np.where(on_lens, 0.0, 3.0))
    before = found.share
    for k in range(60):
        found.add(
            np.arange(1000, 1000 + COUNT), np.stack([np.arange(COUNT) + 3.0 * k, np.arange(COUNT) % HEIGHT], 1), WIDTH
        )
    assert not found.suspected and found.share < before / 20


def test_such_a_pose_is_unverified_and_not_learned_from():
    event = states.PoseVerified(False, states.Cause.STANDING)
    state = states.transition(states.Tracking(), event, states.Context(weights_version=1))
    assert state.published is TrackingState.UNVERIFIED and not state.healthy and not states.pose_unverified(state)
