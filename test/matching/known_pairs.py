"""Textured images whose correspondences are known, and every matcher."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from imatching_ros.core.config import MatcherConfig
from imatching_ros.matching import create_matcher
from imatching_ros.matching.base import Matcher

LEARNED = ("expectation", "expectation_fast", "regression")
CLASSIC = ("klt", "sift")
SHIFT = (7.0, -4.0)  # px, from image A to image B


@dataclass(frozen=True)
class Pair:
    """Two crops of one texture: a point uv of A lies at uv + SHIFT in B."""

    a: Tensor  # (1, H, W) uint8
    b: Tensor
    unrelated: Tensor  # (1, H, W) uint8 of another texture
    uv: Tensor  # (N, 2) px of A, corners well inside both
    uv_b: Tensor


def texture(seed: int, height: int, width: int) -> Tensor:
    """(1, H, W) uint8: opaque discs and boxes of all sizes on each other, the "dead leaves" model of natural images."""
    rng = np.random.default_rng(seed)
    canvas = np.full((height, width), 128, np.uint8)
    for radius in np.sort(4 / rng.uniform(0.02, 1, height * width // 60))[::-1]:
        x, y, grey = int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(20, 236))
        if rng.random() < 0.5:
            cv2.circle(canvas, (x, y), int(radius), grey, -1, cv2.LINE_AA)
        else:
            box = cv2.boxPoints(((x, y), (2 * radius, radius * rng.uniform(0.5, 2)), rng.uniform(0, 90)))
            cv2.fillPoly(canvas, [box.astype(np.int32)], grey, cv2.LINE_AA)
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.7) + rng.normal(0, 2, canvas.shape)
    return torch.from_numpy(canvas.clip(0, 255).astype(np.uint8))[None]


def make_pair(height: int = 160, width: int = 200, seed: int = 3) -> Pair:
    du, dv = int(SHIFT[0]), int(SHIFT[1])
    canvas = texture(seed, height + 40, width + 40)
    a = canvas[:, 20 : 20 + height, 20 : 20 + width].contiguous()
    b = canvas[:, 20 - dv : 20 - dv + height, 20 - du : 20 - du + width].contiguous()
    corners = cv2.goodFeaturesToTrack(a[0].numpy(), 80, 0.01, 6).reshape(-1, 2)
    uv = torch.from_numpy(corners)
    inside = ((uv > 28) & (uv < torch.tensor([width - 28, height - 28]))).all(1)
    uv = uv[inside]
    return Pair(a, b, texture(seed + 100, height, width), uv, uv + torch.tensor(SHIFT))


def build(name: str) -> Matcher:
    """The matcher with its shipped weights."""
    return create_matcher(MatcherConfig(name=name))


def build_random(name: str, seed: int = 0) -> Matcher:
    """A learned matcher with random weights."""
    from imatching_ros.offline.training.trainer import MATCHERS

    torch.manual_seed(seed)
    return MATCHERS[name]().eval()


def as_float(image: Tensor) -> Tensor:
    return image.float() / 255
