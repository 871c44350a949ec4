"""The time offset between images and gyroscope."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from imatching_ros.offline.evaluation.time_offset import estimate_time_offset
from imatching_ros.offline.recordings.imu import ImuRecording
from imatching_ros.offline.recordings.truth import Trajectory


def swing(offset_ms, rate=1.0, seconds=8.0):
    """Images at 20 Hz and a gyroscope at 200 Hz, turned another way, whose stamps are `offset_ms` too early."""
    rng, dt = np.random.default_rng(0), 0.005
    t = np.arange(round(seconds / dt)) * dt
    rates = rate * np.stack([np.sin(2 * t + np.sin(3 * t)), np.cos(1.3 * t), 0.3 * np.sin(5 * t)], 1)
    turns, R = [], Rotation.identity()
    for w in rates:
        turns.append(R.as_quat())
        R = R * Rotation.from_rotvec(w * dt)
    stamps = np.round(t * 1e9).astype(np.int64)
    poses = Trajectory(stamps[::10], np.concatenate([np.zeros((len(turns[::10]), 3)), turns[::10]], 1))
    mounting = Rotation.from_euler("xyz", [20, 70, -40], degrees=True).as_matrix()
    noisy = rates @ mounting.T + rng.normal(0, 0.003, rates.shape) + (0.01, -0.02, 0.0)
    return poses, ImuRecording(stamps - round(offset_ms * 1e6), noisy)


@pytest.mark.parametrize("offset_ms", (-47.0, 0.0, 12.3))
def test_it_is_found_to_a_millisecond_or_two(offset_ms):
    found, correlation = estimate_time_offset(*swing(offset_ms))
    assert found == pytest.approx(offset_ms, abs=3.0) and correlation > 0.98


@pytest.mark.parametrize(
    "options, reason", [({"seconds": 1.0}, "19 pairs of images have a pose"), ({"rate": 0.0}, "do not turn alike")]
)
def test_where_there_is_none_the_reason_is_given(options, reason):
    assert reason in estimate_time_offset(*swing(0.0, **options))
