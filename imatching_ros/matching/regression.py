"""The regression-based matcher: a network regresses the second point and a confidence from the local correlation.

As in Patch2Pix (Zhou et al., CVPR 2021) a coarse proposal is refined by two regressors, each looking around the last estimate.
Only the second point moves: if both did, nearly every landmark would have two views, and two views carry an epipolar signal only.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .backbone import FINE_STRIDE, Backbone, FastBackbone
from .base import decode_confidence
from .coarse_to_fine import CoarseToFine, LocalSurface, REFINE_WINDOW, WINDOW, slide


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


class RegressionMatcher(CoarseToFine):
    """Coarse search, then two regressors on the correlation surface; score and sigma from a third."""

    name: ClassVar[str] = "regression"
    backbone_type: ClassVar[type[Backbone | FastBackbone]] = FastBackbone

    def _build(self) -> None:
        self.first_regressor = _perceptron(WINDOW**2, 128, 2)
        self.second_regressor = _perceptron(REFINE_WINDOW**2, 128, 2)
        self.confidence = _perceptron(3 + REFINE_WINDOW**2 + 2, 64, 2)

    def locate(self, surface: LocalSurface, evidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The slope of the surface, not its level, gives the offset of the point.
        similarity = surface.similarity.flatten(2)
        peak = similarity.amax(-1, keepdim=True)
        first = WINDOW // 2 * torch.tanh(self.first_regressor((similarity - peak) * 4))

        reach = REFINE_WINDOW // 2
        start = (first + (WINDOW // 2 - reach)).clamp(0.0, WINDOW - REFINE_WINDOW - 1e-3)
        narrow = slide(surface.similarity, start.detach()).flatten(2)
        second = reach * torch.tanh(self.second_regressor((narrow - narrow.amax(-1, keepdim=True)) * 4))
        # The proposal keeps its gradient, so that the first regressor learns from the final coordinate too.
        cell = surface.centre + start - WINDOW // 2 + reach + second
        uv = cell * FINE_STRIDE + (FINE_STRIDE - 1) / 2

        shape = torch.cat([evidence, narrow, second], -1)
        # Confidence describes the match and must not bend the features that make it: no gradient goes back from here.
        return uv, *decode_confidence(self.confidence(shape.detach()))
