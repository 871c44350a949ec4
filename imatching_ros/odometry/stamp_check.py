"""Whether the stamps of a gyroscope fit those of the images: would its rates of some time earlier or later explain the images better?

A constant offset shows only where the rate changes. There it is large: a turn that begins 100 ms late contradicts images by up to its whole angle.
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


class StampCheck:
    """Compares offsets between the clocks by the likelihood of the images.

    Attributes:
        offset_ms: by which the stamps are late, clearly; 0 where none is better than the present one.
        confirmed: stamps that are off by `FAR_MS` and more are clearly worse, so that rates and images turn alike.
    """

    SHIFTS_MS = np.array([0.0, -150, -100, -70, -40, -20, 20, 40, 70, 100, 150])
    FAR_MS = 70.0
    MOST_DISTANCE = 25.0  # of an image: one that is wrong decides nothing
    EXPLAINED = 9.0  # mean distance of images at the right offset; it is 3 where covariances are true
    CLEAR, UNCLEAR = 8.0, 2.0  # log-likelihood ratio at which an offset is believed, and below which no more
    MEMORY_RAD = 3.0  # of the likelihood, by how far the camera has turned

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.offset_ms, self.confirmed = 0.0, False
        self._waiting: deque[_Image] = deque()
        self._ratio = np.zeros(len(self.SHIFTS_MS))
        self._distance, self._images = np.zeros(len(self.SHIFTS_MS)), 0.0

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
            if angles is None:
                continue
            m = angles - angles[0]
            distance = image.d - 2 * m @ image.g + ((m @ image.W) * m).sum(1)
            distance = distance.clip(0, self.MOST_DISTANCE)
            keep = np.exp(-np.linalg.norm(angles, axis=1).max() / self.MEMORY_RAD)
            self._ratio = keep * self._ratio + (distance[0] - distance) / 2
            self._distance, self._images = keep * self._distance + distance, keep * self._images + 1
        best = int(self._ratio.argmax())
        clear = self._ratio[best] > (self.UNCLEAR if self.offset_ms else self.CLEAR)
        explained = self._distance[best] <= self.EXPLAINED * self._images
        self.offset_ms = float(self.SHIFTS_MS[best]) if clear and explained else 0.0
        self.confirmed = bool(self._ratio[np.abs(self.SHIFTS_MS) >= self.FAR_MS].max() < -self.CLEAR)
