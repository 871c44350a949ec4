"""The expectation-based matcher: coordinates are the mean of a local matching distribution, so gradients reach the network.

The fine stage takes the mean twice: over the whole 9x9 window, then over a 5x5 window centred, between the cells, on the
first mean. The second is free of the pull towards the window's centre that a wide soft-argmax has.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .backbone import FINE_STRIDE, Backbone, FastBackbone
from .coarse_to_fine import CoarseToFine, LocalSurface, REFINE_WINDOW, WINDOW, slide


class ExpectationMatcher(CoarseToFine):
    """Coarse search, then two soft-argmax stages; score and sigma from the shape of the distributions."""

    name: ClassVar[str] = "expectation"

    def _build(self) -> None:
        self.refine_log_temperature = nn.Parameter(torch.tensor(30.0).log())
        self.confidence = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def locate(self, surface: LocalSurface, evidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps = torch.arange(WINDOW, device=surface.similarity.device, dtype=surface.similarity.dtype) - WINDOW // 2
        wide = torch.softmax(surface.similarity.flatten(2) * self.fine_log_temperature.exp(), -1).unflatten(
            -1, (WINDOW, WINDOW)
        )
        first = torch.stack([(wide.sum(-2) * steps).sum(-1), (wide.sum(-1) * steps).sum(-1)], -1)

        # The second window slides over the first one's surface; it is kept inside it.
        reach = REFINE_WINDOW // 2
        start = (first.detach() + (WINDOW // 2 - reach)).clamp(0.0, WINDOW - REFINE_WINDOW - 1e-3)
        narrow = slide(surface.similarity, start)
        weight = torch.softmax(narrow.flatten(2) * self.refine_log_temperature.exp(), -1).unflatten(
            -1, (REFINE_WINDOW,) * 2
        )
        inner = torch.arange(REFINE_WINDOW, device=steps.device, dtype=steps.dtype)
        in_x, in_y = weight.sum(-2), weight.sum(-1)
        mean = torch.stack([(in_x * inner).sum(-1), (in_y * inner).sum(-1)], -1)
        spread = torch.stack(
            [(in_x * (inner - mean[..., :1]) ** 2).sum(-1), (in_y * (inner - mean[..., 1:]) ** 2).sum(-1)], -1
        )
        cell = surface.centre + start - WINDOW // 2 + mean
        uv = cell * FINE_STRIDE + (FINE_STRIDE - 1) / 2

        wide_spread = (wide.sum(-2) * (steps - first[..., :1]) ** 2).sum(-1) + (
            wide.sum(-1) * (steps - first[..., 1:]) ** 2
        ).sum(-1)
        shape = torch.stack(
            [
                surface.similarity.flatten(2).amax(-1),
                wide.flatten(2).amax(-1),
                wide_spread.sqrt(),
                spread.sum(-1).sqrt(),
                (mean - inner.mean()).detach().norm(dim=-1),
            ],
            -1,
        )
        # Confidence describes the match and must not bend the features that make it: no gradient goes back from here.
        logit, log_sigma = self.confidence(torch.cat([evidence, shape], -1).detach()).unbind(-1)
        return uv, torch.sigmoid(logit), log_sigma.clamp(-4, 4).exp()


class FastExpectationMatcher(ExpectationMatcher):
    """The same with half of the network's work, for a processor without bfloat16; its matches are a little less exact."""

    name: ClassVar[str] = "expectation_fast"
    backbone_type: ClassVar[type[Backbone | FastBackbone]] = FastBackbone
