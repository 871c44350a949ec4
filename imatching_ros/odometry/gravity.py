"""Which way is up, from an accelerometer that stands still: only for where odometry begins."""

from __future__ import annotations

from collections import deque

import numpy as np


class Gravity:
    """Collects what an IMU measures until it shows the direction of gravity. Owned by one thread."""

    REST_NS = 500_000_000  # of standing still
    LATE_NS = 50_000_000  # by which the first message may follow the time in question
    CAPACITY = 4000  # messages: 4 s at 1 kHz
    LEAST = 10  # messages
    STANDARD = 9.81  # m/s^2; 9.78 to 9.83 on earth
    MAX_ERROR = 0.3  # m/s^2, of its mean: bias and scale of a consumer's sensor
    MAX_NOISE = 0.3  # m/s^2, standard deviation of an axis: motors that idle
    MAX_CHANGE = 0.1  # m/s^2, of the mean from one half to the other: 0.6 degrees
    MAX_RATE = 0.05  # rad/s, of the mean: the gyroscope's bias is up to 0.03

    def __init__(self) -> None:
        self._samples: deque[tuple[int, np.ndarray, np.ndarray]] = deque(maxlen=self.CAPACITY)

    def add(self, stamp_ns: int, rate: np.ndarray, force: np.ndarray) -> None:
        """Angular rate (3,) rad/s and specific force (3,) m/s^2, upwards at rest, about the axes of the camera."""
        self._samples.append((stamp_ns, rate, force))

    def up(self, at_ns: int) -> np.ndarray | str | None:
        """The unit vector (3,) away from the earth in the camera at a time at which it stood still, or why it is not known.

        From the half second before, where so much was recorded, else from the first half second. None: that is not over yet.
        """
        rows = [row for row in self._samples if row[0] >= at_ns - self.REST_NS]
        if not rows:
            return None
        first_ns = rows[0][0]
        if first_ns > at_ns + self.LATE_NS:
            return f"its first message came {(first_ns - at_ns) / 1e9:.2f} s after the first image"
        if rows[-1][0] < first_ns + self.REST_NS - self.LATE_NS:
            return None
        used = [row for row in rows if row[0] <= first_ns + self.REST_NS]
        if len(used) < self.LEAST:
            return f"{len(used)} messages in {self.REST_NS / 1e9:g} s are too few"
        return self._judge(np.array([rate for _, rate, _ in used]), np.array([force for _, _, force in used]))

    def _judge(self, rates: np.ndarray, forces: np.ndarray) -> np.ndarray | str:
        """The direction of the mean force, where rates (N, 3) and forces (N, 3) are those of standing still."""
        if not (np.isfinite(rates).all() and np.isfinite(forces).all()):
            return "it measures no acceleration, or none that is finite"
        mean, half = forces.mean(0), len(forces) // 2
        size, rate = float(np.linalg.norm(mean)), float(np.linalg.norm(rates.mean(0)))
        if abs(size - self.STANDARD) > self.MAX_ERROR:
            return f"its acceleration is {size:.2f} m/s^2, at rest it is {self.STANDARD}"
        noise = float(forces.std(0).max())
        change = float(np.linalg.norm(forces[:half].mean(0) - forces[half:].mean(0)))
        if rate > self.MAX_RATE or noise > self.MAX_NOISE or change > self.MAX_CHANGE:
            return (
                f"the robot was not at rest: {rate:.2f} rad/s, acceleration with a standard deviation of {noise:.2f} and a change "
                f"of {change:.2f} m/s^2"
            )
        return mean / size
