"""Faults of the images that a pose does not show: a camera that has frozen, and partners that cannot be of the same instant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from . import measurements
from ..core.config import OdometryConfig
from ..core.types import Frame, as_grey

FROZEN_NS = 3_000_000_000  # by then the camera may be anywhere, as after a gap
MIN_REPEATS = 3  # repeated right images in a row that make a frozen camera
# A pair of two instants: at so many keyframes in a row less than this share of the observations has a match in the right image,
# while the images of another instant give twice as many, and this number at least.
FEW_KEYFRAMES, FEW_SHARE, MANY = 3, 0.05, 30


class InputCheck:
    """Compares every frame with the one before. Noise makes each image of a real camera another one.

    Attributes:
        repeated: the image is bit-identical to the one before.
        frozen: so it has been for some seconds: nothing is known of the motion since.
        frozen_s: for how long; time in which external odometry stands still does not count.
        fault: what is wrong with the frame's images, by name; empty when nothing is.
    """

    FROZEN = "the images have been bit-identical for {:.0f} s: the camera or its driver has frozen, unless a simulated one stands still (external odometry would show it)"
    RIGHT_FROZEN = (
        "the right images have been bit-identical {} times while the left ones changed: the right camera has frozen"
    )
    SAME_CAMERA = "left and right image are identical: one camera is on both topics"
    SHIFTED = (
        "the right images are one image {} the left ones: the two cameras are not of one instant, whatever their stamps"
    )
    NO_DEPTH = "the depth image is empty: all of its pixels are 0"

    def __init__(self) -> None:
        self.repeated, self.frozen_s, self.fault = False, 0.0, ""
        self._before: Frame | None = None
        self._newest: Frame | None = None
        self._since_ns = 0
        self._right_repeats = 0
        self._few_keyframes, self._shifted = 0, ""

    @property
    def frozen(self) -> bool:
        return self.frozen_s * 1e9 >= FROZEN_NS

    def check(self, frame: Frame, stands_still: Callable[[int, int], bool] | None = None) -> Frame:
        """The frame, without a right image that does not belong to it.

        `stands_still`: whether another sensor shows that the camera has not moved from one stamp, ns, to another.
        """
        before = self._before = self._newest
        self._newest = frame
        self.repeated, at_rest = before is not None and _equal(frame.image, before.image), False
        if before is not None and self.repeated and stands_still is not None:
            at_rest = stands_still(before.stamp_ns, frame.stamp_ns)
        self._since_ns = self._since_ns if self.repeated and not at_rest else frame.stamp_ns
        self.frozen_s = (frame.stamp_ns - self._since_ns) / 1e9
        self.fault = self.FROZEN.format(self.frozen_s) if self.frozen else self._shifted
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

    def check_keyframe(self, measured_share: float, config: OdometryConfig) -> None:
        """Looks for the reason when the newest frame, a keyframe of a stereo pair, has few matches in its right image.

        Far things have none either; so a fault is named only where images of two instants match.
        """
        few = measured_share < FEW_SHARE
        self._few_keyframes = self._few_keyframes + 1 if few else 0
        before, now = self._before, self._newest
        if not few or before is None or now is None or before.right is None or now.right is None:
            self._shifted = self._shifted if few else ""
        elif self._few_keyframes % FEW_KEYFRAMES == 0:
            here = _count_matches(now, config)
            behind = _count_matches(replace(before, right=now.right), config)
            ahead = _count_matches(replace(now, right=before.right), config)
            most = max(behind, ahead)
            word = "behind" if behind > ahead else "ahead of"
            self._shifted = self.SHIFTED.format(word) if most >= max(MANY, 2 * here) else ""


def _count_matches(frame: Frame, config: OdometryConfig) -> int:
    """Corners of the left image that have a match in the right one."""
    grey = np.ascontiguousarray(as_grey(frame.image)[0].cpu().numpy())
    distance_px = config.corner_distance * frame.camera.width
    corners = cv2.goodFeaturesToTrack(grey, config.landmarks_per_frame, config.corner_quality, distance_px)
    if corners is None:
        return 0
    found = measurements.measure(frame, "stereo", torch.from_numpy(corners.reshape(-1, 2)), config, far=True)
    return 0 if found is None else int(torch.isfinite(found.measured).sum())


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))
