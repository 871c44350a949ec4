"""Refits the match confidence: score and sigma describe the errors of the features that they were trained on, and these have moved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.types import LearningSample
from ..matching.base import Matcher, decode_confidence
from .cooperative_yield import cooperative_yield
from .pseudo_truth import TrainingPair, draw_warp
from .supervision import confidence_loss

WARPS = 8
FIT_STEPS = 150
FIT_RATE = 2e-3  # of Adam


def refit_confidence(matcher: Matcher, samples: Sequence[LearningSample], generator: torch.Generator) -> None:
    """Fits the confidence head of a matcher to its errors on random homographies of the samples' images; the features stay.

    Half of the warps are searched as odometry searches, around a place that is roughly known. Does nothing for a matcher without a
    head.
    """
    head = matcher.confidence_head()
    if head is None or not samples:
        return
    found = []
    for number in range(WARPS):
        sample = samples[int(torch.randint(len(samples), (1,), generator=generator))]
        found.append(_observe(matcher, head, draw_warp(sample, generator), number % 2 == 0, generator))
    inputs, errors = (torch.cat(parts) for parts in zip(*found))
    visible = torch.ones(len(errors), dtype=torch.bool, device=errors.device)
    optimizer = torch.optim.Adam(head.parameters(), lr=FIT_RATE)
    with torch.enable_grad():
        for _ in range(FIT_STEPS):
            cooperative_yield()
            score, sigma_px = decode_confidence(head(inputs))
            loss = torch.stack(confidence_loss(score, sigma_px, errors, visible)).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _observe(
    matcher: Matcher, head: nn.Module, pair: TrainingPair, nearby: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the head is given for each correspondence of a pair (Q, k), and the errors of the matches (Q, 2) px."""
    cooperative_yield()
    a, b = (matcher.extract(image[None].to(matcher.device))[0] for image in (pair.image_a, pair.image_b))
    truth = pair.uv_b[None].to(matcher.device)
    near = radius = None
    if nearby:
        near = (pair.uv_b[None] + 8 * torch.randn(1, len(pair.uv_b), 2, generator=generator)).to(matcher.device)
        radius = 24 + 40 * float(torch.rand((), generator=generator))
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        found = matcher.match(matcher.describe(a, pair.uv_a), [b], near, radius)
    finally:
        hook.remove()
    return inputs[0][0], (found.uv - truth)[0]
