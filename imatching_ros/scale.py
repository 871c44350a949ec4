"""What the unit of length of the map is: metres from the sensors, a known baseline or odometry from elsewhere, or not known."""

from __future__ import annotations

import math

from .odometry_input import OdometryInput
from .window import Window

_DRIFT = 0.03  # a map in metres is scaled again when odometry from elsewhere disagrees by more
_SENSOR = {"stereo": "stereo baseline", "rgbd": "depth camera"}


class Scale:
    """Of one map; owned by the thread that owns the odometry.

    Attributes:
        source: what gives the map its unit; empty while nothing does.
    """

    def __init__(self, given: OdometryInput) -> None:
        self._given = given
        self.source = ""

    def begin(self, window: Window, mode: str, known_baseline: bool, again: bool) -> None:
        """Finds out the unit of a new map, before anything of it is published; scales it where odometry tells how.

        Args:
            known_baseline: the first baseline was set to a known length; `again`: in an earlier map.
        """
        self._given.forget_map()
        if mode != "mono":
            self.source, self._given.unit_m = _SENSOR[mode], 1.0
            return
        self.source = "first baseline" if known_baseline else ""
        if known_baseline and again:
            self.source += ", carried on by the depth of the scene"
        self._given.unit_m = 1.0 if known_baseline else None
        found = self._given.measure([keyframe.stamp_ns for keyframe in window.keyframes], window.T_WC)
        if found is not None and self._given.scales:
            window.rescale(found)
            self.source, found = "odometry", 1.0
        self._given.unit_m = found or self._given.unit_m

    def correct(self, window: Window) -> float | None:
        """Mono: measures the window by odometry from elsewhere; returns by what factor the map must grow to be in metres, if it must."""
        found = self._given.measure([keyframe.stamp_ns for keyframe in window.keyframes], window.T_WC)
        if found is None:
            return None
        if not self._given.scales:
            self._given.unit_m = found
            return None
        if self.source == "odometry" and abs(math.log(found)) <= _DRIFT:
            return None
        self.source, self._given.unit_m = "odometry", 1.0
        return found

    def describe(self, mode: str) -> str:
        """The source, or `unknown` and why."""
        if self.source or mode != "mono":
            return self.source or _SENSOR[mode]
        return f"unknown: {self._given.doubt}" if self._given.scales else "unknown"
