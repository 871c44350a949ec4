"""Finding the window's landmarks in a picture, and the pose that they agree on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import geometry
from .camera import Camera
from .config import Config
from .corners import spread
from .matching.base import Features, Matcher, Prediction, Queries
from .tracking import Located, Sighting, locate
from .window import Window

_MISSES = 5  # a landmark searched in vain in so many frames in a row is not searched any more
_NEIGHBOURS = 8  # landmarks around an inlier that are asked whether they agree


@dataclass(frozen=True)
class Tracked:
    """The last frame with a pose."""

    id: int
    stamp_ns: int
    features: Features
    T_WC: Tensor  # (7,) float64
    uv: Tensor  # (N, 2) float32 raw px of its inliers
    depth: Tensor  # (N,) float64


class LandmarkSearch:
    """Looks things up by the matcher; holds no state of its own but the settings."""

    def __init__(self, config: Config, matcher: Matcher) -> None:
        self._config, self._bundle = config.odometry, config.bundle
        self._matcher = matcher

    def near(self, window: Window, last: Tracked, camera: Camera, features: Features, T_WC: Tensor, radius_px: float,
             again: bool = False) -> Sighting:
        """Looks for the window's landmarks where the predicted pose (7,) puts them, within a radius; `again`: also for those that were
        searched in vain too often. A matcher that only follows is asked from the last frame, and for what was seen there.
        """
        c, landmarks = self._config, window.landmarks
        if self._matcher.wide_baseline:
            rows = (landmarks.resolved & ((landmarks.misses < _MISSES) | again)).nonzero()[:, 0]
            predicted, inside = geometry.see(camera, geometry.act(geometry.inverse(T_WC), landmarks.points_W[rows]))
            rows, predicted = rows[inside], predicted[inside]
            rank = landmarks.misses[rows] * 100 - window.views()[rows]
            chosen = spread(predicted, rank.float(), c.landmarks_per_frame, camera.width, camera.height)
            rows, predicted = rows[chosen], predicted[chosen]
            queries = window.queries.select(rows.to(self._matcher.device))
        else:
            rows = (landmarks.seen == last.id).nonzero()[:, 0]
            uv = landmarks.uv_last[rows]
            queries = self._matcher.describe(last.features, uv)
            nearest = torch.cdist(uv, last.uv).argmin(1)
            guess = geometry.back_project(camera, camera.undistort(uv.double()), last.depth[nearest])
            points_W = torch.where(landmarks.resolved[rows, None], landmarks.points_W[rows], geometry.act(last.T_WC, guess))
            predicted, inside = geometry.see(camera, geometry.act(geometry.inverse(T_WC), points_W))
            predicted, radius_px = torch.where(inside[:, None], predicted, uv), 3 * radius_px
        return self.look(rows, queries, features, predicted, radius_px)

    def everywhere(self, window: Window, features: Features) -> Sighting:
        """Looks for landmarks in the whole picture, the best supported first."""
        rows = window.landmarks.resolved.nonzero()[:, 0]
        rows = rows[window.views()[rows].argsort(descending=True, stable=True)][: self._config.landmarks_per_frame]
        return self.look(rows, window.queries.select(rows.to(self._matcher.device)), features, None, None)

    def look(self, rows: Tensor, queries: Queries, features: Features, predicted: Tensor | None, radius_px: float | None) -> Sighting:
        """Looks for landmarks `rows` (N,) by their queries, around `predicted` (N, 2) raw px or everywhere."""
        if len(rows) == 0:
            return Sighting(rows, torch.zeros(0, 2), torch.zeros(0), torch.zeros(0), rows)
        at = None if predicted is None else predicted[None].float().to(self._matcher.device)
        found: Prediction = self._matcher.estimate(queries, [features], at, radius_px)
        score = found.score[0].cpu()
        ok = score >= self._config.min_score
        return Sighting(rows[ok], found.uv[0].cpu().float()[ok], score[ok], found.sigma_px[0].cpu()[ok], rows[~ok])

    def support(self, window: Window, camera: Camera, sighting: Sighting, located: Located) -> float:
        """Share of inliers among the landmarks looked for that lie next to inliers.

        It stays high where something hides a part of the picture, and is low where a few things that look alike agree here and there.
        """
        rows = torch.cat([sighting.rows, sighting.missed])
        right = torch.zeros(len(rows), dtype=torch.bool)
        right[: len(sighting.rows)] = located.residual_px < self._config.inlier_px
        if len(rows) <= _NEIGHBOURS or not right.any():
            return 0.0
        at, _ = geometry.see(camera, geometry.act(geometry.inverse(located.T_WC), window.landmarks.points_W[rows]))
        distance = torch.cdist(at[right], at)
        distance[torch.arange(len(distance)), right.nonzero()[:, 0]] = torch.inf
        return float(right[distance.topk(_NEIGHBOURS, largest=False).indices].double().mean())

    def locate(self, window: Window, camera: Camera, sighting: Sighting, T_guess: Tensor | None, looser: float = 1.0) -> Located | None:
        """The pose, inliers within `looser` times the usual; `inlier` and `residual_px` have one row per row of the sighting."""
        c = self._config
        c = c if looser == 1 else replace(c, inlier_px=c.inlier_px * looser)
        uv = camera.undistort(sighting.uv.double())
        sigma = (sighting.sigma_px * camera.stretch(uv)).to(sighting.sigma_px)
        used = (window.landmarks.resolved[sighting.rows] & torch.isfinite(uv).all(1)).nonzero()[:, 0]
        located = locate(camera, uv[used], window.landmarks.points_W[sighting.rows[used]], sigma[used], T_guess, c, self._bundle)
        if located is None:
            return None
        inlier, residual = torch.zeros(len(uv), dtype=torch.bool), torch.full((len(uv),), torch.nan, dtype=torch.float64)
        inlier[used], residual[used] = located.inlier, located.residual_px
        return replace(located, inlier=inlier, residual_px=residual)
