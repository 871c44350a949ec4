"""An inertial sensor on the rendered camera: true rates and accelerations with the noise and the walking bias of real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation

from .trajectories import PATH_STEP_S

RATE_HZ = 200.0
GRAVITY = 9.81  # m/s^2, along -z of the world
# Axes of the sensor in those of the camera: x forward, y left, z up.
R_CAMERA_IMU = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])


@dataclass(frozen=True)
class Sensor:
    """Densities of a gyroscope and an accelerometer."""

    gyroscope: float  # rad/s/sqrt(Hz)
    gyroscope_walk: float  # rad/s^2/sqrt(Hz)
    accelerometer: float  # m/s^2/sqrt(Hz)
    accelerometer_walk: float  # m/s^3/sqrt(Hz)
    gyroscope_offset: float = 0.01  # rad/s, standard deviation at the start
    accelerometer_offset: float = 0.05  # m/s^2


SENSORS = {
    # imu0/sensor.yaml of EuRoC (Burri et al. 2016)
    "adis16448": Sensor(1.6968e-4, 1.9393e-5, 2.0e-3, 3.0e-3),
    # Data sheet of Bosch: 0.014 degrees/s/sqrt(Hz), 175 ug/sqrt(Hz). It names no walk: those of TUM-VI for a BMI160.
    "bmi088": Sensor(2.44e-4, 2.2e-5, 1.72e-3, 8.6e-4),
}


@dataclass(frozen=True)
class ImuSamples:
    """Messages of the sensor, in its own axes."""

    stamps_ns: np.ndarray  # (N,) int64
    rates: np.ndarray  # (N, 3) rad/s
    accelerations: np.ndarray  # (N, 3) m/s^2, gravity included


def measure(
    poses_at: Callable[[np.ndarray], np.ndarray], duration_s: float, start_ns: int, sensor: Sensor, seed: int
) -> ImuSamples:
    """What a sensor in the camera's place measures; `poses_at` gives T_WC (N, 7) at times (N,) s after `start_ns`."""
    count = int(duration_s * RATE_HZ) + 2
    times, half = np.arange(count) / RATE_HZ, 0.5 / RATE_HZ
    before, now, after = (Rotation.from_quat(poses_at(times + t)[:, 3:]) for t in (-half, 0.0, half))
    first = times - half < 0  # poses before the path begins are those of its beginning
    rates = (before.inv() * after).as_rotvec() / np.where(first, half, 2 * half)[:, None]
    nodes = np.arange(0, times[-1] + 2 * PATH_STEP_S, PATH_STEP_S)
    path = CubicSpline(nodes, poses_at(nodes)[:, :3])
    force = now.inv().apply(path(times, 2) + [0, 0, GRAVITY])
    rng = np.random.default_rng((seed, 41))
    s = sensor
    return ImuSamples(
        start_ns + np.round(times * 1e9).astype(np.int64),
        rates @ R_CAMERA_IMU + _noise(rng, count, s.gyroscope, s.gyroscope_walk, s.gyroscope_offset),
        force @ R_CAMERA_IMU + _noise(rng, count, s.accelerometer, s.accelerometer_walk, s.accelerometer_offset),
    )


def _noise(rng: np.random.Generator, count: int, density: float, walk: float, offset: float) -> np.ndarray:
    """(count, 3) white noise, a walking bias and a constant one."""
    white, steps = rng.normal(0, density * np.sqrt(RATE_HZ), (count, 3)), rng.normal(0, 1, (count, 3))
    return white + np.cumsum(steps * walk / np.sqrt(RATE_HZ), 0) + rng.normal(0, offset, 3)
