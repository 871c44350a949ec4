"""The offset between the clocks of gyroscope and camera, from how fast each turns."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from ..recordings.imu import ImuRecording
from ..recordings.truth import Trajectory

REACH_MS, LEAST_IMAGES = 200, 30
LEAST_CORRELATION = 0.7


def estimate_time_offset(poses: Trajectory, imu: ImuRecording) -> tuple[float, float] | str:
    """`imu.time_offset_ms` and the correlation at it, or why there is none.

    The norm of the mean rate between two images does not depend on the mounting. Its correlation with that of the gyroscope is largest at
    the offset; a parabola through the largest values gives fractions of a ms.
    """
    a, b = poses.stamps_ns[:-1], poses.stamps_ns[1:]
    near = b - a < 200_000_000
    if near.sum() < LEAST_IMAGES:
        return f"{int(near.sum())} pairs of images have a pose, {LEAST_IMAGES} are needed"
    turns = Rotation.from_quat(poses.T_WC[:, 3:])
    seen = ((turns[:-1].inv() * turns[1:]).magnitude() / ((b - a) * 1e-9))[near]
    time = (imu.stamps_ns - imu.stamps_ns[0]) * 1e-9
    angle = np.concatenate(
        [np.zeros((1, 3)), np.cumsum((imu.rates[1:] + imu.rates[:-1]) / 2 * np.diff(time)[:, None], 0)]
    )
    start, end = ((stamps[near] - imu.stamps_ns[0]) * 1e-9 for stamps in (a, b))

    def measured(offset_ms: float) -> np.ndarray:
        parts = [
            np.stack([np.interp(t - offset_ms / 1e3, time, angle[:, k]) for k in range(3)], 1) for t in (start, end)
        ]
        return np.linalg.norm(parts[1] - parts[0], axis=1) / (end - start)

    offsets = np.arange(-REACH_MS, REACH_MS + 1.0)
    with np.errstate(invalid="ignore"):
        score = np.array([np.corrcoef(seen, measured(offset))[0, 1] for offset in offsets])
    best = int(np.nanargmax(score)) if np.isfinite(score).any() else 0
    if not score[best] > LEAST_CORRELATION or best in (0, len(offsets) - 1):
        return f"image and gyroscope do not turn alike (correlation {score[best]:.2f}): is there enough rotation?"
    left, middle, right = score[best - 1 : best + 2]
    return float(offsets[best] + 0.5 * (left - right) / (left - 2 * middle + right)), float(middle)
