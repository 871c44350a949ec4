"""Visual odometry: every frame is matched against the landmarks of the window, located and published; keyframes extend the map.

`track` tells the story of one frame: features, prediction, matches, pose, or recovery. `extend` does what a new keyframe
needs, after the pose was published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import depths, geometry
from .camera import Camera
from .config import Config
from .corners import spread
from .datatypes import BAResult, BAStatus, Frame, LearningSample, Matches, OdometryOutput, TrackingState, WeightsSnapshot, as_grey
from .drift import Drift
from .initialization import MonoStart, Start
from .keyframes import Progress, keyframe_reason
from .mapping import Fresh, Mapper, Sighting
from .matching.base import Features, Matcher, Prediction, Queries
from .recovery import Places, recall, shows_nothing
from .samples import Solved, take_sample
from .tracking import Located, locate
from .window import Window

_MISSES = 5  # a landmark searched in vain in so many frames in a row is not searched any more
_CLOSE = 0.3  # of the search radius: where the second attempt looks
_LOOSE = 4.0  # times the inlier threshold, for a first pose after a gap
_PLACES = 2  # older places tried per frame when lost
_MOST = 0.6  # share of a keyframe's landmarks that a frame must find again to be the measure for those after it
_SETTLING = 5  # frames after a recovery whose windows are not learned from


@dataclass(frozen=True)
class Tracked:
    """The last frame with a pose."""

    id: int
    stamp_ns: int
    features: Features
    T_WC: Tensor  # (7,) float64
    uv: Tensor  # (N, 2) float32 raw px of its inliers
    depth: Tensor  # (N,) float64


class Clock:
    """Collects the time that each part of a frame takes, ms."""

    read: Callable[[], float] = staticmethod(time.perf_counter)  # s; a benchmark may count processor time instead

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = Clock.read()

    def lap(self, name: str) -> None:
        """Ends a part."""
        now = Clock.read()
        self.laps[name] = self.laps.get(name, 0.0) + (now - self._since) * 1e3
        self._since = now


class Odometry:
    """Owned by one thread; what it returns is safe to hand to others."""

    def __init__(self, config: Config, matcher: Matcher) -> None:
        self.config = config
        self.matcher = matcher
        self._mapper = Mapper(config, matcher)
        self.reset()

    def reset(self) -> None:
        """Forgets the map, the motion and every count; the weights stay."""
        self.window = Window()
        self._mode = ""
        self._places = Places(self.config.odometry.stored_keyframes)
        self._mono = MonoStart(self.config.odometry, self.config.bundle, self.matcher)
        self._last: Tracked | None = None
        self._twist = torch.zeros(6, dtype=torch.float64)  # per second
        self._drift = Drift()
        self._fresh: Fresh | None = None
        self._solved: Solved | None = None
        self._bundle: BAResult | None = None
        self._lost = 0  # usable frames in a row without a pose
        self._settling = 0
        self._map_id = 0
        self._most = 0  # landmarks of the newest keyframe that one frame has found again

    # -- one frame ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def track(self, frame: Frame) -> OdometryOutput:
        """The pose of a frame from its own matches.

        Raises:
            SourceError, CameraError: the configured mode needs a depth or right image that the frame does not carry.
        """
        clock = Clock()
        self._fresh = None
        self._mode = depths.resolve_mode(frame, self._mode or self.config.odometry.mode)
        image = as_grey(frame.image)
        features = self.matcher.observe(image)
        clock.lap("features")
        blank = shows_nothing(image)
        if blank:
            output = self._nothing(frame, blank)
        elif not self.window.keyframes:
            output = self._start(frame, image, features, geometry.identity())
        else:
            output = self._follow(frame, image, features, clock)
        clock.lap("pose")
        return replace(output, timings_ms=clock.laps)

    def _follow(self, frame: Frame, image: Tensor, features: Features, clock: Clock) -> OdometryOutput:
        camera = frame.camera
        T_predicted, radius_px = self._predict(frame)
        sighting = self._search(camera, features, T_predicted, radius_px)
        clock.lap("match")
        located = self._locate(camera, sighting, T_predicted)
        if located is None and self.matcher.wide_baseline:
            sighting, located = self._search_again(camera, features, T_predicted, radius_px)
        if located is None:
            sighting, located = self._recognise(frame, image, features)
        if located is None:
            return self._lose(frame, image, features)
        return self._accept(frame, image, features, sighting, located)

    def _search_again(self, camera: Camera, features: Features, T_predicted: Tensor, radius_px: float) -> tuple[Sighting, Located | None]:
        """After a gap: searches closer, for alike things nearby mislead a matcher, then everywhere, for the prediction may be wrong.

        Old landmarks are known less well from a new place, so a loose pose comes first; it guides the search that decides.
        """
        for attempt in range(2):
            sighting = self._search(camera, features, T_predicted, radius_px * _CLOSE) if attempt == 0 else self._search_everywhere(features)
            loose = self._locate(camera, sighting, T_predicted if attempt == 0 else None, looser=_LOOSE)
            if loose is not None:
                sighting = self._search(camera, features, loose.T_WC, radius_px * _CLOSE)
                located = self._locate(camera, sighting, loose.T_WC, looser=_LOOSE / 2)
                if located is not None:
                    return sighting, located
        return sighting, None

    def _predict(self, frame: Frame) -> tuple[Tensor, float]:
        """Where the camera should be by constant velocity, and how far around a landmark's place to search, in px."""
        dt = (frame.stamp_ns - self._last.stamp_ns) * 1e-9
        radius = self.config.odometry.search_radius * frame.camera.width
        return geometry.retract(self._last.T_WC, self._twist * dt), radius

    def _search(self, camera: Camera, features: Features, T_WC: Tensor, radius_px: float) -> Sighting:
        """Looks for the window's landmarks where the predicted pose puts them."""
        c, landmarks = self.config.odometry, self.window.landmarks
        if self.matcher.wide_baseline:
            rows = (landmarks.resolved & (landmarks.misses < _MISSES)).nonzero()[:, 0]
            predicted, inside = _project(camera, T_WC, landmarks.points_W[rows])
            rows, predicted = rows[inside], predicted[inside]
            rank = landmarks.misses[rows] * 100 - self.window.views()[rows]
            chosen = spread(predicted, rank.float(), c.landmarks_per_frame, camera.width, camera.height)
            rows, predicted = rows[chosen], predicted[chosen]
            queries = self.window.queries.select(rows.to(self.matcher.device))
        else:
            rows = (landmarks.seen == self._last.id).nonzero()[:, 0]
            uv = landmarks.uv_last[rows]
            queries = self.matcher.describe(self._last.features, uv)
            nearest = torch.cdist(uv, self._last.uv).argmin(1)
            guess = geometry.back_project(camera, camera.undistort(uv.double()), self._last.depth[nearest])
            points_W = torch.where(landmarks.resolved[rows, None], landmarks.points_W[rows], geometry.act(self._last.T_WC, guess))
            predicted, inside = _project(camera, T_WC, points_W)
            predicted, radius_px = torch.where(inside[:, None], predicted, uv), 3 * radius_px
        return self._sighting(rows, queries, features, predicted, radius_px)

    def _search_everywhere(self, features: Features) -> Sighting:
        """Looks for landmarks in the whole picture, the best supported first."""
        rows = self.window.landmarks.resolved.nonzero()[:, 0]
        rows = rows[self.window.views()[rows].argsort(descending=True, stable=True)][: self.config.odometry.landmarks_per_frame]
        return self._sighting(rows, self.window.queries.select(rows.to(self.matcher.device)), features, None, None)

    def _sighting(self, rows: Tensor, queries: Queries, features: Features, predicted: Tensor | None, radius_px: float | None) -> Sighting:
        if len(rows) == 0:
            return Sighting(rows, torch.zeros(0, 2), torch.zeros(0), torch.zeros(0), rows)
        at = None if predicted is None else predicted[None].float().to(self.matcher.device)
        found: Prediction = self.matcher.estimate(queries, [features], at, radius_px)
        score = found.score[0].cpu()
        ok = score >= self.config.odometry.min_score
        return Sighting(rows[ok], found.uv[0].cpu().float()[ok], score[ok], found.sigma_px[0].cpu()[ok], rows[~ok])

    def _locate(self, camera: Camera, sighting: Sighting, T_guess: Tensor | None, looser: float = 1.0) -> Located | None:
        """The pose, inliers within `looser` times the usual; `inlier` and `residual_px` have one row per row of the sighting."""
        c = self.config.odometry
        c = c if looser == 1 else replace(c, inlier_px=c.inlier_px * looser)
        uv = camera.undistort(sighting.uv.double())
        used = (self.window.landmarks.resolved[sighting.rows] & torch.isfinite(uv).all(1)).nonzero()[:, 0]
        located = locate(camera, uv[used], self.window.landmarks.points_W[sighting.rows[used]], sighting.sigma_px[used], T_guess, c,
                         self.config.bundle)
        if located is None:
            return None
        inlier, residual = torch.zeros(len(uv), dtype=torch.bool), torch.full((len(uv),), torch.nan, dtype=torch.float64)
        inlier[used], residual[used] = located.inlier, located.residual_px
        return replace(located, inlier=inlier, residual_px=residual)

    def _accept(self, frame: Frame, image: Tensor, features: Features, sighting: Sighting, located: Located) -> OdometryOutput:
        """Takes over the pose, notes what was seen, and decides whether this becomes a keyframe."""
        c, landmarks = self.config.odometry, self.window.landmarks
        good = located.inlier | ~landmarks.resolved[sighting.rows]
        wrong = sighting.rows[~good]
        recovered = self._lost > 0
        why = "recovered" if recovered else keyframe_reason(self._progress(frame, sighting, located), c)
        matches = self._matches(frame, sighting, located)
        dt = (frame.stamp_ns - self._last.stamp_ns) * 1e-9
        self._twist = self._twist * 0 if recovered or dt <= 0 else geometry.local(self._last.T_WC, located.T_WC) / dt
        self._settling = _SETTLING if recovered else max(0, self._settling - 1)
        self.window.mark(frame.id, sighting.rows[good], sighting.uv[good], torch.cat([sighting.missed, wrong]))
        self._remember(frame, features, located.T_WC, sighting.rows[located.inlier], sighting.uv[located.inlier])
        if why:
            kept = Sighting(sighting.rows[good], sighting.uv[good], sighting.score[good], sighting.sigma_px[good], wrong)
            self._fresh, self._most = Fresh(frame, image, features, located.T_WC, kept), 0
        inliers = int(located.inlier.sum())
        if inliers < c.degraded_inliers:
            return self._output(frame, TrackingState.DEGRADED, f"only {inliers} matches agree with the pose", located, matches)
        return self._output(frame, TrackingState.TRACKING, "", located, matches)

    def _remember(self, frame: Frame, features: Features, T_WC: Tensor, rows: Tensor, uv: Tensor) -> None:
        points_C = geometry.act(geometry.inverse(T_WC), self.window.landmarks.points_W[rows])
        self._last = Tracked(frame.id, frame.stamp_ns, features, T_WC, uv, points_C[:, 2])
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
        return Progress(len(now) / total, float((rotated - now).norm(dim=1).median()), float((before - now).norm(dim=1).median()),
                        time_s, camera.width)

    # -- starting, and starting again ---------------------------------------------------------------------------------

    def _start(self, frame: Frame, image: Tensor, features: Features, T_origin: Tensor) -> OdometryOutput:
        """Begins a map at `T_origin`: with depth at once, in mono when frames have enough parallax."""
        if self._mode == "mono":
            start = self._mono.offer(frame, features)
            # A map that replaces a lost one keeps its scale as well as the scene allows: by the median depth.
            scale = float(self._last.depth.median()) if self._last is not None else None
            window = self._mapper.start_mono(start, scale) if isinstance(start, Start) else start
        else:
            window = self._mapper.start_metric(frame, image, features, self._mode)
        if isinstance(window, str):
            return self._nothing(frame, window)
        if self._last is not None:
            self._map_id += 1
            self._drift.add(self._uncertainty(frame), self._last.T_WC)
            self._settling = _SETTLING
        window.move(T_origin)
        self.window = window
        self._places.clear()
        at, _ = window.seen_at(len(window.keyframes) - 1)
        rows = ((at >= 0) & window.landmarks.resolved).nonzero()[:, 0]
        uv = window.observations.uv[at[rows]]
        window.mark(frame.id, (at >= 0).nonzero()[:, 0], window.observations.uv[at[at >= 0]], rows[:0])
        self._twist = torch.zeros(6, dtype=torch.float64)
        self._remember(frame, features, window.T_WC[-1], rows, uv)
        self._fresh = Fresh(frame, image, features, window.T_WC[-1], None)
        residual = window.residuals(frame.camera)[0][at[rows]]
        support = Located(window.T_WC[-1], torch.ones(len(rows), dtype=torch.bool), residual, torch.zeros(6, 6, dtype=torch.float64))
        return self._output(frame, TrackingState.TRACKING, "", support, None)

    def _lose(self, frame: Frame, image: Tensor, features: Features) -> OdometryOutput:
        """Counts a frame without a pose; after some, a new map begins where the last pose was."""
        self._lost += 1
        if self._mode == "mono" or self._lost >= self.config.odometry.restart_frames:
            output = self._start(frame, image, features, self._last.T_WC)
            if output.T_WC is not None:
                return output
            return replace(output, reason=f"lost for {self._lost} frames; new start: {output.reason}")
        return self._nothing(frame, f"lost for {self._lost} frames: too few matches agree on a pose")

    def _uncertainty(self, frame: Frame) -> Tensor:
        """Covariance (6, 6) of having stayed at the last pose, while the camera may have gone on as it did."""
        dt = (frame.stamp_ns - self._last.stamp_ns) * 1e-9
        gone = (self._twist * dt).square()
        return torch.diag(torch.cat([gone[:3].sum().clamp_min(1e-4).expand(3), gone[3:].sum().clamp_min(1e-4).expand(3)]))

    def _recognise(self, frame: Frame, image: Tensor, features: Features) -> tuple[Sighting, Located | None]:
        """Tries the keyframes that look most alike; the window then begins again with the one that fits."""
        c, camera, kept = self.config.odometry, frame.camera, self.window
        for place in self._places.most_alike(image, _PLACES, kept):
            self.window, queries = recall(place, camera, self.matcher, c.corner_sigma_px)
            rows = torch.arange(len(place.uv))
            sighting = self._sighting(rows, queries, features, None if self.matcher.wide_baseline else place.uv, None)
            located = self._locate(camera, sighting, None)
            if located is not None and int(located.inlier.sum()) >= c.degraded_inliers:
                self._lost = max(self._lost, 1)
                return sighting, located
        self.window = kept
        return sighting, None

    # -- keyframe work ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def extend(self) -> BAResult | None:
        """After `track`: when its frame became a keyframe, finds new landmarks and adjusts the window; else does nothing."""
        fresh, self._fresh = self._fresh, None
        if fresh is None:
            return None
        adjusted = self._mapper.extend(self.window, self._places, fresh, self._mode)
        self._last = replace(self._last, T_WC=self.window.T_WC[-1].clone())
        if adjusted is None:
            return None
        self._drift.note(adjusted.result, self.window.slid)
        self._solved = adjusted.solved
        return adjusted.result

    def sample(self) -> LearningSample | None:
        """The newest window that bundle adjustment solved to convergence, for the learner; each is given once."""
        solved, self._solved = self._solved, None
        if solved is None or solved.result.status is not BAStatus.CONVERGED:
            return None
        return take_sample(solved, self.config.seed, self.matcher.weights_version, self._settling == 0 and self._lost == 0)

    def adopt(self, state: WeightsSnapshot, features: Mapping[int, Features]) -> None:
        """Swaps the matcher's weights, between two frames; `features` of keyframes by frame id, made by those weights.

        Landmarks are described again from their anchor, or from the newest keyframe that saw them where the anchor has left.
        """
        self.matcher.load_state_dict(state.state)
        self.matcher.weights_version = state.version
        self._solved = None
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
            newest.id, frame.id, newest.stamp_ns, frame.stamp_ns, self.window.observations.uv[at[rows]], sighting.uv[both],
            sighting.score[both], sighting.sigma_px[both], located.residual_px[both].float(), located.inlier[both],
            self.window.landmarks.id[rows], self.matcher.weights_version,
        )

    def _output(self, frame: Frame, state: TrackingState, reason: str, located: Located, matches: Matches | None) -> OdometryOutput:
        return OdometryOutput(
            frame.id, frame.stamp_ns, state, reason, located.T_WC.clone(), self._drift.at(located.T_WC) + located.covariance, int(located.inlier.sum()),
            self._fresh is not None, self._metric, self._map_id, matches, None, self.matcher.weights_version,
        )

    def _nothing(self, frame: Frame, reason: str) -> OdometryOutput:
        """No pose: not yet, or not any more."""
        state = TrackingState.INITIALIZING if self._last is None else TrackingState.LOST
        return OdometryOutput(frame.id, frame.stamp_ns, state, reason, None, None, 0, False, self._metric, self._map_id, None, None,
                              self.matcher.weights_version)

    @property
    def _metric(self) -> bool:
        return self._mode != "mono" or self.config.odometry.first_baseline_m > 0


def _project(camera: Camera, T_WC: Tensor, points_W: Tensor) -> tuple[Tensor, Tensor]:
    """Raw px (N, 2) of points (N, 3), and which of them (N,) lie in the picture."""
    points_C = geometry.act(geometry.inverse(T_WC), points_W)
    ideal = geometry.project(camera, points_C)
    size = ideal.new_tensor([camera.width, camera.height])
    # Far outside the picture a distortion model folds back into it.
    near = (points_C[:, 2] > 0) & ((ideal > -0.2 * size) & (ideal < 1.2 * size)).all(1)
    raw = camera.distort(torch.where(near[:, None], ideal, 0.0))
    return raw, near & ((raw >= 0) & (raw <= size - 1)).all(1)
