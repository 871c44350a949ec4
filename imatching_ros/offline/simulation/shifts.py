"""Named domain shifts: what the shipped weights have not seen, each a fixed set of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ...camera.model import Camera
from ...core.errors import ConfigError
from ...learning.augmentation import add_noise, vignette
from .renderer import camera_rays, quaternion_to_matrix


@dataclass(frozen=True)
class Shift:
    """A camera and its surroundings; the default is a healthy camera in good light."""

    gain: float = 1.0  # of the light that reaches the sensor
    read_noise: float = 0.004  # parts of full scale
    shot_noise: float = 0.008
    exposure_drift: float = 0.08  # deviation of the slow wandering of the exposure, natural logarithm
    shutter: float = 0.0  # share of the frame interval during which the shutter is open
    shake_deg: float = 0.0  # turn of the camera during that time, besides its path
    haze: float = 0.0  # 1 - transmission at the haze distance
    haze_distance_m: float = 4.0  # of indoor scenes; outdoors ten times as far
    vignetting: float = 0.1  # light lost in the corners
    zoom: float = 1.0  # factor of the focal length
    held_out_textures: bool = False
    lamp_drift: float = 0.0  # deviation of the wandering of each lamp's brightness, natural logarithm


SHIFTS: dict[str, Shift] = {
    "none": Shift(),
    "dark_noise": Shift(gain=0.22, read_noise=0.022, shot_noise=0.05),
    "motion_blur": Shift(shutter=0.8, shake_deg=1.2),
    "fog": Shift(haze=0.75),
    "vignette": Shift(vignetting=0.92, zoom=1.5),
    "new_texture": Shift(held_out_textures=True),
    "light_change": Shift(exposure_drift=0.35, lamp_drift=0.5),
}


def find_shift(name: str) -> Shift:
    if name not in SHIFTS:
        raise ConfigError(f"unknown shift '{name}'; known are {', '.join(SHIFTS)}")
    return SHIFTS[name]


def shifted_camera(camera: Camera, shift: Shift) -> Camera:
    return replace(camera, fx=camera.fx * shift.zoom, fy=camera.fy * shift.zoom)


def take_image(
    image: Tensor,
    depth: Tensor,
    camera: Camera,
    T_open: Tensor,
    T_mid: Tensor,
    T_close: Tensor,
    shift: Shift,
    exposure: float,
    seed: int,
) -> Tensor:
    """What the camera makes of a sharp, clean rendering.

    Args:
        image: (3, H, W) float 0..1, rendered at T_mid. depth: (H, W) metres, 0 = sky.
        T_open, T_mid, T_close: (7,) poses when the shutter opens, at the stamp, when it closes.
        exposure: factor of this frame's automatic exposure.

    Returns:
        (3, H, W) uint8.
    """
    if shift.shutter > 0:
        image = motion_blur(image, depth, camera, T_open, T_mid, T_close)
    one = image.new_ones(1)
    exposed = vignette(image[None] * (shift.gain * exposure), shift.vignetting * one)
    exposed = add_noise(exposed, shift.read_noise * one, shift.shot_noise * one, seed)
    return (exposed[0].clamp(0, 1) * 255).round().to(torch.uint8)


def motion_blur(
    image: Tensor, depth: Tensor, camera: Camera, T_open: Tensor, T_mid: Tensor, T_close: Tensor, samples: int = 9
) -> Tensor:
    """Averages the image along each pixel's path between two poses; (3, H, W) -> the same.

    The path follows from the depth of the pixel in the middle of the exposure. What appears from behind a surface during
    it is not known and is taken from the surface: an approximation at silhouettes only.
    """
    H, W = depth.shape
    rays, _, _ = camera_rays(camera, 1, 0.0, 0.0, depth.device)
    far = torch.where(depth > 0, depth, 1e4).double()
    points_W = _to_world(rays[0] * far[..., None], T_mid)
    grid = torch.stack(
        torch.meshgrid(torch.arange(W, device=depth.device), torch.arange(H, device=depth.device), indexing="xy"), -1
    ).double()
    ends = []
    for pose in (T_open, T_close):
        points_C = _to_camera(points_W, pose)
        uv = camera.project(points_C)
        usable = (points_C[..., 2] > 0.05) & torch.isfinite(uv).all(-1)
        ends.append(torch.where(usable[..., None], uv - grid, 0.0))
    # A parabola through the three positions; image content seen at offset s of the exposure lies against the pixel's motion.
    opened, closed = ends
    size = torch.tensor([W, H], device=depth.device, dtype=torch.float64)
    total = torch.zeros_like(image)
    for s in torch.linspace(-1, 1, samples, dtype=torch.float64).tolist():
        move = 0.5 * s * (s - 1) * opened + 0.5 * s * (s + 1) * closed
        where = ((grid - move + 0.5) / size * 2 - 1).to(image.dtype)
        total += grid_sample(image[None], where[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    return total / samples


def shaken(T_WC: Tensor, shift: Shift, share: float, rng: np.random.Generator) -> Tensor:
    """(7,) the pose turned by the hand's shake, `share` of it before or after the stamp."""
    axis = rng.normal(0, 1, 3)
    half = math.radians(shift.shake_deg) * share / 2
    turn = np.concatenate([axis / np.linalg.norm(axis) * math.sin(half), [math.cos(half)]])
    x, y, z, w = T_WC[3:].tolist()
    a, b, c, d = turn
    product = [
        w * a + x * d + y * c - z * b,
        w * b - x * c + y * d + z * a,
        w * c + x * b - y * a + z * d,
        w * d - x * a - y * b - z * c,
    ]
    return torch.cat([T_WC[:3], torch.tensor(product, dtype=T_WC.dtype, device=T_WC.device)])


def _to_world(points_C: Tensor, T: Tensor) -> Tensor:
    return points_C @ quaternion_to_matrix(T[3:].double()).T + T[:3].double()


def _to_camera(points_W: Tensor, T: Tensor) -> Tensor:
    return (points_W - T[:3].double()) @ quaternion_to_matrix(T[3:].double())
