"""Visual odometry: every frame is matched against the landmarks of the window, located and published; keyframes extend the map.

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
from .motion import Drift
from .initialization import MonoStart, Start
from .mapper import Progress, keyframe_reason
from .mapper import Fresh, Mapper, Solved
from ..matching.base import Features, Matcher
from .external_odometry import ExternalOdometry
from .relocalization import Places, place_of, recall, shows_nothing
from .external_odometry import Scale
from .front_end import LandmarkSearch, Tracked
from .motion import Stillness
from .front_end import Located, Sighting
from .local_map import Window

_CLOSE = 0.3  # of the search radius: where the second attempt looks
_LOOSE = 4.0  # times the inlier threshold, for a first pose after a gap
_PLACES = 2  # older places tried per frame when lost
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
        self._places = Places(self.config.odometry.stored_keyframes)
        self._mono = MonoStart(self.config.odometry, self.config.bundle, self.matcher)
        self._last: Tracked | None = None
        self._twist = torch.zeros(6, dtype=torch.float64)  # per second
        self._fastest = torch.zeros(2, dtype=torch.float64)  # m/s and rad/s, of late
        self._drift = Drift()
        self._stillness = Stillness()
        self._fresh: Fresh | None = None
        self._solved: Solved | None = None
        self._lost = 0  # usable frames in a row without a pose
        self._settling = 0
        self._long = False  # no pose for long
        self._falters_since: int | None = None  # version of the weights with which this began
        # A usable image gave no pose, or one that is doubtful, found again, or of a new map; and that began with these weights.
        self.faltered = False
        self._widened = False  # for this doubt the covariance has grown already
        self._unsure = False  # the last pose may be wrong,
        self._wild = False  # and the map does not grow from it
        self._agreement = front_end.Agreement()
        self._most = 0  # landmarks of the newest keyframe that one frame has found again

    def configure(self, config: Config) -> None:
        """Takes other settings over, between two frames; the map stays. What acts at the start only keeps its effect."""
        self._take(config)
        self._places.capacity = config.odometry.stored_keyframes
        self._mono.configure(config.odometry, config.bundle)

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
        self._fresh = None
        if not self._mode:  # later frames may lack their partner: they are tracked by what was seen before
            self._mode = measurements.resolve_mode(frame, self.config.odometry.mode)
        image = as_grey(frame.image)
        features = self.matcher.observe(image)
        clock.lap("features")
        blank = shows_nothing(image)
        if blank:
            output = self._nothing(frame, blank)
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
            self.faltered = self._falters_since == self.matcher.weights_version
        return replace(output, timings_ms=clock.laps)

    def _follow(self, frame: Frame, image: Tensor, features: Features, clock: Clock) -> OdometryOutput:
        camera = frame.camera
        self._long = frame.stamp_ns - self._last.stamp_ns > _LONG_NS  # lost, covered, or no images: it may be anywhere
        T_steady, radius_px = self._predict(frame)
        T_given = self.input.predict(self._last.T_WC, self._last.stamp_ns, frame.stamp_ns, T_steady)
        hidden: tuple[Sighting, Located] | None = None
        least = front_end.FIRM if self._lost or self._long or self._unsure else front_end.DOUBTED
        for T_predicted in (T_steady,) if T_given is None else (T_given, T_steady):  # external odometry may be wrong
            sighting = self._search.near(self.window, self._last, camera, features, T_predicted, radius_px)
            clock.lap("match")
            located = self._search.locate(self.window, camera, sighting, T_predicted)
            clock.lap("pose")
            if located is None:
                continue
            if self._agreement.of(sighting, located, self.config.odometry.inlier_px) >= least:
                return self._accept(frame, image, features, sighting, located)
            support = self._search.support(self.window, camera, sighting, located) / self._agreement.usual
            if support >= front_end.WHOLE:
                return self._accept(frame, image, features, sighting, located)
            if support >= front_end.PARTLY:
                hidden = sighting, located
        located = None
        if self.matcher.wide_baseline:
            sighting, located = self._search_again(
                camera, features, T_steady if T_given is None else T_given, radius_px
            )
        if located is None:
            sighting, located = self._recognise(frame, image, features)
        if located is None and hidden is not None and not (self._lost or self._long):
            self._wild = True  # corners of what hides the image make no map
            return self._accept(
                frame, image, features, *hidden, doubt="most landmarks are not found; something may hide the image"
            )
        if located is None:
            return self._lose(frame, image, features)
        firm = self._agreement.of(sighting, located, self._closer(camera) / front_end.BEYOND) >= front_end.FIRM
        if not firm and not self._widened:
            self._drift.add(self._uncertainty(frame), self._last.T_WC)
        self._widened = not firm
        self._lost = max(self._lost, 0 if firm else 1)
        return self._accept(
            frame,
            image,
            features,
            sighting,
            located,
            doubt="" if firm else "found again, but few landmarks are where this pose has them",
        )

    def _search_again(
        self, camera: Camera, features: Features, T_predicted: Tensor, radius_px: float
    ) -> tuple[Sighting, Located | None]:
        """After a gap: searches closer, for alike things nearby mislead a matcher, then everywhere, for the prediction may be wrong.

        Old landmarks are known less well from a new place, so a loose pose comes first; it guides the search that decides.
        """
        look, window = self._search, self.window
        for attempt in range(2):
            sighting = (
                look.near(window, self._last, camera, features, T_predicted, radius_px * _CLOSE, again=True)
                if attempt == 0
                else look.everywhere(window, features)
            )
            loose = look.locate(window, camera, sighting, T_predicted if attempt == 0 else None, looser=_LOOSE)
            if loose is not None:
                sighting, located = self._confirm(
                    camera, features, loose, front_end.FIRM if self._lost or self._long else front_end.REFUSED
                )
                if located is not None:
                    return sighting, located
        return sighting, None

    def _closer(self, camera: Camera) -> float:
        """How far around its place a landmark is searched for in a second look, px."""
        c = self.config.odometry
        return max(c.search_radius * camera.width * _CLOSE, front_end.BEYOND * c.inlier_px)

    def _confirm(
        self, camera: Camera, features: Features, loose: Located, least: float
    ) -> tuple[Sighting, Located | None]:
        """Searches close to where a loose pose puts the landmarks. When it is right many are there; of a place that only looks alike
        few are, and of these little more lie within the inliers' bound than chance puts there. `least`: of the usual share."""
        radius_px = self._closer(camera)
        sighting = self._search.near(self.window, self._last, camera, features, loose.T_WC, radius_px, again=True)
        located = self._search.locate(self.window, camera, sighting, loose.T_WC, looser=_LOOSE / 2)
        if located is not None and self._agreement.of(sighting, located, radius_px / front_end.BEYOND) < least:
            located = None
        return sighting, located

    def _predict(self, frame: Frame) -> tuple[Tensor, float]:
        """Where the camera should be by constant velocity, and how far around a landmark's place to search, in px."""
        dt = (frame.stamp_ns - self._last.stamp_ns) * 1e-9
        radius = self.config.odometry.search_radius * frame.camera.width
        return geometry.retract(self._last.T_WC, self._twist * dt), radius

    def _accept(
        self, frame: Frame, image: Tensor, features: Features, sighting: Sighting, located: Located, doubt: str = ""
    ) -> OdometryOutput:
        """Takes over the pose, notes what was seen, and decides whether this becomes a keyframe. `doubt`: why the pose may be wrong."""
        c, landmarks = self.config.odometry, self.window.landmarks
        good = located.inlier | ~landmarks.resolved[sighting.rows]
        wrong = sighting.rows[~good]
        recovered = self._lost > 0 or self._long
        if recovered:
            self._stillness.forget()
        elif not doubt:
            self._agreement.note(sighting, located, c.inlier_px)
            rows, uv = sighting.rows[located.inlier], frame.camera.undistort(sighting.uv[located.inlier].double())
            located = self._stillness.hold(
                frame.camera, located, landmarks.id[rows], uv, sighting.sigma_px[located.inlier], self.config.bundle
            )
            self.input.judge(located.T_WC, float(self._last.depth.median()))
        # A map that grew from a wrong pose would agree with it ever after.
        self._wild = bool(doubt) and (self._wild or not self._within_reach(frame, located.T_WC))
        why = (
            ""
            if self._wild
            else "recovered"
            if recovered
            else keyframe_reason(self._progress(frame, sighting, located), c)
        )
        matches = self._matches(frame, sighting, located)
        dt = (frame.stamp_ns - self._last.stamp_ns) * 1e-9
        self._twist = self._twist * 0 if recovered or dt <= 0 else geometry.local(self._last.T_WC, located.T_WC) / dt
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
            sighting.rows[good],
            sighting.uv[good],
            wrong[:0] if doubt else torch.cat([sighting.missed, wrong]),
        )
        self._remember(frame, features, located.T_WC, sighting.rows[located.inlier], sighting.uv[located.inlier])
        if why:
            kept = Sighting(
                sighting.rows[good], sighting.uv[good], sighting.score[good], sighting.sigma_px[good], wrong
            )
            self._fresh, self._most = Fresh(frame, image, features, located.T_WC, kept), 0
        inliers = int(located.inlier.sum())
        if doubt:
            return self._output(frame, TrackingState.DEGRADED, f"{doubt} ({inliers} agree)", located, matches)
        if inliers < c.degraded_inliers:
            return self._output(
                frame, TrackingState.DEGRADED, f"only {inliers} matches agree with the pose", located, matches
            )
        return self._output(frame, TrackingState.TRACKING, "", located, matches)

    def _remember(self, frame: Frame, features: Features, T_WC: Tensor, rows: Tensor, uv: Tensor) -> None:
        points_C = geometry.act(geometry.inverse(T_WC), self.window.landmarks.points_W[rows])
        self._last = Tracked(frame.id, frame.stamp_ns, features, T_WC, uv, points_C[:, 2])
        if not self._unsure:
            self._stillness.note(
                self.window.landmarks.id[rows], frame.camera.undistort(uv.double()), points_C[:, 2], T_WC
            )
        self._lost = 0
        self._mono = MonoStart(self.config.odometry, self.config.bundle, self.matcher)

    def _progress(self, frame: Frame, sighting: Sighting, located: Located) -> Progress:
        camera, o = frame.camera, self.window.observations
        at, _ = self.window.seen_at(len(self.window.keyframes) - 1)
        # Only what more than one keyframe has seen: many a new corner, with a depth but no second view, is never seen again.
        firm = (at >= 0) & self.window.landmarks.resolved & (self.window.views() >= min(2, len(self.window.keyframes)))
        both = located.inlier & firm[sighting.rows]
        # A matcher never finds all of them again: the best frame since then is the measure, if it found most.
        self._most = max(self._most, int(both.sum()))
        total = max(self._most, _MOST * int(firm.sum()), 1.0)
        now = camera.undistort(sighting.uv[both].double())
        before = o.obs[at[sighting.rows[both]], :2]
        time_s = (frame.stamp_ns - self.window.keyframes[-1].stamp_ns) * 1e-9
        if len(now) == 0:
            return Progress(0.0, float("inf"), float("inf"), time_s, camera.width)
        turned = geometry.relative(located.T_WC, self.window.T_WC[-1])[3:]
        rotated = geometry.project(camera, geometry.rotate(turned, geometry.rays(camera, before)))
        return Progress(
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
            start = self._mono.offer(frame, features)
            # A map that replaces a lost one keeps its scale as well as the scene allows: by the median depth.
            depth = float(self._last.depth.median()) if self._last is not None else None
            window = self._mapper.start_mono(start, depth, self.window.next_id) if isinstance(start, Start) else start
        else:
            window = self._mapper.start_metric(frame, image, features, self._mode, self.window.next_id)
        if isinstance(window, str):
            return self._nothing(frame, window)
        T_origin = self._origin(window.keyframes[0].stamp_ns)
        self._scale.begin(window, self._mode, self.config.odometry.first_baseline_m > 0, again=self._last is not None)
        if self._last is not None:
            self.map_id += 1
            self._drift.add(self._uncertainty(frame), self._last.T_WC)
            self._settling = _SETTLING
        window.move(T_origin)
        self.window = window
        self._unsure = self._wild = False
        self._agreement.forget()
        self._stillness.forget()
        self._places.clear()
        at, _ = window.seen_at(len(window.keyframes) - 1)
        rows = ((at >= 0) & window.landmarks.resolved).nonzero()[:, 0]
        uv = window.observations.uv[at[rows]]
        window.mark(frame.id, (at >= 0).nonzero()[:, 0], window.observations.uv[at[at >= 0]], rows[:0])
        self._twist = torch.zeros(6, dtype=torch.float64)
        self._remember(frame, features, window.T_WC[-1], rows, uv)
        self._fresh = Fresh(frame, image, features, window.T_WC[-1], None)
        residual = window.residuals(frame.camera)[0][at[rows]]
        support = Located(
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

    def _recognise(self, frame: Frame, image: Tensor, features: Features) -> tuple[Sighting, Located | None]:
        """Tries the keyframes that look most alike; with one that has left the window, the window begins again."""
        c, camera, kept = self.config.odometry, frame.camera, self.window
        for place in self._places.most_alike(image, _PLACES, kept):
            inside = [k for k, keyframe in enumerate(kept.keyframes) if keyframe.id == place.id]
            if inside:
                self.window, rows = kept, kept.resolved_in(inside[0])
                queries = self.matcher.describe(kept.keyframes[inside[0]].features, place.uv.to(self.matcher.device))
            else:
                self.window, queries = recall(place, camera, self.matcher, c.corner_sigma_px, kept.next_id)
                rows = torch.arange(len(place.uv))
            sighting = self._search.look(
                rows, queries, features, None if self.matcher.wide_baseline else place.uv, None
            )
            located = self._search.locate(self.window, camera, sighting, None)
            if located is not None and self.matcher.wide_baseline:
                sighting, located = self._confirm(camera, features, located, front_end.FIRM)
            if located is not None and int(located.inlier.sum()) >= c.degraded_inliers:
                self._lost = max(self._lost, 1)
                if self.window is not kept:
                    for row in range(len(kept.keyframes)):
                        self._places.remember(place_of(kept, row))
                return sighting, located
        self.window = kept
        return sighting, None

    # -- keyframe work ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def extend(self) -> BAResult | None:
        """After `track`: when its frame became a keyframe, finds new landmarks and adjusts the window; else does nothing."""
        fresh, self._fresh, self.rescaled = self._fresh, None, None
        if fresh is None:
            return None
        adjusted = self._mapper.extend(self.window, self._places, fresh, self._mode)
        self._stillness.correct(self._last.T_WC, self.window.T_WC[-1])
        self._last = replace(self._last, T_WC=self.window.T_WC[-1].clone())
        if adjusted is None:
            return None
        self._drift.note(adjusted.result, self.window.slid)
        self._solved = adjusted.solved
        factor = self._scale.correct(self.window) if self._mode == "mono" else None
        if factor is not None:
            self._rescale(factor)
        return adjusted.result

    def _rescale(self, factor: float) -> None:
        """Scales the map about the camera: the pose does not jump, only motion from here on is measured in the new unit."""
        centre = self._last.T_WC[:3].clone()
        self.window.rescale(factor, centre)
        self._places.rescale(factor, centre)
        self._drift.rescale(factor, centre)
        self._last = replace(self._last, depth=self._last.depth * factor)
        self._stillness.forget()
        self._twist = torch.cat([self._twist[:3] * factor, self._twist[3:]])
        self._fastest = self._fastest * torch.tensor([factor, 1.0], dtype=torch.float64)
        self.rescaled = factor, centre

    def take_solved(self) -> Solved | None:
        """The newest window that bundle adjustment solved to convergence, for the learner; each is returned once."""
        solved, self._solved = self._solved, None
        return None if solved is None or solved.result.status is not BAStatus.CONVERGED else solved

    @property
    def healthy(self) -> bool:
        """Whether the newest window may be learned from."""
        return self._settling == 0 and self._lost == 0

    def adopt(self, state: WeightsSnapshot, features: Mapping[int, Features]) -> None:
        """Swaps the matcher's weights, between two frames; `features` of keyframes by frame id, made by those weights.

        Landmarks are described again from their anchor, or from the newest keyframe that saw them where the anchor has left.
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
        self._mono = MonoStart(self.config.odometry, self.config.bundle, self.matcher)

    # -- what is published --------------------------------------------------------------------------------------------

    def _matches(self, frame: Frame, sighting: Sighting, located: Located) -> Matches:
        """Between the newest keyframe and this frame."""
        newest = self.window.keyframes[-1]
        at, _ = self.window.seen_at(len(self.window.keyframes) - 1)
        both = (at[sighting.rows] >= 0).nonzero()[:, 0]
        rows = sighting.rows[both]
        return Matches(
            newest.id,
            frame.id,
            newest.stamp_ns,
            frame.stamp_ns,
            self.window.observations.uv[at[rows]],
            sighting.uv[both],
            sighting.score[both],
            sighting.sigma_px[both],
            located.residual_px[both].float(),
            located.inlier[both],
            self.window.landmarks.id[rows],
            self.matcher.weights_version,
        )

    def _output(
        self, frame: Frame, state: TrackingState, reason: str, located: Located, matches: Matches | None
    ) -> OdometryOutput:
        return OdometryOutput(
            frame.id,
            frame.stamp_ns,
            state,
            reason,
            located.T_WC.clone(),
            self._drift.at(located.T_WC) + located.covariance,
            int(located.inlier.sum()),
            self._fresh is not None,
            self._metric,
            self.map_id,
            matches,
            None,
            self.matcher.weights_version,
            scale=self._scale.describe(self._mode),
            covariance_in_map=located.covariance,
        )

    def _nothing(self, frame: Frame, reason: str) -> OdometryOutput:
        """No pose: not yet, or not any more."""
        state = TrackingState.INITIALIZING if self._last is None else TrackingState.LOST
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
