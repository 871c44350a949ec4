"""ALIKED (Zhao et al., IEEE TIM 2023) by kornia, matched by expectation: its deformable descriptors at 1/8, then around the best cell.

The network describes sparse keypoints of its own detector. Its descriptor head takes any position, though, so here it describes the
queries, the centres of all coarse cells of the target, and a square of pixels around the coarse estimate, whose expectation is the
match. Several thousand descriptors a pair make it tens of times slower than the project's own matchers. Score and sigma come from the two
distributions; they are not calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.errors import MatcherError
from .backbone import COARSE_STRIDE
from .base import Distribution, Features, Prediction, Queries
from .coarse import coarse_estimate, search_region
from .kornia_utils import PublishedMatcher

TEMPERATURE = 80.0  # of the cosine similarity of descriptors; both temperatures were chosen on the scene tuning_none
FINE_TEMPERATURE = 200.0  # two pixels aside the cosine falls by .01
WINDOW, FINE_STRIDE = 5, 2  # side of the fine window in cells, and theirs in px
LEAST_SIMILARITY = 0.7  # cosine at which a match is as likely wrong as right


class AlikedMatcher(PublishedMatcher):
    """Features are the dense map and the descriptors at 1/8."""

    name: ClassVar[str] = "aliked"
    address = "https://github.com/Shiaoming/ALIKED/raw/main/models/aliked-t16.pth"
    min_side_px = 32

    @staticmethod
    def build(kornia_feature: ModuleType) -> nn.Module:
        network = kornia_feature.ALIKED("aliked-t16")  # the smallest
        network.dkd = nn.Identity()  # the detector, of which nothing is in the published file
        network.score_head.requires_grad_(False)
        return network

    def extract(self, images: Tensor) -> list[Features]:
        self.check(images)
        height, width = images.shape[-2:]
        dense, _ = self.network.extract_dense_map(images.expand(-1, 3, -1, -1))
        rows, columns = -(-height // COARSE_STRIDE), -(-width // COARSE_STRIDE)
        y, x = torch.meshgrid(*(torch.arange(n, device=self.device) for n in (rows, columns)), indexing="ij")
        centres = torch.stack([x, y], -1).flatten(0, 1) * COARSE_STRIDE + (COARSE_STRIDE - 1) / 2
        features = []
        for one in dense:
            coarse = self._describe(one, centres).T.unflatten(1, (rows, columns))
            features.append(Features({"dense": one, "coarse": coarse}, height, width, self.weights_version))
        return features

    def describe(self, features: Features, uv: Tensor) -> Queries:
        uv = uv.to(self.device, torch.float32)
        return Queries(uv, {"descriptor": self._describe(features.maps["dense"], uv)}, features.weights_version)

    def match(
        self,
        queries: Queries,
        targets: Sequence[Features],
        predicted: Tensor | None = None,
        radius_px: Tensor | float | None = None,
        *,
        differentiable: bool = False,
    ) -> Prediction:
        query = queries.data["descriptor"]
        if not targets or not len(queries):
            nothing = query.new_zeros(len(targets), len(queries))
            return Prediction(nothing[..., None].repeat(1, 1, 2), nothing, nothing)
        if len({(t.width, t.height) for t in targets}) > 1:
            raise MatcherError("the target images have several sizes; match images of one size at a time")
        logits = TEMPERATURE * (query @ torch.stack([t.maps["coarse"] for t in targets]).flatten(2))
        logits = logits.unflatten(-1, targets[0].maps["coarse"].shape[-2:])
        coarse, evidence = coarse_estimate(logits, TEMPERATURE, search_region(predicted, radius_px))

        # A square around the coarse estimate, kept inside the image, and the place in it that the descriptors believe in.
        steps = FINE_STRIDE * torch.arange(WINDOW, device=self.device, dtype=coarse.dtype)
        last = coarse.new_tensor([targets[0].width, targets[0].height]) - 1 - steps[-1]
        origin = torch.minimum((coarse.detach() - steps[-1] / 2).round().clamp_min(0), last)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        cells = origin[..., None, :] + torch.stack([x, y], -1).flatten(0, 1)  # (T, N, WINDOW * WINDOW, 2)
        found = torch.stack([self._describe(t.maps["dense"], c.flatten(0, 1)) for t, c in zip(targets, cells)])
        fine = FINE_TEMPERATURE * (found.view(*cells.shape[:3], -1) @ query[..., None])[..., 0]
        fine = fine.unflatten(-1, (WINDOW, WINDOW))
        weight = torch.softmax(fine.flatten(2), -1).view_as(fine)
        in_x, in_y = weight.sum(-2), weight.sum(-1)
        offset = torch.stack([(in_x * steps).sum(-1), (in_y * steps).sum(-1)], -1)
        spread = (in_x * (steps - offset[..., :1]) ** 2).sum(-1) + (in_y * (steps - offset[..., 1:]) ** 2).sum(-1)

        log_mass, similarity, _ = evidence.detach().unbind(-1)
        score = log_mass.exp() * torch.sigmoid((similarity - LEAST_SIMILARITY) * TEMPERATURE)
        centre = origin.new_full((2,), (COARSE_STRIDE - 1) / 2)
        distributions = (
            (Distribution(logits, centre, COARSE_STRIDE), Distribution(fine, origin, FINE_STRIDE))
            if differentiable
            else ()
        )
        return Prediction(origin + offset, score, self.confidence(spread / 2), distributions)

    def _describe(self, dense: Tensor, uv: Tensor) -> Tensor:
        """(N, C) unit descriptors of the dense map (C, H, W) at points (N, 2) raw px."""
        size = uv.new_tensor([dense.shape[-1] - 1, dense.shape[-2] - 1])
        (descriptors,), _ = self.network.desc_head(dense[None], [2 * uv / size - 1])
        return descriptors
