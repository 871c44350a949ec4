"""The pose of one frame from its matches with landmarks: a guess or RANSAC, then robust refinement, then its own inliers."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from dataclasses import dataclass, replace
from torch import Tensor
from ..core import geometry
from ..bundle import refine_pose
from ..camera.model import Camera
from ..core.config import BundleConfig, Config, OdometryConfig
from ..core.types import BAStatus, ObservationKind
from .measurements import spread
from ..matching.base import Features, Matcher, Prediction, Queries
from .local_map import Window


_TRUST_GUESS = 0.4  # share of inliers above which the pose refined from the guess is not questioned by RANSAC
_RANSAC_ITERATIONS = 300


@dataclass(frozen=True)
class LandmarkMatches:
    """Landmarks of the window found in one frame."""

    rows: Tensor  # (N,) int64, rows of the window
    uv: Tensor  # (N, 2) float32 raw px
    score: Tensor  # (N,)
    sigma_px: Tensor  # (N,)
    unmatched: Tensor  # (K,) int64, rows searched in vain


@dataclass(frozen=True)
class PoseEstimate:
    T_WC: Tensor  # (7,) float64
    inlier: Tensor  # (N,) bool
    residual_px: Tensor  # (N,) float64
    covariance: Tensor  # (6, 6) float64 of T_WC * Exp([rho, phi]), landmarks taken as exact


def estimate_pose(
    camera: Camera,
    uv: Tensor,
    points_W: Tensor,
    sigma_px: Tensor,
    T_guess: Tensor | None,
    config: OdometryConfig,
    bundle: BundleConfig,
) -> PoseEstimate | None:
    """Pose from N landmarks at ideal px `uv` (N, 2) float64; None when too few of them agree on one."""
    count = len(uv)
    if count < config.min_inliers:
        return None
    best = None
    if T_guess is not None:
        best = _refine(camera, uv, points_W, sigma_px, T_guess, config, bundle)
    if best is None or int(best.inlier.sum()) < _TRUST_GUESS * count:
        T = _ransac(camera, uv, points_W, config.inlier_px)
        other = None if T is None else _refine(camera, uv, points_W, sigma_px, T, config, bundle)
        if best is None or (other is not None and int(other.inlier.sum()) > int(best.inlier.sum())):
            best = other
    if best is None or int(best.inlier.sum()) < max(config.min_inliers, config.min_inlier_share * count):
        return None
    return best


def _ransac(camera: Camera, uv: Tensor, points_W: Tensor, threshold_px: float) -> Tensor | None:
    K = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    ok, rvec, tvec, inliers = cv2.solvePnPRansac(
        points_W.numpy(),
        uv.numpy(),
        K,
        None,
        iterationsCount=_RANSAC_ITERATIONS,
        reprojectionError=threshold_px,
        confidence=0.999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not ok or inliers is None or not np.isfinite(tvec).all():
        return None
    R = torch.from_numpy(cv2.Rodrigues(rvec)[0])
    return geometry.inverse(geometry.from_matrix(torch.cat([R, torch.from_numpy(tvec)], 1)))


def _refine(
    camera: Camera,
    uv: Tensor,
    points_W: Tensor,
    sigma_px: Tensor,
    T_WC: Tensor,
    config: OdometryConfig,
    bundle: BundleConfig,
) -> PoseEstimate | None:
    """Motion-only refinement on all matches, then on the inliers of that: the kernel bends outliers, it does not remove them."""
    obs = torch.cat([uv, torch.zeros_like(uv[:, :1])], 1)
    sigma = sigma_px.double()[:, None].expand(-1, 3)
    kind = torch.full((len(uv),), int(ObservationKind.MONO))
    used = torch.arange(len(uv))
    # The first round only has to tell who the inliers are.
    for settings in (replace(bundle, cost_tolerance=max(bundle.cost_tolerance, 1e-2)), bundle):
        refined = refine_pose(camera, T_WC, points_W[used], obs[used], kind[used], sigma[used], settings)
        if refined.status is BAStatus.DEGENERATE:
            return None
        T_WC = refined.T_WC
        points_C = geometry.act(geometry.inverse(T_WC), points_W)
        residual = (uv - geometry.project(camera, points_C)).norm(dim=1)
        inlier = (residual < config.inlier_px) & (points_C[:, 2] > 0)
        used = inlier.nonzero()[:, 0]
    assert refined.covariance is not None, "what is not degenerate has one"
    return PoseEstimate(T_WC, inlier, residual, refined.covariance)


# Whether enough of what a frame looks for is where its pose has it.
#
# Of the landmarks looked for, frames find a share that depends on matcher and scene. A pose with which much less than usual agrees may be of
# another place that looks alike.


# In parts of the usual share:
SECOND_LOOK_INLIER_RATIO = 0.25  # below this a pose needs a second look,
OCCLUSION_INLIER_RATIO = 0.8  # unless so much is found around what is found, and the rest of the image is hidden
MIN_INLIER_RATIO = 0.25  # below this the second look's pose is not believed either,
CONFIRMED_INLIER_RATIO = 0.5  # and below this only right after the last pose, not once lost; it is neither called tracking then nor learned from
PARTIAL_OCCLUSION_INLIER_RATIO = (
    0.4  # so much around what is found lets the first pose pass in the same way, when the second look fails
)

SECOND_LOOK_RADIUS = 3.0  # the second look searches so many times farther than it counts: by chance alone less than a tenth lies where it counts
_MEMORY = 0.9  # of the running mean, a frame


class InlierRatio:
    """The usual share of a map, and how poses compare with it."""

    def __init__(self) -> None:
        self.usual = 0.0  # 0: not known yet

    def reset(self) -> None:
        """For a new map, perhaps of a darker place."""
        self.usual = 0.0

    def update(self, matches: LandmarkMatches, estimate: PoseEstimate, within_px: float) -> None:
        """Takes a pose that is beyond doubt into the running mean."""
        share = _share(matches, estimate, within_px)
        self.usual = share if self.usual == 0 else _MEMORY * self.usual + (1 - _MEMORY) * share

    def relative(self, matches: LandmarkMatches, estimate: PoseEstimate, within_px: float) -> float:
        """Share of the landmarks looked for that were found within `within_px` of where the pose has them, in parts of what is usual."""
        return _share(matches, estimate, within_px) / self.usual if self.usual > 0 else 1.0


def _share(matches: LandmarkMatches, estimate: PoseEstimate, within_px: float) -> float:
    return int((estimate.residual_px < within_px).sum()) / max(len(matches.rows) + len(matches.unmatched), 1)


# Finding the window's landmarks in an image, and the pose that they agree on.


_MISSES = 5  # a landmark searched in vain in so many frames in a row is not searched any more
_NEIGHBOURS = 8  # landmarks around an inlier that are asked whether they agree


@dataclass(frozen=True)
class TrackedFrame:
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

    def near(
        self,
        window: Window,
        last: TrackedFrame,
        camera: Camera,
        features: Features,
        T_WC: Tensor,
        radius_px: float,
        again: bool = False,
    ) -> LandmarkMatches:
        """Looks for the window's landmarks where the predicted pose (7,) puts them, within a radius; `again`: also for those that were
        searched in vain too often. A matcher that only follows is asked from the last frame, and for what was seen there.
        """
        c, landmarks = self._config, window.landmarks
        if self._matcher.wide_baseline:
            rows = (landmarks.triangulated & ((landmarks.misses < _MISSES) | again)).nonzero()[:, 0]
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
            points_W = torch.where(
                landmarks.triangulated[rows, None], landmarks.points_W[rows], geometry.act(last.T_WC, guess)
            )
            predicted, inside = geometry.see(camera, geometry.act(geometry.inverse(T_WC), points_W))
            predicted, radius_px = torch.where(inside[:, None], predicted, uv), 3 * radius_px
        return self.look(rows, queries, features, predicted, radius_px)

    def everywhere(self, window: Window, features: Features) -> LandmarkMatches:
        """Looks for landmarks in the whole image, the best supported first."""
        rows = window.landmarks.triangulated.nonzero()[:, 0]
        rows = rows[window.views()[rows].argsort(descending=True, stable=True)][: self._config.landmarks_per_frame]
        return self.look(rows, window.queries.select(rows.to(self._matcher.device)), features, None, None)

    def look(
        self, rows: Tensor, queries: Queries, features: Features, predicted: Tensor | None, radius_px: float | None
    ) -> LandmarkMatches:
        """Looks for landmarks `rows` (N,) by their queries, around `predicted` (N, 2) raw px or everywhere."""
        if len(rows) == 0:
            return LandmarkMatches(rows, torch.zeros(0, 2), torch.zeros(0), torch.zeros(0), rows)
        at = None if predicted is None else predicted[None].float().to(self._matcher.device)
        found: Prediction = self._matcher.estimate(queries, [features], at, radius_px)
        score = found.score[0].cpu()
        ok = score >= self._config.min_score
        return LandmarkMatches(
            rows[ok], found.uv[0].cpu().float()[ok], score[ok], found.sigma_px[0].cpu()[ok], rows[~ok]
        )

    def support(self, window: Window, camera: Camera, matches: LandmarkMatches, estimate: PoseEstimate) -> float:
        """Share of inliers among the landmarks looked for that lie next to inliers.

        It stays high where something hides a part of the image, and is low where a few things that look alike agree here and there.
        """
        rows = torch.cat([matches.rows, matches.unmatched])
        right = torch.zeros(len(rows), dtype=torch.bool)
        right[: len(matches.rows)] = estimate.residual_px < self._config.inlier_px
        if len(rows) <= _NEIGHBOURS or not right.any():
            return 0.0
        at, _ = geometry.see(camera, geometry.act(geometry.inverse(estimate.T_WC), window.landmarks.points_W[rows]))
        distance = torch.cdist(at[right], at)
        distance[torch.arange(len(distance)), right.nonzero()[:, 0]] = torch.inf
        return float(right[distance.topk(_NEIGHBOURS, largest=False).indices].double().mean())

    def estimate_pose(
        self, window: Window, camera: Camera, matches: LandmarkMatches, T_guess: Tensor | None, looser: float = 1.0
    ) -> PoseEstimate | None:
        """The pose, inliers within `looser` times the usual; `inlier` and `residual_px` have one row per row of the matches."""
        c = self._config
        c = c if looser == 1 else replace(c, inlier_px=c.inlier_px * looser)
        uv = camera.undistort(matches.uv.double())
        sigma = (matches.sigma_px * camera.stretch(uv)).to(matches.sigma_px)
        used = (window.landmarks.triangulated[matches.rows] & torch.isfinite(uv).all(1)).nonzero()[:, 0]
        estimate = estimate_pose(
            camera, uv[used], window.landmarks.points_W[matches.rows[used]], sigma[used], T_guess, c, self._bundle
        )
        if estimate is None:
            return None
        inlier, residual = (
            torch.zeros(len(uv), dtype=torch.bool),
            torch.full((len(uv),), torch.nan, dtype=torch.float64),
        )
        inlier[used], residual[used] = estimate.inlier, estimate.residual_px
        return replace(estimate, inlier=inlier, residual_px=residual)
