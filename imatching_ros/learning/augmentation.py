"""Photometric augmentation: what a camera does to an image (exposure, gamma, noise, blur, vignetting, haze). Batched, seeded, on any device.

The learning step and the offline training draw from `augment`; the renderer takes single effects.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad


def blur(images: Tensor, sigma_along: Tensor, sigma_across: Tensor, angle: Tensor) -> Tensor:
    """Gaussian blur of its own for every image.

    Args:
        images: (N, C, H, W).
        sigma_along, sigma_across: (N,) px; below 0.2 px means none. A linear motion of L px is about L / sqrt(12).
        angle: (N,) rad, direction of `along` from the u axis.
    """
    N, C = images.shape[:2]
    edge = 11  # px of the kernel; odd, and nearly 2 sigma to each side of the widest blur of `augment`
    reach = torch.arange(edge, device=images.device) - edge // 2
    v, u = torch.meshgrid(reach.float(), reach.float(), indexing="ij")
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = c * u + s * v, c * v - s * u
    a, b = (sigma.clamp_min(0.2)[:, None, None] for sigma in (sigma_along, sigma_across))
    kernel = torch.exp(-0.5 * ((along / a) ** 2 + (across / b) ** 2))
    kernel = (kernel / kernel.sum((1, 2), keepdim=True)).repeat_interleave(C, 0)[:, None]
    half = edge // 2
    padded = pad(images, (half,) * 4, mode="replicate").reshape(1, N * C, images.shape[2] + 2 * half, -1)
    return conv2d(padded, kernel.to(images.dtype), groups=N * C).view_as(images)


def vignette(images: Tensor, strength: Tensor, centre: Tensor | None = None) -> Tensor:
    """Darkens towards the corners; strength (N,) 0..1 is the light lost there, centre (N, 2) in -1..1 of the image."""
    H, W = images.shape[-2:]
    v, u = torch.meshgrid(
        torch.linspace(-1, 1, H, device=images.device), torch.linspace(-1, 1, W, device=images.device), indexing="ij"
    )
    if centre is not None:
        u, v = u[None] - centre[:, 0, None, None], v[None] - centre[:, 1, None, None]
    radius2 = ((u * u + v * v) / 2).clamp_max(1.5)
    return images * (1 - strength[:, None, None, None] * radius2.reshape(-1, 1, H, W)).clamp_min(0.02)


def add_noise(images: Tensor, sigma: Tensor, shot: Tensor, seed: int) -> Tensor:
    """Sensor noise with standard deviation sqrt(sigma^2 + shot^2 * brightness); sigma and shot (N,) in parts of full scale."""
    generator = torch.Generator(images.device).manual_seed(seed)
    deviation = (sigma[:, None, None, None] ** 2 + shot[:, None, None, None] ** 2 * images.clamp(0, 1)).sqrt()
    return images + deviation * torch.randn(images.shape, generator=generator, device=images.device)


def augment(images: Tensor, seed: int) -> Tensor:
    """Independent random effects for every image of a batch: what two views of one place may differ by on real cameras.

    Args:
        images: (N, C, H, W) float 0..1.

    Returns:
        (N, C, H, W) float32 0..1.
    """
    rng = np.random.default_rng((seed, 7))
    N = len(images)

    def draw(low: float, high: float, share: float = 1.0, otherwise: float = 0.0) -> Tensor:
        value = np.where(rng.random(N) < share, rng.uniform(low, high, N), otherwise)
        return torch.as_tensor(value, dtype=torch.float32, device=images.device)

    def wide(x: Tensor) -> Tensor:
        return x[:, None, None, None]

    # Light that differs across the image: a lamp switched on, sun through a window.
    H, W = images.shape[-2:]
    v, u = torch.meshgrid(
        torch.linspace(-1, 1, H, device=images.device), torch.linspace(-1, 1, W, device=images.device), indexing="ij"
    )
    slope = wide(draw(-0.3, 0.3, 0.3)) * u + wide(draw(-0.3, 0.3, 0.3)) * v
    images = images * (1 + slope)
    images = vignette(images, draw(0.1, 0.8, 0.3), torch.stack([draw(-0.2, 0.2), draw(-0.2, 0.2)], -1))
    haze = wide(draw(0.1, 0.6, 0.12))
    images = torch.lerp(images, wide(draw(0.3, 0.9)).expand_as(images), haze)
    sigma = draw(0.3, 1.3, 0.35)
    along, angle = torch.maximum(sigma, draw(0.8, 2.8, 0.15)), draw(0, math.pi)
    sharp = along < 0.2  # about half of them: `blur`, the slowest effect, would leave them as they are
    if not sharp.all():
        blurred = blur(images[~sharp], along[~sharp], sigma[~sharp], angle[~sharp])
        images = images.index_copy(0, (~sharp).nonzero()[:, 0], blurred)
    images = images.clamp_min(1e-4) ** wide(torch.exp(draw(-0.35, 0.35, 0.7)))
    dark = torch.exp(-draw(0.5, 2.0, 0.12))
    images = images * wide(torch.exp(draw(-0.4, 0.4, 0.8)) * dark) + wide(draw(-0.06, 0.06, 0.6))
    images = add_noise(images, draw(0.002, 0.03, 0.8, 0.002), draw(0.0, 0.04, 0.5), seed)
    # A dark image is as often brightened again by the camera's gain, together with its noise.
    images = images * wide(torch.where(draw(0, 1) < 0.5, 1 / dark, torch.ones_like(dark)))
    levels = wide(torch.where(draw(0, 1) < 0.9, 255.0, 64.0))
    return (images.clamp(0, 1) * levels).round() / levels
