"""What the expectation and the regression family have in common: features, a coarse search, a local correlation surface.

Coarse: the query's descriptor at 1/8 is compared with every cell of the target (or those near a predicted position) and the
peak is refined by a local expectation, as in CAPS (Wang et al., ECCV 2020, sec. 3.3). Fine: a 3x3 patch of descriptors at
1/2 is compared with a window of 9x9 positions around it. What is made of that surface differs between the families.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ImatchingError
from .backbone import COARSE_STRIDE, FINE_STRIDE, MIN_SIDE_PX, Backbone, sample_map
from .base import Features, Matcher, Prediction, Queries

PATCH = 3  # side of the query's fine patch, in fine cells
WINDOW = 9  # side of the fine search window, in fine cells
COARSE_WINDOW = 5  # side of the coarse local expectation, in coarse cells


@dataclass(frozen=True)
class LocalSurface:
    """Fine correlation around the coarse estimate, (B, N, WINDOW, WINDOW), similarity -1..1."""

    similarity: Tensor
    centre: Tensor  # (B, N, 2) fine cell at the middle of the window, whole numbers


class CoarseToFine(Matcher):
    """Base of `ExpectationMatcher` and `RegressionMatcher`."""

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.backbone = Backbone(batch_norm)
        self.coarse_log_temperature = nn.Parameter(torch.tensor(20.0).log())

    @abstractmethod
    def locate(self, surface: LocalSurface, evidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fine surface and coarse evidence (B, N, 3) -> uv (B, N, 2) raw px, score (B, N), sigma_px (B, N)."""

    def extract(self, images: Tensor) -> list[Features]:
        height, width = images.shape[-2:]
        if images.ndim != 4 or images.shape[1] != 1:
            raise ImatchingError(f"matcher '{self.name}' takes grey pictures (B, 1, H, W), got {tuple(images.shape)}")
        if min(height, width) < MIN_SIDE_PX:
            raise ImatchingError(f"the picture is {width} x {height}, matcher '{self.name}' needs at least {MIN_SIDE_PX} px a side")
        coarse, fine = self.backbone(images)
        return [Features({"coarse": c, "fine": f}, height, width, self.weights_version) for c, f in zip(coarse, fine)]

    def describe(self, features: Features, uv: Tensor) -> Queries:
        uv = uv.to(self.device, torch.float32)
        coarse, fine = self.describe_batch(features.maps["coarse"][None], features.maps["fine"][None], uv[None])
        return Queries(uv, {"coarse": coarse[0], "fine": fine[0]}, features.weights_version)

    def match(self, queries: Queries, targets: Sequence[Features], predicted: Tensor | None = None,
              radius_px: Tensor | float | None = None, *, keep_logits: bool = False) -> Prediction:
        for target in targets:
            assert target.weights_version == queries.weights_version, "features made by different weights must not be mixed"
        coarse = torch.stack([t.maps["coarse"] for t in targets])
        fine = torch.stack([t.maps["fine"] for t in targets])
        count = len(targets)
        query_coarse = queries.data["coarse"].expand(count, -1, -1)
        query_fine = queries.data["fine"].expand(count, -1, -1, -1)
        return self.match_batch(query_coarse, query_fine, coarse, fine, predicted, radius_px, keep_logits=keep_logits)

    def describe_batch(self, coarse: Tensor, fine: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, C, h, w) at (B, N, 2) raw px -> coarse (B, N, C) and fine patch (B, N, PATCH**2, C)."""
        steps = torch.arange(PATCH, device=uv.device) - PATCH // 2
        offsets = FINE_STRIDE * torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 2)
        patches = (uv[:, :, None] + offsets).flatten(1, 2)
        sampled = sample_map(fine, patches, FINE_STRIDE).unflatten(1, (uv.shape[1], PATCH**2))
        return F.normalize(sample_map(coarse, uv, COARSE_STRIDE), dim=-1), sampled

    def match_batch(self, query_coarse: Tensor, query_fine: Tensor, coarse: Tensor, fine: Tensor, predicted: Tensor | None = None,
                    radius_px: Tensor | float | None = None, *, keep_logits: bool = False,
                    centre_uv: Tensor | None = None) -> Prediction:
        """As `match`, for B pairs at once: queries (B, N, C) and (B, N, PATCH**2, C), target maps (B, C, h, w).

        `centre_uv` (B, N, 2) overrides where the fine window is placed; training uses it, so that the fine stage learns from
        every query and not only from those that the coarse stage finds.
        """
        logits = self.coarse_logits(query_coarse, coarse, predicted, radius_px)
        uv, evidence = self.coarse_estimate(logits)
        surface = self.correlate(query_fine, fine, uv.detach() if centre_uv is None else centre_uv)
        uv, score, sigma_px = self.locate(surface, evidence)
        return Prediction(uv, score, sigma_px, logits if keep_logits else None, COARSE_STRIDE if keep_logits else 0)

    def coarse_logits(self, query: Tensor, coarse: Tensor, predicted: Tensor | None, radius_px: Tensor | float | None) -> Tensor:
        """(B, N, C) against (B, C, h, w) -> (B, N, h, w); -inf outside the square search region."""
        height, width = coarse.shape[-2:]
        logits = torch.baddbmm(query.new_zeros(1, 1, 1), query * self.coarse_log_temperature.exp(), coarse.flatten(2), beta=0)
        logits = logits.unflatten(-1, (height, width))
        if predicted is None or radius_px is None:
            return logits
        # A cell belongs to the region when any part of it does; a region off the picture is pulled back onto its border.
        reach = torch.as_tensor(radius_px, device=logits.device).expand(predicted.shape[:-1])[..., None] + COARSE_STRIDE / 2

        def outside(size: int, centre: Tensor) -> Tensor:
            cells = COARSE_STRIDE * torch.arange(size, device=logits.device) + (COARSE_STRIDE - 1) / 2
            centre = centre.clamp(cells[0], cells[-1])[..., None]
            penalty = torch.zeros(*centre.shape[:-1], size, device=logits.device, dtype=logits.dtype)
            return penalty.masked_fill((cells - centre).abs() > reach, -torch.inf)  # NaN compares false: searched everywhere

        return logits + outside(width, predicted[..., 0])[..., None, :] + outside(height, predicted[..., 1])[..., :, None]

    def coarse_estimate(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, h, w) -> uv (B, N, 2) raw px by local expectation around the peak, evidence (B, N, 3) for the score."""
        height, width = logits.shape[-2:]
        flat = logits.flatten(2)
        peak, best = flat.max(-1)
        reach = COARSE_WINDOW // 2
        steps = torch.arange(-reach, reach + 1, device=logits.device)
        x = (best % width)[..., None] + steps
        y = (best // width)[..., None] + steps
        index = (y.clamp(0, height - 1)[..., :, None] * width + x.clamp(0, width - 1)[..., None, :]).flatten(2)
        inside = ((y >= 0) & (y < height))[..., :, None] & ((x >= 0) & (x < width))[..., None, :]
        local = flat.gather(-1, index).masked_fill(~inside.flatten(2), -torch.inf)
        weight = torch.softmax(local, -1).unflatten(-1, (COARSE_WINDOW, COARSE_WINDOW))
        cell = torch.stack([(weight.sum(-2) * x).sum(-1), (weight.sum(-1) * y).sum(-1)], -1)
        log_mass = torch.logsumexp(local, -1) - torch.logsumexp(flat, -1)
        similarity = peak / self.coarse_log_temperature.exp()
        spread = torch.stack([(weight.sum(-2) * (x - cell[..., :1]) ** 2).sum(-1),
                              (weight.sum(-1) * (y - cell[..., 1:]) ** 2).sum(-1)], -1).mean(-1)
        evidence = torch.stack([log_mass, similarity, spread], -1)
        return cell * COARSE_STRIDE + (COARSE_STRIDE - 1) / 2, evidence

    def correlate(self, query: Tensor, fine: Tensor, uv: Tensor) -> LocalSurface:
        """Patches (B, N, PATCH**2, C) against maps (B, C, h, w) in the window around uv (B, N, 2) raw px."""
        batch, channels, height, width = fine.shape
        centre = ((uv - (FINE_STRIDE - 1) / 2) / FINE_STRIDE).round()
        side = WINDOW + PATCH - 1
        steps = torch.arange(side, device=fine.device) - side // 2
        x = (centre[..., :1].long() + steps).clamp(0, width - 1)
        y = (centre[..., 1:].long() + steps).clamp(0, height - 1)
        index = (y[..., :, None] * width + x[..., None, :]).flatten(1)
        # Rows of a channels-last map are contiguous, so one embedding-style gather fetches a cell's whole descriptor.
        rows = fine.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
        base = torch.arange(batch, device=fine.device)[:, None] * (height * width)
        cells = rows[(index + base).flatten()].view(batch * query.shape[1], side * side, channels)
        products = torch.bmm(query.flatten(0, 1), cells.transpose(1, 2)).view(-1, PATCH, PATCH, side, side)
        # Sum the patch's products along the diagonal: offset o of the patch looks at window position + o.
        similarity = sum(products[:, i, j, i : i + WINDOW, j : j + WINDOW] for i in range(PATCH) for j in range(PATCH))
        return LocalSurface((similarity / PATCH**2).view(batch, -1, WINDOW, WINDOW), centre)
