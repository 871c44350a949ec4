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


def unite(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The mask (H, W) bool of what either leaves out."""
    return b if a is None else a if b is None else a | b
