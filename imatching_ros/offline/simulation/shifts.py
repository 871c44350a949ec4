"""Named domain shifts: what the shipped weights have not seen, each a fixed set of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ...camera.model import Camera
from ...core.errors import ConfigError
from ...learning.augmentation import add_noise, blur, vignette
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
    # No augmentation of training contains these:
    texture_contrast: float = 1.0  # of all surfaces, about the mean colour of each
    gloss: float = 0.0  # strength of the highlights of every surface, at least
    drops: int = 0  # of water on the lens
    contrast: float = 1.0  # of the grey image about its mean; a negative one inverts it; 1 keeps the colours
    stripes: float = 0.0  # light lost between the bright rows of a flickering lamp under a rolling shutter
    jpeg_quality: int = 100  # of the camera's compression; 100 means none


SHIFTS: dict[str, Shift] = {
    "none": Shift(),
    "dark_noise": Shift(gain=0.22, read_noise=0.022, shot_noise=0.05),
    "motion_blur": Shift(shutter=0.8, shake_deg=1.2),
    "fog": Shift(haze=0.75),
    "vignette": Shift(vignetting=0.92, zoom=1.5),
    "new_texture": Shift(held_out_textures=True),
    "light_change": Shift(exposure_drift=0.35, lamp_drift=0.5),
    "sand": Shift(texture_contrast=0.15),
    "wet": Shift(gloss=3.0),
    "rain": Shift(drops=14),
    "thermal": Shift(contrast=-0.2, read_noise=0.012),
    "stripes": Shift(stripes=0.7),
    "jpeg": Shift(jpeg_quality=12),
}


def find_shift(name: str) -> Shift:
    if name not in SHIFTS:
        raise ConfigError(f"unknown shift '{name}'; known are {', '.join(SHIFTS)}")
    return SHIFTS[name]


def shifted_camera(camera: Camera, shift: Shift) -> Camera:
    return replace(camera, fx=camera.fx * shift.zoom, fy=camera.fy * shift.zoom)


def take_image(image: Tensor, shift: Shift, exposure: float, frame: int, seed: int) -> Tensor:
    """What the sensor makes of the light (3, H, W) float 0..1 that falls on it.

    Args:
        exposure: factor of this frame's automatic exposure.
        frame: its number, which decides where stripes lie. seed: of its noise.

    Returns:
        (3, H, W) uint8.
    """
    one = image.new_ones(1)
    exposed = vignette(image[None] * (shift.gain * exposure), shift.vignetting * one)[0]
    if shift.contrast != 1:
        grey = exposed.mean(0, keepdim=True).expand_as(exposed)
        exposed = 0.5 + shift.contrast * (grey - grey.mean())
    if shift.stripes > 0:
        exposed = exposed * (1 - shift.stripes * _stripes(image.shape[1], frame).to(image)[:, None])
    noisy = add_noise(exposed[None], shift.read_noise * one, shift.shot_noise * one, seed)[0]
    taken = (noisy.clamp(0, 1) * 255).round().to(torch.uint8)
    return _compress(taken, shift.jpeg_quality) if shift.jpeg_quality < 100 else taken


def _stripes(height: int, frame: int) -> Tensor:
    """(height,) 0..1: how dark a lamp is while each row is exposed; 3 periods an image, of which they move .37 a frame."""
    rows = torch.arange(height) / height
    return 0.5 - 0.5 * torch.cos(2 * math.pi * (3 * rows + 0.37 * frame))


def _compress(image: Tensor, quality: int) -> Tensor:
    """(3, H, W) uint8 -> the same after compression as JPEG."""
    pixels = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()[..., ::-1])
    _, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return torch.from_numpy(decoded[..., ::-1].copy()).permute(2, 0, 1).to(image.device)


def add_drops(image: Tensor, count: int, seed: int) -> Tensor:
    """Drops of water on the lens, the same for one seed: each shows a wide part of the image upside down and blurred; (3, H, W)."""
    rng = np.random.default_rng((seed, 41))
    H, W = image.shape[1:]
    v, u = torch.meshgrid(torch.arange(H).float(), torch.arange(W).float(), indexing="ij")
    where, share = torch.stack([u, v], -1), torch.zeros(H, W)
    for _ in range(count):
        centre = torch.tensor([rng.uniform(0, W), rng.uniform(0, H)], dtype=torch.float32)
        offset = torch.stack([u, v], -1) - centre
        depth = (1 - (offset.norm(dim=-1) / (W * rng.uniform(0.03, 0.09))) ** 2).clamp_min(0)
        where = torch.where(depth[..., None] > 0, centre - 4 * offset, where)  # a drop is a lens of short focal length
        share = torch.maximum(share, (4 * depth).clamp_max(1))  # with a soft rim
    grid = ((where + 0.5) / torch.tensor([W, H]) * 2 - 1).to(image)
    width = image.new_full((1,), 3.0)
    soft = blur(image[None], width, width, torch.zeros_like(width))
    seen = grid_sample(soft, grid[None], mode="bilinear", padding_mode="reflection", align_corners=False)[0]
    return torch.lerp(image, seen, share.to(image))


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
