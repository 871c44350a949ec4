"""Images of a patterned wall at z = 2 m in the world, from any pose: exact and quick."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from imatching_ros.camera.model import Camera

CAMERA = Camera(320, 240, 256.0, 256.0, 159.5, 119.5)
_DISTANCE_M = 2.0
_PX_PER_M = 128.0


def _pattern() -> np.ndarray:
    noise = np.random.default_rng(5).uniform(0, 255, (3, 1024, 1024)).astype(np.float32)
    mixed = sum(
        cv2.GaussianBlur(layer, (0, 0), sigma) * sigma for layer, sigma in zip(noise, (1.5, 3.0, 6.0), strict=True)
    )
    return cv2.normalize(mixed, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


_PATTERN = _pattern()


def look(
    position: tuple[float, float, float] = (0, 0, 0),
    rotation_deg: tuple[float, float, float] = (0, 0, 0),
    camera: Camera = CAMERA,
) -> tuple[np.ndarray, np.ndarray]:
    """Grey image (H, W) uint8 and depth (H, W) float32 m; rotation is a rotation vector about the camera's optical axes."""
    v, u = np.mgrid[: camera.height, : camera.width]
    u, v = camera.undistort(torch.from_numpy(np.stack([u, v], -1).astype(float))).numpy().transpose(2, 0, 1)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], -1)
    directions = rays @ Rotation.from_rotvec(np.radians(rotation_deg)).as_matrix().T
    depth = (_DISTANCE_M - position[2]) / directions[..., 2]
    points = np.array(position) + depth[..., None] * directions
    uv = (points[..., :2] * _PX_PER_M + 512).astype(np.float32)
    return cv2.remap(_PATTERN, uv[..., 0], uv[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), depth.astype(
        np.float32
    )
