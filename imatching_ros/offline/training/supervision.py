"""Queries and losses for pairs whose correspondences are known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...learning.supervision import confidence_loss, coordinate_cost
from ...matching.backbone import FINE_STRIDE
from ...matching.coarse_to_fine import WINDOW, CoarseToFine


def sample_queries(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(B, 1, H, W) -> (B, count, 2) px: mostly Shi-Tomasi corners, as odometry asks for, some anywhere; sub-pixel jitter."""
    batch, _, height, width = images.shape
    response = _corner_response(images[:, 0])
    highest = _highest_within(_highest_within(response, 4, 1), 4, 2)
    inside = torch.zeros_like(response, dtype=torch.bool)
    inside[:, 8:-8, 8:-8] = True
    peaks = torch.where(inside & (highest == response), response, 0.0).flatten(1)
    corners = peaks.topk(2 * count).indices
    keep = torch.rand(corners.shape, generator=generator, device=images.device).argsort(-1)[:, : count * 3 // 4]
    corners = corners.gather(1, keep)
    uv = torch.stack([corners % width, corners // width], -1).float()
    size = images.new_tensor([width - 1, height - 1])
    anywhere = torch.rand(batch, count - uv.shape[1], 2, generator=generator, device=images.device) * size
    jitter = torch.rand(uv.shape, generator=generator, device=images.device) - 0.5
    subpixel = torch.rand(uv.shape[:2], generator=generator, device=images.device)[..., None] < 0.3
    return torch.cat([uv + jitter * subpixel, anywhere], 1)


# Sums and maxima of shifted images: on a CPU they take a tenth of the time of one-channel convolutions and poolings.
def _corner_response(images: Tensor) -> Tensor:
    """Smaller eigenvalue of the structure tensor (Sobel, 3x3) of (B, H, W); zero at the outermost two pixels."""
    smooth = images[:, :-2] + 2 * images[:, 1:-1] + images[:, 2:]
    gx = smooth[..., 2:] - smooth[..., :-2]
    smooth = images[..., :-2] + 2 * images[..., 1:-1] + images[..., 2:]
    gy = smooth[:, 2:] - smooth[:, :-2]
    xx, yy, xy = (_sum_of_three(_sum_of_three(p, 1), 2) / 9 for p in (gx * gx, gy * gy, gx * gy))
    return F.pad((xx + yy) / 2 - (((xx - yy) / 2) ** 2 + xy**2).sqrt(), (2, 2, 2, 2))


def _sum_of_three(values: Tensor, dim: int) -> Tensor:
    size = values.shape[dim] - 2
    return values.narrow(dim, 0, size) + values.narrow(dim, 1, size) + values.narrow(dim, 2, size)


def _highest_within(values: Tensor, reach: int, dim: int) -> Tensor:
    """The largest of each value (B, H, W) and its `reach` neighbours on both sides along `dim`."""
    size, highest = values.shape[dim], values.clone()
    for shift in range(1, reach + 1):
        for to, source in ((0, shift), (shift, 0)):
            part = highest.narrow(dim, to, size - shift)
            torch.maximum(part, values.narrow(dim, source, size - shift), out=part)
    return highest


def matching_loss(
    matcher: CoarseToFine,
    maps: tuple[Tensor, Tensor],
    uv_a: Tensor,
    uv_b: Tensor,
    visible: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The training loss of B pairs with Q true correspondences each.

    Args:
        maps: coarse and fine (2B, C, h, w) of the pairs' images, all A before all B.
        uv_a, uv_b: (B, Q, 2) px; visible: (B, Q) bool, uv_b lies in image B and is not hidden there.

    Returns:
        The loss, and its parts (detached) with the share of visible queries within 1, 3 and 5 px.
    """
    (coarse_a, coarse_b), (fine_a, fine_b) = (m.chunk(2) for m in maps)
    query_coarse, query_fine = matcher.describe_batch(coarse_a, fine_a, uv_a)

    logits = matcher.coarse_logits(query_coarse, coarse_b)
    found, evidence = matcher.coarse_estimate(logits)
    found = found.detach()

    # The fine stage sees the coarse stage's own windows where these hold the truth, and jittered true ones elsewhere.
    jitter = (torch.rand(uv_b.shape, generator=generator, device=uv_b.device) - 0.5) * 10
    usable = ((found - uv_b).abs().amax(-1) < WINDOW * FINE_STRIDE / 2 - 2)[..., None]
    surface = matcher.correlate(query_fine, fine_b, torch.where(usable, found, uv_b + jitter))
    parts = {}
    for name, distribution in zip(("coarse", "fine"), matcher.distributions(logits, surface)):
        loss, inside = distribution.cross_entropy(uv_b)
        parts[name] = _mean(loss, visible & inside)
    uv, _, _ = matcher.locate(surface, evidence)
    parts["coordinate"] = _mean(coordinate_cost(uv - uv_b), visible & inside)

    # Score and sigma are trained on what the matcher itself would say, half of the time within a search region.
    if torch.rand((), generator=generator, device=uv_b.device) < 0.5:
        predicted = uv_b + torch.randn(uv_b.shape, generator=generator, device=uv_b.device) * 8
        radius = 24 + 40 * torch.rand(visible.shape, generator=generator, device=uv_b.device)
        found, evidence = matcher.coarse_estimate(logits.detach(), (predicted, radius))
    with torch.no_grad():
        own = matcher.correlate(query_fine, fine_b, found)
    uv, score, sigma = matcher.locate(own, evidence)
    error = uv.detach() - uv_b
    parts["score"], parts["sigma"] = confidence_loss(score, sigma, error, visible)
    loss = torch.stack(list(parts.values())).sum()
    for px in (1, 3, 5):
        parts[f"within_{px}px"] = _mean((error.norm(dim=-1) < px).float(), visible)
    return loss, {k: v.detach() for k, v in parts.items()}


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (torch.where(mask, values, 0.0)).sum() / mask.sum().clamp_min(1)


def map_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean of 1 - cosine over the cells of two maps (B, C, h, w) of unit descriptors."""
    return 1 - (found * wanted).sum(1).mean()
