"""The protocol of a matcher: images are turned into features once, queries are described once, then matched anywhere.

Two doors lead to the same computation:

- `forward` keeps gradients from the images of both views to the coordinates; learning uses it.
- `estimate` works on cached features without gradients; odometry uses it.

Both take M query points of image A and T target images and return, for every query in every target, a coordinate, a
score and a standard deviation. Shapes are written with N queries, T targets, images (1, H, W) float32 in 0..1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.errors import MatcherError


@dataclass(frozen=True)
class Features:
    """What a matcher keeps of one image. The layout of the maps is private to the matcher that made it."""

    maps: dict[str, Tensor]
    height: int
    width: int
    weights_version: int
    scale: int = 1  # px of the camera per px of the image behind the maps, whose size this is; see `halving`


@dataclass(frozen=True)
class Queries:
    """Points of one or more images, described for matching. `data` holds per-query tensors, first dimension N."""

    uv: Tensor  # (N, 2) float32 raw px in the image that each query comes from
    data: dict[str, Tensor]
    weights_version: int
    sources: tuple[Features, ...] = ()  # only for matchers that look at both images together
    source_idx: Tensor | None = None  # (N,) int64 into sources

    def __len__(self) -> int:
        return len(self.uv)

    def select(self, index: Tensor) -> Queries:
        """The queries at `index` (int64 or bool), with the sources that these need."""
        data = {k: v[index] for k, v in self.data.items()}
        if self.source_idx is None:
            return Queries(self.uv[index], data, self.weights_version)
        used, renumbered = self.source_idx[index].unique(return_inverse=True)
        return Queries(
            self.uv[index], data, self.weights_version, tuple(self.sources[k] for k in used.tolist()), renumbered
        )

    @staticmethod
    def cat(parts: Sequence[Queries]) -> Queries:
        """Queries of several images as one; all must come from the same matcher and weights."""
        versions = {p.weights_version for p in parts}
        assert len(versions) == 1, f"queries of weights versions {versions} must not be mixed"
        sources: tuple[Features, ...] = ()
        index = []
        for p in parts:
            if p.source_idx is not None:
                index.append(p.source_idx + len(sources))
                sources += p.sources
        return Queries(
            torch.cat([p.uv for p in parts]),
            {k: torch.cat([p.data[k] for p in parts]) for k in parts[0].data},
            versions.pop(),
            sources,
            torch.cat(index) if index else None,
        )


@dataclass(frozen=True)
class Distribution:
    """Where a matcher looked and how much it believed each place; auxiliary losses are taken on it."""

    logits: Tensor  # (T, N, h, w)
    origin_px: Tensor  # (2,) or (T, N, 2): raw px of the centre of the first cell
    stride_px: int

    def cross_entropy(self, uv: Tensor) -> tuple[Tensor, Tensor]:
        """Against points (T, N, 2) raw px, whose mass lies on the four cells around them.

        Returns:
            The loss (T, N), zero where the point lies outside the cells, and inside (T, N) bool.
        """
        height, width = self.logits.shape[-2:]
        cell = (uv - self.origin_px) / self.stride_px
        inside = ((cell >= 0) & (cell <= cell.new_tensor([width - 1, height - 1]))).all(-1)
        log_p = torch.log_softmax(self.logits.flatten(-2), -1)
        cell = torch.where(inside[..., None], cell, 0.0)
        whole = cell.floor()
        along_x, along_y = (cell - whole).unbind(-1)
        x, y = whole.long().unbind(-1)
        loss = torch.zeros_like(along_x)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            weight = (along_x if dx else 1 - along_x) * (along_y if dy else 1 - along_y)
            index = (y + dy).clamp_max(height - 1) * width + (x + dx).clamp_max(width - 1)
            loss = loss - weight * log_p.gather(-1, index[..., None])[..., 0].clamp_min(-50.0)
        return torch.where(inside, loss, 0.0), inside


@dataclass(frozen=True)
class Prediction:
    """Where N queries lie in T targets."""

    uv: Tensor  # (T, N, 2) raw px; finite always, also where the point is not visible
    score: Tensor  # (T, N) probability that uv is right (visible and within a few px)
    sigma_px: Tensor  # (T, N) standard deviation of each coordinate of uv, given that the match is right
    distributions: tuple[Distribution, ...] = ()  # coarse to fine, of matchers that have them; only from `forward`


def decode_confidence(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Output (..., 2) of a confidence head -> score and sigma_px (...,)."""
    logit, log_sigma = raw.unbind(-1)
    return torch.sigmoid(logit), log_sigma.clamp(-4, 4).exp()


class Matcher(nn.Module, ABC):
    """Base of all matchers. Subclasses implement `extract`, `describe` and `match`."""

    name: ClassVar[str]
    trainable: ClassVar[bool] = True
    # A matcher that can only follow small motion (KLT) is queried from the previous frame instead of the keyframe that
    # first saw the landmark.
    wide_baseline: ClassVar[bool] = True
    min_side_px: ClassVar[int] = 1  # of an image
    weights_version: int = 0

    @abstractmethod
    def extract(self, images: Tensor) -> list[Features]:
        """(B, 1, H, W) float32 in 0..1 -> B features."""

    @abstractmethod
    def describe(self, features: Features, uv: Tensor) -> Queries:
        """Points (N, 2) raw px of the image behind `features` -> N queries."""

    @abstractmethod
    def match(
        self,
        queries: Queries,
        targets: Sequence[Features],
        predicted: Tensor | None = None,
        radius_px: Tensor | float | None = None,
        *,
        differentiable: bool = False,
    ) -> Prediction:
        """Finds N queries in T targets.

        Args:
            predicted: (T, N, 2) raw px, where the points are expected; None searches the whole image. NaN rows search the
                whole image too.
            radius_px: search only within this distance of `predicted` (a number, or (T, N)).
            differentiable: keep what a loss needs, `distributions` included.
        """

    def log_sigma_bias(self) -> Tensor | None:
        """The number (), a view of a parameter below `confidence.`, that is added to log sigma_px; None where there is none.

        Learning moves it so that sigma stays true while features move. Without it a candidate whose matches are much better is refused,
        as its sigma no longer fits.
        """
        return None

    def points(self, features: Features) -> Tensor | None:
        """The points (K, 2) raw px at which this matcher is best queried, best first; None where any corner will do."""
        return None

    def forward(
        self,
        image: Tensor,
        uv: Tensor,
        targets: Tensor,
        predicted: Tensor | None = None,
        radius_px: Tensor | float | None = None,
    ) -> Prediction:
        """The differentiable door: image (1, H, W), uv (N, 2), targets (T, 1, H, W) -> Prediction with gradients.

        Raises:
            MatcherError: the images are not grey, too small, or of several sizes.
        """
        if image.shape != targets.shape[1:]:
            raise MatcherError(
                f"the query image has shape {tuple(image.shape)} and the targets {tuple(targets.shape[1:])}; "
                "bring them to grey and to one size, (1, H, W)"
            )
        source, *others = self.extract(torch.cat([image[None], targets]))
        return self.match(self.describe(source, uv), others, predicted, radius_px, differentiable=True)

    @torch.no_grad()
    def estimate(
        self,
        queries: Queries,
        targets: Sequence[Features],
        predicted: Tensor | None = None,
        radius_px: Tensor | float | None = None,
    ) -> Prediction:
        """The door of odometry: as `match`, without gradients, on cached features."""
        return self.match(queries, targets, predicted, radius_px)

    @torch.no_grad()
    def observe(self, image: Tensor) -> Features:
        """One image (1, H, W) uint8 -> its features, without gradients, on the matcher's device."""
        self.check(image[None])
        return self.extract(image[None].to(self.device).float() / 255)[0]

    def check(self, images: Tensor) -> None:
        """Raises MatcherError unless the images (B, 1, H, W) are grey and large enough."""
        if images.ndim != 4 or images.shape[1] != 1:
            raise MatcherError(
                f"matcher '{self.name}' takes grey images (1, H, W), got {tuple(images.shape[1:])}; "
                "turn colour to grey first (core.types.as_grey)"
            )
        if min(images.shape[-2:]) < self.min_side_px:
            raise MatcherError(
                f"the image is {images.shape[-1]} x {images.shape[-2]}, matcher '{self.name}' needs at least "
                f"{self.min_side_px} px a side; use larger images"
            )

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        for p in self.parameters():
            return p.device
        return torch.device("cpu")
