"""Paths that a robot could take."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from imatching_ros.core.errors import ConfigError
from imatching_ros.offline.simulation.kinds import KINDS, make_scene
from imatching_ros.offline.simulation.textures import build_bank
from imatching_ros.offline.simulation.trajectories import clearance, make_trajectory

STAMPS = np.arange(300) / 10.0


@pytest.fixture(scope="module")
def bank():
    return build_bank(0, variants=1, size=32)


def turns_deg(T):
    dot = (T[1:, 3:] * T[:-1, 3:]).sum(1).abs().clamp(max=1)
    return torch.rad2deg(2 * torch.acos(dot))


@pytest.mark.parametrize("seed", (0, 1, 2))
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_tour_is_smooth_and_stays_clear(bank, kind, seed):
    scene = make_scene(kind, seed, bank)
    T = make_trajectory(scene, kind, 30.0, STAMPS, seed)
    steps = (T[1:, :3] - T[:-1, :3]).norm(dim=1)
    expected = 0.5 if kind == "outdoor" else 0.05
    assert 0.6 * expected < steps.mean() < 1.5 * expected
    assert steps.max() < 2.5 * expected
    assert turns_deg(T).max() < 12
    assert clearance(scene, T[:, :3].numpy()).min() > 0.1
    assert torch.allclose(T[:, 3:].norm(dim=1), torch.ones(300, dtype=torch.float64))


def test_the_path_does_not_depend_on_the_frame_rate(bank):
    scene = make_scene("room", 0, bank)
    slow = make_trajectory(scene, "room", 10.0, np.arange(100) / 10, 1)
    fast = make_trajectory(scene, "room", 10.0, np.arange(300) / 30, 1)
    assert torch.allclose(slow, fast[::3], atol=1e-9)


def test_still_and_turning_cameras_stay_where_they_are(bank):
    scene = make_scene("room", 0, bank)
    still = make_trajectory(scene, "room", 30.0, STAMPS, 1, "still")
    turning = make_trajectory(scene, "room", 30.0, STAMPS, 1, "pure_rotation")
    assert (still == still[0]).all()
    assert (turning[:, :3] == turning[0, :3]).all()
    assert turns_deg(turning).max() > 1


@pytest.mark.parametrize("motion, tilted_deg", [("floor", 0.0), ("ramp", 10.0)])
def test_wheels_follow_the_ground(bank, motion, tilted_deg):
    scene = make_scene("room", 0, bank)
    T = make_trajectory(scene, "room", 30.0, STAMPS, 1, motion)
    up = Rotation.from_quat(T[:, 3:].numpy()).apply([0.0, -1.0, 0.0])
    tilt = np.degrees(np.arccos(up[:, 2].clip(-1, 1)))
    assert abs(tilt.max() - tilted_deg) < 1e-3 and tilt[:5].max() < 1e-3
    step = np.diff(T[:, :3].numpy(), axis=0)
    ahead = step / np.linalg.norm(step, axis=1, keepdims=True)
    assert np.abs((ahead * (up[1:] + up[:-1]) / 2).sum(1)).max() < np.sin(np.radians(3))  # it drives along the ground
    assert np.ptp(T[:, 2].numpy()) == pytest.approx(1.5 * np.tan(np.radians(tilted_deg)), abs=0.02)


def test_unknown_motion_is_named(bank):
    with pytest.raises(ConfigError, match="swim.*tour"):
        make_trajectory(make_scene("room", 0, bank), "room", 1.0, STAMPS[:5], 0, "swim")


@pytest.mark.parametrize("turn_deg_s", (60.0, 180.0))
def test_a_sweep_turns_as_fast_as_asked_with_rests_between(bank, turn_deg_s):
    scene = make_scene("clutter", 0, bank)
    stamps = np.arange(150) / 30.0
    turned, tour = (
        make_trajectory(scene, "clutter", 5.0, stamps, 0, motion, turn_deg_s=turn_deg_s) for motion in ("sweep", "tour")
    )
    assert torch.equal(turned[:, :3], tour[:, :3])
    rate = turns_deg(turned) * 30
    assert abs(float(rate.quantile(0.95)) - turn_deg_s) < 0.3 * turn_deg_s
    assert torch.allclose(rate[:40], turns_deg(tour)[:40] * 30, atol=1.0)
