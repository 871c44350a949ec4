"""How wide the residuals really are, for covariances that do not believe the assumed sigmas."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import BundleConfig


def measure_spread(s: Tensor, weight: Tensor, size: Tensor, parameters: Tensor | int, config: BundleConfig) -> Tensor:
    """The factor () that turns (J^T W J)^-1 of unit sigmas into the covariance of the estimate.

    Huber's covariance of an M-estimate (Robust Statistics, 1981, section 7.6): (n / (n - p)) mean(psi^2) / mean(psi')^2
    (J^T J)^-1, with J^T W J taken as mean(w) J^T J.

    Args:
        s, weight: (O,) squared whitened norms and kernel weights of the used observations. size: (O,) their numbers, 2 or 3.
        parameters: p, how many numbers were estimated from them.
    """
    n = size.sum()
    psi2 = (weight**2 * s).sum() / n
    k2 = config.kernel_width**2
    # psi = w(s) r in `size` dimensions has the divergence size * w + 2 s w'(s).
    bend = {"none": lambda: torch.zeros_like(s),
            "huber": lambda: torch.where(s > k2, -0.5 * weight / s.clamp_min(k2), 0.0),
            "cauchy": lambda: -(weight**2) / k2,
            "geman_mcclure": lambda: -2 / k2 * (1 + s / k2) ** -3}[config.kernel]()
    slope = (size * weight + 2 * s * bend).sum() / n
    mean_weight = (size * weight).sum() / n
    return psi2 * mean_weight / slope.clamp_min(0.05) ** 2 * n / (n - parameters).clamp_min(1.0)
