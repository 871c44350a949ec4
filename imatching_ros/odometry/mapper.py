"""When a frame becomes a keyframe; pure."""

from __future__ import annotations

import torch
from dataclasses import dataclass, replace
from ..core.config import Config, OdometryConfig
from torch import Tensor
from . import measurements
from ..core import geometry
from ..bundle import solve
from .measurements import detect
from ..core.types import BAResult, BAStatus, Frame, WindowSnapshot
from .initialization import InitialViews
from ..matching.base import Features, Matcher
from .relocalization import KeyframeDatabase, stored_keyframe
from .front_end import LandmarkMatches
from .local_map import Keyframe, Window


@dataclass(frozen=True)
class KeyframeStatistics:
    """What has changed since the newest keyframe."""

    share: float  # of its landmarks that this frame still sees, 0..1
    parallax_px: float  # median distance between where they are and where pure rotation would have put them
    motion_px: float  # the same, rotation included
    time_s: float
    width_px: int


def keyframe_reason(progress: KeyframeStatistics, config: OdometryConfig) -> str:
    """Why this frame should become a keyframe; empty when it should not.

    A camera that stands still makes no keyframes: without motion, neither time nor a share that noise lowers is a reason.
    """
    if progress.parallax_px >= config.keyframe_parallax * progress.width_px:
        return "parallax"
    moved = progress.motion_px >= max(2.0, 0.1 * config.keyframe_parallax * progress.width_px)
    if progress.share < config.keyframe_share and moved:
        return "share"
    if (
        progress.time_s >= config.keyframe_interval_s
        and progress.parallax_px >= 0.3 * config.keyframe_parallax * progress.width_px
    ):
        return "time"
    return ""


# Keyframe work: a new keyframe joins the window, new landmarks are found and triangulated, bundle adjustment, culling.


_RECENT = 3  # keyframes in which new points are searched


@dataclass(frozen=True)
class KeyframeCandidate:
    """A frame with a pose that becomes a keyframe; `matches` is None when it is in the window already."""

    frame: Frame
    image: Tensor  # (1, H, W) uint8 grey
    features: Features
    T_WC: Tensor  # (7,)
    matches: LandmarkMatches | None


@dataclass(frozen=True)
class SolvedWindow:
    """A window as bundle adjustment saw it, before culling. Its tensors are never changed in place."""

    keyframes: tuple[Keyframe, ...]
    snapshot: WindowSnapshot
    result: BAResult
    uv: Tensor  # (O, 2) float32 raw px
    is_host: Tensor  # (O,) bool: the observation at which its landmark was detected

    @staticmethod
    def of(window: Window, snapshot: WindowSnapshot, result: BAResult, used: Tensor) -> SolvedWindow:
        return SolvedWindow(
            tuple(window.keyframes), snapshot, result, window.observations.uv[used], window.is_host()[used]
        )


@dataclass(frozen=True)
class MappingResult:
    """What keyframe work found out."""

    result: BAResult
    solved: SolvedWindow


class Mapper:
    """Builds and extends a window; holds no state of its own but the settings."""

    def __init__(self, config: Config, matcher: Matcher) -> None:
        self._all = config
        self._config = config.odometry
        self._matcher = matcher

    def start_metric(self, frame: Frame, image: Tensor, features: Features, mode: str, next_id: int) -> Window | str:
        """A window of one keyframe at the origin whose landmarks, with ids from `next_id` on, have a measured depth; or why not."""
        missing = measurements.lacking(frame, mode)
        if missing:
            return f"the frame has no {missing} image, with which a map in metres begins"
        window = Window(next_id)
        row = window.add_keyframe(Keyframe(frame.id, frame.stamp_ns, image, features), geometry.identity())
        self._add_corners(window, row, frame, image, features, mode, far=True)
        window.triangulate(frame.camera, self._config.min_parallax_px, self._config.inlier_px)
        known = int(window.landmarks.triangulated.sum())
        if known < self._config.start_landmarks:
            return f"{known} corners with a measured depth, {self._config.start_landmarks} are needed"
        return window

    def start_mono(self, start: InitialViews, median_depth: float | None, next_id: int) -> Window | str:
        """A window from the first views, with landmark ids from `next_id` on; or why not.

        Its scale: the given median depth, else the known first baseline, else a median depth of 1.
        """
        c, camera = self._config, start.views[-1].frame.camera
        window = Window(next_id)
        for view, T_WC in zip(start.views, start.T_WC):
            window.add_keyframe(Keyframe(view.frame.id, view.frame.stamp_ns, view.image, view.features), T_WC)
        inlier = start.inlier.nonzero()[:, 0]
        reference = start.views[0]
        rows = self._add_landmarks(window, 0, reference.features, reference.uv[inlier])
        window.observe(camera, 0, rows, reference.uv[inlier], torch.ones(len(rows)) * self._config.corner_sigma_px)
        for row, view in enumerate(start.views[1:], 1):
            seen = view.ok[inlier]
            window.observe(camera, row, rows[seen], view.uv[inlier[seen]], view.sigma_px[inlier[seen]])
        window.triangulate(camera, c.min_parallax_px, c.inlier_px)
        for _ in range(2):  # outliers of the two-view geometry go after the first round
            adjusted = self._adjust(window, camera)
            if adjusted is None or adjusted.result.status is BAStatus.DEGENERATE:
                return "bundle adjustment of the first views is degenerate: " + (
                    adjusted.result.reason if adjusted else "no landmarks"
                )
        known = int(window.landmarks.triangulated.sum())
        if known < c.start_landmarks:
            return f"{known} landmarks agree with the first views, {c.start_landmarks} are needed"
        if adjusted.result.covariance_newest is None:
            return f"bundle adjustment of the first views: {adjusted.result.reason}"
        baseline = float((window.T_WC[-1, :3] - window.T_WC[0, :3]).norm())
        # By the spread of the residuals alone: what all matches err alike is as large for every start.
        error = float((adjusted.result.covariance_newest[:3, :3].trace() / adjusted.result.inflation).sqrt())
        needed = c.start_precision * (2 - start.patience)
        if not error <= needed * baseline:
            return f"the first motion is known to {100 * error / baseline:.1f} % only, {100 * needed:.1f} % are needed"
        if c.first_baseline_m > 0 and median_depth is None:
            window.rescale(
                c.first_baseline_m / float((window.T_WC[-1, :3] - window.T_WC[0, :3]).norm().clamp_min(1e-9))
            )
        else:
            window.rescale((median_depth or 1.0) / window.median_depth(len(window.keyframes) - 1))
        return window

    def extend(
        self, window: Window, database: KeyframeDatabase, candidate: KeyframeCandidate, mode: str
    ) -> MappingResult | None:
        """All that a new keyframe needs, in order."""
        frame, camera = candidate.frame, candidate.frame.camera
        if candidate.matches is None:
            row = len(window.keyframes) - 1
        else:
            row = window.add_keyframe(
                Keyframe(frame.id, frame.stamp_ns, candidate.image, candidate.features), candidate.T_WC
            )
            self._observe(
                window, row, frame, candidate.matches.rows, candidate.matches.uv, candidate.matches.sigma_px, mode
            )
            if self._matcher.wide_baseline:
                self._search_pending(window, row, frame, mode)
        new = self._add_corners(window, row, frame, candidate.image, candidate.features, mode)
        if self._matcher.wide_baseline:
            self._search_backwards(window, row, frame, new)
        window.triangulate(camera, self._config.min_parallax_px, self._config.inlier_px)
        while len(window.keyframes) > self._config.window_keyframes:
            database.add(stored_keyframe(window, 0))
            window.drop_keyframe(0)
        return self._adjust(window, camera)

    # -- landmarks ----------------------------------------------------------------------------------------------------

    def _add_landmarks(self, window: Window, row: int, features: Features, uv: Tensor) -> Tensor:
        queries = self._matcher.describe(features, uv.to(self._matcher.device)) if self._matcher.wide_baseline else None
        return window.add_landmarks(row, uv, queries)

    def _observe(
        self,
        window: Window,
        row: int,
        frame: Frame,
        rows: Tensor,
        uv: Tensor,
        sigma_px: Tensor,
        mode: str,
        far: bool = False,
    ) -> None:
        depths = measurements.measure(frame, mode, uv, self._config, far)
        if depths is None:
            window.observe(frame.camera, row, rows, uv, sigma_px)
        else:
            window.observe(frame.camera, row, rows, uv, sigma_px, depths.measured, depths.sigma, depths.kind)

    def _add_corners(
        self, window: Window, row: int, frame: Frame, image: Tensor, features: Features, mode: str, far: bool = False
    ) -> Tensor:
        """Fills the image up with new corners as landmarks; returns their rows."""
        c = self._config
        o = window.observations
        taken = o.uv[o.kf == row]
        wanted = c.landmarks_per_frame - len(taken)
        if wanted <= 0:
            return torch.zeros(0, dtype=torch.int64)
        uv = detect(
            self._matcher, features, image, taken, wanted, c.corner_distance * frame.camera.width, c.corner_quality
        )
        rows = self._add_landmarks(window, row, features, uv)
        self._observe(window, row, frame, rows, uv, torch.full((len(rows),), self._config.corner_sigma_px), mode, far)
        return rows

    def _search_pending(self, window: Window, row: int, frame: Frame, mode: str) -> None:
        """Looks for landmarks without a position in the new keyframe; their depth is taken to be that of the scene."""
        rows = (~window.landmarks.triangulated).nonzero()[:, 0]
        if len(rows) == 0:
            return
        hosts = {keyframe.id: k for k, keyframe in enumerate(window.keyframes)}
        known = torch.tensor([hosts.get(a, -1) for a in window.landmarks.host[rows].tolist()])
        rows, known = rows[known >= 0], known[known >= 0]
        uv = frame.camera.undistort(window.landmarks.uv_host[rows].double())
        points_C = geometry.back_project(
            frame.camera, uv, torch.full((len(rows),), window.median_depth(row), dtype=torch.float64)
        )
        self._search(window, rows, torch.tensor([row]), geometry.act(window.T_WC[known], points_C), frame, mode)

    def _search_backwards(self, window: Window, row: int, frame: Frame, rows: Tensor) -> None:
        """Looks for new landmarks in the keyframes before, at the depth of their nearest neighbours in the image."""
        others = torch.arange(max(0, row - _RECENT), row)
        if len(rows) == 0 or len(others) == 0:
            return
        landmarks, o = window.landmarks, window.observations
        uv = landmarks.uv_host[rows]
        depth = torch.full((len(rows),), window.median_depth(row), dtype=torch.float64)
        mine = ((o.kf == row) & landmarks.triangulated[o.lm]).nonzero()[:, 0]
        if len(mine):
            points_C = geometry.act(geometry.inverse(window.T_WC[row]), landmarks.points_W[o.lm[mine]])
            depth = points_C[torch.cdist(uv, o.uv[mine]).argmin(1), 2]
        points_C = geometry.back_project(frame.camera, frame.camera.undistort(uv.double()), depth)
        self._search(window, rows, others, geometry.act(window.T_WC[row], points_C), frame, "mono")

    def _search(self, window: Window, rows: Tensor, targets: Tensor, points_W: Tensor, frame: Frame, mode: str) -> None:
        """Matches landmarks into keyframes near where `points_W` would be seen; adds what is found as observations."""
        c, camera = self._config, frame.camera
        points_C = geometry.act(geometry.inverse(window.T_WC[targets])[:, None], points_W[None])
        predicted, inside = geometry.see(camera, points_C)
        predicted = torch.where(inside[..., None], predicted, torch.nan)
        some = inside.any(0).nonzero()[:, 0]
        if len(some) == 0:
            return
        found = self._matcher.estimate(
            window.queries.select(rows[some].to(self._matcher.device)),
            [window.keyframes[k].features for k in targets.tolist()],
            predicted[:, some].float().to(self._matcher.device),
            c.new_search_radius * camera.width,
        )
        good = (found.score.cpu() >= c.min_score) & inside[:, some]
        t, n = good.nonzero().unbind(1)
        uv, sigma = found.uv.cpu().float()[t, n], found.sigma_px.cpu()[t, n]
        if mode == "mono" or len(targets) > 1:
            window.observe(camera, targets[t], rows[some][n], uv, sigma)
        else:
            self._observe(window, int(targets[0]), frame, rows[some][n], uv, sigma, mode)

    # -- bundle adjustment --------------------------------------------------------------------------------------------

    def _adjust(self, window: Window, camera) -> MappingResult | None:
        problem = window.snapshot(camera)
        if problem is None:
            return None
        snapshot, used, rows = problem
        result = solve(snapshot, self._all.bundle)
        solved = SolvedWindow.of(window, snapshot, result, used)
        if result.status is not BAStatus.DEGENERATE:
            window.absorb(result, rows)
            factor = window.restore_scale(rows)
            if factor != 1 and result.covariance_newest is not None:
                unit = torch.tensor([factor] * 3 + [1.0] * 3, dtype=torch.float64)
                result = replace(
                    result,
                    T_WC=window.T_WC.clone(),
                    covariance_newest=unit[:, None] * result.covariance_newest.double() * unit,
                )
            window.cull(camera, self._config.inlier_px)
        return MappingResult(result, solved)
