"""Where to look: corners of a picture, and an even choice among points."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from .matching.base import Features, Matcher


def detect(matcher: Matcher, features: Features, image: Tensor, taken: Tensor, count: int, distance_px: float, quality: float) -> Tensor:
    """New points (N, 2) float32 raw px of a picture (1, H, W) uint8, at most `count`, away from those already taken (K, 2).

    The matcher's own points where it has any, else corners by the smaller eigenvalue (Shi and Tomasi 1994).
    """
    height, width = image.shape[-2:]
    free = np.full((height, width), 255, np.uint8)
    if len(taken):
        # Stamping squares by a dilation costs the same for any number of points.
        marks = np.zeros((height, width), np.uint8)
        at = taken.round().long()
        inside = at[((at >= 0) & (at < torch.tensor([width, height]))).all(1)].numpy()
        marks[inside[:, 1], inside[:, 0]] = 255
        side = 2 * round(distance_px) + 1
        free[cv2.dilate(marks, np.ones((side, side), np.uint8)) > 0] = 0
    own = matcher.points(features)
    if own is None:
        corners = cv2.goodFeaturesToTrack(np.ascontiguousarray(image[0].cpu().numpy()), count, quality, distance_px, mask=free)
        if corners is None:
            return torch.zeros(0, 2)
        # The gradient's window is symmetric only inside the picture; OpenCV gives whole pixels.
        return _refine(image, torch.from_numpy(corners.reshape(-1, 2)))
    own = own.cpu().float()
    at = own.round().long()
    at = torch.minimum(at.clamp_min(0), torch.tensor([width - 1, height - 1]))
    own = own[torch.from_numpy(free)[at[:, 1], at[:, 0]] > 0]
    return own[spread(own, torch.arange(len(own), dtype=torch.float32), count, width, height)]


def spread(uv: Tensor, rank: Tensor, count: int, width: int, height: int, cell_px: float | None = None) -> Tensor:
    """Indices (at most `count`,) of points (N, 2) px, chosen evenly over the picture; low `rank` (N,) first within a cell."""
    if len(uv) <= count:
        return torch.arange(len(uv))
    cell_px = cell_px or (width * height / count * 4) ** 0.5  # four points to a cell: even, yet free to prefer
    cell = (uv[:, 0] / cell_px).floor().long() * 4096 + (uv[:, 1] / cell_px).floor().long()
    order = rank.argsort(stable=True)
    order = order[cell[order].argsort(stable=True)]
    group = cell[order]
    start = torch.cat([torch.ones(1, dtype=torch.bool), group[1:] != group[:-1]])
    position = torch.arange(len(order))
    within = position - torch.where(start, position, 0).cummax(0).values
    return order[within.argsort(stable=True)[:count]]


def _refine(image: Tensor, corners: Tensor) -> Tensor:
    """Corners (N, 2) at whole pixels -> at fractions, kept where the refinement stays near."""
    moved = cv2.cornerSubPix(np.ascontiguousarray(image[0].cpu().numpy()), corners.numpy().copy(), (3, 3), (-1, -1),
                             (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.03))
    refined = torch.from_numpy(moved)
    return torch.where(((refined - corners).norm(dim=1, keepdim=True) < 2), refined, corners)
