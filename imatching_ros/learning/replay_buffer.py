"""A bounded store of windows that keeps the diverse ones: a robot that stands in one room must not forget the others."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

from ..core.types import LearningSample


class ReplayBuffer:
    """When full, the newcomer pushes out the older of the two most alike windows."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._samples: list[LearningSample] = []
        self._looks = np.zeros((0, 256), np.float32)

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[LearningSample]:
        return iter(self._samples)

    def add(self, sample: LearningSample) -> None:
        """Stores a window; one of the two most alike leaves when there are more than `capacity`."""
        self._samples.append(sample)
        self._looks = np.concatenate([self._looks, _look(sample.images[-1])[None]])
        if len(self._samples) > self.capacity:
            likeness = self._looks @ self._looks.T - 2 * np.eye(len(self._looks), dtype=np.float32)
            out = min(np.unravel_index(int(likeness.argmax()), likeness.shape))
            del self._samples[out]
            self._looks = np.delete(self._looks, out, 0)

    def draw(self, generator: torch.Generator) -> LearningSample:
        """A stored window, all equally likely."""
        return self._samples[int(torch.randint(len(self._samples), (1,), generator=generator))]


def _look(image: Tensor) -> np.ndarray:
    """A 16 x 16 thumbnail without mean, unit length: what two images have in common at a glance."""
    thumbnail = cv2.resize(image[0].cpu().numpy(), (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    thumbnail -= thumbnail.mean()
    return thumbnail / max(float(np.linalg.norm(thumbnail)), 1e-6)
