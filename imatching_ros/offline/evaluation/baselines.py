"""Ways of using a matcher between two frames of a sequence: directly, from frame to frame, or at its own keypoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from ...core.types import Frame, as_grey
from ...matching.base import Features, Matcher
from .pairs import sample_queries


@dataclass(frozen=True)
class PairMatches:
    """The matches of a pair of frames."""

    uv_i: Tensor  # (N, 2) float32 raw px, the queries; its own in `OwnKeypoints`
    uv_j: Tensor  # (N, 2) float32 raw px
    score: Tensor  # (N,); 0 = no match delivered
    sigma_px: Tensor  # (N,)
    match_ms: float


class PairMatcher:
    """Matches queries of the first frame directly in the last one.

    Attributes:
        features_ms: one entry per image.
    """

    own_queries = False

    def __init__(self, name: str, matcher: Matcher) -> None:
        self.name, self.matcher = name, matcher
        self.features_ms: list[float] = []
        self._cache: dict[int, Features] = {}

    def match(self, frames: Sequence[Frame], uv: Tensor) -> PairMatches:
        """Queries (N, 2) raw px of frames[0] in frames[-1]; the frames between are those of the sequence."""
        first, last = self.features(frames[0]), self.features(frames[-1])
        start = time.perf_counter()
        found = self.matcher.estimate(self.matcher.describe(first, uv.to(self.matcher.device)), [last])
        uv_j, score, sigma = (x[0].float().cpu() for x in (found.uv, found.score, found.sigma_px))
        return PairMatches(uv, uv_j, score, sigma, (time.perf_counter() - start) * 1e3)

    def features(self, frame: Frame) -> Features:
        """The features of a frame, computed once."""
        if frame.id not in self._cache:
            start = time.perf_counter()
            self._cache[frame.id] = self.matcher.observe(as_grey(frame.image))
            self.features_ms.append((time.perf_counter() - start) * 1e3)
        return self._cache[frame.id]

    def forget(self, before: int) -> None:
        """Drops the features of frames with ids below `before`."""
        self._cache = {k: v for k, v in self._cache.items() if k >= before}


class Chained(PairMatcher):
    """Follows the queries from each frame to the next; a point lost once stays lost."""

    def match(self, frames: Sequence[Frame], uv: Tensor) -> PairMatches:
        start = sum(self.features_ms)
        clock = time.perf_counter()
        here, score, variance = uv, torch.ones(len(uv)), torch.zeros(len(uv))
        for a, b in zip(frames, frames[1:]):
            step = super().match([a, b], here)
            here, score, variance = step.uv_j, score * step.score, variance + step.sigma_px**2
        spent = (time.perf_counter() - clock) * 1e3 - (sum(self.features_ms) - start)
        return PairMatches(uv, here, score, variance.sqrt(), spent)


class OwnKeypoints(PairMatcher):
    """SIFT at its own strongest keypoints, as many as the others get queries."""

    own_queries = True

    def __init__(self, name: str, matcher: Matcher, budget: int) -> None:
        super().__init__(name, matcher)
        self._detector = cv2.SIFT_create(nfeatures=budget)
        self._budget = budget

    def match(self, frames: Sequence[Frame], uv: Tensor) -> PairMatches:
        keypoints = self._detector.detect(as_grey(frames[0].image)[0].numpy(), None)
        strongest = sorted(keypoints, key=lambda k: -k.response)
        # One keypoint with two orientations is one place.
        places = list(dict.fromkeys(k.pt for k in strongest))[: self._budget]
        return super().match(frames, torch.tensor(places, dtype=torch.float32).reshape(-1, 2))


class SiftCorners(PairMatcher):
    """SIFT descriptors at the common queries, matched to those at the corners of the other image: ratio test and mutual best.

    Upright, at one size: between neighbouring frames this loses nothing, and a corner need not be a blob to be described. Size
    and ratio are the best of a search over both; refining the corners to fractions of a pixel gained nothing.
    """

    _SIZE_PX = 8.0
    _RATIO = 0.95
    _TARGETS = 2000

    def __init__(self, name: str, matcher: Matcher) -> None:
        super().__init__(name, matcher)
        self._sift = cv2.SIFT_create()
        self._found: dict[int, tuple[Tensor, Tensor]] = {}  # by frame id: corners and their descriptors

    def match(self, frames: Sequence[Frame], uv: Tensor) -> PairMatches:
        (uv_t, described_t), image = self._corners(frames[-1]), as_grey(frames[0].image)[0].numpy()
        start = time.perf_counter()
        rows, described = self._describe(image, uv)
        uv_j, score = uv.clone(), torch.zeros(len(uv))
        if len(rows) >= 1 and len(uv_t) >= 2:
            distance = torch.cdist(described, described_t)
            best, index = distance.topk(2, 1, largest=False)
            mutual = distance.argmin(0)[index[:, 0]] == torch.arange(len(rows))
            ratio = best[:, 0] / best[:, 1].clamp_min(1e-6)
            good = mutual & (ratio < self._RATIO)
            uv_j[rows[good]], score[rows[good]] = uv_t[index[good, 0]], 1.0
        return PairMatches(uv, uv_j, score, torch.full((len(uv),), 0.7), (time.perf_counter() - start) * 1e3)

    def _corners(self, frame: Frame) -> tuple[Tensor, Tensor]:
        if frame.id not in self._found:
            start = time.perf_counter()
            image = as_grey(frame.image)[0].numpy()
            uv = sample_queries(frame.image, self._TARGETS)
            rows, described = self._describe(image, uv)
            self._found[frame.id] = uv[rows], described
            self.features_ms.append((time.perf_counter() - start) * 1e3)
        return self._found[frame.id]

    def forget(self, before: int) -> None:
        self._found = {k: v for k, v in self._found.items() if k >= before}

    def _describe(self, image: np.ndarray, uv: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that could be described (not too near the border), and their unit descriptors (Hellinger)."""
        keypoints = [cv2.KeyPoint(float(u), float(v), self._SIZE_PX, 0.0, 0.0, 0, k) for k, (u, v) in enumerate(uv)]
        kept, values = self._sift.compute(image, keypoints)
        if not kept:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 128)
        values = torch.from_numpy(values)
        return torch.tensor([k.class_id for k in kept]), (values / values.sum(1, keepdim=True).clamp_min(1e-6)).sqrt()
