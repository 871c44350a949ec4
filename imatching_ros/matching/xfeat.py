"""XFeat (Potje et al., CVPR 2024) by kornia, matched by expectation: coarse on its descriptors at 1/8, fine by its own matcher.

The published semi-dense variant refines the point of the first image with a small network on both descriptors, whose 8x8
distribution is turned into a coordinate by a soft-argmax. Here the pair is given the other way round, so that the query stays
and the point in the target moves. That network has only seen descriptors of whole cells: a query takes the one of its nearest cell,
and its distance from that cell's centre is added again in the target. Score and sigma come from the two distributions; they are
not calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import MatcherError
from .backbone import COARSE_STRIDE
from .base import Distribution, Features, Prediction, Queries
from .coarse import coarse_estimate, search_region
from .kornia_utils import PublishedMatcher

TEMPERATURE = 20.0  # of the cosine similarity of descriptors
FINE_TEMPERATURE = 3.0  # of the offset distribution, as published
CELL_CENTRE = 3  # place of the offset distribution that a whole cell matched with itself gets: 3.5 px, rounded down as in its training
LEAST_SIMILARITY = 0.7  # cosine at which a match is as likely wrong as right


class XFeatMatcher(PublishedMatcher):
    """Features are the normalised descriptors at 1/8."""

    name: ClassVar[str] = "xfeat"
    address = "https://github.com/verlab/accelerated_features/raw/main/weights/xfeat.pt"
    min_side_px = 32

    @staticmethod
    def build(kornia_feature: ModuleType) -> nn.Module:
        network = kornia_feature.XFeat().net
        for part in (network.heatmap_head, network.keypoint_head):
            part.requires_grad_(False)
        return network

    def extract(self, images: Tensor) -> list[Features]:
        self.check(images)
        height, width = images.shape[-2:]
        maps, _, _ = self.network(F.pad(images, (0, -width % 32, 0, -height % 32), mode="replicate"))
        maps = maps[..., : -(-height // COARSE_STRIDE), : -(-width // COARSE_STRIDE)]
        return [Features({"raw": m}, height, width, self.weights_version) for m in maps]

    def describe(self, features: Features, uv: Tensor) -> Queries:
        uv = uv.to(self.device, torch.float32)
        raw = features.maps["raw"]
        cell = _nearest_cell(uv, *raw.shape[-2:])
        x, y = cell.long().unbind(-1)
        data = {"raw": raw[:, y, x].T, "from_centre": uv - _centre(cell)}
        return Queries(uv, data, features.weights_version)

    def match(
        self,
        queries: Queries,
        targets: Sequence[Features],
        predicted: Tensor | None = None,
        radius_px: Tensor | float | None = None,
        *,
        differentiable: bool = False,
    ) -> Prediction:
        query, from_centre = queries.data["raw"], queries.data["from_centre"]
        if not targets or not len(queries):
            nothing = query.new_zeros(len(targets), len(queries))
            return Prediction(nothing[..., None].repeat(1, 1, 2), nothing, nothing)
        if len({(t.width, t.height) for t in targets}) > 1:
            raise MatcherError("the target images have several sizes; match images of one size at a time")
        maps = torch.stack([t.maps["raw"] for t in targets])
        height, width = maps.shape[-2:]
        logits = TEMPERATURE * F.normalize(query, dim=-1) @ F.normalize(maps, dim=1).flatten(2)
        logits = logits.unflatten(-1, (height, width))
        centre = None if predicted is None else predicted - from_centre
        coarse, evidence = coarse_estimate(logits, TEMPERATURE, search_region(centre, radius_px))

        # The whole cell nearest to the coarse estimate, and the place within it that the fine network believes in.
        cell = _nearest_cell(coarse.detach(), height, width)
        x, y = cell.long().unbind(-1)
        found = maps.flatten(2).gather(2, (y * width + x)[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)
        pairs = torch.cat([found, query.expand_as(found)], -1)
        fine = FINE_TEMPERATURE * self.network.fine_matcher(pairs.flatten(0, 1)).unflatten(
            0, pairs.shape[:2]
        ).unflatten(-1, (8, 8))
        weight = torch.softmax(fine.flatten(2), -1).view_as(fine)
        steps = torch.arange(8, device=fine.device, dtype=fine.dtype) - CELL_CENTRE
        in_x, in_y = weight.sum(-2), weight.sum(-1)
        offset = torch.stack([(in_x * steps).sum(-1), (in_y * steps).sum(-1)], -1)
        origin = _centre(cell) + from_centre
        spread = (in_x * (steps - offset[..., :1]) ** 2).sum(-1) + (in_y * (steps - offset[..., 1:]) ** 2).sum(-1)

        log_mass, similarity, _ = evidence.detach().unbind(-1)
        score = log_mass.exp() * torch.sigmoid((similarity - LEAST_SIMILARITY) * TEMPERATURE)
        distributions = (
            (
                Distribution(logits, _centre(torch.zeros_like(cell)) + from_centre, COARSE_STRIDE),
                Distribution(fine, origin - CELL_CENTRE, 1),
            )
            if differentiable
            else ()
        )
        return Prediction(origin + offset, score, self.confidence(spread / 2), distributions)


def _nearest_cell(uv: Tensor, height: int, width: int) -> Tensor:
    """(..., 2) whole numbers, x before y, for raw px in a map of that size."""
    cell = ((uv - (COARSE_STRIDE - 1) / 2) / COARSE_STRIDE).round()
    return torch.minimum(cell.clamp_min(0), cell.new_tensor([width - 1, height - 1]))


def _centre(cell: Tensor) -> Tensor:
    """Raw px of a cell's centre."""
    return cell * COARSE_STRIDE + (COARSE_STRIDE - 1) / 2
