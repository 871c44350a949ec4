"""Random homographies, and pairs of images related by one: truth that passes through no bundle adjustment.

Validation on the robot draws small ones, the learning step and the offline training those between two views of a plane.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from .compression import compress, find_quality, without_blocks

# Uniform displacement of the image's corners, as a share of its size; corners move by about as much between neighbouring keyframes.
CORNER_SHIFT = 0.02


@dataclass(frozen=True)
class WarpedPair:
    """Two images (H, W) uint8 and the homography (3, 3) from px of A to px of B."""

    image_a: np.ndarray
    image_b: np.ndarray
    H_BA: np.ndarray

    def truth(self, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points (Q, 2) px of A lie in B (Q, 2) px, and whether that is inside the image (Q,) bool."""
        height, width = self.image_b.shape
        uv_b = cv2.perspectiveTransform(uv[None].astype(np.float64), self.H_BA)[0]
        return uv_b, ((uv_b >= 0) & (uv_b <= [width - 1, height - 1])).all(-1)


def draw_pair(image: np.ndarray, rng: Generator, H_BA: np.ndarray | None = None) -> WarpedPair:
    """A homography, by default a small random one, and a random change of light of an image (H, W) uint8.

    The image's own noise must not be what is matched, or a matcher that learned to ignore noise would seem to have become
    worse: both images are made from the smoothed one, each with new noise of the image's strength. Likewise for the blocks of JPEG:
    they are smoothed away, and both images are compressed as the live one was. The first pixel must be that of a block.
    """
    height, width = image.shape
    quality = find_quality(image)
    source = image.astype(np.float32) if quality is None else without_blocks(image, quality)
    noise, smooth = noise_level(image), cv2.GaussianBlur(source, (0, 0), sigmaX=1.0)
    H_BA = draw_homography((height, width), rng) if H_BA is None else H_BA
    warped = cv2.warpPerspective(smooth, H_BA, (width, height), borderMode=cv2.BORDER_REFLECT)
    warped = warped * rng.uniform(0.8, 1.2) + rng.uniform(-15, 15)
    image_a, image_b = (
        np.clip(view + rng.normal(0, noise, view.shape), 0, 255).astype(np.uint8) for view in (smooth, warped)
    )
    if quality is not None:
        image_a, image_b = compress(image_a, quality), compress(image_b, quality)
    return WarpedPair(image_a, image_b, H_BA)


def draw_homography(size: tuple[int, int], rng: Generator, corner_shift: float = CORNER_SHIFT) -> np.ndarray:
    """A homography (3, 3) that moves the corners of an image of (height, width) by up to `corner_shift` of its size."""
    height, width = size
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    shift = rng.uniform(-corner_shift, corner_shift, (4, 2)).astype(np.float32) * [width, height]
    return cv2.getPerspectiveTransform(corners, (corners + shift).astype(np.float32))


def draw_view_homography(size: tuple[int, int], rng: Generator) -> np.ndarray:
    """A homography (3, 3) between two views of a plane: rotation, scale, translation and perspective; many small, as between frames."""
    height, width = size
    strength = rng.choice([0.15, 0.5, 1.0], p=[0.3, 0.4, 0.3])
    angle = rng.normal(0, 0.3 * strength)
    scale = np.exp(rng.normal(0, 0.25 * strength))
    shift = rng.normal(0, 0.15 * strength, 2) * [width, height]
    tilt = rng.normal(0, 0.25 * strength, 2) / [width, height]
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    to_centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1.0]])
    inner = np.array([[c, -s, shift[0]], [s, c, shift[1]], [tilt[0], tilt[1], 1.0]])
    return np.linalg.inv(to_centre) @ inner @ to_centre


def noise_level(image: np.ndarray) -> float:
    """Standard deviation of an image's noise (H, W), grey levels; the median makes Immerkaer's estimate (1996) blind to edges."""
    response = cv2.filter2D(image.astype(np.float32), -1, np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32))
    return float(np.median(np.abs(response))) / 0.6745 / 6
