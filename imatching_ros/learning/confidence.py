"""Keeps sigma true while features move: one factor, from known warps of live images.

The score and the shape of sigma stay those of the offline training, which has seen occlusion and wide baselines; warps show neither, and
a head that is trained on them accepts more wrong matches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.types import LearningSample
from ..matching.base import Matcher
from .cooperative_yield import cooperative_yield
from .pseudo_truth import TrainingPair, draw_warp
from .supervision import RIGHT_PX

WARPS = 8
ONE_SIGMA = 0.683  # share of a normal distribution
FEWEST_ERRORS = 100  # coordinates whose quantile says something


@torch.no_grad()
def refit_sigma(
    matcher: Matcher, pretrained: Matcher, samples: Sequence[LearningSample], generator: torch.Generator
) -> None:
    """Scales the sigma of a matcher so that it fits its errors as well as that of the pretrained weights fits theirs.

    Both match the same random homographies of the samples' images. The ratio to the pretrained weights leaves out what warps have
    in common with no real motion. Does nothing for a matcher without `log_sigma_bias`. Where hardly a match is
    right, as in images without texture, sigma is that of the pretrained weights.
    """
    bias, known = matcher.log_sigma_bias(), pretrained.log_sigma_bias()
    if bias is None or known is None or not samples:
        return
    bias.copy_(known)
    errors: tuple[list[Tensor], list[Tensor]] = [], []
    for number in range(WARPS):
        sample = samples[int(torch.randint(len(samples), (1,), generator=generator))]
        pair, near, radius = _draw(sample, number % 2 == 0, generator)
        for found, network in zip(errors, (matcher, pretrained)):
            found.append(_errors(network, pair, near, radius))
    own, original = (torch.cat(parts) for parts in errors)
    if len(own) >= FEWEST_ERRORS <= len(original):
        ratio = own.quantile(ONE_SIGMA) / original.quantile(ONE_SIGMA)
        bias += ratio.log()


def _draw(
    sample: LearningSample, nearby: bool, generator: torch.Generator
) -> tuple[TrainingPair, Tensor | None, float | None]:
    """A warp of a window's image and where to search: everywhere, or as odometry does, around a place that is roughly known."""
    pair = draw_warp(sample, generator)
    if not nearby:
        return pair, None, None
    near = pair.uv_b[None] + 8 * torch.randn(1, len(pair.uv_b), 2, generator=generator)
    return pair, near, 24 + 40 * float(torch.rand((), generator=generator))


def _errors(matcher: Matcher, pair: TrainingPair, near: Tensor | None, radius: float | None) -> Tensor:
    """The coordinate errors (n,) of the right matches of a pair, in their sigmas."""
    cooperative_yield()
    a, b = (matcher.extract(image[None].to(matcher.device))[0] for image in (pair.image_a, pair.image_b))
    near = None if near is None else near.to(matcher.device)
    found = matcher.match(matcher.describe(a, pair.uv_a), [b], near, radius)
    error = (found.uv - pair.uv_b.to(matcher.device))[0]
    right = error.norm(dim=-1) < RIGHT_PX
    return (error.abs() / found.sigma_px[0, :, None])[right].flatten()
