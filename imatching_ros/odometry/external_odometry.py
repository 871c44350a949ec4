"""External odometry (wheels, an inertial filter, a file): it predicts the motion between two images, and scales a mono map.

It only helps. Where it is missing, late or wrong, visual odometry goes on without it, and reports why.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import torch
from torch import Tensor

from ..core import geometry
from ..core.config import ExternalOdometryConfig
from ..core.errors import SourceError
from .local_map import Window


NOTHING_ARRIVED = "no odometry has arrived"


class PoseBuffer:
    """The newest poses of the camera in the frame of external odometry; bounded."""

    CAPACITY = 4000  # poses: 20 s at 200 Hz
    VELOCITY_NS = 50_000_000  # the newest pose is extrapolated by the velocity over so long

    def __init__(self) -> None:
        self._stamps: list[int] = []
        self._poses: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def newest_ns(self) -> int | None:
        return self._stamps[-1] if self._stamps else None

    def clear(self) -> None:
        self._stamps, self._poses = [], []

    def add(self, stamp_ns: int, T_OC: Tensor) -> None:
        """Appends a pose (7,); the oldest go when there are too many."""
        self._stamps.append(stamp_ns)
        self._poses.append(T_OC)
        if len(self._stamps) > 2 * self.CAPACITY:  # seldom, for it moves everything
            del self._stamps[: self.CAPACITY], self._poses[: self.CAPACITY]

    def at(self, stamp_ns: int, reach_ns: int) -> tuple[Tensor, bool] | None:
        """The pose (7,) at a time, and whether it lies between two that arrived; None where it is not known.

        Between two poses at most `reach_ns` apart, along the screw motion from one to the other; up to `reach_ns` after the
        newest, by the velocity before it.
        """
        if not self._stamps or stamp_ns < self._stamps[0] or stamp_ns > self._stamps[-1] + reach_ns:
            return None
        right = bisect_left(self._stamps, stamp_ns)
        if right < len(self._stamps):
            if self._stamps[right] == stamp_ns:
                return self._poses[right], True
            left, inside = right - 1, True
        else:
            right, inside = len(self._stamps) - 1, False
            left = min(bisect_left(self._stamps, self._stamps[right] - self.VELOCITY_NS), right - 1)
            if left < 0:
                return None
        a, b = self._stamps[left], self._stamps[right]
        if b - a > reach_ns:
            return None
        share = (stamp_ns - a) / (b - a)
        return geometry.retract(
            self._poses[left], share * geometry.local(self._poses[left], self._poses[right])
        ), inside


class ExternalOdometry:
    """Predictions and the scale of a map from external odometry. Owned by the thread that owns the odometry.

    Attributes:
        config: settings; may be replaced between two frames.
        blocked: why what arrives cannot be used, for whoever feeds it; empty when it can.
        unit_m: metres per unit of the map, as far as known; 1 in a metric map.
    """

    # A stamp older than the newest by more than this begins anew; by less, it is late and left out.
    BACKWARD_NS = 500_000_000
    MEMORY = 0.8  # of the running mean of prediction errors, a frame
    GOOD_RAD = 0.02  # mean error up to which predictions are used, whatever else is better
    WORST_RATIO = 2.0  # of the errors to those of constant velocity, up to which predictions are used

    def __init__(self, config: ExternalOdometryConfig) -> None:
        self.config = config
        self.blocked = ""
        self.clear()

    def clear(self) -> None:
        """Drops all poses, as when time starts again."""
        self._buffer = PoseBuffer()
        self.start_map()

    def start_map(self) -> None:
        """Drops what belongs to a map: a new one begins."""
        self.unit_m: float | None = None
        self._prediction_problem, self._scale_problem = "", "there is no map yet"
        self._at_keyframes: dict[int, Tensor] = {}
        self._predictions: tuple[Tensor, Tensor] | None = None
        # Running means of its own predictions and of constant velocity, rad.
        self._errors: tuple[float, float] | None = None

    @property
    def problem(self) -> str:
        """Why it does not help at the moment; empty when it does, or is not configured to."""
        if self.config.use == "off":
            return ""
        return self.blocked or (self._prediction_problem if len(self._buffer) else NOTHING_ARRIVED)

    @property
    def scale_problem(self) -> str:
        """Why the newest keyframes do not determine the scale; empty when they do."""
        return self.blocked or (self._scale_problem if len(self._buffer) else NOTHING_ARRIVED)

    @property
    def predicts(self) -> bool:
        return self.config.use in ("prediction", "both")

    @property
    def scales(self) -> bool:
        return self.config.use in ("scale", "both")

    def add(self, stamp_ns: int, T_OC: Tensor) -> None:
        """A pose (7,) of the camera's optical frame in any frame that stays; metres. Late ones are left out.

        Raises:
            SourceError: a pose that is not finite, or without a rotation.
        """
        T_OC = torch.as_tensor(T_OC, dtype=torch.float64)
        norm = float(T_OC[3:].norm())
        if not bool(torch.isfinite(T_OC).all()) or not 0.5 < norm < 2.0:
            raise SourceError(
                f"odometry gives the pose {T_OC.tolist()}; expected finite numbers and a quaternion of length 1"
            )
        newest = self._buffer.newest_ns
        if newest is not None and stamp_ns <= newest:
            if newest - stamp_ns < self.BACKWARD_NS:
                return
            self._buffer.clear()
            self._at_keyframes.clear()
        self._buffer.add(int(stamp_ns), torch.cat([T_OC[:3], T_OC[3:] / norm]))

    # -- prediction ---------------------------------------------------------------------------------------------------

    def motion(self, from_ns: int, to_ns: int) -> Tensor | None:
        """The camera (7,) at one time seen from where it was at another, metres; None where that is not known."""
        reach_ns = round(self.config.max_gap_s * 1e9)
        a, b = self._buffer.at(from_ns, reach_ns), self._buffer.at(to_ns, reach_ns)
        return None if a is None or b is None else geometry.relative(a[0], b[0])

    def stands_still(self, from_ns: int, to_ns: int) -> bool:
        """Whether it is known between two times, and does not move."""
        motion = self.motion(from_ns, to_ns)
        if motion is None or to_ns <= from_ns:
            return False
        least = 1e-3  # m/s and rad/s: below what wheels measure
        moved = geometry.log(motion)
        return max(float(moved[:3].norm()), float(moved[3:].norm())) <= least * (to_ns - from_ns) * 1e-9

    def predict(self, T_WC: Tensor, from_ns: int, to_ns: int, T_steady: Tensor) -> Tensor | None:
        """The pose (7,) in the map at a time, from that at another; None where it is not configured, not known or contradicted.

        `T_steady` (7,) is the same by constant velocity; its translation is taken while the unit of the map is not known.
        """
        self._predictions = None
        if not self.predicts:
            return None
        motion = self.motion(from_ns, to_ns)
        if motion is None:
            self._prediction_problem = self._describe_gap(to_ns)
            return None
        if self.unit_m is None:
            gone = geometry.relative(T_WC, T_steady)[:3]
        else:
            gone = motion[:3] / self.unit_m
        T_given = geometry.compose(T_WC, torch.cat([gone, motion[3:]]))
        self._predictions = T_given, T_steady
        if not self._is_consistent():
            self._prediction_problem = (
                "odometry contradicts the images and is not used for prediction; check its frame and stamps"
            )
            return None
        self._prediction_problem = ""
        return T_given

    def carry_on(self, T_WC: Tensor, from_ns: int, to_ns: int) -> Tensor:
        """Where a pose (7,) has moved to without images: by its odometry in the scale of the map, else it stays."""
        if self.unit_m is None:
            return T_WC
        T_external = self.predict(T_WC, from_ns, to_ns, T_WC)
        return T_WC if T_external is None else T_external

    def update_errors(self, T_found: Tensor, depth: float) -> None:
        """Compares the last prediction, and constant velocity, with the pose (7,) that was found.

        The error is an angle: that of the rotation, plus that by which a point at `depth` appears to move.
        """
        if self._predictions is None:
            return
        now = []
        for T in self._predictions:
            twist = geometry.local(T, T_found)
            now.append(float(twist[3:].norm()) + float(twist[:3].norm()) / max(depth, 1e-9))
        before = self._errors or (now[0], now[1])
        given, steady = (self.MEMORY * b + (1 - self.MEMORY) * n for b, n in zip(before, now))
        self._errors = given, steady

    def _is_consistent(self) -> bool:
        return self._errors is None or self._errors[0] <= max(self.GOOD_RAD, self.WORST_RATIO * self._errors[1])

    def _describe_gap(self, stamp_ns: int) -> str:
        newest = self._buffer.newest_ns
        if newest is None:
            return NOTHING_ARRIVED
        late_s = (stamp_ns - newest) / 1e9
        if late_s > self.config.max_gap_s:
            return f"the newest odometry is {late_s:.2f} s older than the image, at most {self.config.max_gap_s:g} s are bridged"
        return f"odometry has a hole of more than {self.config.max_gap_s:g} s at the time of the image"

    # -- scale --------------------------------------------------------------------------------------------------------

    def measure(self, stamps_ns: list[int], T_WC: Tensor) -> float | None:
        """Metres per unit of a map with keyframes at these times (M,) and poses (M, 7); None where it is not determined (`scale_problem`)."""
        if self.config.use == "off":
            return None
        reach_ns = round(self.config.max_gap_s * 1e9)
        # Kept with the keyframe: one may stay in the window for longer than poses stay in the buffer.
        known = {stamp: self._at_keyframes[stamp] for stamp in stamps_ns if stamp in self._at_keyframes}
        given: dict[int, Tensor] = dict(known)
        for stamp in stamps_ns:
            found = None if stamp in known else self._buffer.at(stamp, reach_ns)
            if found is not None:
                given[stamp] = found[0]
                if found[1]:
                    known[stamp] = found[0]
        self._at_keyframes = known
        if not self.predicts:  # else every image sets it
            self._prediction_problem = "" if stamps_ns[-1] in given else self._describe_gap(stamps_ns[-1])
        rows = [row for row, stamp in enumerate(stamps_ns) if stamp in given]
        if len(rows) < 2:
            self._scale_problem = self._describe_gap(stamps_ns[-1]) if not rows else "odometry covers one keyframe only"
            return None
        scale = metres_per_unit(
            T_WC[rows], torch.stack([given[stamps_ns[row]] for row in rows]), self.config.min_translation_m
        )
        self._scale_problem = scale if isinstance(scale, str) else ""
        return None if isinstance(scale, str) else scale


def metres_per_unit(T_map: Tensor, T_given: Tensor, min_translation_m: float) -> float | str:
    """The scale between two sets of poses (M, 7) of one camera at the same times, each in a frame of its own; or why it is not determined.

    The median over all pairs that lie at least `min_translation_m` apart, weighted by how far, for the error of a long way is
    a small part of it: one wheel that slips does not change it.
    """
    max_angle_rad = 0.5  # median angle between the directions of motion; beyond it the two are not of the same camera
    max_deviation = 0.2  # relative median deviation of the pairs' scales
    i, j = torch.triu_indices(len(T_map), len(T_map), 1)
    seen, given = (geometry.relative(T[i], T[j])[:, :3] for T in (T_map, T_given))
    moved = given.norm(dim=1)
    far = (moved >= min_translation_m) & (seen.norm(dim=1) > 1e-9)
    if not bool(far.any()):
        return f"odometry moved {float(moved.max()):.3f} m between keyframes, {min_translation_m:g} m are needed"
    seen, given = seen[far], given[far]
    if float(geometry.angle(seen, given).median()) > max_angle_rad:
        return "odometry and images move in different directions; check the frame of the odometry"
    ratio = (given.norm(dim=1) / seen.norm(dim=1)).log()
    scale = _weighted_median(ratio, given.norm(dim=1))
    deviation = float((ratio - scale).abs().median())
    if deviation > max_deviation:
        return f"odometry and images disagree on how far the camera went: by {100 * deviation:.0f} % from keyframe to keyframe"
    return math.exp(float(scale))


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    order = values.argsort()
    reached = weights[order].cumsum(0)
    return values[order][(reached >= reached[-1] / 2).nonzero()[0, 0]]


class Scale:
    """The unit of length of a map: metres from the sensors, a known baseline or external odometry, or unknown.

    Attributes:
        source: what gives the map its unit; empty while nothing does.
    """

    TOLERANCE = 0.03  # a map in metres is scaled again when external odometry disagrees by more
    SENSORS = {"stereo": "stereo baseline", "rgbd": "depth camera"}

    def __init__(self, external: ExternalOdometry) -> None:
        self._external = external
        self.source = ""

    def begin(self, window: Window, mode: str, known_baseline: bool, again: bool) -> None:
        """Determines the unit of a new map before any of it is published; scales it where external odometry gives the factor.

        Args:
            known_baseline: the first baseline was set to a known length; `again`: in an earlier map.
        """
        self._external.start_map()
        if mode != "mono":
            self.source, self._external.unit_m = self.SENSORS[mode], 1.0
            return
        self.source = "first baseline" if known_baseline else ""
        if known_baseline and again:
            self.source += ", carried on by the depth of the scene"
        self._external.unit_m = 1.0 if known_baseline else None
        found = self._external.measure([keyframe.stamp_ns for keyframe in window.keyframes], window.T_WC)
        if found is not None and self._external.scales:
            window.rescale(found)
            self.source, found = "odometry", 1.0
        self._external.unit_m = found or self._external.unit_m

    def correct(self, window: Window) -> float | None:
        """Mono: measures the window by external odometry; returns by what factor the map must grow to be in metres, if it must."""
        found = self._external.measure([keyframe.stamp_ns for keyframe in window.keyframes], window.T_WC)
        if found is None:
            return None
        if not self._external.scales:
            self._external.unit_m = found
            return None
        if self.source == "odometry" and abs(math.log(found)) <= self.TOLERANCE:
            return None
        self.source, self._external.unit_m = "odometry", 1.0
        return found

    def describe(self, mode: str) -> str:
        """The source, or `unknown` and why."""
        if self.source or mode != "mono":
            return self.source or self.SENSORS[mode]
        return f"unknown: {self._external.scale_problem}" if self._external.scales else "unknown"
