"""Faults of the images that a pose does not show: a camera that has frozen, and partners that cannot be of the same instant."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core.types import Frame

FROZEN_NS = 3_000_000_000  # by then the camera may be anywhere, as after a gap
MIN_REPEATS = 3  # repeated right images in a row that make a frozen camera


class InputCheck:
    """Compares every frame with the one before. Noise makes each image of a real camera another one.

    Attributes:
        repeated: the image is bit-identical to the one before.
        frozen: so it has been for some seconds: nothing is known of the motion since.
        frozen_s: for how long.
        fault: what is wrong with the frame's images, by name; empty when nothing is.
    """

    FROZEN = "the images have been bit-identical for {:.0f} s: the camera or its driver has frozen, unless a simulated one stands still"
    RIGHT_FROZEN = (
        "the right images have been bit-identical {} times while the left ones changed: the right camera has frozen"
    )
    SAME_CAMERA = "left and right image are identical: one camera is on both topics"
    NO_DEPTH = "the depth image is empty: all of its pixels are 0"

    def __init__(self) -> None:
        self.repeated, self.frozen_s, self.fault = False, 0.0, ""
        self._before: Frame | None = None
        self._since_ns = 0
        self._right_repeats = 0

    @property
    def frozen(self) -> bool:
        return self.frozen_s * 1e9 >= FROZEN_NS

    def check(self, frame: Frame) -> Frame:
        """The frame, without a right image that does not belong to it."""
        before, self._before = self._before, frame
        self.repeated = before is not None and _equal(frame.image, before.image)
        self._since_ns = self._since_ns if self.repeated else frame.stamp_ns
        self.frozen_s = (frame.stamp_ns - self._since_ns) / 1e9
        self.fault = self.FROZEN.format(self.frozen_s) if self.frozen else ""
        if frame.depth is not None and not bool(frame.depth.any()):
            self.fault = self.fault or self.NO_DEPTH
        right_before = None if before is None else before.right
        return frame if frame.right is None else self._check_right(frame, frame.right, right_before)

    def _check_right(self, frame: Frame, right: Tensor, before: Tensor | None) -> Frame:
        if _equal(right, frame.image):
            self.fault = self.fault or self.SAME_CAMERA
            return replace(frame, right=None)
        stale = before is not None and not self.repeated and _equal(right, before)
        if not self.repeated:
            self._right_repeats = self._right_repeats + 1 if stale else 0
        if self._right_repeats >= MIN_REPEATS:
            self.fault = self.fault or self.RIGHT_FROZEN.format(self._right_repeats)
        return replace(frame, right=None) if stale else frame


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))
