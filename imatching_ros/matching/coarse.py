"""The coarse search: where in a map of similarities a query's peak lies, and how much it stands out."""

from __future__ import annotations

import math

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
    if search is None:
        return _peak(logits, torch.zeros(2, dtype=torch.long, device=logits.device), temperature, consume)
    predicted, radius = search
    height, width = logits.shape[-2:]
    cells = int(2 * torch.ceil((radius.max() + COARSE_STRIDE / 2) / COARSE_STRIDE)) + 1 if radius.numel() else 1
    if 2 * cells > min(height, width) or predicted.isnan().any():
        limit = radius.masked_fill(predicted.isnan().any(-1), torch.inf)
        origin = torch.zeros(2, dtype=torch.long, device=logits.device)
        return _peak(_keep_near(logits, origin, predicted.nan_to_num(), limit), origin, temperature, True)
    size = torch.tensor([width, height], device=logits.device)
    centre = ((predicted - (COARSE_STRIDE - 1) / 2) / COARSE_STRIDE).round().long()
    origin = torch.minimum((centre - cells // 2).clamp_min(0), size - cells)
    steps = torch.arange(cells, device=logits.device)
    index = (origin[..., 1:, None] + steps[:, None]) * width + origin[..., :1, None] + steps
    window = logits.flatten(2).gather(-1, index.flatten(2)).unflatten(-1, (cells, cells))
    return _peak(_keep_near(window, origin, predicted, radius), origin, temperature, True)


def _peak(logits: Tensor, origin: Tensor, temperature: Tensor | float, consume: bool) -> tuple[Tensor, Tensor]:
    """`coarse_estimate` on (B, N, h, w) whose first cell is `origin` (..., 2), x before y."""
    height, width = logits.shape[-2:]
    peak, best_x = _column_peaks(logits).max(-1)
    best_y = logits.gather(3, best_x[..., None, None].expand(-1, -1, height, 1))[..., 0].argmax(-1)
    reach = COARSE_WINDOW // 2
    steps = torch.arange(-reach, reach + 1, device=logits.device)
    x, y = best_x[..., None] + steps, best_y[..., None] + steps
    index = (y.clamp(0, height - 1)[..., :, None] * width + x.clamp(0, width - 1)[..., None, :]).flatten(2)
    inside = ((y >= 0) & (y < height))[..., :, None] & ((x >= 0) & (x < width))[..., None, :]
    flat = logits.flatten(2)
    local = flat.gather(-1, index).masked_fill(~inside.flatten(2), -torch.inf)
    shift = peak.detach()[..., None]
    share = (local - shift).exp()
    near = share.sum(-1, keepdim=True)
    weight = (share / near).unflatten(-1, (COARSE_WINDOW, COARSE_WINDOW))
    in_x, in_y = weight.sum(-2), weight.sum(-1)
    cell = torch.stack([(in_x * x).sum(-1), (in_y * y).sum(-1)], -1)
    spread = ((in_x * (x - cell[..., :1]) ** 2).sum(-1) + (in_y * (y - cell[..., 1:]) ** 2).sum(-1)) / 2
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


def _keep_near(logits: Tensor, origin: Tensor, predicted: Tensor, radius: Tensor) -> Tensor:
    """-inf where a cell lies wholly outside the square of `radius` px around `predicted`, pulled back onto the map."""

    def far(size: int, first: Tensor, centre: Tensor) -> Tensor:
        cells = COARSE_STRIDE * (first[..., None] + torch.arange(size, device=logits.device)) + (COARSE_STRIDE - 1) / 2
        centre = torch.maximum(torch.minimum(centre[..., None], cells[..., -1:]), cells[..., :1])
        return (cells - centre).abs() > radius[..., None] + COARSE_STRIDE / 2

    height, width = logits.shape[-2:]
    outside_x = far(width, origin[..., 0], predicted[..., 0])[..., None, :]
    outside_y = far(height, origin[..., 1], predicted[..., 1])[..., :, None]
    return logits.masked_fill(outside_x | outside_y, -torch.inf)
