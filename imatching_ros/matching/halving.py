"""Matching at a fraction of the camera's resolution: the setting `matcher.max_width`.

Wider images are halved until they fit, by the mean over 2 x 2 px. Outside a matcher everything stays in pixels of the camera. With a scale
s, the pixel u of the halved image is the mean of s px of the camera, whose centre is s * u + (s - 1) / 2.
"""

# mypy: disable-error-code="safe-super"
# (what follows among the bases is a whole matcher)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Distribution, Features, Matcher, Prediction, Queries


class Halving(Matcher):
    """Stands before a matcher among the bases of a class; `halved` makes such classes.

    Attributes:
        max_width: px; 0 changes nothing.
    """

    max_width: int = 0

    def scale(self, width: int) -> int:
        """Px of the camera per px of the halved image: a power of two."""
        scale = 1
        while 0 < self.max_width < width // scale:
            scale *= 2
        return scale

    def extract(self, images: Tensor) -> list[Features]:
        scale = self.scale(images.shape[-1])
        if scale == 1:
            return super().extract(images)
        return [replace(f, scale=scale) for f in super().extract(F.avg_pool2d(images, scale))]

    @torch.no_grad()
    def observe(self, image: Tensor) -> Features:
        if self.scale(image.shape[-1]) == 1:
            return super().observe(image)
        return Matcher.observe(self, image)  # by `extract`, which halves

    def points(self, features: Features) -> Tensor | None:
        points = super().points(features)
        return None if points is None else enlarge(points, features.scale)

    def describe(self, features: Features, uv: Tensor) -> Queries:
        if features.scale == 1:
            return super().describe(features, uv)
        return replace(super().describe(features, reduce(uv, features.scale)), uv=uv)

    def match(
        self,
        queries: Queries,
        targets: Sequence[Features],
        predicted: Tensor | None = None,
        radius_px: Tensor | float | None = None,
        *,
        differentiable: bool = False,
    ) -> Prediction:
        scale = targets[0].scale if targets else 1
        if scale == 1:
            return super().match(queries, targets, predicted, radius_px, differentiable=differentiable)
        found = super().match(
            replace(queries, uv=reduce(queries.uv, scale)),
            targets,
            None if predicted is None else reduce(predicted, scale),
            None if radius_px is None else radius_px / scale,
            differentiable=differentiable,
        )
        distributions = tuple(
            Distribution(d.logits, enlarge(d.origin_px, scale), d.stride_px * scale) for d in found.distributions
        )
        return replace(found, uv=enlarge(found.uv, scale), sigma_px=found.sigma_px * scale, distributions=distributions)


@lru_cache(maxsize=None)
def halved(cls: type[Matcher]) -> type[Matcher]:
    """A matcher's class that takes `max_width` into account; it loads and saves the same weights."""
    return type(cls.__name__, (Halving, cls), {"__module__": cls.__module__})


def reduce(uv: Tensor, scale: int) -> Tensor:
    """(..., 2) px of the camera -> px of the image halved to 1 / scale; the centre of the first pixel is (0, 0) in both."""
    return (uv - (scale - 1) / 2) / scale


def enlarge(uv: Tensor, scale: int) -> Tensor:
    """The inverse of `reduce`."""
    return uv * scale + (scale - 1) / 2
