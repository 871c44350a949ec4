"""A rolling shutter that nobody has named: its readout time, by the residuals that it leaves in bundle adjustment."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from ..bundle import RelativeRotations, estimate_missing
from ..camera import rolling_shutter
from ..camera.model import Camera
from ..core import geometry
from ..core.config import BundleConfig
from ..core.types import BAResult, WindowSnapshot

MAX_SKEW_PX = 1.0  # of the outermost rows; about the error of a match
# By so much, rad, the outermost rows of an image may be turned and its pose is right, as the readout time is not known well or as the rate changes
# between images; and from such a turn on a likely time counts that windows have not refuted yet. A pose takes it for a rotation and a translation
# of its own, whatever the resolution; where it is metric, all of that translation is an error. Chosen on rendered sweeps of seeds 151 and 152
# (clutter and room, 60 to 180 degrees/s), and stricter than they need, for fr1/rpy: without bounds 15 of 1501 frames of the sweeps in mono and 17
# of 630 in RGB-D are TRACKING while wrong, with them none.
MAX_UNKNOWN_RAD = {"mono": 0.006, "rgbd": 0.003, "stereo": 0.003}
MAX_CHANGING_RAD = 0.004  # of one camera
UNSEEN_RAD = {"mono": 0.008, "rgbd": 0.005, "stereo": math.inf}  # stereo pairs have a global shutter as a rule


class UnnamedReadout:
    """The readout time that nobody has named, as the weighted mean over windows.

    While the camera turns, the rows of a rolling shutter see the scene from different rotations. Poses and landmarks of a window bend until
    they explain most of it, but not all: the rate changes, and the rows of a landmark do. What remains tells the time. Single frames do not:
    the landmarks that they are compared with are bent alike. Windows that are bent show a part of it only, so it is found in steps.

    The time is a constant of the sensor. Where windows take back most of what earlier ones have shown, it was something else, as the
    stripes of a flickering lamp, which wander over the rows; nothing is corrected then, and no window is looked at any more.

    Attributes:
        found_s: taken into use by `adopt`.
    """

    LIKELY_S = 0.02  # most colour cameras at 30 Hz read out in 15 to 30 ms
    LONGEST_S = 0.05  # a window that shows more is wrong in another way, as in the dark where few matches are right
    MIN_OBSERVATIONS = 100  # of a keyframe, on average
    # Calibration and matching leave patterns of their own: of healthy recordings below .07 px along this parameter.
    SYSTEMATIC_PX = 0.1
    SIGNIFICANT = 4.0  # standard deviations from which on it is used,
    UNCERTAIN = 2.0  # and from which on images are uncertain; of rendered global shutters at 60 and 120 degrees/s the mean stays below 0.5
    # Of the longest time ever found; less refutes it. Rendered shutters of 20 ms keep .75, stripes .42.
    LEFT_SHARE = 0.5

    def __init__(self) -> None:
        self.found_s = 0.0
        self._most_s = 0.0  # ever found
        self._refuted = False
        self._information = 0.0
        self._weighted_s = 0.0

    @property
    def missing_s(self) -> float:
        """By how much the readout time is longer than the camera's, shorter if negative; 0 while that is not significant."""
        return self._weighted_s / self._information if self._exceeds(self.SIGNIFICANT) else 0.0

    @property
    def uncertain_s(self) -> float:
        """How wrong the camera's readout time may be; 0 while nothing speaks against it."""
        # It is found in steps, the first of which may be less than half of it.
        at_most_s = max(self.found_s, self.LIKELY_S)
        if self._information == 0:
            return at_most_s if self.found_s > 0 else 0.0
        mean_s, sigma_s = self._weighted_s / self._information, self._information**-0.5
        bound_s = abs(mean_s) + 2 * sigma_s
        if self.found_s > 0:
            return min(bound_s, at_most_s)
        return min(bound_s, self.LONGEST_S) if mean_s > 0 and self._exceeds(self.UNCERTAIN) else 0.0

    def skew_rad(self, camera: Camera, twist: Tensor, mode: str) -> float:
        """By how much the outermost rows of an image with a twist (6,) may be turned, as the readout time is not known.

        A rolling shutter is likely until windows have refuted one; that matters in fast turns only.
        """
        half_rate = float(twist[3:].norm()) / 2
        known = half_rate * self.uncertain_s
        if camera.readout_s > 0 or self._refuted or self._refutes(self.LIKELY_S):
            return known
        likely = half_rate * self.LIKELY_S
        return max(known, likely) if likely > UNSEEN_RAD[mode] else known

    @property
    def bound_sigmas(self) -> float:
        """How many standard deviations `skew_rad` is: two of what is left of a time that was found; a likely one may be all missing."""
        return 2.0 if self.found_s > 0 else 1.0

    def _refutes(self, missing_s: float) -> bool:
        """Whether the mean is too far below a time, by two standard deviations."""
        return self._weighted_s + 2 * self._information**0.5 < missing_s * self._information

    def _exceeds(self, sigmas: float) -> bool:
        """Whether the mean is so many standard deviations from 0."""
        return abs(self._weighted_s) > sigmas * self._information**0.5

    def adopt(self) -> None:
        """Takes what is missing into use; from then on windows tell what is missing beyond that."""
        found_s = min(max(self.found_s + self.missing_s, 0.0), self.LONGEST_S)
        if found_s == self.found_s:
            return
        self._most_s = max(self._most_s, found_s)
        self._refuted = found_s < self.LEFT_SHARE * self._most_s
        self.found_s, self._information, self._weighted_s = 0.0 if self._refuted else found_s, 0.0, 0.0

    def add(
        self,
        window: WindowSnapshot,
        result: BAResult,
        uv: Tensor,
        twist: Tensor,
        config: BundleConfig,
        rotations: RelativeRotations | None = None,
    ) -> None:
        """Takes a solved window into the mean, unless its camera hardly turned: then it has no information and is left out.

        Args:
            uv: (O, 2) raw px of the observations. twist: (M, 6) per second of the keyframes. rotations: the prior that is part of the result.
        """
        camera = window.camera
        if self._refuted or len(window.kf_idx) < self.MIN_OBSERVATIONS * len(twist):
            return
        if rolling_shutter.skew_px(camera, twist, max(self.LIKELY_S, camera.readout_s)) < MAX_SKEW_PX:
            return
        kf = window.kf_idx
        depth = geometry.act(geometry.inverse(result.T_WC[kf]), result.points_W[window.pt_idx])[:, 2]
        step_s = 1e-3
        longer = replace(camera, readout_s=camera.readout_s + step_s)
        moved, now = (rolling_shutter.undistort(c, uv, twist[kf], depth) for c in (longer, camera))
        longer_px = ((moved - now) / step_s).nan_to_num(0.0)
        found = estimate_missing(window, result, longer_px, config, rotations)
        if found is None or abs(found.value) > self.LONGEST_S:
            return
        sigma2 = config.shared_error * found.sigma**2 + (self.SYSTEMATIC_PX / found.visible_px) ** 2
        self._information += 1 / sigma2
        self._weighted_s += found.value / sigma2

    def describe(self, camera: Camera) -> str:
        """What to set; empty when nothing is missing."""
        if self.found_s > 0:
            return (
                f"the residuals of turns show a rolling shutter that is read out in about {1e3 * self.found_s:.0f} ms, which are used; set "
                "camera.readout_ms to what the sensor's data sheet says"
            )
        if self.missing_s <= 0:
            return ""
        return (
            f"the residuals of turns show a rolling shutter that is read out {1e3 * self.missing_s:.0f} ms or more longer than the "
            f"{1e3 * camera.readout_s:.0f} ms of camera.readout_ms: set it to what the sensor's data sheet says"
        )
