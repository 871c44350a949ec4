"""The front end: guided search for landmarks, and the verification of the pose that they agree on by the ratio of inliers.

Of the landmarks searched for, a frame finds a share that depends on the matcher and the scene. A pose with far fewer inliers
than usual may be of another place that looks alike. It needs a second look, and without confirmation it is unverified.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..bundle import RotationPrior
from ..camera import rolling_shutter
from ..camera.model import Camera
from ..core import geometry
from ..core.config import Config
from ..core.masks import is_masked
from ..core.timing import Clock
from ..core.types import Frame, Matches
from ..matching.base import Features, Matcher, Queries
from .local_map import Window
from .measurements import spread_evenly
from .motion import TrackedFrame
from .pose_estimator import Correspondences, PoseEstimate, PoseEstimator
from .state import Cause


@dataclass(frozen=True)
class FeatureFrame:
    """A frame with what the matcher made of it."""

    frame: Frame
    image: Tensor  # (1, H, W) uint8 grey
    features: Features
    # (6,) per second in the camera's frame: the velocity while the rows were exposed
    twist: Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))
    rate_error: float = 0.0  # rad/s, by which the rotation of `twist` may be off
    rotation: RotationPrior | None = None  # by the gyroscope

    @property
    def camera(self) -> Camera:
        return self.frame.camera


@dataclass(frozen=True)
class LandmarkMatches:
    """Landmarks of the window found in one frame."""

    rows: Tensor  # (N,) int64, rows of the window
    uv: Tensor  # (N, 2) float32 raw px
    score: Tensor  # (N,)
    sigma_px: Tensor  # (N,)
    unmatched: Tensor  # (K,) int64, rows searched in vain
    moving: LandmarkMatches | None = None  # those of a body that moves, which have no part in the pose


@dataclass(frozen=True)
class Localization:
    """A pose in a window: the current one, or that of a relocalization."""

    window: Window
    matches: LandmarkMatches
    estimate: PoseEstimate  # one row per row of the matches
    cause: Cause | None = None  # why the pose is unverified
    recovered: bool = False  # it does not continue the last pose


# -- front end --------------------------------------------------------------------------------------------------------

# Bounds on the ratio of inliers, relative to the usual one of the scene. Chosen on rendered jumps of the camera between
# places that look alike (`bench odometry --jumps`).
SECOND_LOOK_INLIER_RATIO = 0.25  # below it a pose that continues the last one needs a second look,
# Unless the neighbours of its inliers agree as well: something hides the rest of the image.
OCCLUSION_INLIER_RATIO = 0.8
PARTIAL_OCCLUSION_INLIER_RATIO = 0.4  # the same when the second look fails; the pose is unverified then
MIN_INLIER_RATIO = 0.25  # below it the pose of a second look is rejected
CONFIRMED_INLIER_RATIO = 0.5  # below it a pose is unverified, and rejected once tracking was lost


class FrontEnd:
    """Finds the window's landmarks in a frame and verifies the pose.

    Attributes:
        usual_inlier_ratio: running mean over verified poses of the share of landmarks searched for that are inliers; 0 while
            unknown.
    """

    MAX_MISSES = 5  # a landmark searched in vain in so many frames in a row is not searched for any more
    MEMORY = 0.9  # of the running mean, a frame
    NEIGHBOURS = 8  # landmarks around an inlier that should be inliers too
    SECOND_RADIUS = 0.3  # of the search radius: similar things nearby mislead a matcher
    # A second look searches so many times farther than it counts: by chance less than a tenth lies where it counts.
    SECOND_REACH = 3.0
    # On the inlier threshold for a first pose after a gap: old landmarks are known less well from there.
    LOOSE_FACTOR = 4.0
    SHUTTER_ITERATIONS = 2  # each leaves about the readout time over the time between images of the velocity's error
    SHUTTER_TOLERANCE_PX = 0.05  # by which the outermost rows may still be off
    FOLLOWER_RADIUS = 3.0  # times the search radius for matchers that search from the previous frame

    def __init__(self, config: Config, matcher: Matcher) -> None:
        self._matcher = matcher
        self.usual_inlier_ratio = 0.0
        self.configure(config)

    def configure(self, config: Config) -> None:
        self._config, self._bundle = config.odometry, config.bundle

    # -- localization -------------------------------------------------------------------------------------------------

    def track(
        self,
        window: Window,
        last: TrackedFrame,
        current: FeatureFrame,
        predictions: list[Tensor],
        strict: bool,
        clock: Clock,
    ) -> Localization | None:
        """The pose by guided search around predicted poses (7,), the first verified one.

        Without a verified one, the pose of an image that seems to be hidden in part, which is unverified; else None. `strict`: the
        pose has to be confirmed, for tracking was interrupted or unverified.
        """
        occluded = None
        least = CONFIRMED_INLIER_RATIO if strict else SECOND_LOOK_INLIER_RATIO
        radius_px = self._config.search_radius * current.camera.width
        for T_predicted in predictions:
            matches = self.search(window, last, current, T_predicted, radius_px)
            clock.lap("match")
            estimate = self.estimate(window, current, matches, T_predicted)
            clock.lap("pose")
            if estimate is None:
                continue
            found = Localization(window, matches, estimate)
            if self.inlier_ratio(matches, estimate, self._config.inlier_px) >= least:
                return found
            support = self.neighbour_support(window, current.camera, matches, estimate) / self.usual_inlier_ratio
            if support >= OCCLUSION_INLIER_RATIO and not strict:
                return found
            if support >= PARTIAL_OCCLUSION_INLIER_RATIO:
                occluded = replace(found, cause=Cause.OCCLUSION)
        return occluded

    def look_again(
        self, window: Window, last: TrackedFrame, current: FeatureFrame, T_predicted: Tensor, least: float
    ) -> Localization | None:
        """The pose by a closer search around the predicted pose (7,), then by one in the whole image, confirmed in either case.

        A loose pose comes first; it guides the search that decides. `least`: inlier ratio that confirms it.
        """
        camera = current.camera
        radius_px = self._config.search_radius * camera.width * self.SECOND_RADIUS
        for T_guess in (T_predicted, None):
            if T_guess is not None:
                matches = self.search(window, last, current, T_guess, radius_px, every=True)
            else:
                matches = self.search_everywhere(window, current)
            loose = self.estimate(window, current, matches, T_guess, self.LOOSE_FACTOR)
            found = None if loose is None else self.confirm(window, last, current, loose.T_WC, least)
            if found is not None:
                return found
        return None

    def confirm(
        self, window: Window, last: TrackedFrame, current: FeatureFrame, T_WC: Tensor, least: float
    ) -> Localization | None:
        """Searches close to where a loose pose (7,) puts the landmarks; None below the inlier ratio `least`.

        When the pose is right many landmarks are there. Of a place that only looks alike few are, and of these little more lie
        within the inliers' bound than chance puts there.
        """
        matches = self.search(window, last, current, T_WC, self._second_radius_px(current.camera), every=True)
        estimate = self.estimate(window, current, matches, T_WC, self.LOOSE_FACTOR / 2)
        if estimate is None or self._second_ratio(current.camera, matches, estimate) < least:
            return None
        return Localization(window, matches, estimate)

    def sees(self, window: Window, current: FeatureFrame) -> bool:
        """Whether a frame shows a window's landmarks, wherever it is: enough for a pose that would be verified, and not just a few of many."""
        matches = self.search_everywhere(window, current)
        estimate = self.estimate(window, current, matches, None)
        if estimate is None or int(estimate.inlier.sum()) < self._config.verified_inliers:
            return False
        return _inlier_share(matches, estimate, self._config.inlier_px) >= self._config.min_inlier_share

    def verify(self, camera: Camera, found: Localization) -> Localization:
        """Marks as unverified the pose of a second look or a relocalization that few landmarks agree with."""
        if self._second_ratio(camera, found.matches, found.estimate) >= CONFIRMED_INLIER_RATIO:
            return found
        return replace(found, cause=Cause.LOW_INLIER_RATIO, recovered=True)

    # -- inlier ratio -------------------------------------------------------------------------------------------------

    def inlier_ratio(self, matches: LandmarkMatches, estimate: PoseEstimate, within_px: float) -> float:
        """Share of the landmarks searched for that lie within `within_px` of their reprojection, relative to the usual share."""
        if self.usual_inlier_ratio == 0:
            return 1.0
        return _inlier_share(matches, estimate, within_px) / self.usual_inlier_ratio

    def learn_inlier_ratio(self, found: Localization) -> None:
        """Takes a verified pose into the running mean."""
        share = _inlier_share(found.matches, found.estimate, self._config.inlier_px)
        usual = self.usual_inlier_ratio
        self.usual_inlier_ratio = share if usual == 0 else self.MEMORY * usual + (1 - self.MEMORY) * share

    def neighbour_support(
        self, window: Window, camera: Camera, matches: LandmarkMatches, estimate: PoseEstimate
    ) -> float:
        """Share of inliers among the landmarks searched for that lie next to inliers, 0..1.

        High where something hides a part of the image, low where a few things that look alike agree here and there.
        """
        rows = torch.cat([matches.rows, matches.unmatched])
        right = torch.zeros(len(rows), dtype=torch.bool)
        right[: len(matches.rows)] = estimate.residual_px < self._config.inlier_px
        if len(rows) <= self.NEIGHBOURS or not right.any():
            return 0.0
        at, _ = geometry.see(camera, geometry.act(geometry.inverse(estimate.T_WC), window.landmarks.points_W[rows]))
        distance = torch.cdist(at[right], at)
        distance[torch.arange(len(distance)), right.nonzero()[:, 0]] = torch.inf
        return float(right[distance.topk(self.NEIGHBOURS, largest=False).indices].double().mean())

    def _second_radius_px(self, camera: Camera) -> float:
        c = self._config
        return max(c.search_radius * camera.width * self.SECOND_RADIUS, self.SECOND_REACH * c.inlier_px)

    def _second_ratio(self, camera: Camera, matches: LandmarkMatches, estimate: PoseEstimate) -> float:
        return self.inlier_ratio(matches, estimate, self._second_radius_px(camera) / self.SECOND_REACH)

    # -- search -------------------------------------------------------------------------------------------------------

    def search(
        self,
        window: Window,
        last: TrackedFrame,
        current: FeatureFrame,
        T_WC: Tensor,
        radius_px: float,
        every: bool = False,
    ) -> LandmarkMatches:
        """Searches for the window's landmarks where the predicted pose (7,) puts them, within a radius.

        `every`: also for those that were searched in vain too often. A matcher without a wide baseline searches from the last
        frame, for the landmarks that were seen there.
        """
        if not self._matcher.wide_baseline:
            return self._follow(window, last, current, T_WC, self.FOLLOWER_RADIUS * radius_px)
        c, landmarks, camera = self._config, window.landmarks, current.camera
        rows = (landmarks.triangulated & ((landmarks.misses < self.MAX_MISSES) | every)).nonzero()[:, 0]
        points_C = geometry.act(geometry.inverse(T_WC), landmarks.points_W[rows])
        predicted, inside = rolling_shutter.see(camera, points_C, current.twist)
        inside = inside & ~is_masked(current.frame.mask, predicted)
        rows, predicted = rows[inside], predicted[inside]
        rank = landmarks.misses[rows] * 100 - window.views()[rows]  # fewer misses first, then more views
        chosen = spread_evenly(predicted, rank.float(), c.landmarks_per_frame, camera.width, camera.height)
        rows, predicted = rows[chosen], predicted[chosen]
        found = self.match(rows, self._queries(window, rows), current, predicted, radius_px)
        return separate(found, landmarks.moving)

    def _follow(
        self, window: Window, last: TrackedFrame, current: FeatureFrame, T_WC: Tensor, radius_px: float
    ) -> LandmarkMatches:
        """Landmarks seen in the last frame; those without a position are taken to be as far as their neighbours."""
        landmarks, camera = window.landmarks, current.camera
        rows = (landmarks.seen == last.id).nonzero()[:, 0]
        uv = landmarks.uv_last[rows]
        queries = self._matcher.describe(last.features, uv)
        nearest = torch.cdist(uv, last.uv).argmin(1)
        guess = geometry.back_project(camera, camera.undistort(uv.double()), last.depth[nearest])
        points_W = torch.where(
            landmarks.triangulated[rows, None], landmarks.points_W[rows], geometry.act(last.T_WC, guess)
        )
        predicted, inside = geometry.see(camera, geometry.act(geometry.inverse(T_WC), points_W))
        predicted = torch.where(inside[:, None], predicted, uv)
        return separate(self.match(rows, queries, current, predicted, radius_px), landmarks.moving)

    def search_everywhere(self, window: Window, current: FeatureFrame) -> LandmarkMatches:
        """Searches for landmarks in the whole image, those with most views first."""
        rows = window.placed().nonzero()[:, 0]
        rows = rows[window.views()[rows].argsort(descending=True, stable=True)][: self._config.landmarks_per_frame]
        return self.match(rows, self._queries(window, rows), current, None, None)

    def match(
        self, rows: Tensor, queries: Queries, current: FeatureFrame, predicted: Tensor | None, radius_px: float | None
    ) -> LandmarkMatches:
        """Matches landmarks `rows` (N,) by their queries, around `predicted` (N, 2) raw px or everywhere.

        What is masked is neither matched nor unmatched: that it is not seen says nothing about it.
        """
        if len(rows) == 0:
            return LandmarkMatches(rows, torch.zeros(0, 2), torch.zeros(0), torch.zeros(0), rows)
        at = None if predicted is None else predicted[None].float().to(self._matcher.device)
        found = self._matcher.estimate(queries, [current.features], at, radius_px)
        score, uv, mask = found.score[0].cpu(), found.uv[0].cpu().float(), current.frame.mask
        masked = is_masked(mask, uv)
        if predicted is not None:
            masked |= is_masked(mask, predicted)
        ok = (score >= self._config.min_score) & ~masked
        return LandmarkMatches(rows[ok], uv[ok], score[ok], found.sigma_px[0].cpu()[ok], rows[~ok & ~masked])

    def estimate(
        self,
        window: Window,
        current: FeatureFrame,
        matches: LandmarkMatches,
        T_guess: Tensor | None,
        factor: float = 1.0,
    ) -> PoseEstimate | None:
        """The pose of the matches, with `factor` times the usual bound of inliers; one row per row of the matches."""
        c = self._config
        c = c if factor == 1 else replace(c, inlier_px=c.inlier_px * factor)
        camera, uv = current.camera, self._undistort(window, current, matches, T_guess)
        sigma = (matches.sigma_px * camera.stretch(uv)).to(matches.sigma_px)
        used = (window.landmarks.triangulated[matches.rows] & torch.isfinite(uv).all(1)).nonzero()[:, 0]
        points_W = window.landmarks.points_W[matches.rows[used]]
        estimator = PoseEstimator(c, self._bundle)
        seen = Correspondences(camera, uv[used], points_W, sigma[used])
        found = estimator.estimate(seen, T_guess, current.rotation)
        if found is None:
            return None
        inlier = torch.zeros(len(uv), dtype=torch.bool)
        residual = torch.full((len(uv),), torch.nan, dtype=torch.float64)
        inlier[used], residual[used] = found.inlier, found.residual_px
        return replace(found, inlier=inlier, residual_px=residual)

    def _undistort(
        self, window: Window, current: FeatureFrame, matches: LandmarkMatches, T_WC: Tensor | None
    ) -> Tensor:
        """Ideal px (N, 2) of matches; where the shutter rolls, as the middle row sees landmarks from the pose (7,), if there is one."""
        depth = torch.zeros(len(matches.rows), dtype=torch.float64)
        if current.camera.readout_s > 0 and T_WC is not None:
            depth = geometry.act(geometry.inverse(T_WC), window.landmarks.points_W[matches.rows])[:, 2]
        return rolling_shutter.undistort(current.camera, matches.uv, current.twist, depth)

    def resolve_shutter(
        self, last: TrackedFrame, current: FeatureFrame, found: Localization
    ) -> tuple[FeatureFrame, Localization]:
        """The frame with the velocity that follows from its pose, not the predicted one; where the shutter rolls, the pose again with it."""
        seconds = (current.frame.stamp_ns - last.stamp_ns) * 1e-9
        if found.recovered or seconds <= 0:
            return current, found
        if current.camera.readout_s == 0:
            return replace(current, twist=geometry.local(last.T_WC, found.estimate.T_WC) / seconds), found
        for _ in range(self.SHUTTER_ITERATIONS):
            moved = replace(current, twist=geometry.local(last.T_WC, found.estimate.T_WC) / seconds)
            change, readout_s = moved.twist - current.twist, current.camera.readout_s
            if (
                rolling_shutter.skew_px(current.camera, change, readout_s, last.median_depth())
                < self.SHUTTER_TOLERANCE_PX
            ):
                break
            estimate = self.estimate(found.window, moved, found.matches, found.estimate.T_WC)
            if estimate is None:
                break
            current, found = moved, replace(found, estimate=estimate)
        return current, found

    def _queries(self, window: Window, rows: Tensor) -> Queries:
        return window.select_queries(rows.to(self._matcher.device))


def separate(matches: LandmarkMatches, moving: Tensor) -> LandmarkMatches:
    """The matches with those of landmarks that move, `moving` (P,) bool, set apart."""
    if matches.moving is None and not bool(moving.any()):
        return matches
    both = [matches] if matches.moving is None else [matches, matches.moving]
    rows, uv, score, sigma_px, unmatched = (
        torch.cat([getattr(part, name) for part in both]) for name in ("rows", "uv", "score", "sigma_px", "unmatched")
    )

    def choose(found: Tensor, missed: Tensor) -> LandmarkMatches:
        return LandmarkMatches(rows[found], uv[found], score[found], sigma_px[found], unmatched[missed])

    moves, missing = moving[rows], moving[unmatched]
    return replace(choose(~moves, ~missing), moving=choose(moves, missing))


def _inlier_share(matches: LandmarkMatches, estimate: PoseEstimate, within_px: float) -> float:
    return int((estimate.residual_px < within_px).sum()) / max(len(matches.rows) + len(matches.unmatched), 1)


# -- after the pose ---------------------------------------------------------------------------------------------------


def mark_landmarks(
    window: Window, frame_id: int, matches: LandmarkMatches, estimate: PoseEstimate, unverified: bool
) -> LandmarkMatches:
    """Records which landmarks a frame saw; returns the matches that do not contradict the pose, outliers as unmatched.

    What an unverified pose does not find speaks against the pose, not against the landmarks.
    """
    good = estimate.inlier | ~window.landmarks.triangulated[matches.rows]
    outliers, uv = matches.rows[~good], matches.uv[good]
    unmatched = outliers[:0] if unverified else torch.cat([matches.unmatched, outliers])
    window.mark(frame_id, matches.rows[good], uv, unmatched)
    moving = matches.moving
    if moving is not None:
        window.mark(frame_id, moving.rows, moving.uv, moving.unmatched)
    return LandmarkMatches(matches.rows[good], uv, matches.score[good], matches.sigma_px[good], outliers, moving)


def keyframe_matches(
    window: Window, frame: Frame, matches: LandmarkMatches, estimate: PoseEstimate, weights_version: int
) -> Matches:
    """The matches of a frame with the newest keyframe."""
    newest, at = window.keyframes[-1], window.seen_at(len(window.keyframes) - 1)
    both = (at[matches.rows] >= 0).nonzero()[:, 0]
    rows = matches.rows[both]
    return Matches(
        id_i=newest.id,
        id_j=frame.id,
        stamp_i_ns=newest.stamp_ns,
        stamp_j_ns=frame.stamp_ns,
        uv_i=window.observations.uv[at[rows]],
        uv_j=matches.uv[both],
        score=matches.score[both],
        sigma_px=matches.sigma_px[both],
        residual_px=estimate.residual_px[both].float(),
        inlier=estimate.inlier[both],
        landmark_id=window.landmarks.id[rows],
        weights_version=weights_version,
    )
