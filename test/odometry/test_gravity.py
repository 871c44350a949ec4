"""Gravity from an accelerometer: at rest, and when not to believe it."""

import numpy as np
import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.odometry.gravity import Gravity
from imatching_ros.offline.simulation.imu import R_CAMERA_IMU, SENSORS, measure

START_NS = 10**9
TILTED = torch.tensor([0.1, -0.2, 0.3, 0.9], dtype=torch.float64)
TILTED = torch.cat([torch.zeros(3, dtype=torch.float64), TILTED / TILTED.norm()])
UP = geometry.rotate(geometry.inverse(TILTED)[3:], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)).numpy()


def recorded(pose_at, seconds: float = 1.0, sensor: str = "bmi088") -> Gravity:
    """What a simulated sensor on a camera measures, whose pose (7,) is that at a time, s."""
    samples = measure(
        lambda times: torch.stack([pose_at(t) for t in times.tolist()]).numpy(), seconds, START_NS, SENSORS[sensor], 0
    )
    gravity = Gravity()
    for stamp, rate, force in zip(samples.stamps_ns.tolist(), samples.rates, samples.accelerations):
        gravity.add(stamp, R_CAMERA_IMU @ rate, R_CAMERA_IMU @ force)
    return gravity


def angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


@pytest.mark.parametrize("at_s", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("sensor", SENSORS)
def test_a_sensor_at_rest_shows_which_way_is_up(sensor, at_s):
    up = recorded(lambda t: TILTED, sensor=sensor).up(START_NS + round(at_s * 1e9))
    assert isinstance(up, np.ndarray) and angle_deg(up, UP) < 0.7  # the offset of .05 m/s^2 is 0.3 degrees an axis


def test_half_a_second_is_waited_for():
    assert Gravity().up(START_NS) is None
    assert recorded(lambda t: TILTED, 0.3).up(START_NS) is None


def moved(twist):
    return lambda t: geometry.retract(TILTED, torch.tensor(twist(t), dtype=torch.float64))


@pytest.mark.parametrize(
    "motion",
    [
        moved(lambda t: [0, 0, 0.3 * max(0, t - 0.5) ** 2, 0, 0, 0]),  # 0.6 m/s^2 from half a second on
        moved(lambda t: [0, 0, 0, 0, 0.2 * t, 0]),  # 0.2 rad/s
        moved(lambda t: [0.002 * np.sin(40 * t), 0, 0, 0, 0, 0]),  # shaken
    ],
)
def test_motion_is_not_rest(motion):
    found = recorded(motion).up(START_NS + 800_000_000)
    assert isinstance(found, str) and ("not at rest" in found or "m/s^2" in found)


def test_what_is_no_gravity_is_named():
    gravity = Gravity()
    for k in range(200):
        gravity.add(START_NS + k * 5_000_000, np.zeros(3), np.array([0.0, 0.0, 1.0]))  # in g
    assert gravity.up(START_NS) == "its acceleration is 1.00 m/s^2, at rest it is 9.81"
    assert "came 4.00 s after" in str(recorded(lambda t: TILTED).up(START_NS - 4 * 10**9))
