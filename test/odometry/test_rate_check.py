"""Stamps of a gyroscope that are late or early against those of the images."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from imatching_ros.bundle import RotationPrior
from imatching_ros.odometry.rate_check import RateCheck

MS = 1_000_000


def quaternion(angles: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(Rotation.from_rotvec(angles).as_quat())


def angle(ns: int | np.ndarray, rad_s: float) -> np.ndarray:
    """Of a turn that swings about y with a period of 1 s, at times."""
    t = np.asarray(ns) * 1e-9
    return np.stack([0 * t, -rad_s / (2 * np.pi) * np.cos(2 * np.pi * t), 0 * t], -1)


def compare(
    late_ms: float = 0.0, rad_s: float = 2.0, sigma: float = 3e-3, used: bool = True, off_deg: float = 0.0
) -> RateCheck:
    """40 images at 30 Hz whose rotations are known to sigma, against rates that are late, or about axes that are off."""
    check, rng, late_ns = RateCheck(), np.random.default_rng(0), round(late_ms * MS)
    mounting = Rotation.from_euler("z", off_deg, degrees=True).as_matrix()

    def measure(from_ns: int, to_ns: int, shifts_ns: np.ndarray) -> np.ndarray:
        return (angle(to_ns + shifts_ns - late_ns, rad_s) - angle(from_ns + shifts_ns - late_ns, rad_s)) @ mounting.T

    for k in range(40):
        times = (k * 33 * MS, (k + 1) * 33 * MS)
        measured, true = measure(*times, np.zeros(1))[0], (angle(times[1], rad_s) - angle(times[0], rad_s))
        prior = RotationPrior(quaternion(measured), torch.eye(3, dtype=torch.float64) * sigma**2)
        seen, variance = true + rng.normal(0, sigma, 3), sigma**2
        if used:
            seen, variance = (seen + measured) / 2, sigma**2 / 2
        check.add(prior, quaternion(seen), np.eye(3) * variance, used, times)
        check.update(times[1] + 20 * MS, measure)
    return check


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("late_ms", [-70, 20, 50, 100])
def test_an_offset_is_found(late_ms, used):
    """Also of images whose rotation the late rates have pulled towards theirs."""
    assert abs(compare(late_ms, used=used).offset_ms - late_ms) <= 10


@pytest.mark.parametrize("used", [True, False])
def test_axes_that_are_off_are_found_although_no_image_contradicts_them(used):
    check = compare(off_deg=8, sigma=5e-3, used=used)
    assert "mounting" in check.problem and check.offset_ms == 0
    assert compare(off_deg=1, sigma=5e-3, used=used).problem == ""


def test_right_rates_are_confirmed():
    check = compare()
    assert check.problem == "" and check.confirmed


def test_a_camera_that_hardly_turns_shows_no_offset():
    for late_ms in (0, 100):
        check = compare(late_ms, rad_s=0.01)
        assert check.offset_ms == 0 and not check.confirmed
