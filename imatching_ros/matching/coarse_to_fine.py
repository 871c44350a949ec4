"""What the expectation and the regression family have in common: features, a coarse search, a local correlation surface.

Coarse: the query's descriptor at 1/8 is compared with every cell of the target (or those near a predicted position) and the
peak is refined by a local expectation, as in CAPS (Wang et al., ECCV 2020, sec. 3.3). Fine: a 3x3 patch of descriptors at
1/2, three cells apart, is compared with a window of 9x9 positions around it. What is made of that surface differs between the
families.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.config import MatcherConfig
from ..core.errors import MatcherError
from .backbone import COARSE_STRIDE, FINE_STRIDE, MIN_SIDE_PX, Backbone, FastBackbone, sample_map
from .base import Distribution, Features, Matcher, Prediction, Queries
from .coarse import SearchWindow, coarse_estimate, search_region, search_window, window_estimate
from .precision import use_bfloat16
from .weights import load_weights, resolve_weights

PATCH = 3  # side of the query's fine patch, in descriptors
# Their distance in fine cells: width gives precision where texture is weak, and only their number costs time.
DILATION = 3
WINDOW = 9  # side of the fine search window, in fine cells
SIDE = WINDOW + (PATCH - 1) * DILATION  # of the square that patches in this window cover
REFINE_WINDOW = 5  # side of the second, re-centred fine window, in fine cells
LOGITS_AT_ONCE = 600_000  # on a CPU, so that they stay in its cache
GATHERED_AT_ONCE = 300_000  # likewise: numbers in descriptors
PATCHES_AT_ONCE = 128  # likewise
QUERIES_AT_ONCE = 48  # from one height of the map
MAP_PER_WINDOW = 12  # a gathered cell costs as much as so many that are multiplied where they lie


@dataclass(frozen=True)
class LocalSurface:
    """Fine correlation around the coarse estimate, (B, N, WINDOW, WINDOW), similarity -1..1."""

    similarity: Tensor
    centre: Tensor  # (B, N, 2) fine cell at the middle of the window, whole numbers


class CoarseToFine(Matcher):
    """Base of `ExpectationMatcher` and `RegressionMatcher`."""

    min_side_px = MIN_SIDE_PX
    confidence: nn.Module  # (B, N, k) -> (B, N, 2), for `decode_confidence`
    backbone_type: ClassVar[type[Backbone | FastBackbone]] = Backbone

    def __init__(self, config: MatcherConfig | None = None, *, batch_norm: bool = False) -> None:
        """With a configuration: weights loaded, on its device, in evaluation mode. Without: random weights, for training."""
        super().__init__()
        self.backbone = self.backbone_type(batch_norm)
        self.coarse_log_temperature = nn.Parameter(torch.tensor(20.0).log())
        self.fine_log_temperature = nn.Parameter(torch.tensor(30.0).log())
        self._build()
        self.in_bfloat16 = False
        if config is not None:
            load_weights(self, resolve_weights(config))
            self.to(config.device, memory_format=torch.channels_last).eval()
            self.in_bfloat16 = use_bfloat16(config)

    @abstractmethod
    def _build(self) -> None:
        """Adds the layers of the family; called before weights are loaded."""

    @abstractmethod
    def locate(self, surface: LocalSurface, evidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fine surface and coarse evidence (B, N, 3) -> uv (B, N, 2) raw px, score (B, N), sigma_px (B, N)."""

    def log_sigma_bias(self) -> Tensor:
        return list(self.confidence.parameters())[-1][1]  # the last bias is that of the score and of log sigma

    def extract(self, images: Tensor) -> list[Features]:
        self.check(images)
        height, width = images.shape[-2:]
        # In bfloat16, where that is fast, the learner's gradients too: their direction is that of float32 to within 5 degrees.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            coarse, fine = self.backbone(images)
        return [Features({"coarse": c, "fine": f}, height, width, self.weights_version) for c, f in zip(coarse, fine)]

    def describe(self, features: Features, uv: Tensor) -> Queries:
        uv = uv.to(self.device, torch.float32)
        coarse, fine = self.describe_batch(features.maps["coarse"][None], features.maps["fine"][None], uv[None])
        return Queries(uv, {"coarse": coarse[0], "fine": fine[0]}, features.weights_version)

    def match(
        self,
        queries: Queries,
        targets: Sequence[Features],
        predicted: Tensor | None = None,
        radius_px: Tensor | float | None = None,
        *,
        differentiable: bool = False,
    ) -> Prediction:
        for target in targets:
            assert target.weights_version == queries.weights_version, (
                "features made by different weights must not be mixed"
            )
        if not targets or not len(queries):
            nothing = queries.data["coarse"].new_zeros(len(targets), len(queries))
            return Prediction(nothing[..., None].repeat(1, 1, 2), nothing, nothing)
        if not differentiable and self.device.type == "cpu":
            return self._match_lean(queries, targets, search_region(predicted, radius_px))
        sizes = {(t.width, t.height) for t in targets}
        if len(sizes) > 1:
            raise MatcherError(f"the target images have the sizes {sorted(sizes)}; match images of one size at a time")
        coarse = torch.stack([t.maps["coarse"] for t in targets])
        fine = torch.stack([t.maps["fine"] for t in targets])
        count = len(targets)
        query_coarse = queries.data["coarse"].expand(count, -1, -1)
        query_fine = queries.data["fine"].expand(count, -1, -1, -1)
        return self.match_batch(
            query_coarse, query_fine, coarse, fine, predicted, radius_px, differentiable=differentiable
        )

    @torch.no_grad()
    def _match_lean(
        self, queries: Queries, targets: Sequence[Features], search: tuple[Tensor, Tensor] | None
    ) -> Prediction:
        """`match_batch` for a CPU: one target after the other and few queries at once, so that all stays in its cache."""
        uv, evidence = self._coarse_lean(queries.data["coarse"], [t.maps["coarse"] for t in targets], search)
        surfaces = [self._correlate_lean(queries.data["fine"], t.maps["fine"], at) for t, at in zip(targets, uv)]
        # The surfaces are small: all at once, so that the many small operations on them are few.
        surface = LocalSurface(torch.stack([s.similarity for s in surfaces]), torch.stack([s.centre for s in surfaces]))
        return Prediction(*self.locate(surface, evidence))

    def _coarse_lean(
        self, query: Tensor, maps: Sequence[Tensor], search: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Queries (N, C) in T maps (C, h, w), near predicted (T, N, 2) px within radius (T, N) px -> uv (T, N, 2), evidence (T, N, 3)."""
        height, width = maps[0].shape[-2:]
        window = None if search is None or len(maps) == 1 else search_window(search, height, width)
        few = window is not None and len(maps) * len(query) * window.side**2 <= LOGITS_AT_ONCE
        if window is None or not few or any(m.shape != maps[0].shape for m in maps):
            near = [None if search is None else (search[0][t], search[1][t]) for t in range(len(maps))]
            found = [self._coarse_in_map(query, m, n) for m, n in zip(maps, near)]
            uv, evidence = (torch.stack(f) for f in zip(*found))
            return uv, evidence
        # Small windows of all maps at once, so that the many small operations on them are few.
        scaled = query * self.coarse_log_temperature.exp()
        logits = torch.cat([self._window_logits(scaled, _cells(m), width, window, t) for t, m in enumerate(maps)])
        return window_estimate(logits, window, self.coarse_log_temperature.exp())

    def _coarse_in_map(
        self, query: Tensor, coarse: Tensor, near: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Queries (N, C) in a map (C, h, w), near predicted (N, 2) px within radius (N,) px -> uv (N, 2), evidence (N, 3)."""
        height, width = coarse.shape[-2:]
        cells = _cells(coarse)
        raw, query = query, query * self.coarse_log_temperature.exp()
        size = (height, width)
        if near is None:
            return self._search_map(query, cells, size, None)
        window = search_window((near[0][None], near[1][None]), *size)
        if window is not None:
            logits = self._window_logits(query, cells, width, window)
            uv, evidence = window_estimate(logits, window, self.coarse_log_temperature.exp())
            return uv[0], evidence[0]
        unknown = near[0].isnan().any(-1)
        if not unknown.any():
            return self._search_map(query, cells, size, near)
        uv, evidence = torch.empty_like(near[0]), near[0].new_empty(len(query), 3)
        uv[unknown], evidence[unknown] = self._search_map(query[unknown], cells, size, None)
        if not unknown.all():
            known = ~unknown
            uv[known], evidence[known] = self._coarse_in_map(raw[known], coarse, (near[0][known], near[1][known]))
        return uv, evidence

    def _window_logits(self, query: Tensor, cells: Tensor, width: int, window: SearchWindow, t: int = 0) -> Tensor:
        """Logits (1, N, side, side) of queries (N, C) and the cells (h * w, C) in their windows, which are those of map `t`."""
        index, per_query = window.index(width)[t], window.side**2 * cells.shape[1]
        if MAP_PER_WINDOW * window.side**2 > len(cells):
            logits = self._multiply_rows(query, cells, width, (window.origin[t, :, 1], window.side), index)
        else:
            scratch = _Scratch()
            logits = torch.cat(
                [
                    torch.bmm(query[at, None], scratch.gather(cells, index[at]).transpose(1, 2))
                    for at in _chunks(len(query), GATHERED_AT_ONCE // per_query)
                ]
            )
        return logits.view(1, -1, window.side, window.side)

    def _multiply_rows(
        self, query: Tensor, cells: Tensor, width: int, rows: tuple[Tensor, int], index: Tensor
    ) -> Tensor:
        """Logits (N, K) of queries (N, C) and the cells at `index` (N, K), for large windows.

        Queries from one height of the map are multiplied with the rows there, where they lie.

        Args:
            rows: the first row (N,) of each window, and their number.
        """
        if self.in_bfloat16:
            cells, query = cells.bfloat16(), query.bfloat16()
        order = rows[0].argsort()
        query, index, first = query[order], index[order], rows[0][order].tolist()
        logits = torch.empty(index.shape, dtype=torch.float32, device=index.device)
        for at in _chunks(len(query), QUERIES_AT_ONCE):
            start, last = first[at][0] * width, (first[at][-1] + rows[1]) * width
            products = (query[at] @ cells[start:last].T).float()
            logits[order[at]] = products.gather(1, index[at] - start)
        return logits

    def _search_map(
        self, query: Tensor, cells: Tensor, size: tuple[int, int], near: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        if self.in_bfloat16:
            cells, query = cells.bfloat16(), query.bfloat16()
        found = []
        for at in _chunks(len(query), LOGITS_AT_ONCE // len(cells)):
            logits = (query[at] @ cells.T).float().view(1, -1, *size)
            part = None if near is None else (near[0][None, at], near[1][None, at])
            found.append(self.coarse_estimate(logits, part, consume=True))
        uv, evidence = (torch.cat(f, 1)[0] for f in zip(*found))
        return uv, evidence

    def describe_batch(self, coarse: Tensor, fine: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, C, h, w) at (B, N, 2) raw px -> coarse (B, N, C) and fine patch (B, N, PATCH**2, C)."""
        steps = torch.arange(PATCH, device=uv.device) - PATCH // 2
        offsets = FINE_STRIDE * DILATION * torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 2)
        patches = (uv[:, :, None] + offsets).flatten(1, 2)
        sampled = sample_map(fine, patches, FINE_STRIDE).unflatten(1, (uv.shape[1], PATCH**2))
        return F.normalize(sample_map(coarse, uv, COARSE_STRIDE), dim=-1), sampled

    def match_batch(
        self,
        query_coarse: Tensor,
        query_fine: Tensor,
        coarse: Tensor,
        fine: Tensor,
        predicted: Tensor | None = None,
        radius_px: Tensor | float | None = None,
        *,
        differentiable: bool = False,
    ) -> Prediction:
        """As `match`, for B pairs at once: queries (B, N, C) and (B, N, PATCH**2, C), target maps (B, C, h, w)."""
        logits = self.coarse_logits(query_coarse, coarse)
        uv, evidence = self.coarse_estimate(logits, search_region(predicted, radius_px))
        surface = self.correlate(query_fine, fine, uv.detach())
        return Prediction(
            *self.locate(surface, evidence), self.distributions(logits, surface) if differentiable else ()
        )

    def distributions(self, logits: Tensor, surface: LocalSurface) -> tuple[Distribution, ...]:
        """The coarse distribution, of logits (B, N, h, w) over the whole map, and the fine one around it, for auxiliary losses."""
        start = (surface.centre - WINDOW // 2) * FINE_STRIDE + (FINE_STRIDE - 1) / 2
        return (
            Distribution(logits, logits.new_full((2,), (COARSE_STRIDE - 1) / 2), COARSE_STRIDE),
            Distribution(surface.similarity * self.fine_log_temperature.exp(), start, FINE_STRIDE),
        )

    def coarse_logits(self, query: Tensor, coarse: Tensor) -> Tensor:
        """(B, N, C) against (B, C, h, w) -> (B, N, h, w)."""
        logits = torch.bmm(query * self.coarse_log_temperature.exp(), coarse.flatten(2))
        return logits.unflatten(-1, coarse.shape[-2:])

    def coarse_estimate(
        self, logits: Tensor, search: tuple[Tensor, Tensor] | None = None, *, consume: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`coarse.coarse_estimate` at the trained temperature."""
        return coarse_estimate(logits, self.coarse_log_temperature.exp(), search, consume=consume)

    def correlate(self, query: Tensor, fine: Tensor, uv: Tensor) -> LocalSurface:
        """Patches (B, N, PATCH**2, C) against maps (B, C, h, w) in the window around uv (B, N, 2) raw px."""
        batch, channels, height, width = fine.shape
        centre, index = _fine_window(uv, height, width)
        index = index + torch.arange(batch, dtype=torch.int32, device=fine.device)[:, None, None] * (height * width)
        # Rows of a channels-last map are contiguous, so one embedding-style gather fetches a cell's whole descriptor.
        rows = fine.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
        cells = _gather(rows, index.flatten(0, 1))
        similarity = _sum_of_patch(torch.bmm(query.flatten(0, 1), cells.transpose(1, 2))) / PATCH**2
        return LocalSurface(similarity.unflatten(0, (batch, -1)), centre)

    def _correlate_lean(self, query: Tensor, fine: Tensor, uv: Tensor) -> LocalSurface:
        """`correlate` of patches (N, PATCH**2, C) with one map (C, h, w), few at once; the surface has no batch dimension."""
        channels, height, width = fine.shape
        centre, index = _fine_window(uv, height, width)
        if self.in_bfloat16:
            fine, query = fine.bfloat16(), query.bfloat16()
        rows, scratch = fine.permute(1, 2, 0).reshape(height * width, channels), _Scratch()
        sums = [
            _sum_of_patch(torch.bmm(query[at], scratch.gather(rows, index[at]).transpose(1, 2)))
            for at in _chunks(len(query), PATCHES_AT_ONCE)
        ]
        return LocalSurface(torch.cat(sums) / PATCH**2, centre)


def _cells(features: Tensor) -> Tensor:
    """Map (C, h, w) -> cells as rows (h * w, C): of a channels-last map nothing is copied, neither here nor by a look-up of cells."""
    return features.permute(1, 2, 0).flatten(0, 1)


def _fine_window(uv: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Around uv (..., 2) raw px: the middle cell (..., 2), and which cells (..., side * side) int32 the patches are compared with."""
    centre = ((uv - (FINE_STRIDE - 1) / 2) / FINE_STRIDE).round()
    steps = torch.arange(SIDE, dtype=torch.int32, device=uv.device) - SIDE // 2
    cell = centre.int()
    x = (cell[..., :1] + steps).clamp(0, width - 1)
    y = (cell[..., 1:] + steps).clamp(0, height - 1) * width
    return centre, (y[..., :, None] + x[..., None, :]).flatten(-2)


def _chunks(count: int, most: int) -> list[slice]:
    return [slice(start, start + max(most, 1)) for start in range(0, count, max(most, 1))]


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """(R, C) at (M, K) -> (M, K, C)."""
    return rows.index_select(0, index.flatten()).view(*index.shape, -1)


class _Scratch:
    """Memory that one chunk of queries after the other is gathered into: fresh memory takes longer to get than to fill."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def gather(self, rows: Tensor, index: Tensor) -> Tensor:
        """As `_gather`, without a gradient; valid until the next call. All calls have the same rows."""
        if self._memory is None or len(self._memory) < index.numel():
            self._memory = rows.new_empty(index.numel(), rows.shape[1])
        return torch.index_select(rows, 0, index.flatten(), out=self._memory[: index.numel()]).view(*index.shape, -1)


def _sum_of_patch(products: Tensor) -> Tensor:
    """(M, PATCH**2, SIDE**2) -> (M, WINDOW, WINDOW) along the diagonal: offset o of the patch looks at window position + o."""
    if products.dtype is torch.bfloat16:
        products = products.float()  # sums would lose digits
    if products.requires_grad:
        # One view: the gradients of nine slices, each a zeroed copy of the products, take ten times as long.
        steps = (PATCH * SIDE**2 + DILATION * SIDE, SIDE**2 + DILATION)
        return products.as_strided(
            (PATCH, PATCH, len(products), WINDOW, WINDOW), (*steps, products.stride(0), SIDE, 1)
        ).sum((0, 1))
    length = (WINDOW - 1) * SIDE + WINDOW  # rows of the window with what lies between them, in one piece
    starts = [DILATION * (i * SIDE + j) for i in range(PATCH) for j in range(PATCH)]
    first, *others = (part[:, start : start + length] for part, start in zip(products.unbind(1), starts))
    total = first.clone()
    for part in others:
        total += part
    return F.pad(total, (0, SIDE - WINDOW)).unflatten(1, (WINDOW, SIDE))[..., :WINDOW]


def slide(surface: Tensor, start: Tensor) -> Tensor:
    """Bilinear sub-window (B, N, R, R) of (B, N, W, W) whose first cell lies at `start` (B, N, 2), not whole numbers.

    A product with an interpolated descriptor is the interpolated product, so no map needs to be sampled again.
    """
    whole = start.floor()
    x, y = whole.long().unbind(-1)
    along_x, along_y = (start - whole)[..., None, None].unbind(-3)
    steps = torch.arange(REFINE_WINDOW + 1, device=surface.device)
    index = (y[..., None, None] + steps[:, None]) * WINDOW + x[..., None, None] + steps
    block = surface.flatten(2).gather(-1, index.flatten(2)).unflatten(-1, (REFINE_WINDOW + 1, REFINE_WINDOW + 1))
    block = block[..., :-1] * (1 - along_x) + block[..., 1:] * along_x
    return block[..., :-1, :] * (1 - along_y) + block[..., 1:, :] * along_y
