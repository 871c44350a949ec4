"""Where `odom` begins: at a given pose, level by the accelerometer of an IMU at rest, or as the base stands."""

from __future__ import annotations

import math

import numpy as np

from ..odometry.gravity import Gravity
from .robot_pose import AT_ORIGIN, Start


class LevelStart:
    """Decides once, between the first pose and the first published one.

    Attributes:
        gravity: to be filled with what the IMU measures until `decided`.
        state: what `odom` began with, for people.
    """

    LONGEST_WAIT_NS = 1_000_000_000  # of the first published pose
    MAX_TILT = math.radians(45.0)  # a robot that leans farther has a wrongly mounted IMU

    def __init__(self, with_imu: bool) -> None:
        self._with_imu = with_imu
        self.reset()

    def reset(self) -> None:
        """Everything begins again."""
        self.gravity, self.decided, self.state = Gravity(), False, ""

    def find(self, given: Start, T_BC: np.ndarray, first_ns: int, now_ns: int, blocked: str) -> Start | None:
        """The pose of the base in `odom` when the map began; None while the IMU has to be waited for.

        Args:
            given: by the user; where it is not the origin, it has precedence.
            T_BC: (4, 4) pose of the camera.
            first_ns: stamp of the image with which the map began. now_ns: of the newest.
            blocked: why messages of the IMU cannot be used; empty when they can.
        """
        if given is not AT_ORIGIN:
            return self._decide("at the given pose", given)
        if not self._with_imu:
            return self._decide("as the base stood", given)
        up_C = blocked or self.gravity.up(first_ns)
        if (up_C is None or blocked) and now_ns - first_ns < self.LONGEST_WAIT_NS:
            return None
        if up_C is None:
            up_C = "too little has arrived"
        if isinstance(up_C, str):
            return self._decide(f"as the base stood, not level by the IMU: {up_C}", given)
        x, y, z = T_BC[:3, :3] @ up_C
        tilt = math.atan2(math.hypot(x, y), z)
        if tilt > self.MAX_TILT:
            return self._decide(
                f"as the base stood, not level by the IMU: it has the base tilted by {math.degrees(tilt):.0f} degrees",
                given,
            )
        return self._decide(
            f"level by the IMU: the base was tilted by {math.degrees(tilt):.1f} degrees",
            Start(level(x, y, z), given.covariance),
        )

    def _decide(self, state: str, start: Start) -> Start:
        self.state, self.decided = state, True
        return start


def level(x: float, y: float, z: float) -> np.ndarray:
    """Pose (4, 4) of a base at the origin whose axes see up at (x, y, z): roll and pitch of REP-103, heading zero."""
    roll, pitch = math.atan2(y, z), math.atan2(-x, math.hypot(y, z))
    cr, sr, cp, sp = math.cos(roll), math.sin(roll), math.cos(pitch), math.sin(pitch)
    T_OB = np.eye(4)
    T_OB[:3, :3] = [[cp, sp * sr, sp * cr], [0, cr, -sr], [-sp, cp * sr, cp * cr]]
    return T_OB
