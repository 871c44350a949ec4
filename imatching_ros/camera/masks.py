"""Masks from files and messages: non-zero pixels of an image are not used."""

from __future__ import annotations

from pathlib import Path

import cv2
import torch
from torch import Tensor

from ..core.errors import CameraError, SourceError


def read_mask(path: str | Path) -> Tensor:
    """An image file, non-zero where the camera's image is not used -> (H, W) bool.

    Raises:
        SourceError: missing or corrupt file.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise SourceError(f"cannot read the mask {path}: expected an image file, non-zero where images are not used")
    colour = image if image.ndim == 2 else image[..., : 3 if image.shape[2] > 2 else 1].max(-1)  # without transparency
    return torch.from_numpy(colour > 0)


def check_size_of_mask(mask: Tensor, height: int, width: int, what: str) -> None:
    """Raises CameraError when a mask (H, W) is not of the image's size."""
    if mask.shape != (height, width):
        raise CameraError(
            f"{what} is {mask.shape[1]} x {mask.shape[0]}, the image {width} x {height}; expected a mask of the image's size"
        )


def check_mask(mask: Tensor, height: int, width: int, what: str) -> None:
    """Raises CameraError when a mask (H, W) for every image is not of its size or leaves nothing of it."""
    check_size_of_mask(mask, height, width, what)
    if bool(mask.all()):
        raise CameraError(
            f"{what} is non-zero everywhere: nothing of the image would be used; expected 0 where it is used"
        )
