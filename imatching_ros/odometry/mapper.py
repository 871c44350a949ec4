"""The mapper: when a frame becomes a keyframe, and what a keyframe needs: landmarks, matches, bundle adjustment, culling."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import measurements
from ..bundle import RelativeRotations, solve
from ..camera import rolling_shutter
from ..camera.model import Camera
from ..core import geometry
from ..core.config import BundleConfig, Config, OdometryConfig
from ..core.masks import is_masked
from ..core.types import BAResult, BAStatus, ObservationKind, WindowSnapshot
from ..matching.base import Matcher
from .front_end import FeatureFrame, LandmarkMatches
from .gyroscope import Gyroscope
from .initialization import InitialViews, MonoInitializer
from .local_map import Keyframe, Window
from .measurements import detect
from .preintegration import Bias, Preintegrated, WindowRotations
from .pose_estimator import PoseEstimate
from .relocalization import KeyframeDatabase, stored_keyframe
from .shutter import UnnamedReadout
from .turning import NEWEST, is_narrow, least_moved, turned_in_place


@dataclass(frozen=True)
class KeyframeStatistics:
    """What has changed since the newest keyframe."""

    share: float  # of its landmarks that this frame still sees, 0..1
    parallax_px: float  # median distance between where they are and where pure rotation would have put them
    motion_px: float  # the same, rotation included
    time_s: float
    width_px: int


def keyframe_reason(statistics: KeyframeStatistics, config: OdometryConfig) -> str:
    """Why this frame should become a keyframe; empty when it should not.

    A camera that stands still makes no keyframes: without motion, neither time nor a share that noise lowers is a reason.
    """
    wanted_px = config.keyframe_parallax * statistics.width_px
    if statistics.parallax_px >= wanted_px:
        return "parallax"
    moved = statistics.motion_px >= max(2.0, 0.1 * config.keyframe_parallax * statistics.width_px)
    if statistics.share < config.keyframe_share and moved:
        return "share"
    some_parallax = statistics.parallax_px >= 0.3 * config.keyframe_parallax * statistics.width_px
    return "time" if statistics.time_s >= config.keyframe_interval_s and some_parallax else ""


@dataclass(frozen=True)
class KeyframeCandidate:
    """A frame with a pose that becomes a keyframe; `matches` is None when it is in the window already."""

    current: FeatureFrame
    T_WC: Tensor  # (7,)
    matches: LandmarkMatches | None
    turned: Preintegrated | None = None  # since the newest keyframe of the window, by the gyroscope
    bias: Bias | None = None  # of that; None where it is not to be used


@dataclass(frozen=True)
class SolvedWindow:
    """A window as bundle adjustment got it, before culling. Its tensors are never changed in place."""

    keyframes: tuple[Keyframe, ...]
    snapshot: WindowSnapshot
    result: BAResult
    uv: Tensor  # (O, 2) float32 raw px
    is_host: Tensor  # (O,) bool: the observation at which its landmark was detected
    skew_px: float = 0.0  # by how much rows may be off, as the readout time is not known better
    rotations: RelativeRotations | None = None  # the prior that is part of the result

    @staticmethod
    def of(
        window: Window,
        snapshot: WindowSnapshot,
        result: BAResult,
        used: Tensor,
        rotations: RelativeRotations | None = None,
    ) -> SolvedWindow:
        """`used`: (O,) rows of the window's observations that the snapshot holds."""
        uv, is_host = window.observations.uv[used], window.is_host(window.observations)[used]
        return SolvedWindow(tuple(window.keyframes), snapshot, result, uv, is_host, rotations=rotations)


@dataclass(frozen=True)
class MappingResult:
    """The result of bundle adjustment in the scale of the map, and the window that was solved."""

    result: BAResult
    solved: SolvedWindow


class Mapper:
    """Builds and extends the local map.

    Attributes:
        initializer: collects the first frames of a mono map.
        readout: of a rolling shutter, as far as the camera does not name it.
        bias: of the gyroscope, by the window that was solved last; None where it has added nothing.
    """

    LEAST_FOUND = 0.6  # share of a keyframe's landmarks that the best frame after it is taken to find
    RECENT_KEYFRAMES = 3  # in which new landmarks are searched

    def __init__(self, config: Config, matcher: Matcher) -> None:
        self._matcher = matcher
        self.initializer = MonoInitializer(config, matcher)
        self.readout = UnnamedReadout()
        self._most_found = 0  # landmarks of the newest keyframe that one frame has found again
        self.bias: Bias | None = None
        self._solved: SolvedWindow | None = None
        self.configure(config)

    def configure(self, config: Config) -> None:
        self._config: OdometryConfig = config.odometry
        self._bundle: BundleConfig = config.bundle
        self.initializer.configure(config)

    # -- keyframe rule ------------------------------------------------------------------------------------------------

    def keyframe_reason(
        self, window: Window, current: FeatureFrame, matches: LandmarkMatches, estimate: PoseEstimate
    ) -> str:
        """Why a frame with a pose should become a keyframe; empty when it should not."""
        return keyframe_reason(self._statistics(window, current, matches, estimate), self._config)

    def start_keyframe(self) -> None:
        """A keyframe is inserted: the share of landmarks found is counted anew."""
        self._most_found = 0

    def _statistics(
        self, window: Window, current: FeatureFrame, matches: LandmarkMatches, estimate: PoseEstimate
    ) -> KeyframeStatistics:
        frame, camera, o = current.frame, current.camera, window.observations
        at = window.seen_at(len(window.keyframes) - 1)
        # Only what more than one keyframe has seen: many a new corner, with a depth but no second view, is never seen again.
        stable = (at >= 0) & window.placed() & (window.views() >= min(2, len(window.keyframes)))
        both = estimate.inlier & stable[matches.rows]
        # A matcher never finds all of them again: the best frame since then is the measure, if it found most.
        self._most_found = max(self._most_found, int(both.sum()))
        total = max(self._most_found, self.LEAST_FOUND * int(stable.sum()), 1.0)
        depth = geometry.act(geometry.inverse(estimate.T_WC), window.landmarks.points_W[matches.rows[both]])[:, 2]
        now = rolling_shutter.undistort(camera, matches.uv[both], current.twist, depth)
        before = o.obs[at[matches.rows[both]], :2]
        time_s = (frame.stamp_ns - window.keyframes[-1].stamp_ns) * 1e-9
        if len(now) == 0:
            return KeyframeStatistics(0.0, float("inf"), float("inf"), time_s, camera.width)
        q_turned = geometry.relative(estimate.T_WC, window.T_WC[-1])[3:]
        rotated = geometry.project(camera, geometry.rotate(q_turned, geometry.rays(camera, before)))
        parallax_px, motion_px = ((p - now).norm(dim=1).median() for p in (rotated, before))
        return KeyframeStatistics(len(now) / total, float(parallax_px), float(motion_px), time_s, camera.width)

    # -- maps ---------------------------------------------------------------------------------------------------------

    def start_map(
        self, current: FeatureFrame, mode: str, median_depth: float | None, next_id: int, gyroscope: Gyroscope
    ) -> Window | str:
        """A new window, with depth at once, in mono when frames have enough parallax; or why there is none.

        Args:
            median_depth: of the scene when an earlier map was lost: a mono map keeps the scale as well as that allows.
            next_id: of the first landmark.
        """
        if mode != "mono":
            return self.start_metric(current, mode, next_id)
        start = self.initializer.add_frame(current, gyroscope)
        return start if isinstance(start, str) else self.start_mono(start, median_depth, next_id)

    def start_metric(self, current: FeatureFrame, mode: str, next_id: int) -> Window | str:
        """A window of one keyframe at the origin whose landmarks, with ids from `next_id` on, have a measured depth; or why not."""
        frame, c = current.frame, self._config
        missing = measurements.lacking(frame, mode)
        if missing:
            return f"the frame has no {missing} image, with which a map in metres begins"
        window = Window(next_id)
        row = window.add_keyframe(_keyframe(current), geometry.identity())
        self._add_corners(window, row, current, mode, far=True)
        window.triangulate(frame.camera, c.min_parallax_px, c.inlier_px)
        known = int(window.landmarks.triangulated.sum())
        if known < c.start_landmarks:
            why = measurements.explain_few(frame, mode, window.observations.uv, c)
            return f"{known} corners with a measured depth, {c.start_landmarks} are needed{f'; {why}' if why else ''}"
        return window

    def start_mono(self, start: InitialViews, median_depth: float | None, next_id: int) -> Window | str:
        """A window from the first views, with landmark ids from `next_id` on; or why not.

        Its scale: the given median depth, else the known first baseline, else a median depth of 1.
        """
        c, camera = self._config, start.views[-1].current.camera
        window = self._window_of_views(start, next_id)
        window.triangulate(camera, c.min_parallax_px, c.inlier_px)
        adjusted = self._adjust(window, camera)
        if adjusted is not None and adjusted.result.status is not BAStatus.DEGENERATE:
            adjusted = self._adjust(window, camera)  # again, without the outliers of the two-view geometry
        if adjusted is None or adjusted.result.status is BAStatus.DEGENERATE:
            reason = "no landmarks" if adjusted is None else adjusted.result.reason
            return f"bundle adjustment of the first views is degenerate: {reason}"
        result = adjusted.result
        known = int(window.landmarks.triangulated.sum())
        if known < c.start_landmarks:
            return f"{known} landmarks agree with the first views, {c.start_landmarks} are needed"
        if result.covariance_newest is None:
            return f"bundle adjustment of the first views: {result.reason}"
        baseline = float((window.T_WC[-1, :3] - window.T_WC[0, :3]).norm())
        # Without the design effect: errors that all matches of an image share are as large for every start.
        error = float((result.covariance_newest[:3, :3].trace() / result.covariance_scale).sqrt())
        needed = c.start_precision * (2 - start.patience)
        if not error <= needed * baseline:
            return f"the first motion is known to {100 * error / baseline:.1f} % only, {100 * needed:.1f} % are needed"
        if c.first_baseline_m > 0 and median_depth is None:
            window.rescale(c.first_baseline_m / max(baseline, 1e-9))
        else:
            window.rescale((median_depth or 1.0) / window.median_depth(len(window.keyframes) - 1))
        return window

    def _window_of_views(self, start: InitialViews, next_id: int) -> Window:
        camera, reference = start.views[-1].current.camera, start.views[0]
        window = Window(next_id)
        for view, T_WC, twist in zip(start.views, start.T_WC, _velocities(start)):
            window.add_keyframe(replace(_keyframe(view.current), twist=twist), T_WC)
        inlier = start.inlier.nonzero()[:, 0]
        uv = reference.uv[inlier]
        rows = self._add_landmarks(window, 0, reference.current, uv)
        depth = geometry.act(geometry.inverse(start.T_WC)[:, None], start.points)[..., 2]
        window.observe(camera, 0, rows, uv, self._corner_sigma(len(rows)), at=depth[0])
        for row, view in enumerate(start.views[1:], 1):
            seen = view.ok[inlier]
            uv, sigma_px = view.uv[inlier[seen]], view.sigma_px[inlier[seen]]
            window.observe(camera, row, rows[seen], uv, sigma_px, at=depth[row][seen])
        return window

    def extend(
        self, window: Window, database: KeyframeDatabase, candidate: KeyframeCandidate, mode: str
    ) -> BAResult | None:
        """Inserts a keyframe; those beyond the window go into the database. None without a problem to solve."""
        current, matches, camera = candidate.current, candidate.matches, candidate.current.camera
        wide = self._matcher.wide_baseline
        if matches is None:
            row = len(window.keyframes) - 1
        else:
            row = window.add_keyframe(replace(_keyframe(current), turned=candidate.turned), candidate.T_WC)
            for part in [matches] if matches.moving is None else [matches, matches.moving]:
                depths = measurements.measure(current.frame, mode, part.uv, self._config)
                window.observe(camera, row, part.rows, part.uv, part.sigma_px, depths)
            if wide:
                self._search_pending(window, row, current, mode)
        new = window.join_moving(camera, row, self._add_corners(window, row, current, mode))
        if wide:
            self._search_backwards(window, row, camera, new)
        window.triangulate(camera, self._config.min_parallax_px, self._config.inlier_px)
        while len(window.keyframes) > self._config.window_keyframes:
            leaving = least_moved(window.T_WC) if window.turned_in_place or window.narrow else 0
            database.add(stored_keyframe(window, leaving))
            window.drop_keyframe(leaving)
        adjusted = self._adjust(window, camera, candidate.bias)
        if adjusted is None:
            return None
        self._solved = adjusted.solved
        self._judge_motion(window, adjusted.solved)
        if adjusted.result.status is BAStatus.CONVERGED:
            solved = adjusted.solved
            twists = torch.stack([k.twist for k in solved.keyframes])
            self.readout.add(solved.snapshot, solved.result, solved.uv, twists, self._bundle, solved.rotations)
        return adjusted.result

    def _judge_motion(self, window: Window, solved: SolvedWindow) -> None:
        """Whether the window has turned in place, and whether it is narrow, which counts where a gyroscope keeps old keyframes in place."""
        snapshot, result = solved.snapshot, solved.result
        known = solved.rotations is not None
        window.narrow = known and is_narrow(snapshot, result)
        window.turned_in_place = turned_in_place(snapshot, result) or (
            known and turned_in_place(snapshot, result, NEWEST)
        )

    def take_solved(self) -> SolvedWindow | None:
        """The newest window that bundle adjustment solved to convergence; each is returned once."""
        solved, self._solved = self._solved, None
        if solved is None or solved.result.status is not BAStatus.CONVERGED:
            return None
        camera, uncertain_s = solved.snapshot.camera, self._uncertain_readout_s(solved.snapshot)
        skew_px = rolling_shutter.skew_px(camera, torch.stack([k.twist for k in solved.keyframes]), uncertain_s)
        return replace(solved, skew_px=skew_px)

    def _uncertain_readout_s(self, snapshot: WindowSnapshot) -> float:
        """How much of the readout time a window is not corrected by."""
        readout_s, uncertain_s = snapshot.camera.readout_s, self.readout.uncertain_s
        if readout_s > 0:
            uncertain_s = max(uncertain_s, abs(self.readout.missing_s))  # named too long, too
        if bool((snapshot.kind == int(ObservationKind.STEREO)).any()):  # the right images are not corrected
            uncertain_s += readout_s
        return uncertain_s

    # -- landmarks ----------------------------------------------------------------------------------------------------

    def _corner_sigma(self, count: int) -> Tensor:
        return torch.full((count,), self._config.corner_sigma_px)

    def _add_landmarks(self, window: Window, row: int, current: FeatureFrame, uv: Tensor) -> Tensor:
        wide, device = self._matcher.wide_baseline, self._matcher.device
        return window.add_landmarks(row, uv, self._matcher.describe(current.features, uv.to(device)) if wide else None)

    def _add_corners(self, window: Window, row: int, current: FeatureFrame, mode: str, far: bool = False) -> Tensor:
        """Fills the image up with new corners as landmarks; returns their rows. `far`: also with depths beyond `stereo_far`."""
        c, o, frame = self._config, window.observations, current.frame
        taken = o.uv[o.kf == row]
        wanted = c.landmarks_per_frame - len(taken)
        if wanted <= 0:
            return torch.zeros(0, dtype=torch.int64)
        uv = detect(self._matcher, current.features, current.image, taken, wanted, c, frame.mask)
        rows = self._add_landmarks(window, row, current, uv)
        depths = measurements.measure(frame, mode, uv, c, far)
        window.observe(frame.camera, row, rows, uv, self._corner_sigma(len(rows)), depths)
        return rows

    def _search_pending(self, window: Window, row: int, current: FeatureFrame, mode: str) -> None:
        """Searches for landmarks without a position in the new keyframe; their depth is taken to be that of the scene."""
        rows, camera = (~window.landmarks.triangulated).nonzero()[:, 0], current.camera
        if len(rows) == 0:
            return
        row_of = {keyframe.id: k for k, keyframe in enumerate(window.keyframes)}
        host = torch.tensor([row_of.get(id, -1) for id in window.landmarks.host[rows].tolist()])
        rows, host = rows[host >= 0], host[host >= 0]
        uv = camera.undistort(window.landmarks.uv_host[rows].double())
        depth = torch.full((len(rows),), window.median_depth(row), dtype=torch.float64)
        points_W = geometry.act(window.T_WC[host], geometry.back_project(camera, uv, depth))
        found = self._search(window, rows, torch.tensor([row]), points_W, camera)
        if found is None:
            return
        depths = measurements.measure(current.frame, mode, found.uv, self._config)
        window.observe(camera, row, found.rows, found.uv, found.sigma_px, depths)

    def _search_backwards(self, window: Window, row: int, camera: Camera, rows: Tensor) -> None:
        """Searches for new landmarks in the keyframes before, at the depth of their nearest neighbours in the image."""
        others = torch.arange(max(0, row - self.RECENT_KEYFRAMES), row)
        if len(rows) == 0 or len(others) == 0:
            return
        landmarks, o = window.landmarks, window.observations
        uv = landmarks.uv_host[rows]
        depth = torch.full((len(rows),), window.median_depth(row), dtype=torch.float64)
        mine = ((o.kf == row) & window.placed()[o.lm]).nonzero()[:, 0]
        if len(mine):
            points_C = geometry.act(geometry.inverse(window.T_WC[row]), landmarks.points_W[o.lm[mine]])
            depth = points_C[torch.cdist(uv, o.uv[mine]).argmin(1), 2]
        points_C = geometry.back_project(camera, camera.undistort(uv.double()), depth)
        found = self._search(window, rows, others, geometry.act(window.T_WC[row], points_C), camera)
        if found is not None:
            window.observe(camera, found.kf, found.rows, found.uv, found.sigma_px)

    def _search(self, window: Window, rows: Tensor, targets: Tensor, points_W: Tensor, camera: Camera) -> _Found | None:
        """Matches landmarks into keyframes near where `points_W` would be seen; None where none of them can be."""
        c, device = self._config, self._matcher.device
        points_C = geometry.act(geometry.inverse(window.T_WC[targets])[:, None], points_W[None])
        predicted, inside = geometry.see(camera, points_C)
        some = inside.any(0).nonzero()[:, 0]
        if len(some) == 0:
            return None
        found = self._matcher.estimate(
            window.select_queries(rows[some].to(device)),
            [window.keyframes[k].features for k in targets.tolist()],
            predicted[:, some].float().to(device),
            c.new_search_radius * camera.width,
        )
        masked = torch.stack([is_masked(window.keyframes[k].mask, uv) for k, uv in zip(targets.tolist(), found.uv)])
        good = (found.score.cpu() >= c.min_score) & inside[:, some] & ~masked
        t, n = good.nonzero().unbind(1)
        return _Found(targets[t], rows[some][n], found.uv.cpu().float()[t, n], found.sigma_px.cpu()[t, n])

    # -- bundle adjustment --------------------------------------------------------------------------------------------

    def _adjust(self, window: Window, camera: Camera, bias: Bias | None = None) -> MappingResult | None:
        problem, self.bias = window.snapshot(camera), None
        if problem is None:
            return None
        snapshot, used, rows = problem
        rotations = None if bias is None else self._rotations(window, snapshot.fixed, bias)
        result = solve(snapshot, self._bundle, None if rotations is None else rotations.prior)
        prior = rotations.prior if rotations is not None and result.rotations_used else None
        solved = SolvedWindow.of(window, snapshot, result, used, prior)
        if result.status is not BAStatus.DEGENERATE:
            self._learn_errors(window, result, rotations)
            window.absorb(result, rows)
            factor = window.restore_scale(rows)
            if factor != 1 and result.covariance_newest is not None:
                unit = torch.tensor([factor] * 3 + [1.0] * 3, dtype=torch.float64)
                covariance = unit[:, None] * result.covariance_newest.double() * unit
                result = replace(result, T_WC=window.T_WC.clone(), covariance_newest=covariance)
            window.cull(camera, self._config.inlier_px)
        return MappingResult(result, solved)

    def _rotations(self, window: Window, fixed: Tensor, bias: Bias) -> WindowRotations | None:
        """What the gyroscope has measured between the keyframes; not between those that are held (M,), which would pass for exact."""
        held = [False, *(fixed[1:] & fixed[:-1]).tolist()]
        steps = [None if out else keyframe.turned for keyframe, out in zip(window.keyframes, held)]
        return WindowRotations.of(steps, bias, window.error_scale or self._bundle.shared_error)

    def _learn_errors(self, window: Window, result: BAResult, rotations: WindowRotations | None) -> None:
        """By a solution: the true size of the errors of observations and the gyroscope's bias. Rotations that are refuted go."""
        window.add_error_scale(result.residual_scale * result.covariance_scale)
        if rotations is None:
            return
        if result.rotations_used:
            # A rotation is part of as many windows. Half of that: they share landmarks too, as maps grow out of each other.
            self.bias = rotations.learn_bias(result, 0.5 / (self._config.window_keyframes - 1))
        else:
            window.keyframes = [replace(keyframe, turned=None) for keyframe in window.keyframes]


@dataclass(frozen=True)
class _Found:
    """Landmarks found in keyframes."""

    kf: Tensor  # (N,) int64, rows of keyframes
    rows: Tensor  # (N,) int64, rows of landmarks
    uv: Tensor  # (N, 2) float32 raw px
    sigma_px: Tensor  # (N,)


def _velocities(start: InitialViews) -> Tensor:
    """Twists (V, 6) per second of the first views, from the motion to the next or, of the last one, from the one before."""
    stamps_ns = torch.tensor([view.current.frame.stamp_ns for view in start.views])
    twist = geometry.local(start.T_WC[:-1], start.T_WC[1:]) / (stamps_ns.diff()[:, None].double() * 1e-9)
    return torch.cat([twist, twist[-1:]])


def _keyframe(current: FeatureFrame) -> Keyframe:
    frame = current.frame
    return Keyframe(
        frame.id, frame.stamp_ns, current.image, current.features, current.twist, current.rate_error, frame.mask
    )
