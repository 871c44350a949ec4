"""Masks: parts of an image that are not used, such as the robot itself or people."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

MARGIN_PX = 10  # half of the window of Lucas-Kanade, and of the patches of the networks


def is_masked(mask: Tensor | None, uv: Tensor) -> Tensor:
    """(...,) bool: which raw px (..., 2) lie where the mask (H, W) bool is true; none without a mask, or outside the image."""
    if mask is None:
        return torch.zeros(uv.shape[:-1], dtype=torch.bool)
    height, width = mask.shape
    at = uv.detach().cpu().double().nan_to_num(-1.0).round().long()
    x, y = at.unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return inside & mask[y.clamp(0, height - 1), x.clamp(0, width - 1)]


def grow(mask: Tensor) -> Tensor:
    """The mask (H, W) bool, wider by what a matcher describes a point by: nearer to its edge, that would be of both sides."""
    side = 2 * MARGIN_PX + 1
    grown = cv2.dilate(mask.cpu().numpy().astype(np.uint8), np.ones((side, side), np.uint8))
    return torch.from_numpy(grown > 0)


def cover(image: Tensor, mask: Tensor) -> Tensor:
    """The image (1, H, W) uint8 with what is masked, (H, W) bool, filled by what is around it.

    Networks see farther than the margin and normalize an image as a whole: what moves under the mask would change descriptors beside it.
    """
    cell, sigma = 16, 3.0  # px, and cells: as smooth as what networks see at once
    grey, free = image[0].cpu().numpy(), ~mask.cpu().numpy()
    if not free.any():
        return torch.zeros_like(image)
    size = max(1, grey.shape[1] // cell), max(1, grey.shape[0] // cell)
    parts = (cv2.resize(part.astype(np.float32), size, interpolation=cv2.INTER_AREA) for part in (free, grey * free))
    weight, value = (cv2.GaussianBlur(part, (0, 0), sigma) for part in parts)
    known = weight > 1e-3
    around = np.where(known, value / np.where(known, weight, 1.0), grey[free].mean())
    filled = cv2.resize(around, grey.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(np.where(free, grey, filled.round().astype(np.uint8)))[None]


def unite(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The mask (H, W) bool of what either leaves out."""
    return b if a is None else a if b is None else a | b
