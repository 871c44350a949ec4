"""The motion of the camera: prediction, motion gate, zero-motion update, and how the covariance of the pose grows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bundle import RotationPrior, View, refine_pose
from ..camera.model import Camera
from ..core import geometry
from ..core.config import BundleConfig
from ..core.types import BAResult
from ..matching.base import Features

UNKNOWN_ANGLE_VARIANCE = math.pi**2 / 3  # rad^2, of an angle that may be any


@dataclass(frozen=True)
class TrackedFrame:
    """The last frame with a pose."""

    id: int
    stamp_ns: int
    features: Features
    T_WC: Tensor  # (7,) float64
    uv: Tensor  # (N, 2) float32 raw px of its inliers
    depth: Tensor  # (N,) float64

    def median_depth(self) -> float:
        return float(self.depth.median())


def skew_covariance(angle: float, median_depth: float) -> Tensor:
    """Covariance (6, 6) of a pose whose outermost rows are turned by an angle, rad, that is not known.

    A pose takes it for a rotation or, one camera more than others, for a translation past the landmarks.
    """
    sigma = torch.tensor([angle * median_depth, angle], dtype=torch.float64)
    return torch.diag(sigma.square().repeat_interleave(3))


@dataclass(frozen=True)
class TwistAt:
    """The twist at the time of an image, by the motions to and from it."""

    twist: Tensor  # (6,) per second
    change: float  # rad/s^2, of the rotation

    @staticmethod
    def between(before: Tensor, seconds_before: float, after: Tensor, seconds_after: float) -> TwistAt:
        """Interpolated: the twists (6,) of motions are those of the middles of their intervals."""
        change = (after - before) / ((seconds_before + seconds_after) / 2)
        return TwistAt(before + change * seconds_before / 2, float(change[3:].norm()))


class MotionModel:
    """Constant velocity. Lengths are in units of the map.

    Attributes:
        covariance: of the pose relative to the start.
        zero_motion: holds the pose of a camera that stands still.
        twist: (6,) float64, per second, in the camera's frame.
        covariance_of_step: (6, 6) float64, what `add_step` added last.
        twist_before: of the frame before the newest, by the motions to and from it; None where one of them is not known.
    """

    # Without a pose for longer than this, the camera may be anywhere.
    MAX_GAP_NS = 3_000_000_000
    # The maximum velocity decays by this factor a frame, so that it follows the last few seconds.
    DECAY = 0.99
    # Errors without residuals, as standard deviations of a motion that moves the image by 1 rad: of the rotation in rad, and of
    # the position in median depths. The calibration (0.3 % of the focal length is 0.003) and matches that err along the flow; one
    # camera has its depths from the same matches.
    STEP_ERROR, STEP_ERROR_MONO = 0.003, 0.01
    # Random walk of one camera's scale: its standard deviation after a distance of one median depth.
    SCALE_WALK = 0.02

    def __init__(self) -> None:
        self.covariance = PoseCovariance()
        self.zero_motion = ZeroMotionUpdate()
        self.twist = torch.zeros(6, dtype=torch.float64)
        self.covariance_of_step = torch.zeros(6, 6, dtype=torch.float64)
        self.twist_before: TwistAt | None = None
        self._max_velocity = torch.zeros(2, dtype=torch.float64)  # units/s and rad/s
        self._seconds = 0.0  # of the motion of the twist
        self._disputed = torch.zeros(2, dtype=torch.float64)  # distance and rad, as of `add_dispute`
        self._moving = False  # the twist is that of two poses of which one continues the other

    def start_map(self) -> None:
        """A new map begins with a camera at rest; the maximum velocity stays, for the camera is the same."""
        self.twist = torch.zeros(6, dtype=torch.float64)
        self.covariance_of_step = torch.zeros(6, 6, dtype=torch.float64)
        self.zero_motion.reset()
        self.twist_before = None
        self._moving = False

    def gap_exceeded(self, last: TrackedFrame, stamp_ns: int) -> bool:
        return stamp_ns - last.stamp_ns > self.MAX_GAP_NS

    def predict(self, last: TrackedFrame, stamp_ns: int) -> Tensor:
        """The pose (7,) at a time, by constant velocity."""
        return geometry.retract(last.T_WC, self.twist * _seconds(last, stamp_ns))

    def update(self, last: TrackedFrame, stamp_ns: int, T_WC: Tensor, recovered: bool) -> None:
        """Takes the velocity over from two poses; `recovered`: the new one does not continue the last one."""
        dt, before, moving = _seconds(last, stamp_ns), self.twist, self._moving
        self._moving = dt > 0 and not recovered
        self.twist = geometry.local(last.T_WC, T_WC) / dt if self._moving else self.twist * 0
        self.twist_before = TwistAt.between(before, self._seconds, self.twist, dt) if moving and self._moving else None
        self._seconds = dt
        if not recovered:
            velocity = torch.stack([self.twist[:3].norm(), self.twist[3:].norm()])
            self._max_velocity = torch.maximum(self._max_velocity * self.DECAY, velocity)

    def rate_error(self, twist: Tensor) -> float:
        """By how much, rad/s, the rotation of a twist (6,) since the last image may differ from that of the camera when this one was taken.

        Half of the change since the twist before: the two are of the middles of their intervals. 0 where that is not known.
        """
        return float((twist - self.twist)[3:].norm()) / 2 if self._moving else 0.0

    def possible(self, last: TrackedFrame, seconds: float) -> Tensor:
        """Covariance (6, 6) of the motion in a time of which nothing is known, at the maximum velocity.

        A camera that stood still before may have begun to move: at least at 5 % of the median depth and 0.05 rad a second.
        """
        least = torch.tensor([0.05 * last.median_depth(), 0.05], dtype=torch.float64)
        sigma = torch.maximum(self._max_velocity, least) * seconds
        return torch.diag(sigma.square().repeat_interleave(3))

    def is_plausible(self, last: TrackedFrame, stamp_ns: int, T_WC: Tensor) -> bool:
        """Motion gate: whether the camera could have deviated from constant velocity so far as to be at the pose (7,).

        Up to half of the way at maximum velocity, and in any case 2 % of the median depth and 0.02 rad.
        """
        share, tolerance = 0.5, 0.02
        deviation = geometry.local(self.predict(last, stamp_ns), T_WC)
        least = torch.tensor([tolerance * last.median_depth(), tolerance], dtype=torch.float64)
        bound = share * self._max_velocity * _seconds(last, stamp_ns) + least
        return bool((torch.stack([deviation[:3].norm(), deviation[3:].norm()]) <= bound).all())

    def add_gap(self, last: TrackedFrame, stamp_ns: int) -> None:
        """Adds to the covariance that the camera stayed at the last pose, while it may have moved at maximum velocity."""
        sigma = self._max_velocity * _seconds(last, stamp_ns)
        variance = sigma.square().clamp_min(1e-4)  # 1 cm and 0.6 degrees
        variance[1] = variance[1].clamp_max(UNKNOWN_ANGLE_VARIANCE)
        self.covariance.add(torch.diag(variance.repeat_interleave(3)), last.T_WC)

    def add_dispute(self, last: TrackedFrame, difference: Tensor, T_WC: Tensor) -> None:
        """Adds to the covariance that the motion since the last frame may be another one, by the twist `difference` (6,).

        One error goes through all frames until `end_dispute`, so that its standard deviations add up, not its variances. No frame adds more
        than a median depth and 1 rad.
        """
        most, before = torch.tensor([last.median_depth(), 1.0], dtype=torch.float64), self._disputed
        self._disputed = before + torch.stack([difference[:3].norm(), difference[3:].norm()]).minimum(most)
        variance = self._disputed.square() - before.square()
        self.covariance.add_drift(torch.diag(variance.repeat_interleave(3)), T_WC)

    def end_dispute(self) -> None:
        """From here on the motion is that of the camera."""
        self._disputed = torch.zeros(2, dtype=torch.float64)

    def add_step(self, last: TrackedFrame, T_WC: Tensor, mono: bool) -> None:
        """Adds to the covariance the errors of the motion to the pose T_WC (7,) that leave no residual: bundle adjustment cannot see them.

        Variances are proportional to the motion, which makes them the same however many frames divide it (Chong and Kleeman 1997).
        Motion is measured by how far it moves the image: rad turned plus distance over median depth. After 1 rad the camera sees
        another scene.
        """
        step, depth = geometry.local(last.T_WC, T_WC), last.median_depth()
        distance, angle = float(step[:3].norm()), float(step[3:].norm())
        share = self.STEP_ERROR_MONO if mono else self.STEP_ERROR
        sigma = torch.tensor([share * depth] * 3 + [share] * 3, dtype=torch.float64)
        self.covariance_of_step = torch.diag(sigma.square() * (angle + distance / depth))
        if mono and distance > 0:
            along = torch.outer(step[:3], step[:3]) / distance
            self.covariance_of_step[:3, :3] += self.SCALE_WALK**2 * depth * along
        self.covariance.add_drift(self.covariance_of_step, T_WC)

    def move(self, T: Tensor) -> None:
        """The same motion in a map that is moved by T (7,)."""
        self.covariance.move(T)
        self.zero_motion.follow_adjustment(geometry.identity(), T)

    def rescale(self, factor: float, centre: Tensor) -> None:
        """The same motion in a map that is scaled about a point (3,)."""
        self.covariance.rescale(factor, centre)
        self.zero_motion.reset()
        self.twist = torch.cat([self.twist[:3] * factor, self.twist[3:]])
        self._max_velocity = self._max_velocity * torch.tensor([factor, 1.0], dtype=torch.float64)


def _seconds(last: TrackedFrame, stamp_ns: int) -> float:
    return (stamp_ns - last.stamp_ns) * 1e-9


class PoseCovariance:
    """Covariance (6, 6) of a pose relative to the start, for T_WC * Exp([rho, phi]); zero at the start.

    Bundle adjustment gives the newest pose relative to the keyframes of its window. When a keyframe is dropped, one keyframe's
    share of that covariance becomes drift that no later window can remove. Covariances are propagated along the path as motions
    are compounded (Smith and Cheeseman 1986), which turns an error of rotation into one of position.
    """

    def __init__(self) -> None:
        self._drift = torch.zeros(6, 6, dtype=torch.float64)
        self._window = torch.zeros(6, 6, dtype=torch.float64)
        self._T_WC = geometry.identity()

    def at(self, T_WC: Tensor) -> Tensor:
        """The covariance propagated to the pose T_WC (7,), landmarks of the window included."""
        return self._transport(self._drift + self._window, T_WC)

    def add(self, covariance: Tensor, T_WC: Tensor) -> None:
        """Adds drift (6, 6) at the pose T_WC (7,), as when a new map begins."""
        self._drift = self.at(T_WC) + covariance
        self._window, self._T_WC = torch.zeros_like(self._window), T_WC

    def add_drift(self, covariance: Tensor, T_WC: Tensor) -> None:
        """Adds drift (6, 6) at the pose T_WC (7,); the window stays the one that was solved last."""
        adjoint = geometry.adjoint(geometry.relative(self._T_WC, T_WC))
        self._drift = self._drift + adjoint @ covariance @ adjoint.T

    def rescale(self, factor: float, centre: Tensor) -> None:
        """The same uncertainty in a map that is scaled about a point (3,)."""
        unit = torch.diag(torch.tensor([factor] * 3 + [1.0] * 3, dtype=torch.float64))
        self._drift, self._window = unit @ self._drift @ unit, unit @ self._window @ unit
        self._T_WC = torch.cat([centre + (self._T_WC[:3] - centre) * factor, self._T_WC[3:]])

    def propagate(self, result: BAResult, keyframe_dropped: bool) -> None:
        """Takes the newest solution over; `keyframe_dropped`: a keyframe has left the window before it."""
        newest = result.T_WC[-1]
        self._drift, self._window = self._transport(self._drift, newest), self._transport(self._window, newest)
        self._T_WC = newest
        if result.covariance_newest is not None:  # otherwise that of the window before is the best there is
            self._window = result.covariance_newest.to(self._drift)
        if keyframe_dropped:
            self._drift = self._drift + self._window / max(1, len(result.T_WC) - 2)

    def move(self, T: Tensor) -> None:
        """The same in a map that is moved by T (7,)."""
        self._T_WC = geometry.compose(T, self._T_WC)

    def distance(self, H: Tensor, error: Tensor, noise: Tensor) -> float:
        """Normalized innovation squared of a measurement of the newest pose: its derivative H (K, 6), error (K,) and noise (K, K)."""
        return float(error @ torch.linalg.solve(H @ (self._drift + self._window) @ H.T + noise, error))

    def correct(self, H: Tensor, error: Tensor, noise: Tensor) -> Tensor:
        """Kalman update of the drift by such a measurement; returns the twist (6,) of the newest pose.

        Only what is measured is corrected: the correlations with the rest are less certain than the covariances themselves.
        """
        noise, drift = noise + H @ self._window @ H.T, H @ self._drift @ H.T
        gain = torch.linalg.pinv(H) @ torch.linalg.solve(drift + noise, drift).T
        keep = torch.eye(6, dtype=torch.float64) - gain @ H
        self._drift = keep @ self._drift @ keep.T + gain @ noise @ gain.T
        return gain @ error

    def _transport(self, covariance: Tensor, T_WC: Tensor) -> Tensor:
        adjoint = geometry.adjoint(geometry.relative(T_WC, self._T_WC))
        return adjoint @ covariance @ adjoint.T


@dataclass(frozen=True)
class SeenLandmarks:
    """Landmarks that support the pose of a frame."""

    id: Tensor  # (N,) int64
    uv: Tensor  # (N, 2) float64 ideal px
    sigma_px: Tensor  # (N,)


@dataclass(frozen=True)
class _Reference:
    """The last frame whose pose was not held."""

    stamp_ns: int
    id: Tensor  # (N,) int64 of landmarks, ascending
    uv: Tensor  # (N, 2) float64 ideal px
    depth: Tensor  # (N,) float64
    T_WC: Tensor  # (7,) float64


class ZeroMotionUpdate:
    """Holds the pose of a camera that stands still, which would otherwise wander within its errors.

    Every frame is compared with the last one that had moved. The motion between the two follows from the pixels of landmarks
    that both show, placed where the first of them saw them: errors of the map, such as a noisy depth or a corner that the
    matcher sees a little aside, are the same in both and cancel. As long as no motion explains them as well, by the motion's
    own covariance, the pose stays what it was. The reference stays too, so that slow motion adds up until it is significant.
    """

    MIN_LANDMARKS = 15  # that both frames show
    MAX_MEDIAN_SIGMAS = 2.0  # farther median displacements are motion without a test
    CHI2_999_6 = 22.46  # 99.9 % quantile of chi-square with 6 degrees of freedom

    def __init__(self) -> None:
        self.reference: _Reference | None = None
        self.still = False

    def reset(self) -> None:
        """There is no reference: another map, another scale, or a pose that does not continue the last one."""
        self.reference, self.still = None, False

    def apply(
        self,
        camera: Camera,
        T_WC: Tensor,
        seen: SeenLandmarks,
        config: BundleConfig,
        turned: RotationPrior | None = None,
    ) -> Tensor:
        """The pose (7,) of a frame: the reference's pose while the camera stands still, else `T_WC`.

        `turned`: the rotation since the reference that another sensor has measured.
        """
        reference = self.reference
        self.still = reference is not None and self._is_still(reference, camera, seen, config, turned)
        return reference.T_WC.clone() if reference is not None and self.still else T_WC

    def set_reference(self, stamp_ns: int, id: Tensor, uv: Tensor, depth: Tensor, T_WC: Tensor) -> None:
        """Makes a frame the reference unless its pose was held.

        Args:
            id: (N,) landmarks. uv: (N, 2) ideal px. depth: (N,) along the optical axis. T_WC: (7,).
        """
        if not self.still:
            order = id.argsort()
            self.reference = _Reference(stamp_ns, id[order], uv[order].double(), depth[order], T_WC.clone())

    def recalibrate(self, before: Camera, now: Camera) -> None:
        """Carries the reference over to another calibration of the camera."""
        if self.reference is not None:
            self.reference = replace(self.reference, uv=now.carry(self.reference.uv, before))

    def follow_adjustment(self, before: Tensor, after: Tensor) -> None:
        """Bundle adjustment has moved the newest pose (7,): the reference moves with it."""
        if self.reference is not None:
            T_WC = geometry.compose(after, geometry.relative(before, self.reference.T_WC))
            self.reference = replace(self.reference, T_WC=T_WC)

    def _is_still(
        self,
        reference: _Reference,
        camera: Camera,
        seen: SeenLandmarks,
        config: BundleConfig,
        turned: RotationPrior | None,
    ) -> bool:
        r, at = reference, torch.searchsorted(reference.id, seen.id).clamp_max(len(reference.id) - 1)
        both = ((r.id[at] == seen.id) & (r.depth[at] > 0)).nonzero()[:, 0]
        if len(both) < self.MIN_LANDMARKS:
            return False
        before, now, sigma = r.uv[at[both]], seen.uv.double()[both], seen.sigma_px[both].double()
        if float((now - before).norm(dim=1).median()) > self.MAX_MEDIAN_SIGMAS * float(sigma.median()):
            return False
        points = geometry.back_project(camera, before, r.depth[at[both]])
        moved = refine_pose(View.mono(camera, points, now, sigma), geometry.identity(), config, prior=turned)
        if moved.covariance is None:
            return False
        e = geometry.log(moved.T_WC)
        return float(e @ torch.linalg.solve(moved.covariance, e)) < self.CHI2_999_6
