"""Query points of an image and where they truly lie in another one."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from ...core import geometry
from ...core.masks import is_masked
from ...core.types import Frame, as_grey

QUERIES = 512
DEPTH_TOLERANCE = 0.03  # two depths of one surface agree within this share


@dataclass(frozen=True)
class PairTruth:
    """What is known of N queries of frame i in frame j."""

    T_ij: Tensor | None  # (7,) float64, camera j seen from i; None without true poses
    uv_j: Tensor  # (N, 2) float64 raw px, NaN where not known
    visible: Tensor  # (N,) bool: uv_j is known, inside the image and not hidden by something nearer
    baseline: float  # distance of the two cameras over the median depth; in metres where there is no depth
    baseline_is_relative: bool


def sample_queries(image: Tensor, count: int = QUERIES, mask: Tensor | None = None) -> Tensor:
    """Shi-Tomasi corners of an image (3 or 1, H, W) uint8 outside the mask (H, W) bool -> (N, 2) float32 px, strongest first, N <= count."""
    quality = 0.001  # of the strongest corner; low enough for white walls
    distance_px = 7  # so that 512 corners spread over an image of 320 x 240 px
    free = None if mask is None else (~mask).numpy().astype(np.uint8)
    corners = cv2.goodFeaturesToTrack(as_grey(image)[0].numpy(), count, quality, distance_px, mask=free)
    return torch.from_numpy(np.zeros((0, 2), np.float32) if corners is None else corners.reshape(-1, 2))


def find_truth(i: Frame, j: Frame, T_WC_i: Tensor | None, T_WC_j: Tensor | None, uv: Tensor) -> PairTruth:
    """Where points of frame i lie in frame j by true poses and depth.

    A point on a depth edge has no truth, since a pixel there belongs to two surfaces. A point counts as visible when the
    depth of frame j at its place is the depth that the poses demand, within 3 %.

    Args:
        T_WC_i, T_WC_j: (7,) float64 true poses, or None.
        uv: (N, 2) raw px in frame i.
    """
    unknown = torch.full((len(uv), 2), torch.nan, dtype=torch.float64)
    hidden = torch.zeros(len(uv), dtype=torch.bool)
    if T_WC_i is None or T_WC_j is None:
        return PairTruth(None, unknown, hidden, float("nan"), False)
    T_ij = geometry.relative(T_WC_i, T_WC_j)
    baseline = float(T_ij[:3].norm())
    if i.depth is None or j.depth is None:
        return PairTruth(T_ij, unknown, hidden, baseline, False)
    uv = uv.double()
    depth, smooth = sample_depth(i.depth, uv)
    ideal = i.camera.undistort(uv)
    points_j = geometry.act(geometry.inverse(T_ij), geometry.back_project(i.camera, ideal, depth))
    known = smooth & (points_j[:, 2] > 1e-6) & ideal.isfinite().all(1)
    uv_j = torch.where(known[:, None], j.camera.project(points_j), torch.nan)
    size = uv_j.new_tensor([j.camera.width - 1, j.camera.height - 1])
    inside = ((uv_j >= 0) & (uv_j <= size)).all(1)  # NaN compares False
    there, _ = sample_depth(j.depth, torch.where(inside[:, None], uv_j, 0.0))
    visible = inside & ~is_masked(j.mask, uv_j) & (there > 0) & ((there / points_j[:, 2] - 1).abs() < DEPTH_TOLERANCE)
    known_depth = i.depth[i.depth > 0]
    return PairTruth(
        T_ij, uv_j, visible, baseline / max(float(known_depth.median()), 1e-9) if len(known_depth) else 0.0, True
    )


def sample_depth(depth: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
    """Depth (H, W) at points (N, 2) px -> (N,) float64 bilinear, and (N,) bool: the four pixels around agree within 3 %.

    Inverse depth is interpolated, which is exact on planes. 0 where the nearest pixel has no depth; at an edge the nearest
    pixel's depth is returned.
    """
    height, width = depth.shape
    x, y = uv[:, 0].clamp(0, width - 1).double(), uv[:, 1].clamp(0, height - 1).double()
    x0, y0 = x.floor().long().clamp_max(max(width - 2, 0)), y.floor().long().clamp_max(max(height - 2, 0))
    x1, y1 = (x0 + 1).clamp_max(width - 1), (y0 + 1).clamp_max(height - 1)
    corners = torch.stack([depth[y0, x0], depth[y0, x1], depth[y1, x0], depth[y1, x1]], 1).double()
    smooth = (corners > 0).all(1) & (corners.amax(1) < corners.amin(1) * (1 + DEPTH_TOLERANCE))
    fx, fy = x - x0, y - y0
    weight = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], 1)
    nearest = depth[y.round().long(), x.round().long()].double()
    return torch.where(smooth, 1 / (weight / corners.clamp_min(1e-9)).sum(1), nearest), smooth
