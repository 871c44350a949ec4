"""Rendered and warped images that the tests of odometry share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import torch

from imatching_ros.camera.model import Camera
from imatching_ros.core import geometry
from imatching_ros.core.config import Config
from imatching_ros.core.types import Frame
from imatching_ros.offline.simulation.sequence import SimulatedSequence

CAMERA = Camera(320, 240, 256.0, 256.0, 159.5, 119.5)
STEP_NS = 100_000_000


def configure(matcher: str = "klt", **values) -> Config:
    return Config().with_values(
        {"matcher.name": matcher, "learning.mode": '"off"', **{k.replace("__", "."): v for k, v in values.items()}}
    )


def speckle(seed: int = 0, size: tuple[int, int] = (480, 640)) -> np.ndarray:
    """An image with corners of several sizes, (H, W) uint8."""
    rng = np.random.default_rng(seed)
    image = np.zeros(size, np.float32)
    for cell in (6, 13, 29):
        rows, cols = size[0] // cell + 2, size[1] // cell + 2
        noise = rng.normal(0, 1, (rows, cols)).astype(np.float32)
        image += np.kron(noise, np.ones((cell, cell), np.float32))[: size[0], : size[1]]
    image = cv2.GaussianBlur(image, (0, 0), 0.8)
    return np.clip(image * 28 + 128, 0, 255).astype(np.uint8)


def rotating(count: int, degrees: float) -> list[Frame]:
    """A camera that only turns, about its y axis, by `degrees` a frame: exact homographies of one image."""
    wide = speckle(3, (480, 900))
    K = np.array([[CAMERA.fx, 0, CAMERA.cx], [0, CAMERA.fy, CAMERA.cy], [0, 0, 1]])
    centre = np.array([[CAMERA.fx, 0, 450.0], [0, CAMERA.fy, 240.0], [0, 0, 1]])
    frames = []
    for i in range(count):
        R = cv2.Rodrigues(np.array([0.0, np.radians(degrees * i), 0.0]))[0]
        H = centre @ R @ np.linalg.inv(K)
        image = cv2.warpPerspective(
            wide, H, (CAMERA.width, CAMERA.height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        frames.append(Frame(i, i * STEP_NS, torch.from_numpy(image)[None], CAMERA))
    return frames


def swing(t: np.ndarray) -> np.ndarray:
    """A hand's angular rates (N, 3) rad/s at times (N,) s."""
    return np.stack([2 * np.sin(3 * t), 1.5 * np.cos(2 * t), 0.5 + 0 * t], -1)


def noisy(frame: Frame, seed: int, **changes) -> Frame:
    """The same view with other sensor noise."""
    noise = torch.randn(frame.image.shape, generator=torch.Generator().manual_seed(seed)) * 2
    return replace(frame, image=(frame.image + noise).round().clamp(0, 255).to(torch.uint8), **changes)


@cache
def render_walk() -> list[tuple[Frame, torch.Tensor]]:
    """Frames with depth of a rendered walk, and where the camera was, seen from the first frame."""
    rendered = list(
        SimulatedSequence(kind="clutter", frames=18, seed=1, width=320, height=240, supersample=1, speed_mps=0.6).read()
    )
    return [(frame, geometry.relative(rendered[0][1], T)) for frame, T in rendered]


def passing(frame: Frame, there: bool = True) -> Frame:
    """The frame with a mask over 40 % of it that moves, and a textured thing under it before the camera."""
    size, left = (192, 160), 20 + 4 * frame.id
    mask = torch.zeros(240, 320, dtype=torch.bool)
    mask[30 : 30 + size[0], left : left + size[1]] = True
    image, depth = frame.image.clone(), frame.depth.clone()
    if there:
        image[:, mask] = torch.from_numpy(speckle(7)[: size[0], : size[1]].copy()).flatten()
        depth[mask] = 0.5
    return replace(frame, image=image, depth=depth, mask=mask)
