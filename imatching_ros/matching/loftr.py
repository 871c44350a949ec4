"""LoFTR (Sun et al., CVPR 2021) by kornia, evaluated at given points: its transformers attend to both images, so each pair is a full pass.

Coarse: the query's token, read between the cells, against all tokens of the target by dual softmax. Fine: a 5x5 window around
the best cell, by the published expectation. About a hundred times slower than the project's own matchers on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Distribution, Features, Prediction, Queries
from .kornia_utils import PublishedMatcher

COARSE, FINE = 8, 2  # strides
CENTRE = -0.5  # raw px of the centre of a cell 0: the network counts pixels from their corners
WINDOW = 5  # side of the fine window, in fine cells


class LoftrMatcher(PublishedMatcher):
    """Features are the backbone's maps."""

    name: ClassVar[str] = "loftr"
    address = "http://cmp.felk.cvut.cz/~mishkdmy/models/loftr_outdoor.ckpt (or loftr_indoor.ckpt)"
    prefix = "matcher."
    min_side_px = 32

    @staticmethod
    def build(kornia_feature: ModuleType) -> nn.Module:
        return kornia_feature.LoFTR(pretrained=None)

    def extract(self, images: Tensor) -> list[Features]:
        self.check(images)
        height, width = images.shape[-2:]
        coarse, fine = self.network.backbone(F.pad(images, (0, -width % COARSE, 0, -height % COARSE), mode="replicate"))
        coarse = self.network.pos_encoding(coarse)
        return [Features({"coarse": c, "fine": f}, height, width, self.weights_version) for c, f in zip(coarse, fine)]

    def describe(self, features: Features, uv: Tensor) -> Queries:
        """Points (N, 2) raw px -> N queries that remember their image."""
        uv = uv.to(self.device, torch.float32)
        return Queries(
            uv, {}, features.weights_version, (features,), torch.zeros(len(uv), dtype=torch.int64, device=self.device)
        )

    def match(
        self,
        queries: Queries,
        targets: Sequence[Features],
        predicted: Tensor | None = None,
        radius_px: Tensor | float | None = None,
        *,
        differentiable: bool = False,
    ) -> Prediction:
        nothing = queries.uv.new_zeros(len(targets), len(queries))
        if not targets or not len(queries):
            return Prediction(nothing[..., None].repeat(1, 1, 2), nothing, nothing)
        rows = []
        for t, target in enumerate(targets):
            parts, order = [], []
            for s, source in enumerate(queries.sources):
                mine = (queries.source_idx == s).nonzero()[:, 0]
                if len(mine):
                    around = None if predicted is None or radius_px is None else predicted[t, mine]
                    radius = radius_px[t, mine] if isinstance(radius_px, Tensor) else radius_px
                    parts.append(self._match_pair(source, target, queries.uv[mine], around, radius))
                    order.append(mine)
            back = torch.cat(order).argsort()
            rows.append([torch.cat(p)[back] for p in zip(*parts)])
        uv, score, sigma, coarse, fine, origin = zip(*rows)
        distributions: tuple[Distribution, ...] = ()
        if differentiable and len({c.shape for c in coarse}) == 1:
            centre = uv[0].new_full((2,), CENTRE)
            distributions = (
                Distribution(torch.stack(coarse), centre, COARSE),
                Distribution(torch.stack(fine), torch.stack(origin), FINE),
            )
        return Prediction(torch.stack(uv), torch.stack(score), torch.stack(sigma), distributions)

    def _match_pair(
        self, source: Features, target: Features, uv: Tensor, predicted: Tensor | None, radius: Tensor | float | None
    ) -> tuple[Tensor, ...]:
        """One image against another: uv (n, 2), score, sigma (n,), logits coarse (n, h, w) and fine (n, 5, 5), fine origin."""
        source_coarse, target_coarse = source.maps["coarse"], target.maps["coarse"]
        height, width = target_coarse.shape[-2:]
        tokens_a, tokens_b = self.network.loftr_coarse(
            *(m.flatten(1).T[None].contiguous() for m in (source_coarse, target_coarse))
        )
        query = _sample(tokens_a[0].T.unflatten(1, source_coarse.shape[-2:]), uv, COARSE)
        tokens_a, tokens_b = tokens_a[0], tokens_b[0]
        scale = 1 / (tokens_a.shape[-1] * self.network.config["match_coarse"]["dsmax_temperature"])
        logits = scale * query @ tokens_b.T
        sought = logits if predicted is None else logits.masked_fill(_far(predicted, radius, height, width), -torch.inf)
        best = sought.argmax(-1)
        forth = torch.log_softmax(logits, -1).gather(-1, best[:, None])[:, 0]
        own = logits.gather(-1, best[:, None])[:, 0]
        back = own - torch.logsumexp(scale * tokens_b[best] @ tokens_a.T, -1)
        score = (forth + back.clamp_max(0)).exp().detach()

        cell = torch.stack([best % width, best // width], -1)
        steps = torch.arange(WINDOW, device=uv.device) - WINDOW // 2
        around = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 2)
        window_a = _sample(source.maps["fine"], (uv[:, None] + FINE * around).flatten(0, 1), FINE).unflatten(
            0, (len(uv), -1)
        )
        at = cell[:, None] * (COARSE // FINE) + around
        padded = F.pad(target.maps["fine"], (2, 2, 2, 2))  # zeros beyond the image, as published
        window_b = padded[:, at[..., 1] + 2, at[..., 0] + 2].permute(1, 2, 0)
        context = self.network.fine_preprocess.down_proj(torch.cat([query, tokens_b[best]]))
        merged = torch.cat([torch.cat([window_a, window_b]), context[:, None].expand(-1, WINDOW**2, -1)], -1)
        window_a, window_b = self.network.loftr_fine(*self.network.fine_preprocess.merge_feat(merged).chunk(2))
        fine = torch.einsum("nc,nrc->nr", window_a[:, WINDOW**2 // 2], window_b) / window_a.shape[-1] ** 0.5
        weight = torch.softmax(fine, -1)[..., None]
        offset = (weight * around).sum(1)
        spread = (weight * (around - offset[:, None]) ** 2).sum((1, 2)).detach()
        centre = (COARSE * cell + CENTRE).float()
        sigma = self.confidence(FINE**2 * spread / 2)
        origin = centre - FINE * (WINDOW // 2)
        return (
            centre + FINE * offset,
            score,
            sigma,
            logits.unflatten(-1, (height, width)),
            fine.unflatten(-1, (WINDOW, WINDOW)),
            origin,
        )


def _sample(feature_map: Tensor, uv: Tensor, stride: int) -> Tensor:
    """Bilinear look-up of a (C, h, w) map at (N, 2) raw px -> (N, C); cell i is centred at pixel stride * i - 0.5."""
    height, width = feature_map.shape[-2:]
    cell = (uv - CENTRE) / stride
    grid = 2 * cell / cell.new_tensor([width - 1, height - 1]) - 1
    return F.grid_sample(feature_map[None], grid[None, None], align_corners=True, padding_mode="border")[0, :, 0].T


def _far(predicted: Tensor, radius: Tensor | float, height: int, width: int) -> Tensor:
    """(n, h * w): cells entirely outside the square of `radius` px around `predicted` (n, 2); none where that is NaN."""
    radius = torch.as_tensor(radius, device=predicted.device, dtype=predicted.dtype).expand(len(predicted))
    x = torch.arange(width, device=predicted.device) * COARSE + CENTRE
    y = torch.arange(height, device=predicted.device) * COARSE + CENTRE
    centre = torch.minimum(predicted.clamp_min(CENTRE), torch.stack([x[-1], y[-1]]))
    limit = radius[:, None] + COARSE / 2
    far_x, far_y = (x - centre[:, :1]).abs() > limit, (y - centre[:, 1:]).abs() > limit
    return (far_y[:, :, None] | far_x[:, None, :]).flatten(1)
