"""Rectification of stereo pairs: both images are remapped so that corresponding points lie in the same row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..core import geometry
from ..core.errors import CameraError
from .calibration import camera_from_info, info_field, stereo_baseline_m
from .model import Camera


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
        self._left = left
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

    def apply_mask(self, mask: Tensor) -> Tensor:
        """(H, W) bool of the raw left image -> of the rectified one."""
        pixels = cv2.remap(mask.numpy().astype(np.uint8), *self._maps[0], cv2.INTER_NEAREST)
        return torch.from_numpy(pixels > 0)

    def to_raw(self, uv: Tensor) -> Tensor:
        """Px (N, 2) of the rectified left image -> px (N, 2) of the raw one."""
        rays = geometry.rays(self.camera, uv.double())
        return self._left.project(rays @ rays.new_tensor(self.T_left_rectified[:3, :3]).T).to(uv.dtype)

    def raw_px_per_px(self, uv: Tensor) -> Tensor:
        """(N,) float32: raw px per rectified px at px (N, 2) of the rectified left image, the geometric mean over directions."""
        uv = uv.double()
        du, dv = (self.to_raw(uv + step) - self.to_raw(uv - step) for step in uv.new_tensor([[0.5, 0.0], [0.0, 0.5]]))
        return (du[:, 0] * dv[:, 1] - du[:, 1] * dv[:, 0]).abs().sqrt().float()

    @staticmethod
    def _remap(image: Tensor, maps: tuple[np.ndarray, np.ndarray]) -> Tensor:
        pixels = cv2.remap(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), *maps, cv2.INTER_LINEAR)
        return torch.from_numpy(np.ascontiguousarray(pixels.reshape(*image.shape[1:], -1).transpose(2, 0, 1)))


def calibrate_stereo(
    left_info: Any, right_info: Any, rectified: bool, image_size: tuple[int, int] | None = None
) -> tuple[Camera, Rectification | None]:
    """CameraInfo of both cameras -> the camera of the rectified pair, and how to rectify its images; None where they need not be.

    Args:
        rectified: the images are rectified already. Undistorted images of cameras with R = I are so too, whatever their name.
        image_size: as of `camera_from_info`.

    Raises:
        CameraError: no baseline in the right camera's P, R that is no rotation, or a calibration that cannot be used.
    """
    baseline = stereo_baseline_m(left_info, right_info)
    if baseline is None:
        P_left, P_right = ([round(float(p), 3) for p in info_field(info, "p")] for info in (left_info, right_info))
        raise CameraError(
            f"the right CameraInfo has P = {P_right}, the left one P[3] = {P_left[3]:g}, which holds no baseline; expected "
            "P[3] = -fx * baseline of the right camera (above 0 where left and right are exchanged): calibrate as a stereo pair (ros2 run "
            "camera_calibration cameracalibrator --approximate 0.1 ...) or use one camera only (mode mono)"
        )
    pair = replace(camera_from_info(left_info, rectified=True, image_size=image_size), baseline_m=baseline)
    if rectified:
        return pair, None
    left, right = (camera_from_info(info, image_size=image_size) for info in (left_info, right_info))
    R_left, R_right = (_rotation(info, name) for info, name in ((left_info, "left"), (right_info, "right")))
    aligned = all(np.allclose(R, np.eye(3), atol=1e-4) for R in (R_left, R_right))
    if aligned and not (left.is_distorted or right.is_distorted):
        return pair, None
    # R rotates each raw camera into the common rectified one, in which the right camera stands at +x.
    T_left_right = np.eye(4)
    T_left_right[:3, :3] = R_left.T @ R_right
    T_left_right[:3, 3] = R_left.T @ [baseline, 0, 0]
    rectification = Rectification(left, right, T_left_right)
    return rectification.camera, rectification


def _rotation(info: Any, name: str) -> np.ndarray:
    """R of a CameraInfo, (3, 3).

    Raises:
        CameraError: it is no rotation, as the zeros of drivers that leave it out.
    """
    R = np.asarray(info_field(info, "r"), float).reshape(3, 3)
    if not (np.isfinite(R).all() and np.allclose(R @ R.T, np.eye(3), atol=1e-2) and np.linalg.det(R) > 0):
        raise CameraError(
            f"the {name} CameraInfo has R = {[round(float(r), 3) for r in R.ravel()]}, which is no rotation; a raw stereo pair is "
            "rectified by it: calibrate as a stereo pair (ros2 run camera_calibration cameracalibrator), or, where the images are "
            "rectified, set rectified to 'yes' (--rectified yes of a replay)"
        )
    return R


def _opencv(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    K = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1.0]])
    return K, np.array(camera.distortion if camera.distortion else (0.0,) * 4, float)
