"""The coarse search: where in a map of similarities a query's peak lies, and how much it stands out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .backbone import COARSE_STRIDE

COARSE_WINDOW = 5  # side of the local expectation, in coarse cells
_LOG2_E = math.log2(math.e)  # torch takes powers of 2 four times as fast as powers of e


def search_region(predicted: Tensor | None, radius_px: Tensor | float | None) -> tuple[Tensor, Tensor] | None:
    """Predicted (B, N, 2) px and radius (B, N) px, or None to search everywhere."""
    if predicted is None or radius_px is None:
        return None
    return predicted, torch.as_tensor(radius_px, dtype=predicted.dtype, device=predicted.device).expand(
        predicted.shape[:-1]
    )


@dataclass(frozen=True)
class SearchWindow:
    """The smallest square of cells that holds the search region of every query."""

    origin: Tensor  # (B, N, 2) int64 first cell, x before y
    side: int
    centre: Tensor  # (B, N, 2) px, of the region, pulled back onto the map
    radius: Tensor  # (B, N) px

    def index(self, width: int) -> Tensor:
        """(B, N, side * side) int64 into the cells of a map of that width."""
        steps = torch.arange(self.side, device=self.origin.device)
        return ((self.origin[..., 1:, None] + steps[:, None]) * width + self.origin[..., :1, None] + steps).flatten(2)


def search_window(search: tuple[Tensor, Tensor], height: int, width: int) -> SearchWindow | None:
    """The cells of a map of `height` x `width` cells to look at.

    Args:
        search: predictions (B, N, 2) raw px and radii (B, N) px.

    Returns:
        None where a prediction is NaN, or where the square is so large that it saves little: the whole map is searched then.
    """
    predicted, radius = search
    if not radius.numel() or predicted.isnan().any():
        return None
    reach = float(radius.max()) + COARSE_STRIDE / 2  # a cell is looked at if any of it lies within the radius
    if 4 * reach / COARSE_STRIDE + 2 > min(height, width):
        return None
    side = math.floor(2 * reach / COARSE_STRIDE + 1e-3) + 1
    size = torch.tensor([width, height], device=predicted.device)
    centre = _onto_map(predicted, height, width)
    first = (centre - reach - (COARSE_STRIDE - 1) / 2) / COARSE_STRIDE - 1e-3
    return SearchWindow(torch.minimum(first.ceil().long().clamp_min(0), size - side), side, centre, radius)


def coarse_estimate(
    logits: Tensor, temperature: Tensor | float, search: tuple[Tensor, Tensor] | None = None, *, consume: bool = False
) -> tuple[Tensor, Tensor]:
    """The peak's position by local expectation, and how much it stands out.

    Args:
        logits: (B, N, h, w), cosine similarities times `temperature`.
        search: predicted (B, N, 2) raw px and radius (B, N) px; only the square around it is looked at. Where the
            prediction is NaN the whole map is.
        consume: the logits may be overwritten.

    Returns:
        uv (B, N, 2) raw px, evidence (B, N, 3): log share of the probability near the peak, cosine similarity, spread.
    """
    origin = torch.zeros(2, dtype=torch.long, device=logits.device)
    if search is None:
        return _peak(logits, origin, temperature, consume)
    predicted, radius = search
    height, width = logits.shape[-2:]
    window = search_window(search, height, width)
    if window is not None:
        inside = logits.flatten(2).gather(-1, window.index(width)).unflatten(-1, (window.side, window.side))
        return window_estimate(inside, window, temperature)
    unknown = predicted.isnan().any(-1)
    predicted = _onto_map(predicted.nan_to_num(), height, width)
    return _peak(
        _keep_near(logits, origin, predicted, radius.masked_fill(unknown, torch.inf)), origin, temperature, True
    )


def window_estimate(logits: Tensor, window: SearchWindow, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    """`coarse_estimate` from the logits (B, N, side, side) of the window alone, which may be overwritten."""
    near = _keep_near(logits, window.origin, window.centre, window.radius, consume=not logits.requires_grad)
    return _peak(near, window.origin, temperature, True)


def _onto_map(uv: Tensor, height: int, width: int) -> Tensor:
    """Raw px, pulled back between the centres of the outermost cells of a map."""
    first = (COARSE_STRIDE - 1) / 2
    last = uv.new_tensor([width - 1, height - 1]) * COARSE_STRIDE + first
    return torch.minimum(uv.clamp_min(first), last)


def _peak(logits: Tensor, origin: Tensor, temperature: Tensor | float, consume: bool) -> tuple[Tensor, Tensor]:
    """`coarse_estimate` on (B, N, h, w) whose first cell is `origin` (..., 2), x before y."""
    height, width = logits.shape[-2:]
    peak, best_x = _column_peaks(logits).max(-1)
    best_y = logits.gather(3, best_x[..., None, None].expand(-1, -1, height, 1))[..., 0].argmax(-1)
    reach = COARSE_WINDOW // 2
    at = torch.stack([best_x, best_y], -1)[..., None] + torch.arange(-reach, reach + 1, device=logits.device)
    clamped = torch.minimum(at.clamp_min(0), at.new_tensor([[width - 1], [height - 1]]))
    index = clamped[..., 1, :, None] * width + clamped[..., 0, None, :]
    outside = at != clamped
    outside = (outside[..., 1, :, None] | outside[..., 0, None, :]).flatten(2)
    flat, shift = logits.flatten(2), peak.detach()[..., None]
    share = (flat.gather(-1, index.flatten(2)).masked_fill(outside, -torch.inf) - shift).exp()
    near = share.sum(-1, keepdim=True)
    weight = (share / near).unflatten(-1, (COARSE_WINDOW, COARSE_WINDOW))
    marginal = torch.stack([weight.sum(-2), weight.sum(-1)], -2)  # (B, N, 2, COARSE_WINDOW), along x and along y
    cell = (marginal * at).sum(-1)
    spread = (marginal * (at - cell[..., None]) ** 2).sum(-1).sum(-1) / 2
    if consume and not torch.is_grad_enabled():
        total = flat.sub_(shift).mul_(_LOG2_E).exp2_().sum(-1)
    else:
        total = ((flat - shift) * _LOG2_E).exp2().sum(-1)
    similarity = peak / temperature
    uv = (cell + origin) * COARSE_STRIDE + (COARSE_STRIDE - 1) / 2
    return uv, torch.stack([(near[..., 0] / total).log(), similarity, spread], -1)


def _column_peaks(logits: Tensor) -> Tensor:
    """`logits.amax(-2)`; maxima of halves, element by element, take a third of a CPU's time for that."""
    while logits.shape[-2] > 8:
        half = (logits.shape[-2] + 1) // 2
        logits = torch.maximum(logits[..., :half, :], logits[..., -half:, :])
    return logits.amax(-2)


def _keep_near(logits: Tensor, origin: Tensor, centre: Tensor, radius: Tensor, consume: bool = False) -> Tensor:
    """-inf where a cell lies wholly outside the square of `radius` px around `centre`. `consume`: the logits are overwritten."""

    height, width = logits.shape[-2:]
    steps = torch.arange(max(height, width), device=logits.device)
    cells = COARSE_STRIDE * (origin[..., None] + steps) + (COARSE_STRIDE - 1) / 2
    far = (cells - centre[..., None]).abs() > radius[..., None, None] + COARSE_STRIDE / 2
    if consume:
        cost = torch.where(far, -torch.inf, 0.0)
        return logits.add_(cost[..., 0, None, :width]).add_(cost[..., 1, :height, None])
    return logits.masked_fill(far[..., 0, None, :width] | far[..., 1, :height, None], -torch.inf)
