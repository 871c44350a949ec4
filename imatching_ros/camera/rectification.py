"""Turning both images of a stereo pair so that their rows agree."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from .model import Camera
from ..core.errors import CameraError


class Rectification:
    """Remaps a raw stereo pair to a common undistorted camera whose right partner stands at +x.

    Attributes:
        camera: of the rectified images, with its baseline.
        T_left_rectified: (4, 4) pose of the rectified left camera in the raw left one (a rotation).
    """

    def __init__(self, left: Camera, right: Camera, T_left_right: np.ndarray) -> None:
        """Args:
            T_left_right: (4, 4) pose of the right camera in the left one, metres.

        Raises:
            CameraError: cameras of two sizes or two families of distortion, or no baseline.
        """
        if (left.width, left.height) != (right.width, right.height) or (left.model == "equidistant") != (
            right.model == "equidistant"
        ):
            raise CameraError(
                "the two cameras of a stereo pair differ in size or in the family of their distortion model; "
                "rectify the images beforehand or use --mode mono"
            )
        T_right_left = np.linalg.inv(T_left_right)
        size = (left.width, left.height)
        fisheye = left.model == "equidistant"
        K, D = zip(*(_opencv(c) for c in (left, right)))
        R, t = (np.ascontiguousarray(x) for x in (T_right_left[:3, :3], T_right_left[:3, 3:]))
        if fisheye:
            R1, R2, P1, P2, _ = cv2.fisheye.stereoRectify(K[0], D[0], K[1], D[1], size, R, t, cv2.CALIB_ZERO_DISPARITY)
        else:
            R1, R2, P1, P2, *_ = cv2.stereoRectify(
                K[0], D[0], K[1], D[1], size, R, t, flags=cv2.CALIB_ZERO_DISPARITY, alpha=0
            )
        baseline = -P2[0, 3] / P2[0, 0]
        if not baseline > 1e-6:
            raise CameraError(
                f"the stereo calibration gives a baseline of {baseline:.4g} m along +x; expected the second camera to "
                "the right of the first"
            )
        build = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
        self._maps = [build(k, d, r, p[:, :3], size, cv2.CV_32FC1) for k, d, r, p in zip(K, D, (R1, R2), (P1, P2))]
        self.camera = Camera(
            *size, float(P1[0, 0]), float(P1[1, 1]), float(P1[0, 2]), float(P1[1, 2]), baseline_m=float(baseline)
        )
        self.T_left_rectified = np.eye(4)
        self.T_left_rectified[:3, :3] = R1.T

    def apply(self, left: Tensor, right: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(C, H, W) uint8 each -> the same, rectified. The right image may be missing."""
        return self._remap(left, self._maps[0]), None if right is None else self._remap(right, self._maps[1])

    @staticmethod
    def _remap(image: Tensor, maps: tuple[np.ndarray, np.ndarray]) -> Tensor:
        pixels = cv2.remap(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), *maps, cv2.INTER_LINEAR)
        return torch.from_numpy(np.ascontiguousarray(pixels.reshape(*image.shape[1:], -1).transpose(2, 0, 1)))


def _opencv(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    K = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1.0]])
    return K, np.array(camera.distortion if camera.distortion else (0.0,) * 4, float)
