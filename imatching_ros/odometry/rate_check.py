"""Whether stamps and axes of a gyroscope fit the images: would these be explained better by rates of another time, or about other axes?

A constant offset of the stamps shows only where the rate changes. There it is large: a turn that begins 100 ms late contradicts images by up to
its whole angle. Axes that are a few degrees off contradict no single image in the dark, but all of them alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..bundle import RotationPrior
from ..core import geometry

# (from_ns, to_ns, shifts_ns) -> rad (S, 3) that were measured between the times, each shifted; None where they are not known
Measure = Callable[[int, int, np.ndarray], "np.ndarray | None"]


@dataclass(frozen=True)
class _Image:
    """What an image says of a measured rotation, as the normalized innovation squared of one that differs by m: d - 2 g.m + m.W.m."""

    from_ns: int
    to_ns: int
    W: np.ndarray  # (3, 3) rad^-2
    g: np.ndarray  # (3,) rad^-1
    d: float


class RateCheck:
    """Compares offsets between the clocks, and rotations between the axes, by the likelihood of the images.

    Attributes:
        offset_ms: by which the stamps are late, clearly; 0 where none is better than the present one.
        axes_off: the axes are off, clearly.
        confirmed: stamps that are off by `FAR_MS` and more are clearly worse, so that rates and images turn alike.
    """

    SHIFTS_MS = np.array([0.0, -150, -100, -70, -40, -20, 20, 40, 70, 100, 150])
    FAR_MS = 70.0
    MOST_DISTANCE = 25.0  # of an image: one that is wrong decides nothing
    EXPLAINED = 9.0  # mean distance of images at the right offset; it is 3 where covariances are true
    CLEAR, UNCLEAR = 8.0, 2.0  # log-likelihood ratio at which an error is believed, and below which no more
    MEMORY_RAD = 3.0  # of the likelihood, by how far the camera has turned
    LEAST_AXES_RAD = 0.05  # 3 degrees: a calibration leaves less
    AXES_SIGMA = 0.5  # rad, of axes that are off

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.offset_ms, self.axes_off, self.confirmed = 0.0, False, False
        self._waiting: deque[_Image] = deque()
        self._ratio = np.zeros(len(self.SHIFTS_MS))
        self._distance, self._images = np.zeros(len(self.SHIFTS_MS)), 0.0
        self._A, self._b = np.eye(3) / self.AXES_SIGMA**2, np.zeros(3)  # normal equations of the axes' error

    @property
    def problem(self) -> str:
        """What is wrong; empty where nothing is."""
        if self.offset_ms:
            late = "late" if self.offset_ms > 0 else "early"
            return f"its stamps are about {abs(self.offset_ms):.0f} ms {late} by the rotation of the images; check imu.time_offset_ms"
        if self.axes_off:
            return "its axes do not fit the rotation of the images; check its mounting (TF)"
        return ""

    def forget_agreement(self) -> None:
        """Images contradict the rates clearly: that these have agreed before counts no more."""
        self._ratio = self._ratio.clip(0)
        self.confirmed = False

    def add(
        self, prior: RotationPrior, q_WC: Tensor, covariance: np.ndarray, used: bool, times_ns: tuple[int, int]
    ) -> None:
        """An image whose rotation (4,) by its matches, and by `prior` where that was `used`, has a covariance (3, 3).

        Args:
            times_ns: between which the prior measured.
        """
        known, found = np.linalg.inv(prior.covariance.double().cpu().numpy()), np.linalg.inv(covariance)
        J = found - known if used else found  # of the matches alone
        both = np.linalg.inv(J + known)
        inverted = prior.q_WC * prior.q_WC.new_tensor([-1.0, -1, -1, 1])
        h = found @ geometry.log_so3(geometry.quaternion_multiply(inverted, q_WC.double().cpu())).numpy()
        W, g = J - J @ both @ J, h - J @ both @ h
        values, axes = np.linalg.eigh(W)
        informed = values > 1e-6 * values.max()
        d = float(((axes.T @ g)[informed] ** 2 / values[informed]).sum())
        self._waiting.append(_Image(*times_ns, W, g, d))

    def update(self, newest_ns: int, measure: Measure) -> None:
        """Judges the images for which rates of all shifts have arrived, the newest at `newest_ns`."""
        shifts_ns = np.round(self.SHIFTS_MS * 1e6).astype(np.int64)
        while self._waiting and self._waiting[0].to_ns + int(shifts_ns.max()) <= newest_ns:
            image = self._waiting.popleft()
            angles = measure(image.from_ns, image.to_ns, shifts_ns)
            if angles is not None:
                self._judge(image, angles)

    def _judge(self, image: _Image, angles: np.ndarray) -> None:
        """`angles`: (S, 3) rad, measured at all shifts."""
        keep = np.exp(-np.linalg.norm(angles, axis=1).max() / self.MEMORY_RAD)
        m = angles - angles[0]
        distance = (image.d - 2 * m @ image.g + ((m @ image.W) * m).sum(1)).clip(0, self.MOST_DISTANCE)
        self._ratio = keep * self._ratio + (distance[0] - distance) / 2
        self._distance, self._images = keep * self._distance + distance, keep * self._images + 1
        best = int(self._ratio.argmax())
        clear = self._ratio[best] > (self.UNCLEAR if self.offset_ms else self.CLEAR)
        explained = self._distance[best] <= self.EXPLAINED * self._images
        self.offset_ms = float(self.SHIFTS_MS[best]) if clear and explained else 0.0
        self.confirmed = bool(self._ratio[np.abs(self.SHIFTS_MS) >= self.FAR_MS].max() < -self.CLEAR)
        self._fit_axes(image, angles[0], keep)

    def _fit_axes(self, image: _Image, angle: np.ndarray, keep: float) -> None:
        """Rates about axes that are turned by a are off by a x rate, to first order."""
        prior = np.eye(3) / self.AXES_SIGMA**2
        self._A, self._b = prior + keep * (self._A - prior), keep * self._b
        if image.d < self.MOST_DISTANCE:
            x, y, z = angle
            cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
            self._A, self._b = self._A + cross.T @ image.W @ cross, self._b + cross.T @ image.g
        axes = np.linalg.solve(self._A, self._b)
        clear = self._b @ axes / 2 > (self.UNCLEAR if self.axes_off else self.CLEAR)
        self.axes_off = bool(clear and np.linalg.norm(axes) > self.LEAST_AXES_RAD)
