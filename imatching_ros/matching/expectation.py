"""The expectation-based matcher: coordinates are the mean of a local matching distribution, so gradients reach the network.

The fine stage takes the mean twice: over the whole 9x9 window, then over a 5x5 window centred, between the cells, on the
first mean. The second is free of the pull towards the window's centre that a wide soft-argmax has.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .backbone import FINE_STRIDE, Backbone, FastBackbone
from .base import decode_confidence
from .coarse_to_fine import CoarseToFine, LocalSurface, REFINE_WINDOW, WINDOW, slide


class ExpectationMatcher(CoarseToFine):
    """Coarse search, then two soft-argmax stages; score and sigma from the shape of the distributions."""

    name: ClassVar[str] = "expectation"

    def _build(self) -> None:
        self.refine_log_temperature = nn.Parameter(torch.tensor(30.0).log())
        self.confidence = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def locate(self, surface: LocalSurface, evidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        similarity = surface.similarity.flatten(2)
        steps = torch.arange(WINDOW, device=similarity.device, dtype=similarity.dtype) - WINDOW // 2
        wide = torch.softmax(similarity * self.fine_log_temperature.exp(), -1)
        in_wide = _marginals(wide, WINDOW)
        first = (in_wide * steps).sum(-1)

        # The second window slides over the first one's surface; it is kept inside it.
        reach = REFINE_WINDOW // 2
        start = (first.detach() + (WINDOW // 2 - reach)).clamp(0.0, WINDOW - REFINE_WINDOW - 1e-3)
        narrow = slide(surface.similarity, start)
        weight = torch.softmax(narrow.flatten(2) * self.refine_log_temperature.exp(), -1)
        in_narrow = _marginals(weight, REFINE_WINDOW)
        inner = torch.arange(REFINE_WINDOW, device=steps.device, dtype=steps.dtype)
        mean = (in_narrow * inner).sum(-1)
        cell = surface.centre + start - WINDOW // 2 + mean
        uv = cell * FINE_STRIDE + (FINE_STRIDE - 1) / 2

        spreads = torch.stack([_spread(in_wide, steps, first), _spread(in_narrow, inner, mean)], -1)
        shape = [similarity.amax(-1)[..., None], wide.amax(-1)[..., None], spreads.sqrt()]
        shape.append((mean - reach).detach().norm(dim=-1, keepdim=True))
        # Confidence describes the match and must not bend the features that make it: no gradient goes back from here.
        return uv, *decode_confidence(self.confidence(torch.cat([evidence, *shape], -1).detach()))


def _marginals(weight: Tensor, side: int) -> Tensor:
    """Weights (B, N, side * side) -> their sums along x and along y, (B, N, 2, side)."""
    weight = weight.unflatten(-1, (side, side))
    return torch.stack([weight.sum(-2), weight.sum(-1)], -2)


def _spread(marginals: Tensor, at: Tensor, mean: Tensor) -> Tensor:
    """Variance (B, N) of positions `at` (side,) around their mean (B, N, 2), x and y together."""
    return (marginals * (at - mean[..., None]) ** 2).sum(-1).sum(-1)


class FastExpectationMatcher(ExpectationMatcher):
    """The same with half of the network's work, for a processor without bfloat16; its matches are a little less exact."""

    name: ClassVar[str] = "expectation_fast"
    backbone_type: ClassVar[type[Backbone | FastBackbone]] = FastBackbone
