"""Pyramidal Lucas-Kanade tracking (Bouguet 2001) by OpenCV: the classic that follows points from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from ..core.config import MatcherConfig
from ..core.errors import MatcherError
from .base import Features, Matcher, Prediction, Queries

WINDOW = (21, 21)  # px, OpenCV's default
LEVELS = 4
CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01)
ROUND_TRIP_PX = 1.0  # a point tracked there and back must return within this distance
SIGMA_PX = 0.5
JUMP = 4.0  # grey levels between the means of two images above which they are brought to one exposure


class KltMatcher(Matcher):
    """Features are the image itself; the score falls from 1 to exp(-1) as the round trip error grows to 1 px."""

    name = "klt"
    trainable = False
    wide_baseline = False

    def __init__(self, config: MatcherConfig | None = None) -> None:
        super().__init__()

    def extract(self, images: Tensor) -> list[Features]:
        """(B, 1, H, W) float32 in 0..1 -> B features."""
        self.check(images)
        return [self._features(image) for image in (images * 255).round().clamp(0, 255).to(torch.uint8).cpu()]

    @torch.no_grad()
    def observe(self, image: Tensor) -> Features:
        """(1, H, W) uint8 -> features, without the detour over float."""
        self.check(image[None])
        return self._features(image.cpu())

    def describe(self, features: Features, uv: Tensor) -> Queries:
        """Points (N, 2) raw px -> N queries that remember their image."""
        return Queries(uv.float(), {}, self.weights_version, (features,), torch.zeros(len(uv), dtype=torch.int64))

    def match(
        self,
        queries: Queries,
        targets: Sequence[Features],
        predicted: Tensor | None = None,
        radius_px: Tensor | float | None = None,
        *,
        differentiable: bool = False,
    ) -> Prediction:
        """Tracks every query into every target, there and back; `predicted` is where the search starts."""
        count = len(queries)
        uv = torch.empty(len(targets), count, 2)
        score = torch.zeros(len(targets), count)
        origin = queries.uv.cpu().float()
        for t, target in enumerate(targets):
            guess = origin.clone() if predicted is None else predicted[t].float().cpu()
            guess = torch.where(torch.isfinite(guess), guess, origin)
            for s, source in enumerate(queries.sources):
                rows = (queries.source_idx == s).nonzero()[:, 0]
                if len(rows):
                    uv[t, rows], score[t, rows] = _track(source, target, origin[rows], guess[rows])
            if radius_px is not None and predicted is not None:
                radius = radius_px[t] if isinstance(radius_px, Tensor) else radius_px
                score[t] *= (uv[t] - guess).norm(dim=-1) <= radius
        return Prediction(uv, score, torch.full((len(targets), count), SIGMA_PX))

    def _features(self, image: Tensor) -> Features:
        return Features({"image": image[0].contiguous()}, image.shape[-2], image.shape[-1], self.weights_version)


def _track(source: Features, target: Features, uv: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
    """Points (N, 2) px of `source` -> their place in `target` (N, 2) px, and score (N,)."""
    a, b = source.maps["image"].numpy(), target.maps["image"].numpy()
    if a.shape != b.shape:
        raise MatcherError(
            f"KLT takes images of one size, got {source.width} x {source.height} and {target.width} x {target.height}"
        )
    b = _alike(a, b)
    start = np.ascontiguousarray(uv.numpy())
    options = dict(winSize=WINDOW, maxLevel=LEVELS, criteria=CRITERIA, flags=cv2.OPTFLOW_USE_INITIAL_FLOW)
    there, ok_there, _ = cv2.calcOpticalFlowPyrLK(a, b, start, np.ascontiguousarray(guess.numpy()).copy(), **options)
    # The way back starts where the way there would have been undone: the same search, mirrored.
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(b, a, there, there + (uv - guess).numpy(), **options)
    error = np.linalg.norm(back - start, axis=1)
    inside = ((there >= 0) & (there <= (target.width - 1, target.height - 1))).all(1)
    ok = (ok_there[:, 0] > 0) & (ok_back[:, 0] > 0) & inside & (error <= ROUND_TRIP_PX)
    there = np.where(np.isfinite(there), there, start)
    return torch.from_numpy(there), torch.from_numpy(
        np.where(ok, np.exp(-((error / ROUND_TRIP_PX) ** 2)), 0.0).astype(np.float32)
    )


def _alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Image `b` with the exposure of `a`, as one gain and offset: Lucas-Kanade takes brightness to be constant."""
    (mean_a, std_a), (mean_b, std_b) = ([float(x[0, 0]) for x in cv2.meanStdDev(image)] for image in (a, b))
    if abs(mean_a - mean_b) < JUMP:
        return b
    levels = (np.arange(256) - mean_b) * (std_a / max(std_b, 1.0)) + mean_a
    return cv2.LUT(b, levels.round().clip(0, 255).astype(np.uint8))
