"""JPEG compression of live images: its quality, found from the pixels, and images as they were without its blocks.

The blocks lie on a grid that is fixed to the image, whatever the camera sees. They are no part of the scene, so a warp must not move them.
"""

from __future__ import annotations

import cv2
import numpy as np

BLOCK_PX = 8
QUALITIES = range(5, 97)  # finer quantization than that changes nothing that matters
PATCH_PX = 160  # of the image's centre, from which the quality is found
# The error of compressing again, relative to the median of qualities up to 3 away: at most .41 at the right one in images of KITTI, TUM and TartanAir.
DIP = 0.5


def find_quality(image: np.ndarray) -> int | None:
    """The quality (libjpeg's scale) at which an image (H, W) uint8 was compressed; None where it was not, or was resized or warped since.

    Compressing again changes an image least at the quality that it has been through (Farid, IEEE TIFS 2009). The first pixel of the
    image must be that of a block.
    """
    height, width = image.shape
    v, u = (max(size - PATCH_PX, 0) // 2 // BLOCK_PX * BLOCK_PX for size in (height, width))
    patch = image[v : v + PATCH_PX, u : u + PATCH_PX]
    patch = patch[: len(patch) // BLOCK_PX * BLOCK_PX, : patch.shape[1] // BLOCK_PX * BLOCK_PX]
    if patch.size == 0 or patch.std() < 1:
        return None
    error = np.array([np.abs(compress(patch, quality) - patch.astype(np.float32)).mean() for quality in QUALITIES])
    usual = np.array([np.median(error[max(0, k - 3) : k + 4]) for k in range(len(error))])
    relative = np.where(usual > 0, error / np.maximum(usual, 1e-9), 1.0)
    best = int(relative.argmin())
    return QUALITIES[best] if relative[best] < DIP else None


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """An image (H, W) uint8 after compression as JPEG."""
    decoded = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)
    assert decoded is not None
    return decoded


def without_blocks(image: np.ndarray, quality: int) -> np.ndarray:
    """(H, W) uint8 -> float32: the mean over shifted grids of the image compressed again (Nosratinia, J. VLSI Signal Processing 2001)."""
    height, width = image.shape
    total = np.zeros((height, width), np.float32)
    shifts = [(k, 3 * k % BLOCK_PX) for k in range(1, BLOCK_PX)]  # not (0, 0), which would leave the image as it is
    for v, u in shifts:
        padded = cv2.copyMakeBorder(image, v, 0, u, 0, cv2.BORDER_REFLECT)
        total += compress(padded, quality)[v:, u:]
    return total / len(shifts)
