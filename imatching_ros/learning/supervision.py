"""Losses of matches whose truth is known, for every matcher, by its differentiable door."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..matching.base import Matcher
from .cooperative_yield import cooperative_yield, yield_in_backward
from .pseudo_truth import TrainingPair

PRECISION_PX = 0.5  # the scale of the coordinate loss
RIGHT_PX = 3.0  # a match closer to the truth than this counts as right when the score is trained
SEARCH_PX = 8.0  # about a place up to half of that off, so that the fine stage looks where it is to find something


def correspondence_loss(matcher: Matcher, pair: TrainingPair, generator: torch.Generator) -> Tensor:
    """Mean of the coarse and the fine cross-entropy and the cost of the coordinate, over the correspondences of a pair.

    The coarse distribution is that over the whole image. Gradients pass through both images.

    Returns:
        () float32, on the matcher's device.
    """
    cooperative_yield()
    images = torch.stack([pair.image_a, pair.image_b]).to(matcher.device)
    a, b = matcher.extract(images)
    truth = pair.uv_b[None].to(matcher.device)
    near = pair.uv_b[None] + SEARCH_PX * (torch.rand(1, len(pair.uv_b), 2, generator=generator) - 0.5)
    cooperative_yield()
    found = matcher.match(matcher.describe(a, pair.uv_a), [b], near.to(matcher.device), SEARCH_PX, differentiable=True)
    loss = coordinate_cost(found.uv - truth).mean()
    for distribution in found.distributions:
        entropy, inside = distribution.cross_entropy(truth)
        loss = loss + entropy.sum() / inside.sum().clamp_min(1)
    yield_in_backward(loss)
    return loss


def coordinate_cost(error: Tensor) -> Tensor:
    """Cauchy cost of errors (..., 2) px -> (...,).

    What lies pixels away is the coarse stage's business, and would blunt the mean that makes the last tenths of a pixel.
    """
    return (error.square().sum(-1) / PRECISION_PX**2).log1p()


def confidence_loss(score: Tensor, sigma_px: Tensor, error: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Of the score: cross-entropy against being right; of sigma: quantile regression, so that it becomes the 68.3 % quantile of the
    coordinate error, which heavy tails do not inflate.

    Args:
        score, sigma_px, visible: (...,); error: (..., 2) px.
    """
    distance = error.norm(dim=-1)
    right = visible & (distance < RIGHT_PX)
    excess = error.abs().clamp_min(1e-2).log() - sigma_px.log()[..., None]
    pinball = torch.maximum(0.683 * excess, -0.317 * excess).mean(-1)
    near = visible & (distance < 4 * RIGHT_PX)
    return F.binary_cross_entropy(score, right.float()), (pinball * near).sum() / near.sum().clamp_min(1)
