"""A textured thing that moves before the camera of any recording: does odometry follow the world, and does it say so where it cannot?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from ...camera.model import Camera
from ...core import geometry
from ...core.errors import ConfigError
from ...core.types import Frame
from ..recordings.base import Source
from ..recordings.truth import Trajectory

DISTANCE_M = 1.0  # from the camera to the plane of the thing
BEGIN = 15  # frame at which a thing that stands walks away, or one that passes comes in


@dataclass(frozen=True)
class MovingObject:
    """A textured rectangle in the proportions of the image, upright before the camera.

    Attributes:
        share: of the image that it fills.
        place: frame -> its centre, in image widths to the right of the image's.
        stands: it stands in the world, not before the camera, until frame `BEGIN`.
    """

    name: str
    share: float
    place: Callable[[int], float]
    stands: bool = False


def make_objects() -> list[MovingObject]:
    """The catalogue: what sways before the camera from the first frame on, what passes through the image, and what stands first."""
    objects = [MovingObject(f"{s:.0%} sways", s, _sway(s, 50)) for s in (0.15, 0.25, 0.4, 0.6)]
    objects.append(MovingObject("40% sways slowly", 0.4, _sway(0.4, 150)))
    objects += [MovingObject(f"{s:.0%} passes", s, _pass(s, 0.03)) for s in (0.25, 0.4)]
    objects.append(MovingObject("25% walks away", 0.25, _walk_away(0.02), stands=True))
    return objects


class WithObject(Source):
    """A recording with a thing before the camera.

    Raises:
        ConfigError: the thing stands in the world first, but the recording has no ground truth.
    """

    def __init__(self, source: Source, thing: MovingObject, seed: int = 0) -> None:
        super().__init__()
        self._source, self._thing, self._texture = source, thing, _texture(seed)
        self.name, self.mode, self.camera, self.options = source.name, source.mode, source.camera, source.options
        if thing.stands and source.groundtruth() is None:
            raise ConfigError(f"{source.name}: '{thing.name}' needs ground truth, and there is none")

    def groundtruth(self) -> Trajectory | None:
        return self._source.groundtruth()

    def read(self):
        truth, T_first, T_WC = self._source.groundtruth(), None, geometry.identity()
        for i, frame in enumerate(self._source):
            T_CO = geometry.identity()
            T_CO[:3] = (
                torch.tensor([self._thing.place(i) * frame.camera.width / frame.camera.fx, 0.0, 1.0]) * DISTANCE_M
            )
            if self._thing.stands and truth is not None:
                T_WC = _pose_at(truth, frame.stamp_ns) if i <= BEGIN else T_WC
                T_first = T_WC if T_first is None else T_first
                T_CO = geometry.compose(geometry.relative(T_WC, T_first), T_CO)
            yield composite(frame, T_CO, self._thing.share, self._texture)


def composite(frame: Frame, T_CO: Tensor, share: float, texture: np.ndarray) -> Frame:
    """The frame with a rectangle at the pose T_CO (7,) before it, in its image, its depth and its right image.

    Args:
        share: of the image that it fills at `DISTANCE_M` straight ahead.
        texture: (H, W) uint8.
    """
    image, depth = _paint(frame.image, frame.depth, frame.camera, T_CO, share, texture)
    right = frame.right
    if right is not None and frame.camera.baseline_m is not None:
        T_right = T_CO.clone()
        T_right[0] -= frame.camera.baseline_m
        right, _ = _paint(right, None, frame.camera, T_right, share, texture)
    return replace(frame, image=image, depth=depth, right=right)


def _paint(
    image: Tensor, depth: Tensor | None, camera: Camera, T_CO: Tensor, share: float, texture: np.ndarray
) -> tuple[Tensor, Tensor | None]:
    """Image (C, H, W) and depth (H, W) with the rectangle."""
    v, u = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    rays = geometry.rays(camera, camera.undistort(torch.stack([u, v], -1).double()))
    normal = geometry.rotate(T_CO[3:], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    z = (normal @ T_CO[:3]) / (rays @ normal)  # (H, W), along the optical axis
    at = geometry.act(geometry.inverse(T_CO), rays * z[..., None])[..., :2]
    size = torch.tensor([camera.width / camera.fx, camera.height / camera.fy]).double() * DISTANCE_M * share**0.5
    at = at / size + 0.5  # 0..1 in the rectangle
    inside = ((at >= 0) & (at <= 1)).all(-1) & (z > 0)
    x, y = (at[..., k].numpy() * (texture.shape[1 - k] - 1) for k in (0, 1))
    pixels = torch.from_numpy(cv2.remap(texture, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR))
    painted = torch.where(inside, pixels, image)
    return painted, None if depth is None else torch.where(inside, z.to(depth), depth)


def _texture(seed: int) -> np.ndarray:
    """(240, 320) uint8 with corners of three sizes."""
    rng, image = np.random.default_rng(seed), np.zeros((240, 320), np.float32)
    for cell in (6, 13, 29):
        noise = rng.normal(0, 1, (240 // cell + 1, 320 // cell + 1)).astype(np.float32)
        image += np.kron(noise, np.ones((cell, cell), np.float32))[:240, :320]
    return (cv2.GaussianBlur(image, (0, 0), 0.8) * 28 + 128).clip(0, 255).astype(np.uint8)


def _sway(share: float, period: float) -> Callable[[int], float]:
    """To either side as far as it stays in the image, but at least over a tenth of it; `period` in frames."""
    far = max((1 - share**0.5) / 2, 0.1)
    return lambda i: far * np.sin(2 * np.pi * i / period)


def _pass(share: float, step: float) -> Callable[[int], float]:
    """From beyond the left border to beyond the right one, by `step` image widths a frame."""
    return lambda i: step * (i - BEGIN) - (1 + share**0.5) / 2


def _walk_away(step: float) -> Callable[[int], float]:
    return lambda i: step * max(0, i - BEGIN)


def _pose_at(truth: Trajectory, stamp_ns: int) -> Tensor:
    return geometry.from_matrix(torch.from_numpy(truth.at(np.array([stamp_ns]))[0][0]))
