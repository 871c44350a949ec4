"""Visual odometry: every frame is matched against the landmarks of the window, its pose is estimated and published; keyframes extend the map.

`track` tells the story of one frame: features, prediction, matches, pose, or recovery. `extend` does what a new keyframe
needs, after the pose was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from . import front_end, measurements
from ..core import geometry
from ..camera.model import Camera
from ..core.timing import Clock
from ..core.config import Config
from ..core.types import BAResult, BAStatus, Frame, Matches, OdometryOutput, TrackingState, WeightsSnapshot, as_grey
from .motion import PoseCovariance
from .initialization import MonoInitializer, InitialViews
from .mapper import KeyframeStatistics, keyframe_reason
from .mapper import KeyframeCandidate, Mapper, SolvedWindow
from ..matching.base import Features, Matcher
from .external_odometry import ExternalOdometry
from .relocalization import KeyframeDatabase, stored_keyframe, restore_window, is_blank
from .external_odometry import Scale
from .front_end import LandmarkSearch, TrackedFrame
from .motion import ZeroMotionUpdate
from .front_end import PoseEstimate, LandmarkMatches
from .local_map import Window

_CLOSE = 0.3  # of the search radius: where the second attempt looks
_LOOSE = 4.0  # times the inlier threshold, for a first pose after a gap
_RELOCALIZATION_CANDIDATES = 2  # stored keyframes tried per frame when lost
_MOST = 0.6  # share of a keyframe's landmarks that a frame must find again to be the measure for those after it
_ASTRAY = 0.5  # of the way that the greatest speed of late allows: farther from where it should be a doubtful pose is not built upon
_NEAR = 0.02  # of the depth, and radians: allowed in any case
_FORGOTTEN = 0.99  # of the greatest speed, a frame
_LONG_NS = 3_000_000_000  # without a pose; then a pose has to be as firm as once lost
_SETTLING = 5  # frames after a recovery whose windows are not learned from


class Odometry:
    """Owned by one thread; what it returns is safe to hand to others."""

    def __init__(self, config: Config, matcher: Matcher) -> None:
        self.matcher = matcher
        self.input = ExternalOdometry(config.external_odometry)
        self._take(config)
        self.map_id = -1
        self.reset()

    def reset(self) -> None:
        """Forgets the map and the motion; the weights stay. No two maps have the same id."""
        self.map_id += 1
        self.window = Window()
        self.input.clear()
        self.rescaled: tuple[float, Tensor] | None = (
            None  # factor and centre (3,), when the last `extend` has scaled the map
        )
        self._scale = Scale(self.input)
        self._mode = ""
        self._database = KeyframeDatabase(self.config.odometry.stored_keyframes)
        self._initializer = MonoInitializer(self.config.odometry, self.config.bundle, self.matcher)
        self._last: TrackedFrame | None = None
        self._twist = torch.zeros(6, dtype=torch.float64)  # per second
        self._fastest = torch.zeros(2, dtype=torch.float64)  # m/s and rad/s, of late
        self._covariance = PoseCovariance()
        self._zero_motion = ZeroMotionUpdate()
        self._candidate: KeyframeCandidate | None = None
        self._solved: SolvedWindow | None = None
        self._lost = 0  # usable frames in a row without a pose
        self._settling = 0
        self._long = False  # no pose for long
        self._falters_since: int | None = None  # version of the weights with which this began
        # A usable image gave no pose, or one that is doubtful, found again, or of a new map; and that began with these weights.
        self.tracking_failed = False
        self._widened = False  # for this doubt the covariance has grown already
        self._unsure = False  # the last pose may be wrong,
        self._wild = False  # and the map does not grow from it
        self._inlier_ratio = front_end.InlierRatio()
        self._most = 0  # landmarks of the newest keyframe that one frame has found again

    def configure(self, config: Config) -> None:
        """Takes other settings over, between two frames; the map stays. What acts at the start only keeps its effect."""
        self._take(config)
        self._database.capacity = config.odometry.stored_keyframes
        self._initializer.configure(config.odometry, config.bundle)

    def _take(self, config: Config) -> None:
        self.config = config
        self.input.config = config.external_odometry
        self._mapper = Mapper(config, self.matcher)
        self._search = LandmarkSearch(config, self.matcher)

    # -- one frame ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def track(self, frame: Frame) -> OdometryOutput:
        """The pose of a frame from its own matches.

        Raises:
            SourceError, CameraError: the configured mode needs a depth or right image that the first frame does not carry.
        """
        clock = Clock()
        self._candidate = None
        if not self._mode:  # later frames may lack their partner: they are tracked by what was seen before
            self._mode = measurements.resolve_mode(frame, self.config.odometry.mode)
        image = as_grey(frame.image)
        features = self.matcher.observe(image)
        clock.lap("features")
        blank = is_blank(image)
        if blank:
            output = self._nothing(frame, "the image is dark, covered or empty")
        elif not self.window.keyframes:
            output = self._start(frame, image, features)
        else:
            output = self._follow(frame, image, features, clock)
        clock.lap("pose")
        if not blank:
            # What began with other weights, or without images, says nothing of these weights.
            falters = not self._long and (self._lost > 0 or self._settling == _SETTLING)
            self._falters_since = (
                (self._falters_since if self._falters_since is not None else self.matcher.weights_version)
                if falters
                else None
            )
            self.tracking_failed = self._falters_since == self.matcher.weights_version
        return replace(output, timings_ms=clock.laps)

    def _follow(self, frame: Frame, image: Tensor, features: Features, clock: Clock) -> OdometryOutput:
        camera = frame.camera
        self._long = frame.stamp_ns - self._last.stamp_ns > _LONG_NS  # lost, covered, or no images: it may be anywhere
        T_steady, radius_px = self._predict(frame)
        T_given = self.input.predict(self._last.T_WC, self._last.stamp_ns, frame.stamp_ns, T_steady)
        hidden: tuple[LandmarkMatches, PoseEstimate] | None = None
        least = (
            front_end.CONFIRMED_INLIER_RATIO
            if self._lost or self._long or self._unsure
            else front_end.SECOND_LOOK_INLIER_RATIO
        )
        for T_predicted in (T_steady,) if T_given is None else (T_given, T_steady):  # external odometry may be wrong
            matches = self._search.near(self.window, self._last, camera, features, T_predicted, radius_px)
            clock.lap("match")
            estimate = self._search.estimate_pose(self.window, camera, matches, T_predicted)
            clock.lap("pose")
            if estimate is None:
                continue
            if self._inlier_ratio.relative(matches, estimate, self.config.odometry.inlier_px) >= least:
                return self._accept(frame, image, features, matches, estimate)
            support = self._search.support(self.window, camera, matches, estimate) / self._inlier_ratio.usual
            if support >= front_end.OCCLUSION_INLIER_RATIO:
                return self._accept(frame, image, features, matches, estimate)
            if support >= front_end.PARTIAL_OCCLUSION_INLIER_RATIO:
                hidden = matches, estimate
        estimate = None
        if self.matcher.wide_baseline:
            matches, estimate = self._search_again(
                camera, features, T_steady if T_given is None else T_given, radius_px
            )
        if estimate is None:
            matches, estimate = self._relocalize(frame, image, features)
        if estimate is None and hidden is not None and not (self._lost or self._long):
            self._wild = True  # corners of what hides the image make no map
            return self._accept(
                frame, image, features, *hidden, doubt="most landmarks are not found; something may hide the image"
            )
        if estimate is None:
            return self._lose(frame, image, features)
        firm = (
            self._inlier_ratio.relative(matches, estimate, self._closer(camera) / front_end.SECOND_LOOK_RADIUS)
            >= front_end.CONFIRMED_INLIER_RATIO
        )
        if not firm and not self._widened:
            self._covariance.add(self._uncertainty(frame), self._last.T_WC)
        self._widened = not firm
        self._lost = max(self._lost, 0 if firm else 1)
        return self._accept(
            frame,
            image,
            features,
            matches,
            estimate,
            doubt="" if firm else "found again, but few landmarks are where this pose has them",
        )

    def _search_again(
        self, camera: Camera, features: Features, T_predicted: Tensor, radius_px: float
    ) -> tuple[LandmarkMatches, PoseEstimate | None]:
        """After a gap: searches closer, for alike things nearby mislead a matcher, then everywhere, for the prediction may be wrong.

        Old landmarks are known less well from a new place, so a loose pose comes first; it guides the search that decides.
        """
        look, window = self._search, self.window
        for attempt in range(2):
            matches = (
                look.near(window, self._last, camera, features, T_predicted, radius_px * _CLOSE, again=True)
                if attempt == 0
                else look.everywhere(window, features)
            )
            loose = look.estimate_pose(window, camera, matches, T_predicted if attempt == 0 else None, looser=_LOOSE)
            if loose is not None:
                matches, estimate = self._confirm(
                    camera,
                    features,
                    loose,
                    front_end.CONFIRMED_INLIER_RATIO if self._lost or self._long else front_end.MIN_INLIER_RATIO,
                )
                if estimate is not None:
                    return matches, estimate
        return matches, None

    def _closer(self, camera: Camera) -> float:
        """How far around its place a landmark is searched for in a second look, px."""
        c = self.config.odometry
        return max(c.search_radius * camera.width * _CLOSE, front_end.SECOND_LOOK_RADIUS * c.inlier_px)

    def _confirm(
        self, camera: Camera, features: Features, loose: PoseEstimate, least: float
    ) -> tuple[LandmarkMatches, PoseEstimate | None]:
        """Searches close to where a loose pose puts the landmarks. When it is right many are there; of a place that only looks alike
        few are, and of these little more lie within the inliers' bound than chance puts there. `least`: of the usual share."""
        radius_px = self._closer(camera)
        matches = self._search.near(self.window, self._last, camera, features, loose.T_WC, radius_px, again=True)
        estimate = self._search.estimate_pose(self.window, camera, matches, loose.T_WC, looser=_LOOSE / 2)
        if (
            estimate is not None
            and self._inlier_ratio.relative(matches, estimate, radius_px / front_end.SECOND_LOOK_RADIUS) < least
        ):
            estimate = None
        return matches, estimate

    def _predict(self, frame: Frame) -> tuple[Tensor, float]:
        """Where the camera should be by constant velocity, and how far around a landmark's place to search, in px."""
        dt = (frame.stamp_ns - self._last.stamp_ns) * 1e-9
        radius = self.config.odometry.search_radius * frame.camera.width
        return geometry.retract(self._last.T_WC, self._twist * dt), radius

    def _accept(
        self,
        frame: Frame,
        image: Tensor,
        features: Features,
        matches: LandmarkMatches,
        estimate: PoseEstimate,
        doubt: str = "",
    ) -> OdometryOutput:
        """Takes over the pose, notes what was seen, and decides whether this becomes a keyframe. `doubt`: why the pose may be wrong."""
        c, landmarks = self.config.odometry, self.window.landmarks
        good = estimate.inlier | ~landmarks.triangulated[matches.rows]
        wrong = matches.rows[~good]
        recovered = self._lost > 0 or self._long
        if recovered:
            self._zero_motion.reset()
        elif not doubt:
            self._inlier_ratio.update(matches, estimate, c.inlier_px)
            rows, uv = matches.rows[estimate.inlier], frame.camera.undistort(matches.uv[estimate.inlier].double())
            estimate = self._zero_motion.apply(
                frame.camera, estimate, landmarks.id[rows], uv, matches.sigma_px[estimate.inlier], self.config.bundle
            )
            self.input.judge(estimate.T_WC, float(self._last.depth.median()))
        # A map that grew from a wrong pose would agree with it ever after.
        self._wild = bool(doubt) and (self._wild or not self._within_reach(frame, estimate.T_WC))
        why = (
            ""
            if self._wild
            else "recovered"
            if recovered
            else keyframe_reason(self._keyframe_statistics(frame, matches, estimate), c)
        )
        published = self._matches(frame, matches, estimate)
        dt = (frame.stamp_ns - self._last.stamp_ns) * 1e-9
        self._twist = self._twist * 0 if recovered or dt <= 0 else geometry.local(self._last.T_WC, estimate.T_WC) / dt
        if not recovered:
            self._fastest = torch.maximum(
                self._fastest * _FORGOTTEN, torch.stack([self._twist[:3].norm(), self._twist[3:].norm()])
            )
        self._settling = _SETTLING if recovered or doubt else max(0, self._settling - 1)
        self._unsure = bool(doubt)
        self._widened = self._widened and self._unsure
        # What a doubtful pose does not find speaks against the pose, not against the landmarks.
        self.window.mark(
            frame.id,
            matches.rows[good],
            matches.uv[good],
            wrong[:0] if doubt else torch.cat([matches.unmatched, wrong]),
        )
        self._remember(frame, features, estimate.T_WC, matches.rows[estimate.inlier], matches.uv[estimate.inlier])
        if why:
            kept = LandmarkMatches(
                matches.rows[good], matches.uv[good], matches.score[good], matches.sigma_px[good], wrong
            )
            self._candidate, self._most = KeyframeCandidate(frame, image, features, estimate.T_WC, kept), 0
        inliers = int(estimate.inlier.sum())
        if doubt:
            return self._output(frame, TrackingState.UNVERIFIED, f"{doubt} ({inliers} agree)", estimate, published)
        if inliers < c.verified_inliers:
            return self._output(
                frame, TrackingState.UNVERIFIED, f"only {inliers} matches agree with the pose", estimate, published
            )
        return self._output(frame, TrackingState.TRACKING, "", estimate, published)

    def _remember(self, frame: Frame, features: Features, T_WC: Tensor, rows: Tensor, uv: Tensor) -> None:
        points_C = geometry.act(geometry.inverse(T_WC), self.window.landmarks.points_W[rows])
        self._last = TrackedFrame(frame.id, frame.stamp_ns, features, T_WC, uv, points_C[:, 2])
        if not self._unsure:
            self._zero_motion.set_reference(
                self.window.landmarks.id[rows], frame.camera.undistort(uv.double()), points_C[:, 2], T_WC
            )
        self._lost = 0
        self._initializer = MonoInitializer(self.config.odometry, self.config.bundle, self.matcher)

    def _keyframe_statistics(
        self, frame: Frame, matches: LandmarkMatches, estimate: PoseEstimate
    ) -> KeyframeStatistics:
        camera, o = frame.camera, self.window.observations
        at, _ = self.window.seen_at(len(self.window.keyframes) - 1)
        # Only what more than one keyframe has seen: many a new corner, with a depth but no second view, is never seen again.
        firm = (
            (at >= 0) & self.window.landmarks.triangulated & (self.window.views() >= min(2, len(self.window.keyframes)))
        )
        both = estimate.inlier & firm[matches.rows]
        # A matcher never finds all of them again: the best frame since then is the measure, if it found most.
        self._most = max(self._most, int(both.sum()))
        total = max(self._most, _MOST * int(firm.sum()), 1.0)
        now = camera.undistort(matches.uv[both].double())
        before = o.obs[at[matches.rows[both]], :2]
        time_s = (frame.stamp_ns - self.window.keyframes[-1].stamp_ns) * 1e-9
        if len(now) == 0:
            return KeyframeStatistics(0.0, float("inf"), float("inf"), time_s, camera.width)
        turned = geometry.relative(estimate.T_WC, self.window.T_WC[-1])[3:]
        rotated = geometry.project(camera, geometry.rotate(turned, geometry.rays(camera, before)))
        return KeyframeStatistics(
            len(now) / total,
            float((rotated - now).norm(dim=1).median()),
            float((before - now).norm(dim=1).median()),
            time_s,
            camera.width,
        )

    # -- starting, and starting again ---------------------------------------------------------------------------------

    def _start(self, frame: Frame, image: Tensor, features: Features) -> OdometryOutput:
        """Begins a map, where the last pose was if there is one: with depth at once, in mono when frames have enough parallax."""
        if self._mode == "mono":
            start = self._initializer.add_frame(frame, features)
            # A map that replaces a lost one keeps its scale as well as the scene allows: by the median depth.
            depth = float(self._last.depth.median()) if self._last is not None else None
            window = (
                self._mapper.start_mono(start, depth, self.window.next_id) if isinstance(start, InitialViews) else start
            )
        else:
            window = self._mapper.start_metric(frame, image, features, self._mode, self.window.next_id)
        if isinstance(window, str):
            return self._nothing(frame, window)
        T_origin = self._origin(window.keyframes[0].stamp_ns)
        self._scale.begin(window, self._mode, self.config.odometry.first_baseline_m > 0, again=self._last is not None)
        if self._last is not None:
            self.map_id += 1
            self._covariance.add(self._uncertainty(frame), self._last.T_WC)
            self._settling = _SETTLING
        window.move(T_origin)
        self.window = window
        self._unsure = self._wild = False
        self._inlier_ratio.reset()
        self._zero_motion.reset()
        self._database.clear()
        at, _ = window.seen_at(len(window.keyframes) - 1)
        rows = ((at >= 0) & window.landmarks.triangulated).nonzero()[:, 0]
        uv = window.observations.uv[at[rows]]
        window.mark(frame.id, (at >= 0).nonzero()[:, 0], window.observations.uv[at[at >= 0]], rows[:0])
        self._twist = torch.zeros(6, dtype=torch.float64)
        self._remember(frame, features, window.T_WC[-1], rows, uv)
        self._candidate = KeyframeCandidate(frame, image, features, window.T_WC[-1], None)
        residual = window.residuals(frame.camera)[0][at[rows]]
        support = PoseEstimate(
            window.T_WC[-1], torch.ones(len(rows), dtype=torch.bool), residual, torch.zeros(6, 6, dtype=torch.float64)
        )
        return self._output(frame, TrackingState.TRACKING, "", support, None)

    def _lose(self, frame: Frame, image: Tensor, features: Features) -> OdometryOutput:
        """Counts a frame without a pose; after some, a new map begins where the last pose was."""
        self._lost += 1
        self._widened = False
        if self._mode == "mono" or self._lost >= self.config.odometry.restart_frames:
            output = self._start(frame, image, features)
            if output.T_WC is not None:
                return output
            return replace(output, reason=f"lost for {self._lost} frames; new start: {output.reason}")
        return self._nothing(frame, f"lost for {self._lost} frames: too few matches agree on a pose")

    def _origin(self, stamp_ns: int) -> Tensor:
        """Where a map that begins at this time lies (7,): at the origin; after a loss at the last pose, carried on by external
        odometry if that knows how far."""
        if self._last is None:
            return geometry.identity()
        if self.input.unit_m is None:
            return self._last.T_WC
        T_given = self.input.predict(self._last.T_WC, self._last.stamp_ns, stamp_ns, self._last.T_WC)
        return self._last.T_WC if T_given is None else T_given

    def _uncertainty(self, frame: Frame) -> Tensor:
        """Covariance (6, 6) of having stayed at the last pose, while the camera may have gone on as fast as it did of late."""
        dt = (frame.stamp_ns - self._last.stamp_ns) * 1e-9
        return torch.diag((self._fastest * dt).square().clamp_min(1e-4).repeat_interleave(3))

    def _within_reach(self, frame: Frame, T_WC: Tensor) -> bool:
        """Whether the camera, as fast as it was of late, could have left its way so far as to be at this pose (7,)."""
        dt = (frame.stamp_ns - self._last.stamp_ns) * 1e-9
        off = geometry.local(geometry.retract(self._last.T_WC, self._twist * dt), T_WC)
        least = torch.tensor([_NEAR * float(self._last.depth.median()), _NEAR], dtype=torch.float64)
        return bool((torch.stack([off[:3].norm(), off[3:].norm()]) <= _ASTRAY * self._fastest * dt + least).all())

    def _relocalize(
        self, frame: Frame, image: Tensor, features: Features
    ) -> tuple[LandmarkMatches, PoseEstimate | None]:
        """Tries the keyframes that look most alike; with one that has left the window, the window begins again."""
        c, camera, kept = self.config.odometry, frame.camera, self.window
        for stored in self._database.most_similar(image, _RELOCALIZATION_CANDIDATES, kept):
            inside = [k for k, keyframe in enumerate(kept.keyframes) if keyframe.id == stored.id]
            if inside:
                self.window, rows = kept, kept.triangulated_in(inside[0])
                queries = self.matcher.describe(kept.keyframes[inside[0]].features, stored.uv.to(self.matcher.device))
            else:
                self.window, queries = restore_window(stored, camera, self.matcher, c.corner_sigma_px, kept.next_id)
                rows = torch.arange(len(stored.uv))
            matches = self._search.look(
                rows, queries, features, None if self.matcher.wide_baseline else stored.uv, None
            )
            estimate = self._search.estimate_pose(self.window, camera, matches, None)
            if estimate is not None and self.matcher.wide_baseline:
                matches, estimate = self._confirm(camera, features, estimate, front_end.CONFIRMED_INLIER_RATIO)
            if estimate is not None and int(estimate.inlier.sum()) >= c.verified_inliers:
                self._lost = max(self._lost, 1)
                if self.window is not kept:
                    for row in range(len(kept.keyframes)):
                        self._database.add(stored_keyframe(kept, row))
                return matches, estimate
        self.window = kept
        return matches, None

    # -- keyframe work ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def extend(self) -> BAResult | None:
        """After `track`: when its frame became a keyframe, finds new landmarks and adjusts the window; else does nothing."""
        candidate, self._candidate, self.rescaled = self._candidate, None, None
        if candidate is None:
            return None
        adjusted = self._mapper.extend(self.window, self._database, candidate, self._mode)
        self._zero_motion.follow_adjustment(self._last.T_WC, self.window.T_WC[-1])
        self._last = replace(self._last, T_WC=self.window.T_WC[-1].clone())
        if adjusted is None:
            return None
        self._covariance.propagate(adjusted.result, self.window.keyframe_dropped)
        self._solved = adjusted.solved
        factor = self._scale.correct(self.window) if self._mode == "mono" else None
        if factor is not None:
            self._rescale(factor)
        return adjusted.result

    def _rescale(self, factor: float) -> None:
        """Scales the map about the camera: the pose does not jump, only motion from here on is measured in the new unit."""
        centre = self._last.T_WC[:3].clone()
        self.window.rescale(factor, centre)
        self._database.rescale(factor, centre)
        self._covariance.rescale(factor, centre)
        self._last = replace(self._last, depth=self._last.depth * factor)
        self._zero_motion.reset()
        self._twist = torch.cat([self._twist[:3] * factor, self._twist[3:]])
        self._fastest = self._fastest * torch.tensor([factor, 1.0], dtype=torch.float64)
        self.rescaled = factor, centre

    def take_solved(self) -> SolvedWindow | None:
        """The newest window that bundle adjustment solved to convergence, for the learner; each is returned once."""
        solved, self._solved = self._solved, None
        return None if solved is None or solved.result.status is not BAStatus.CONVERGED else solved

    @property
    def healthy(self) -> bool:
        """Whether the newest window may be learned from."""
        return self._settling == 0 and self._lost == 0

    def adopt(self, state: WeightsSnapshot, features: Mapping[int, Features]) -> None:
        """Swaps the matcher's weights, between two frames; `features` of keyframes by frame id, made by those weights.

        Landmarks are described again at their host keyframe, or at the newest keyframe that saw them where the host has left.
        """
        self.matcher.load_state_dict(state.state)
        self.matcher.weights_version = state.version
        self._solved = None
        for made in features.values():
            for values in made.maps.values():
                if (
                    values.is_cuda
                ):  # made on the learner's stream, which must not use their memory again before this stream is done
                    values.record_stream(torch.cuda.current_stream(values.device))
        self.window.renew_features(self.matcher, features)
        self._initializer = MonoInitializer(self.config.odometry, self.config.bundle, self.matcher)

    # -- what is published --------------------------------------------------------------------------------------------

    def _matches(self, frame: Frame, matches: LandmarkMatches, estimate: PoseEstimate) -> Matches:
        """Between the newest keyframe and this frame."""
        newest = self.window.keyframes[-1]
        at, _ = self.window.seen_at(len(self.window.keyframes) - 1)
        both = (at[matches.rows] >= 0).nonzero()[:, 0]
        rows = matches.rows[both]
        return Matches(
            newest.id,
            frame.id,
            newest.stamp_ns,
            frame.stamp_ns,
            self.window.observations.uv[at[rows]],
            matches.uv[both],
            matches.score[both],
            matches.sigma_px[both],
            estimate.residual_px[both].float(),
            estimate.inlier[both],
            self.window.landmarks.id[rows],
            self.matcher.weights_version,
        )

    def _output(
        self, frame: Frame, state: TrackingState, reason: str, estimate: PoseEstimate, published: Matches | None
    ) -> OdometryOutput:
        return OdometryOutput(
            frame.id,
            frame.stamp_ns,
            state,
            reason,
            estimate.T_WC.clone(),
            self._covariance.at(estimate.T_WC) + estimate.covariance,
            int(estimate.inlier.sum()),
            self._candidate is not None,
            self._metric,
            self.map_id,
            published,
            None,
            self.matcher.weights_version,
            scale=self._scale.describe(self._mode),
            covariance_in_map=estimate.covariance,
        )

    def _nothing(self, frame: Frame, reason: str) -> OdometryOutput:
        """No pose: not yet, or not any more."""
        state = TrackingState.UNINITIALIZED if self._last is None else TrackingState.LOST
        return OdometryOutput(
            frame.id,
            frame.stamp_ns,
            state,
            reason,
            None,
            None,
            0,
            False,
            self._metric,
            self.map_id,
            None,
            None,
            self.matcher.weights_version,
            scale=self._scale.describe(self._mode),
        )

    @property
    def _metric(self) -> bool:
        return self._mode != "mono" or self._scale.source != ""
