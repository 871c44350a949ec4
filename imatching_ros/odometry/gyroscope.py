"""A gyroscope beside the camera: the rotation between two images with its covariance, the bias, and whether to believe it.

Rates are those of an IMU, turned into the axes of the camera, and integrated by `preintegration.py`. The rotation of the last pose and the
bias have a joint covariance, which every image corrects: an extended Kalman filter of six states.

It only helps. Where rates are missing, late or wrong, odometry goes on without them, and `problem` holds the reason.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..bundle import Correction, RotationPrior
from ..core import geometry
from ..core.config import ImuConfig
from .pose_estimator import PoseEstimate
from .preintegration import Bias, Preintegrated, exp_so3, preintegrate
from .rate_check import RateCheck

NOTHING_ARRIVED = "no message has arrived"

# What data sheets and calibrations leave open.
INITIAL_BIAS = 0.03  # rad/s; 1 to 2 degrees/s are usual before any calibration
BIAS_WALK = 1e-4  # rad/s/sqrt(s): five times that of the ADIS16448 in EuRoC, for a sensor that warms up
SCALE_ERROR = 0.003  # of the angle: sensitivity, and axes that are not square
STAMP_JITTER_S = 3e-4  # of an image's stamp
ANGULAR_ACCELERATION = 30.0  # rad/s^2 of a hand, after the newest rate
ANGULAR_JERK = 300.0  # rad/s^3 of a hand, between two rates
STILL_RATE = 2e-3  # rad/s, of a camera that images show at rest
LEAST_SIGMA = 1e-3  # rad, of the rotation of a pose that begins anew


class RateBuffer:
    """The newest angular rates, bounded.

    Attributes:
        refused: why the newest rate was not taken; empty when it was.
    """

    CAPACITY = 10_000  # rates: 10 s at 1 kHz
    BACKWARD_NS = 500_000_000  # a stamp older than the newest by more begins anew; by less, it is late and left out
    MAX_GAP_NS = 100_000_000  # between two rates
    MAX_LATE_NS = 20_000_000  # by which the newest rate is extrapolated
    SILENT_NS = 1_000_000_000
    OTHER_CLOCK_NS = 60_000_000_000
    MAX_RATE = 40.0  # rad/s; the widest ranges end at 2000 degrees/s, 35 rad/s
    SATURATED = 5  # equal rates in a row at the largest value that an axis has had

    def __init__(self) -> None:
        self.refused = ""
        self.clear()

    def __len__(self) -> int:
        return len(self._stamps)

    def clear(self) -> None:
        self._stamps: list[int] = []
        self._rates: list[np.ndarray] = []
        self._largest, self._equal = np.zeros(3), np.zeros(3, int)
        self._saturated_ns = -1

    @property
    def newest_ns(self) -> int:
        return self._stamps[-1] if self._stamps else 0

    def add(self, stamp_ns: int, rate: np.ndarray) -> None:
        """Appends a rate (3,) rad/s; one that cannot be used is left out."""
        largest = float(np.abs(rate).max())
        if not largest <= self.MAX_RATE:
            self.refused = (
                "an angular rate is not finite"
                if not np.isfinite(largest)
                else f"an angular rate is {largest:.3g} rad/s: is it in degrees?"
            )
            return
        self.refused = ""
        if self._stamps and stamp_ns <= self._stamps[-1]:
            if self._stamps[-1] - stamp_ns < self.BACKWARD_NS:
                return
            self.clear()
        self._watch_saturation(stamp_ns, rate)
        self._stamps.append(stamp_ns)
        self._rates.append(rate)
        if len(self._stamps) > 2 * self.CAPACITY:  # seldom, for it moves everything
            del self._stamps[: self.CAPACITY], self._rates[: self.CAPACITY]

    def _watch_saturation(self, stamp_ns: int, rate: np.ndarray) -> None:
        """A rate at the end of the range stays the same, which noise otherwise prevents: on the other axes it still does.

        Three axes that stay the same are of a simulated sensor without noise.
        """
        same = rate == self._rates[-1] if self._rates else np.zeros(3, bool)
        self._equal = np.where(same, self._equal + 1, 0)
        self._largest = np.maximum(self._largest, np.abs(rate))
        at_end = (np.abs(rate) >= self._largest) & (np.abs(rate) > 1.0)
        constant = self._equal + 1 >= self.SATURATED
        if bool((at_end & constant).any()) and not constant.all():
            self._saturated_ns = stamp_ns

    def between(self, from_ns: int, to_ns: int) -> tuple[np.ndarray, np.ndarray, float] | str:
        """Mean rates (K, 3), over dt (K,) s each, from one time to another, and the standard deviation, rad, of what lies between them.

        Or why they are not known.
        """
        if why := self._find_gap(from_ns, to_ns):
            return why
        first, last = bisect_right(self._stamps, from_ns) - 1, bisect_left(self._stamps, to_ns)
        stamps, rates = self._stamps[first : last + 1], np.array(self._rates[first : last + 1])
        late_s = max(0, to_ns - stamps[-1]) * 1e-9
        if late_s:
            stamps, rates = [*stamps, to_ns], np.concatenate([rates, rates[-1:]])
        if max(b - a for a, b in zip(stamps, stamps[1:])) > self.MAX_GAP_NS:
            return f"{self.MAX_GAP_NS / 1e9:g} s and more pass between two messages"
        at = (np.array(stamps) - from_ns) * 1e-9
        ends = np.array([0.0, (to_ns - from_ns) * 1e-9])
        times = np.concatenate([ends[:1], at[(at > 0) & (at < ends[1])], ends[1:]])
        values = np.stack([np.interp(times, at, rates[:, axis]) for axis in range(3)], 1)
        dt = np.diff(times)
        sigma = np.hypot(ANGULAR_ACCELERATION * late_s**2 / 2, ANGULAR_JERK / 12 * np.sqrt((np.diff(at) ** 6).sum()))
        return (values[1:] + values[:-1]) / 2, dt, float(sigma)

    def angles(self, from_ns: int, to_ns: int, shifts_ns: np.ndarray) -> np.ndarray | None:
        """Integrals (S, 3) rad of the rates between two times, each shifted (S,); None where one of them is not known."""
        begin, end = from_ns + int(shifts_ns.min()), to_ns + int(shifts_ns.max())
        if self._find_gap(begin, end) or self._stamps[-1] < end:
            return None
        first, last = bisect_right(self._stamps, begin) - 1, bisect_left(self._stamps, end)
        stamps, rates = np.array(self._stamps[first : last + 1]), np.array(self._rates[first : last + 1])
        dt = np.diff(stamps)
        if dt.max() > self.MAX_GAP_NS:
            return None
        steps = (rates[1:] + rates[:-1]) / 2 * (dt * 1e-9)[:, None]
        total = np.concatenate([np.zeros((1, 3)), steps.cumsum(0)])
        ends = np.stack([from_ns + shifts_ns, to_ns + shifts_ns])
        return np.diff(np.stack([np.interp(ends, stamps, total[:, axis]) for axis in range(3)], -1), axis=0)[0]

    def _find_gap(self, from_ns: int, to_ns: int) -> str:
        if not self._stamps:
            return self.refused or NOTHING_ARRIVED
        late_ns = to_ns - self._stamps[-1]
        if abs(late_ns) > self.OTHER_CLOCK_NS:
            return f"its stamps are {late_ns / 1e9:.0f} s older than those of the images: of another clock?"
        if late_ns > self.SILENT_NS:
            return self.refused or f"nothing has arrived for {late_ns / 1e9:.1f} s"
        if late_ns > self.MAX_LATE_NS:
            return f"the newest message is {late_ns / 1e6:.0f} ms older than the image: late on its way, or imu.time_offset_ms is wrong"
        if from_ns < self._stamps[0]:
            return "it began after the last image"
        if from_ns <= self._saturated_ns:
            return f"it is saturated, at {float(self._largest.max()):.1f} rad/s"
        return ""


@dataclass(frozen=True)
class _Predicted:
    """The rotation of an image before its matches are known, jointly with the bias."""

    prior: RotationPrior
    P: np.ndarray  # (6, 6) covariance of [phi, bias], R * Exp(phi)
    step: Preintegrated
    times_ns: tuple[int, int]


class Gyroscope:
    """Predicts rotations and learns the bias. Owned by the thread that owns the odometry.

    Attributes:
        config: settings; may be replaced between two frames.
        expected: there should be one, so that its absence is a problem.
        blocked: why what arrives cannot be used, for whoever feeds it; empty when it can.
        bias: (3,) rad/s, in the camera's axes.
    """

    LEAST_TURN = 0.01  # rad between two images; less shows nothing of the axes and the time
    MEMORY_RAD = 0.3  # of the share of contradictions, by how far the camera has turned: the faster, the more it shows
    REFUSED_SHARE = 0.5  # of contradictions, above which it is left out
    TRUSTED_SHARE = 0.1  # below which it is used again
    # Of the distances of images, by how far the camera has turned; those that count at least, and the most that one of them counts.
    DISTANCE_MEMORY_RAD, LEAST_IMAGES, MOST_DISTANCE = 1.0, 2.0, 25.0
    VETTED, MOST_VETTED = 10, 80  # images that have turned and agreed: from one on it is binding; no more are counted
    COST_OF_CONTRADICTION, COST_OF_LOSS = 5, 3  # of these
    CLEAR_CONTRADICTION = 60.0  # distance of an image that is no error of matches
    WEAK_INLIERS = 30  # fewer prove nothing against it
    MAX_DRIFT = 0.2  # rad, by which a pose found again may differ from the rotation since the last one
    MAX_BIAS = 0.5  # rad/s; more is motion, which images do not show
    MAX_KEYFRAME_NS = 5_000_000_000  # between two keyframes, above which nothing is integrated

    def __init__(self, config: ImuConfig) -> None:
        self.config = config
        self.expected = False
        self.blocked = ""
        self.bias = np.zeros(3)
        self._P = np.diag([LEAST_SIGMA**2] * 3 + [INITIAL_BIAS**2] * 3)
        self._buffer, self._check = RateBuffer(), RateCheck()
        self.clear()

    def clear(self) -> None:
        """Drops all rates, as when time starts again; the bias stays."""
        self._buffer.clear()
        self._check.clear()
        self._gap, self._rest_s = "", 0.0
        self._contradictions, self._contradicted, self._vetted = 0.0, False, 0
        # It was binding, and images have not overruled it since.
        self._distance, self._images, self._proved = 0.0, 0.0, False
        self._predicted: _Predicted | None = None
        self._turned: tuple[Preintegrated, int, int] | None = None  # as of `turned_since`, with its two times
        self.restart()

    @property
    def problem(self) -> str:
        """Why it does not help at the moment; empty when it does, or there is none."""
        if not self.expected:
            return ""
        if self.blocked:
            return self.blocked
        if not len(self._buffer):
            return self._buffer.refused or NOTHING_ARRIVED
        if self._check.problem:
            return self._check.problem
        if self._refuted:
            return "it contradicts the rotation of the images; check its mounting (TF), imu.time_offset_ms and its unit, rad/s"
        return self._gap or self._buffer.refused

    @property
    def _refuted(self) -> bool:
        """It contradicts the images, or its stamps or axes do. Before it has proved right a few contradictions are enough."""
        suspect = self._contradictions > self.TRUSTED_SHARE and not self._check.confirmed
        unproved = self._vetted < self.VETTED and (suspect or self._disagrees)
        return unproved or self._contradicted or self._check.problem != ""

    @property
    def _disagrees(self) -> bool:
        """Whether images in a row that have turned are farther away than their errors explain, though none of them by much.

        By the 99 % quantile of chi-square with 3 degrees of freedom each (Wilson and Hilferty 1931).
        """
        freedom = 3 * self._images
        bound = freedom * (1 - 2 / (9 * freedom) + 2.33 * (2 / (9 * freedom)) ** 0.5) ** 3 if freedom else 0.0
        return self._images > self.LEAST_IMAGES and self._distance > bound

    @property
    def _binding(self) -> bool:
        return self._vetted >= self.VETTED and not self._refuted

    def describe(self) -> str:
        """`off`, `used`, or why it is not used."""
        return self.problem or ("used" if self.expected else "off")

    def add(self, stamp_ns: int, rate: np.ndarray) -> None:
        """A rate (3,) rad/s about the axes of the camera's optical frame, at the stamp of the sensor. Late ones are left out."""
        self.expected = True
        self._buffer.add(int(stamp_ns) + round(self.config.time_offset_ms * 1e6), np.asarray(rate, float))

    # -- prediction ---------------------------------------------------------------------------------------------------

    def rotation(self, from_ns: int, to_ns: int) -> Preintegrated | str:
        """The rotation of the camera between two times of images, or why it is not known."""
        found = self._buffer.between(from_ns, to_ns)
        if isinstance(found, str):
            return found
        rates, dt, sigma = found
        step = preintegrate(rates, dt, self.bias, self.config.noise_density)
        angle = float(np.linalg.norm((rates - self.bias) * dt[:, None], axis=1).sum())
        jitter = 2 * STAMP_JITTER_S**2 * float(((rates[-1] - self.bias) ** 2).sum())
        variance = (SCALE_ERROR * angle) ** 2 + jitter + sigma**2
        return replace(step, covariance=step.covariance + variance * np.eye(3))

    def between_keyframes(self, from_ns: int, to_ns: int) -> Preintegrated | None:
        """The rotation from a keyframe to the next; None where it is not known, they are far apart, or it contradicts the images."""
        usable = self.expected and not self.blocked and not self._refuted
        if not usable or not 0 < to_ns - from_ns <= self.MAX_KEYFRAME_NS:
            return None
        step = self.rotation(from_ns, to_ns)
        return None if isinstance(step, str) else step

    def turned_since(self, from_ns: int, to_ns: int) -> RotationPrior | None:
        """The rotation since an earlier image; None where it is not known or not trusted. Losses alone do not cost that trust."""
        if not self._proved or self._refuted or not from_ns < to_ns:
            return None
        before, since_ns, until_ns = self._turned or (None, -1, -1)
        if before is not None and since_ns == from_ns and until_ns < to_ns:
            step = self.rotation(until_ns, to_ns)
            turned = None if isinstance(step, str) else before.then(step)
        else:
            turned = self.between_keyframes(from_ns, to_ns)
        self._turned = None if turned is None else (turned, from_ns, to_ns)
        return None if turned is None else self._with_uncertain_bias(turned)

    def turned_between(self, from_ns: int, to_ns: int) -> RotationPrior | None:
        """The rotation from one image to another; None where it is not known or not yet trusted."""
        turned = self.between_keyframes(from_ns, to_ns) if self._binding else None
        return None if turned is None else self._with_uncertain_bias(turned)

    def _with_uncertain_bias(self, turned: Preintegrated) -> RotationPrior:
        bias = self._P[3:, 3:] + BIAS_WALK**2 * turned.seconds / 3 * np.eye(3)
        P = turned.covariance + turned.by_bias @ bias @ turned.by_bias.T
        return RotationPrior(_quaternion(turned.R), torch.from_numpy(P))

    def usable_bias(self) -> Bias | None:
        """The bias with which a window may be solved with its rotations; None where these are blocked or have contradicted images.

        They need not be binding: a window that they contradict is solved without them.
        """
        usable = self.expected and not self.blocked and not self._refuted
        return Bias(self.bias.copy(), self._P[3:, 3:].copy()) if usable else None

    def predict(self, T_WC: Tensor, from_ns: int, to_ns: int) -> RotationPrior | None:
        """The rotation of an image from the pose (7,) of the last one; None where it is not known or contradicts the images."""
        self._predicted = None
        if not self.expected or self.blocked or to_ns <= from_ns:
            return None
        self._check.update(self._buffer.newest_ns, self._buffer.angles)
        step = self.rotation(from_ns, to_ns)
        self._gap = step if isinstance(step, str) else ""
        if isinstance(step, str):
            return None
        F = np.block([[step.R.T, step.by_bias], [np.zeros((3, 3)), np.eye(3)]])
        P = F @ self._P @ F.T
        P[:3, :3] += step.covariance
        P[3:, 3:] += BIAS_WALK**2 * step.seconds * np.eye(3)
        R = _matrix(T_WC[3:]) @ step.R
        prior = RotationPrior(_quaternion(R), torch.from_numpy(P[:3, :3].copy()), self._binding)
        self._predicted = _Predicted(prior, P, step, (from_ns, to_ns))
        return None if self._refuted else prior

    # -- correction ---------------------------------------------------------------------------------------------------

    def refutes(self, T_WC: Tensor) -> bool:
        """Whether a pose (7,) of the predicted image, found again somewhere, has a rotation that cannot be."""
        predicted = self._predicted
        if predicted is None or not self._binding:
            return False
        q = geometry.quaternion_multiply(T_WC[3:] * T_WC.new_tensor([-1.0, -1, -1, 1]), predicted.prior.q_WC)
        known = float(predicted.prior.covariance.trace()) ** 0.5
        return float(geometry.log_so3(q).norm()) > self.MAX_DRIFT + 3 * known

    def notify_lost(self) -> None:
        """Tracking was lost: it has to prove itself again, for it may be the cause."""
        self._vetted = max(0, self._vetted - self.COST_OF_LOSS)

    def update(self, estimate: PoseEstimate, still: bool) -> None:
        """Takes the pose of the predicted image over. `still`: images show the camera at rest: what is measured is the bias.

        In motion images in a row say nothing of the bias: the errors of the map that they share look like one. Windows do (`learn_bias`).
        """
        predicted, self._predicted = self._predicted, None
        T_WC, covariance = estimate.T_WC, estimate.covariance
        if predicted is None or not still:
            self._rest_s = 0.0
        if predicted is None or still:
            if predicted is not None:
                self._learn_at_rest(predicted.step, _rotation_block(covariance))
            return self.restart(covariance)
        found = predicted.prior.correct(T_WC, covariance, estimate.prior_used)
        contradicts = found.contradicts or estimate.contradiction
        weak = int(estimate.inlier.sum()) < self.WEAK_INLIERS
        if not weak and not estimate.contradiction:
            P, used = _rotation_block(covariance), estimate.prior_used
            self._check.add(predicted.prior, T_WC[3:], P, used, predicted.times_ns)
        if contradicts and weak:
            self._vetted = max(0, self._vetted - 1)
        else:
            self._count(contradicts, predicted.step, found)
        if contradicts and not estimate.prior_used and not weak:  # images have overruled it
            self._vetted, self._proved = 0, False
            if found.distance > self.CLEAR_CONTRADICTION:
                self._check.forget_agreement()
        if contradicts:
            return self.restart(covariance)
        P, before = _rotation_block(covariance), predicted.P
        # The bias is considered, not updated (Schmidt 1966).
        cross = before[3:, :3] @ np.linalg.inv(before[:3, :3]) @ P if estimate.prior_used else np.zeros((3, 3))
        self._P = np.block([[P, cross.T], [cross, before[3:, 3:]]])

    def restart(self, covariance: Tensor | None = None) -> None:
        """The last pose, known to a covariance (6, 6), does not continue the one before: it says nothing of the bias."""
        self._P[:3, 3:] = self._P[3:, :3] = 0.0
        self._P[:3, :3] = LEAST_SIGMA**2 * np.eye(3)
        if covariance is not None:
            self._P[:3, :3] += _rotation_block(covariance)

    def follow_adjustment(self, before: Tensor, after: Tensor) -> None:
        """Bundle adjustment has moved the newest pose (7,): by so much it was wrong."""
        self._P[:3, :3] += float(geometry.local(before, after)[3:].square().sum()) * np.eye(3)

    def learn_bias(self, found: Bias) -> None:
        """Takes over what a window has added to `usable_bias`."""
        P, B, to_rotation = self._P[:3, :3], self._P[3:, 3:], self._P[:3, 3:] @ np.linalg.inv(self._P[3:, 3:])
        P = P - to_rotation @ (B - found.covariance) @ to_rotation.T
        cross = to_rotation @ found.covariance
        self.bias = found.mean
        self._P = np.block([[P, cross], [cross.T, found.covariance]])

    def _count(self, contradicts: bool, step: Preintegrated, found: Correction) -> None:
        """Leaves out a gyroscope that contradicts the images most of the time, until it agrees with them again.

        A contradiction may be a turn that the images alone show.
        """
        turn = float(np.linalg.norm(step.mean_rate - self.bias)) * step.seconds
        if contradicts:
            turn = max(turn, float(geometry.log_so3(_quaternion(step.R @ exp_so3(found.moved[None])[0])).norm()))
        if turn > self.LEAST_TURN:
            keep = float(np.exp(-turn / self.MEMORY_RAD))
            self._contradictions = keep * self._contradictions + (1 - keep) * contradicts
            limit = self.TRUSTED_SHARE if self._contradicted else self.REFUSED_SHARE
            self._contradicted = self._contradictions > limit
            vetted = self._vetted - self.COST_OF_CONTRADICTION if contradicts else self._vetted + 1
            keep = float(np.exp(-turn / self.DISTANCE_MEMORY_RAD))
            self._distance = keep * self._distance + min(found.distance, self.MOST_DISTANCE)
            self._images = keep * self._images + 1
            unproved = self._vetted < self.VETTED and self._disagrees
            self._vetted = 0 if self._contradicted or unproved else min(max(vetted, 0), self.MOST_VETTED)
            self._proved = self._vetted >= self.VETTED or (self._proved and self._vetted > 0)

    def _learn_at_rest(self, step: Preintegrated, P: np.ndarray) -> None:
        """Kalman update of the bias by the mean rate of a camera at rest, of which images know the rotation to P (3, 3).

        After T s of rest they know its mean rate to P / T^2. An image adds what its time adds to that information: a slow turn that does not
        show in two images teaches next to nothing.
        """
        if np.linalg.norm(step.mean_rate) > self.MAX_BIAS:
            return
        before, self._rest_s = self._rest_s, self._rest_s + step.seconds
        B = self._P[3:, 3:] + BIAS_WALK**2 * step.seconds * np.eye(3)
        noise = (self.config.noise_density**2 / step.seconds + STILL_RATE**2) * np.eye(3)
        noise += P / (self._rest_s**2 - before**2)
        gain = B @ np.linalg.inv(B + noise)
        self.bias = self.bias + gain @ (step.mean_rate - self.bias)
        self._P[3:, 3:] = B - gain @ B


def _rotation_block(covariance: Tensor) -> np.ndarray:
    return covariance[3:, 3:].double().cpu().numpy()


def _matrix(q: Tensor) -> np.ndarray:
    return geometry.rotation_matrix(q.double().cpu()).numpy()


def _quaternion(R: np.ndarray) -> Tensor:
    return geometry.from_matrix(torch.from_numpy(np.concatenate([R, np.zeros((3, 1))], 1)))[3:]
