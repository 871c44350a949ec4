"""THE reprojection residual and its robust kernels: bundle adjustment minimises it, learning descends it.

Learning may hold T* and p* constant only because both levels share this residual and these weights: at the optimum of the
one, the derivative of the other with respect to T and p vanishes.

A kernel rho acts on s, the squared norm of one observation's whitened residual (2 numbers in mono, 3 in stereo and depth).
The cost of a window is sum(rho(s)) / 2; the weight rho'(s) is 1 for s = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import geometry
from ..camera.model import Camera
from .types import ObservationKind
from .errors import CameraError, ConfigError

# Nearer than this a point has no meaningful pixel; in the unit of the map.
MIN_DEPTH = 1e-6


def third_number(camera: Camera, kind: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(alpha, beta), each shaped as `kind`, such that an observation's third number is alpha * u + beta / z.

    Raises:
        CameraError: stereo observations of a camera without `baseline_m`.
    """
    stereo, depth = kind == ObservationKind.STEREO, kind == ObservationKind.DEPTH
    if camera.baseline_m is None:
        if bool(stereo.any()):
            raise CameraError(
                "stereo observations need the camera's baseline_m, which is not given; set it to the distance "
                "between the rectified cameras in metres"
            )
        return stereo.to(dtype), depth.to(dtype)
    return stereo.to(dtype), depth.to(dtype) - camera.fx * camera.baseline_m * stereo.to(dtype)


def reproject(camera: Camera, T_WC: Tensor, points_W: Tensor, kf_idx: Tensor, pt_idx: Tensor, kind: Tensor) -> Tensor:
    """What every observation should have said, (O, 3): u, v in ideal px, then nothing (0), u in the right image, or 1/z.

    Differentiable in T_WC (M, 7) and points_W (P, 3). NaN where the landmark is not in front of the camera.
    """
    points_C = geometry.act(geometry.inverse(T_WC)[kf_idx], points_W[pt_idx])
    x, y, z = points_C.unbind(-1)
    z = torch.where(z > MIN_DEPTH, z, torch.nan)
    u, v = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
    alpha, beta = third_number(camera, kind, points_C.dtype)
    return torch.stack([u, v, alpha * u + beta / z], -1)


def whiten(residual: Tensor, sigma: Tensor, kind: Tensor) -> Tensor:
    """Residuals (O, 3) over sigma (O, 3); the unused third number of a mono observation becomes 0."""
    third = torch.where(kind == ObservationKind.MONO, 0.0, residual[:, 2] / sigma[:, 2])
    return torch.cat([residual[:, :2] / sigma[:, :2], third[:, None]], 1)


def squared(
    camera: Camera,
    T_WC: Tensor,
    points_W: Tensor,
    kf_idx: Tensor,
    pt_idx: Tensor,
    obs: Tensor,
    kind: Tensor,
    sigma: Tensor,
) -> Tensor:
    """s (O,): squared norm of every whitened residual, differentiable in T_WC, points_W and obs; what the kernels take."""
    r = whiten(obs - reproject(camera, T_WC, points_W, kf_idx, pt_idx, kind), sigma, kind)
    return (r * r).sum(-1)


def kernel_cost(kernel: str, s: Tensor, width: float) -> Tensor:
    """rho(s), same shape as s. Huber 1964; Cauchy; Geman and McClure 1985 scaled to rho'(0) = 1."""
    k2 = width * width
    if kernel == "none":
        return s
    if kernel == "huber":
        return torch.where(s <= k2, s, 2 * width * s.clamp_min(k2).sqrt() - k2)
    if kernel == "cauchy":
        return k2 * torch.log1p(s / k2)
    if kernel == "geman_mcclure":
        return s / (1 + s / k2)
    raise ConfigError(f"unknown robust kernel '{kernel}', expected huber, cauchy, geman_mcclure or none")


def kernel_weight(kernel: str, s: Tensor, width: float) -> Tensor:
    """rho'(s), in 0..1, same shape as s: the weight of the squared residual in iteratively reweighted least squares."""
    k2 = width * width
    if kernel == "none":
        return torch.ones_like(s)
    if kernel == "huber":
        return width / s.clamp_min(k2).sqrt()
    if kernel == "cauchy":
        return 1 / (1 + s / k2)
    if kernel == "geman_mcclure":
        return (1 + s / k2) ** -2
    raise ConfigError(f"unknown robust kernel '{kernel}', expected huber, cauchy, geman_mcclure or none")


def kernel_bend(kernel: str, s: Tensor, width: float) -> Tensor:
    """-2 s rho''(s) / rho'(s), same shape as s: the part of the curvature along the residual that reweighting overstates.

    0 for a quadratic cost; 1 where the cost has no curvature along the residual, as in Huber's linear part; above 1 where it
    curves downwards.
    """
    k2 = width * width
    if kernel == "none":
        return torch.zeros_like(s)
    if kernel == "huber":
        return (s > k2).to(s.dtype)
    if kernel == "cauchy":
        return 2 * s / (k2 + s)
    if kernel == "geman_mcclure":
        return 4 * s / (k2 + s)
    raise ConfigError(f"unknown robust kernel '{kernel}', expected huber, cauchy, geman_mcclure or none")
