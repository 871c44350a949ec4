"""Visual odometry: every frame is localized in the map and published; keyframes extend the map.

`track` handles one frame: features, prediction, guided search, pose, and relocalization when these fail. `extend` does the
work of a new keyframe after the pose was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from . import measurements, state as states
from ..bundle import RotationPrior
from ..camera.model import Camera
from ..core import geometry
from ..core.config import Config
from ..core.masks import cover, grow
from ..core.timing import Clock
from ..core.types import (
    BAResult,
    Frame,
    Matches,
    ObservationKind,
    OdometryOutput,
    TrackingState,
    WeightsSnapshot,
    as_grey,
    ordinary,
)
from ..matching.base import Features, Matcher
from .bodies import BodySeparation
from .external_odometry import ExternalOdometry, Scale
from .front_end import (
    CONFIRMED_INLIER_RATIO,
    MIN_INLIER_RATIO,
    FeatureFrame,
    FrontEnd,
    LandmarkMatches,
    Localization,
    keyframe_matches,
    mark_landmarks,
)
from .gyroscope import Gyroscope
from .input_check import InputCheck
from .lens import StandingLandmarks
from .local_map import Keyframe, Window
from .mapper import KeyframeCandidate, Mapper, SolvedWindow
from .motion import MotionModel, SeenLandmarks, TrackedFrame, skew_covariance
from .planar import PlanarMotion
from .pose_estimator import PoseEstimate, is_uncertain
from .relocalization import Relocalizer, is_blank
from .shutter import MAX_CHANGING_RAD, MAX_UNKNOWN_RAD
from .state import (
    Context,
    Lost,
    MapCreated,
    PoseUnverified,
    PoseNotFound,
    PoseVerified,
    State,
    Uninitialized,
    Unverified,
)


class Odometry:
    """Owned by one thread; what it returns is safe to hand to others.

    Attributes:
        state: the tracking state; changed by `state.transition` only.
        rescaled: factor and centre (3,), when the last `extend` has scaled the map.
    """

    def __init__(self, config: Config, matcher: Matcher) -> None:
        self.matcher = matcher
        self.external = ExternalOdometry(config.external_odometry)
        self.gyroscope = Gyroscope(config.imu)
        self.planar = PlanarMotion(config.odometry.planar)
        self.map_id = -1
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Drops the map and the motion; the weights stay. No two maps have the same id."""
        self.map_id += 1
        self.state: State = Uninitialized()
        self.window = Window()
        self.external.clear()
        self.gyroscope.clear()
        self.planar.begin()
        self.scale = Scale(self.external)
        self.front_end = FrontEnd(self.config, self.matcher)
        self.relocalizer = Relocalizer(self.config, self.matcher, self.front_end)
        self.mapper = Mapper(self.config, self.matcher)
        self.motion = MotionModel()
        self.bodies = BodySeparation(self.config, self.front_end, self.motion, self.gyroscope, self.external)
        self.inputs = InputCheck()
        self.standing = StandingLandmarks()
        self.last: TrackedFrame | None = None
        self.rescaled: tuple[float, Tensor] | None = None
        self._mode = ""
        self._camera: Camera | None = None
        self._candidate: KeyframeCandidate | None = None
        self._lost_view: Window | None = None  # what the last frame without a pose would begin a map with
        self._placed_skew_rad = 0.0  # of the newest keyframe, when the window was solved with it last

    def configure(self, config: Config) -> None:
        """Takes other settings over, between two frames; the map stays. What acts at the start only keeps its effect."""
        self.config = config
        self.external.config = config.external_odometry
        self.gyroscope.config = config.imu
        for part in (self.front_end, self.relocalizer, self.mapper, self.bodies):
            part.configure(config)

    # -- one frame ----------------------------------------------------------------------------------------------------

    def track(self, frame: Frame) -> OdometryOutput:
        """The pose of a frame from its own matches.

        Raises:
            SourceError, CameraError: the configured mode needs a depth or right image that the first frame does not carry.
        """
        # Hundreds of small operations, each of which starts faster in inference mode.
        with torch.inference_mode():
            output = self._track(frame)
        return ordinary(output)

    def _track(self, frame: Frame) -> OdometryOutput:
        clock = Clock()
        self._candidate = None
        if not self._mode:  # later frames may lack their partner: they are tracked by what was seen before
            self._mode = measurements.resolve_mode(frame, self.config.odometry.mode)
        frame = replace(frame, camera=self._name_readout(frame.camera))
        self._follow_calibration(frame.camera)
        frame = self.inputs.check(frame, self.external.stands_still)
        with torch.inference_mode(False):  # the learner takes the image over, and descends through it
            image = as_grey(frame.image)
            if frame.mask is not None:
                image, frame = cover(image, frame.mask), replace(frame, mask=grow(frame.mask))
        current = FeatureFrame(frame, image, self.matcher.observe(image), self.motion.twist)
        clock.lap("features")
        if is_blank(image):
            output = self._without_pose(frame, "the image is dark, covered or empty")
        elif self.last is None:
            output = self._start_map(current, None, Context(self.matcher.weights_version))
        else:
            output = self._follow(current, self.last, clock)
        clock.lap("pose")
        if output.T_WC is None and self.inputs.fault:
            output = replace(output, reason=f"{output.reason}; {self.inputs.fault}")
        fault = self.inputs.fault or self.mapper.readout.describe(frame.camera)
        return replace(output, fault=fault, timings_ms=clock.laps)

    def _name_readout(self, camera: Camera) -> Camera:
        """The camera with the readout time that is set, else that of its calibration, else the one that its images have shown."""
        named_s = self.config.camera.readout_ms / 1e3 or camera.readout_s
        if named_s == 0 and self._mode != "stereo":  # the right images of a pair are not corrected
            self.mapper.readout.adopt()
            named_s = self.mapper.readout.found_s
        return replace(camera, readout_s=named_s)

    def _follow_calibration(self, camera: Camera) -> None:
        """Every image is used with its own calibration, as of a lens with autofocus; the map is carried over to it."""
        before, self._camera = self._camera, camera
        if before is not None and before != camera:
            self.window.recalibrate(before, camera)
            self.motion.zero_motion.recalibrate(before, camera)
            self.bodies.forget_frames()

    def _follow(self, current: FeatureFrame, last: TrackedFrame, clock: Clock) -> OdometryOutput:
        stamp_ns = current.frame.stamp_ns
        context = Context(self.matcher.weights_version, self.motion.gap_exceeded(last, stamp_ns))
        prior = self.gyroscope.predict(last.T_WC, last.stamp_ns, stamp_ns)
        predictions = self._predict(current.frame, last, prior)
        if not (context.gap_exceeded or isinstance(self.state, Lost)):
            current = replace(current, rotation=prior)
        found = self._localize(current, last, predictions, context.gap_exceeded, clock)
        refuted = found is not None and not context.gap_exceeded and self.gyroscope.refutes(found.estimate.T_WC)
        if found is not None and not refuted:
            current, found = self.front_end.resolve_shutter(last, current, found)
            if found.recovered or context.gap_exceeded or isinstance(self.state, Lost):
                self.bodies.forget_frames()
            found = self.bodies.separate(current, last, found, self._mode)
            return self._accept(current, last, found, context)
        self.gyroscope.notify_lost()
        self.state = states.transition(self.state, PoseNotFound(), context)
        return self._start_again(current, last, context)

    def _localize(
        self, current: FeatureFrame, last: TrackedFrame, predictions: list[Tensor], gap_exceeded: bool, clock: Clock
    ) -> Localization | None:
        """Guided search, a second look, relocalization: the first that gives a pose; None without one."""
        state, front_end = self.state, self.front_end
        interrupted = gap_exceeded or isinstance(state, Lost)
        strict = interrupted or states.pose_unverified(state)
        tracked = front_end.track(self.window, last, current, predictions, strict, clock)
        if tracked is not None and tracked.cause is None:
            if confirmed := self._confirm(current, last, tracked):
                return confirmed
            tracked = replace(tracked, cause=states.Cause.LOW_INLIER_RATIO, recovered=True)
        found = None
        if self.matcher.wide_baseline:
            least = CONFIRMED_INLIER_RATIO if interrupted else MIN_INLIER_RATIO
            found = front_end.look_again(self.window, last, current, predictions[0], least)
        if found is None:
            # Drift lies between.
            found = self.relocalizer.relocalize(self.window, last, replace(current, rotation=None))
        if found is not None:
            return front_end.verify(current.camera, found)
        return None if interrupted else tracked

    def _confirm(self, current: FeatureFrame, last: TrackedFrame, found: Localization) -> Localization | None:
        """The pose itself, or, where few agree and the camera could hardly have moved to it, that of a closer search around it; None if that confirms none."""
        T_WC, usual_px = found.estimate.T_WC, self.config.odometry.inlier_px
        firm = self.front_end.inlier_ratio(found.matches, found.estimate, usual_px) >= CONFIRMED_INLIER_RATIO
        if firm or not self.matcher.wide_baseline or self.motion.is_plausible(last, current.frame.stamp_ns, T_WC):
            return found
        closer = self.front_end.confirm(self.window, last, current, T_WC, CONFIRMED_INLIER_RATIO)
        if closer is None:
            return None
        # Again, by the usual bound of inliers.
        estimate = self.front_end.estimate(self.window, current, closer.matches, closer.estimate.T_WC)
        return closer if estimate is None else replace(closer, estimate=estimate)

    def _predict(self, frame: Frame, last: TrackedFrame, prior: RotationPrior | None) -> list[Tensor]:
        """Where the camera (7,) may be, the most likely first: external odometry and the gyroscope may be wrong."""
        T_steady = self.motion.predict(last, frame.stamp_ns)
        T_turned = T_steady if prior is None else torch.cat([T_steady[:3], prior.q_WC])
        T_external = self.external.predict(last.T_WC, last.stamp_ns, frame.stamp_ns, T_turned)
        likely = [] if T_external is None else [T_external]
        return [*likely, T_turned] if prior is None else [*likely, T_turned, T_steady]

    def _accept(
        self, current: FeatureFrame, last: TrackedFrame, found: Localization, context: Context
    ) -> OdometryOutput:
        """Takes a pose over: the state, the motion, what was seen, and whether the frame becomes a keyframe."""
        frame, matches = current.frame, found.matches
        recovered = found.recovered or context.gap_exceeded or isinstance(self.state, Lost)
        if found.cause is states.Cause.LOW_INLIER_RATIO and not states.gap_covariance_added(self.state):
            self.motion.add_gap(last, frame.stamp_ns)
        self.window = found.window
        estimate = self._hold_pose(found, last, frame, recovered)
        if current.camera.readout_s > 0:
            current = replace(current, rate_error=self.motion.rate_error(current.twist))
        self.bodies.keep(current, last, replace(found, estimate=estimate))
        verdict = self._judge(current, last, replace(found, estimate=estimate), recovered)
        self.state = states.transition(self.state, verdict, context)
        unknown, changing = self._skew(current.camera, current)
        skew_rad = max(unknown / self.mapper.readout.bound_sigmas, changing)
        skew = skew_covariance(skew_rad, last.median_depth())
        placed_by = skew_covariance(self._placed_skew_rad, last.median_depth())
        becomes_keyframe = self._becomes_keyframe(current, matches, estimate, recovered)
        published = keyframe_matches(self.window, frame, matches, estimate, self.matcher.weights_version)
        self.motion.add_step(last, estimate.T_WC, self._mode == "mono")
        if recovered or not self.inputs.repeated:  # a repeated image says nothing about the motion
            self.motion.update(last, frame.stamp_ns, estimate.T_WC, recovered)
            self._correct_keyframe(last, current.camera)
        if recovered:
            self.gyroscope.restart(estimate.covariance)
        else:
            self.gyroscope.update(estimate, self.motion.zero_motion.still)
        good = mark_landmarks(self.window, frame.id, matches, estimate, states.pose_unverified(self.state))
        self._remember(current, estimate.T_WC, matches.rows[estimate.inlier], matches.uv[estimate.inlier])
        if becomes_keyframe:
            newest_ns = self.window.keyframes[-1].stamp_ns
            turned = None if recovered else self.gyroscope.between_keyframes(newest_ns, frame.stamp_ns)
            self._candidate = KeyframeCandidate(current, estimate.T_WC, good, turned, self.gyroscope.usable_bias())
            self.mapper.start_keyframe()
            self._placed_skew_rad = skew_rad
        output = self._with_pose(frame, replace(estimate, covariance=estimate.covariance + skew + placed_by), published)
        if becomes_keyframe:
            self.motion.covariance.add_drift(skew, estimate.T_WC)
        return output

    def _judge(
        self, current: FeatureFrame, last: TrackedFrame, found: Localization, recovered: bool
    ) -> PoseVerified | PoseUnverified:
        cause = states.Cause.FROZEN if self.inputs.frozen and found.cause is None else found.cause
        if cause is None:
            return PoseVerified(recovered, self._find_weakness(current, found.estimate, last.median_depth(), recovered))
        plausible = self.motion.is_plausible(last, current.frame.stamp_ns, found.estimate.T_WC)
        return PoseUnverified(cause, plausible)

    def _find_weakness(
        self, current: FeatureFrame, estimate: PoseEstimate, median_depth: float, recovered: bool
    ) -> states.Cause | None:
        if self.bodies.disputed:
            return states.Cause.TWO_MOTIONS
        if int(estimate.inlier.sum()) < self.config.odometry.verified_inliers:
            return states.Cause.FEW_INLIERS
        if not recovered and self._is_skewed(current):
            return states.Cause.SKEWED
        if is_uncertain(estimate, median_depth):
            return states.Cause.UNCERTAIN
        if self._mode == "mono" and self.standing.suspected:
            return states.Cause.STANDING
        drifts = self._mode == "mono" and self.scale.source != "odometry"
        return states.Cause.TURNED if drifts and self.window.turned_in_place else None

    def _is_skewed(self, current: FeatureFrame) -> bool:
        """Whether a rolling shutter bends this image in a way that is not known well, or the newest keyframe, by which the landmarks in
        view were placed.
        """
        skews = [self._skew(current.camera, view) for view in (current, self.window.keyframes[-1])]
        most = MAX_UNKNOWN_RAD[self._mode]
        return any(unknown > most or changing > MAX_CHANGING_RAD for unknown, changing in skews)

    def _correct_keyframe(self, last: TrackedFrame, camera: Camera) -> None:
        """Where the last frame became a keyframe: its rows by the motions to and from it, of which it knew only the former.

        What is left is how the rate changes within its rows, by half of that at the outermost ones.
        """
        at, newest = self.motion.twist_before, len(self.window.keyframes) - 1
        if at is not None and self.window.keyframes[newest].id == last.id:
            self.window.set_twist(camera, newest, at.twist, at.change * camera.readout_s / 4)

    def _skew(self, camera: Camera, view: FeatureFrame | Keyframe) -> tuple[float, float]:
        """By how much the outermost rows may be turned, rad: as the readout time is not known, and as the rate changes between two images.

        The latter one camera takes for a translation; with measured depth it does not (fr1/rpy).
        """
        unknown = self.mapper.readout.skew_rad(camera, view.twist, self._mode)
        return unknown, view.rate_error * camera.readout_s / 2 if self._mode == "mono" else 0.0

    def _hold_pose(self, found: Localization, last: TrackedFrame, frame: Frame, recovered: bool) -> PoseEstimate:
        """The estimate, its pose held while the camera stands still."""
        estimate, matches = found.estimate, found.matches
        if recovered:
            self.motion.zero_motion.reset()
        elif found.cause is None:
            self.front_end.learn_inlier_ratio(found)
            rows, uv = matches.rows[estimate.inlier], matches.uv[estimate.inlier]
            seen = SeenLandmarks(
                self.window.landmarks.id[rows], frame.camera.undistort(uv.double()), matches.sigma_px[estimate.inlier]
            )
            zero_motion = self.motion.zero_motion
            since_ns = None if zero_motion.reference is None else zero_motion.reference.stamp_ns
            turned = None if since_ns is None else self.gyroscope.turned_since(since_ns, frame.stamp_ns)
            T_WC = zero_motion.apply(frame.camera, estimate.T_WC, seen, self.config.bundle, turned)
            estimate = replace(estimate, T_WC=T_WC)
            self.external.update_errors(T_WC, last.median_depth())
        return estimate

    def _becomes_keyframe(
        self, current: FeatureFrame, matches: LandmarkMatches, estimate: PoseEstimate, recovered: bool
    ) -> bool:
        if states.mapping_frozen(self.state):
            return False
        return recovered or bool(self.mapper.keyframe_reason(self.window, current, matches, estimate))

    def _remember(self, current: FeatureFrame, T_WC: Tensor, rows: Tensor, uv: Tensor) -> None:
        """Makes a frame with a pose (7,) the last one; `rows` (N,) of its landmarks at raw px `uv` (N, 2)."""
        frame, landmarks = current.frame, self.window.landmarks
        depth = geometry.act(geometry.inverse(T_WC), landmarks.points_W[rows])[:, 2]
        self.last = TrackedFrame(frame.id, frame.stamp_ns, current.features, T_WC, uv, depth)
        if self._mode == "mono":
            self.standing.add(landmarks.id[rows].numpy(), uv.numpy(), frame.camera.width)
        if not states.pose_unverified(self.state):
            uv_ideal = frame.camera.undistort(uv.double())
            self.motion.zero_motion.set_reference(frame.stamp_ns, landmarks.id[rows], uv_ideal, depth, T_WC)
        self.mapper.initializer.reset()
        self._lost_view = None

    # -- new maps -----------------------------------------------------------------------------------------------------

    def _start_again(self, current: FeatureFrame, last: TrackedFrame, context: Context) -> OdometryOutput:
        """Without a pose: after some frames a new map begins where the last pose was."""
        frames = states.frames_without_pose(self.state)
        ready = self._mode == "mono" or self._shows_again(current)
        if self._mode == "mono" or (ready and frames >= self.config.odometry.restart_frames):
            output = self._start_map(current, last, context)
            if output.T_WC is not None:
                return output
            return replace(output, reason=f"lost for {frames} frames; new start: {output.reason}")
        return self._without_pose(current.frame, f"lost for {frames} frames: too few matches agree on a pose")

    def _shows_again(self, current: FeatureFrame) -> bool:
        """Whether a frame without a pose shows what the one before it does: noise in the dark has corners too, which are never seen again.

        Not asked of a matcher without a wide baseline, which could find them near the last ones only.
        """
        if not self.matcher.wide_baseline:
            return True
        before = self._lost_view
        window = self.mapper.start_map(current, self._mode, None, self.window.next_id, self.gyroscope)
        self._lost_view = None if isinstance(window, str) else window
        return before is not None and self.front_end.sees(before, replace(current, rotation=None))

    def _start_map(self, current: FeatureFrame, last: TrackedFrame | None, context: Context) -> OdometryOutput:
        """Begins a map, where the last pose was if there is one: with depth at once, in mono when frames have enough parallax."""
        frame, again = current.frame, last is not None
        depth = None if last is None else last.median_depth()
        window = self.mapper.start_map(current, self._mode, depth, self.window.next_id, self.gyroscope)
        if isinstance(window, str):
            return self._without_pose(frame, window)
        T_origin = geometry.identity()
        if last is not None:
            T_origin = self._carry_on(last, window.keyframes[0].stamp_ns)
            self.map_id += 1
            self.motion.add_gap(last, frame.stamp_ns)
        self.gyroscope.restart()
        self.planar.begin_map()
        for row, (before, after) in enumerate(zip(window.keyframes, window.keyframes[1:]), 1):
            turned = self.gyroscope.between_keyframes(before.stamp_ns, after.stamp_ns)
            window.keyframes[row] = replace(after, turned=turned)
        self.scale.begin(window, self._mode, self.config.odometry.first_baseline_m > 0, again)
        window.move(T_origin)
        self.window = window
        self.state = states.transition(self.state, MapCreated(), context)
        self.front_end.usual_inlier_ratio = 0.0  # the new scene may be darker
        self._placed_skew_rad = 0.0
        self.relocalizer.database.clear()
        self.motion.start_map()
        at, T_WC = window.seen_at(len(window.keyframes) - 1), window.T_WC[-1]
        rows = ((at >= 0) & window.landmarks.triangulated).nonzero()[:, 0]
        uv = window.observations.uv[at[rows]]
        window.mark(frame.id, (at >= 0).nonzero()[:, 0], window.observations.uv[at[at >= 0]], rows[:0])
        self._remember(current, T_WC, rows, uv)
        self._candidate = KeyframeCandidate(current, T_WC, None)
        inlier, residual = torch.ones(len(rows), dtype=torch.bool), window.residuals(frame.camera)[0][at[rows]]
        support = PoseEstimate(T_WC, inlier, residual, torch.zeros(6, 6, dtype=torch.float64))
        return self._with_pose(frame, support, None)

    def _carry_on(self, last: TrackedFrame, to_ns: int) -> Tensor:
        """Where the camera (7,) has moved to without images, as far as other sensors know."""
        T_WC = self.external.carry_on(last.T_WC, last.stamp_ns, to_ns)
        prior = self.gyroscope.predict(last.T_WC, last.stamp_ns, to_ns)
        return T_WC if T_WC is not last.T_WC or prior is None else torch.cat([T_WC[:3], prior.q_WC])

    # -- keyframe work ------------------------------------------------------------------------------------------------

    def extend(self) -> BAResult | None:
        """After `track`: when its frame became a keyframe, finds new landmarks and adjusts the window; else does nothing."""
        with torch.inference_mode():
            result = self._extend()
        return None if result is None else ordinary(result)

    def _extend(self) -> BAResult | None:
        candidate, self._candidate, self.rescaled = self._candidate, None, None
        if candidate is None or self.last is None:
            return None
        result = self.mapper.extend(self.window, self.relocalizer.database, candidate, self._mode)
        T_WC = self.window.T_WC[-1]
        if self._mode == "stereo":
            o = self.window.observations
            newest = o.kind[o.kf == len(self.window.keyframes) - 1]
            self.inputs.check_keyframe(
                float((newest == int(ObservationKind.STEREO)).double().mean()), self.config.odometry
            )
        self.bodies.add_new_landmarks(self.window, candidate.current)
        self.motion.zero_motion.follow_adjustment(self.last.T_WC, T_WC)
        self.gyroscope.follow_adjustment(self.last.T_WC, T_WC)
        self.last = replace(self.last, T_WC=T_WC.clone())
        if result is None:
            return None
        if self.mapper.bias is not None:
            self.gyroscope.learn_bias(self.mapper.bias)
        self.motion.covariance.propagate(result, self.window.keyframe_dropped)
        self._level(result)
        factor = self.scale.correct(self.window) if self._mode == "mono" else None
        if factor is not None:
            self._rescale(factor, self.last)
        return result

    def _level(self, result: BAResult) -> None:
        """Moves the map towards the plane of a wheeled robot."""
        if not self.planar.used:
            return
        window = self.window
        depth = window.median_depth(len(window.keyframes) - 1)
        T = self.planar.correct(window.T_WC, result, window.keyframe_dropped, depth)
        if T is None or self.last is None:
            return
        window.move(T)
        self.relocalizer.database.move(T)
        self.motion.move(T)
        self.bodies.move(T)
        self.last = replace(self.last, T_WC=geometry.compose(T, self.last.T_WC))

    def _rescale(self, factor: float, last: TrackedFrame) -> None:
        """Scales the map about the camera: the pose does not jump, only motion from here on is measured in the new unit."""
        centre = last.T_WC[:3].clone()
        self.window.rescale(factor, centre)
        self.relocalizer.database.rescale(factor, centre)
        self.motion.rescale(factor, centre)
        self.bodies.forget_frames()
        self.planar.rescale(factor, centre)
        self.last = replace(last, depth=last.depth * factor)
        self.rescaled = factor, centre

    # -- learning -----------------------------------------------------------------------------------------------------

    def take_solved(self) -> SolvedWindow | None:
        """The newest window that bundle adjustment solved to convergence, for the learner; each is returned once."""
        return self.mapper.take_solved()

    @property
    def healthy(self) -> bool:
        """Whether the newest window may be learned from."""
        return self.state.healthy

    @property
    def tracking_failed(self) -> bool:
        """Whether a usable image gave no pose, or one that is unverified, found again or of a new map, and that began with the
        weights in use."""
        return self.state.failing_version == self.matcher.weights_version

    def adopt(self, weights: WeightsSnapshot, features: Mapping[int, Features]) -> None:
        """Swaps the matcher's weights, between two frames; `features` of keyframes by frame id, made by those weights.

        Landmarks are described again at their host keyframe, or at the newest keyframe that saw them where the host has left.
        """
        self.matcher.load_state_dict(weights.state)
        self.matcher.weights_version = weights.version
        self.mapper.take_solved()
        self.window.renew_features(self.matcher, features)
        self.mapper.initializer.reset()
        self._lost_view = None

    # -- what is published --------------------------------------------------------------------------------------------

    def _with_pose(self, frame: Frame, estimate: PoseEstimate, published: Matches | None) -> OdometryOutput:
        inliers, state = int(estimate.inlier.sum()), self.state
        in_map = estimate.covariance
        if self.inputs.frozen and self.last is not None:
            in_map = in_map + self.motion.possible(self.last, self.inputs.frozen_s)
        return replace(
            self._without_pose(frame, ""),
            state=state.published,
            reason=state.cause.value.format(inliers=inliers) if isinstance(state, Unverified) else "",
            T_WC=estimate.T_WC,
            covariance=self.motion.covariance.at(estimate.T_WC) + in_map,
            covariance_in_map=in_map,
            covariance_of_step=self.motion.covariance_of_step,
            inliers=inliers,
            is_keyframe=self._candidate is not None,
            matches=published,
        )

    def _without_pose(self, frame: Frame, reason: str) -> OdometryOutput:
        """Not yet, or not any more; a blank image leaves the state as it was, but there is no pose to publish."""
        return OdometryOutput(
            frame_id=frame.id,
            stamp_ns=frame.stamp_ns,
            state=TrackingState.UNINITIALIZED if self.last is None else TrackingState.LOST,
            reason=reason,
            T_WC=None,
            covariance=None,
            inliers=0,
            is_keyframe=False,
            metric=self._mode != "mono" or self.scale.source != "",
            map_id=self.map_id,
            matches=None,
            weights_version=self.matcher.weights_version,
            scale=self.scale.describe(self._mode),
        )
