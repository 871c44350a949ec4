"""Poses of the camera in the map -> poses of the robot's base in the odometry frame, with twist and covariances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..odometry.motion import UNKNOWN_ANGLE_VARIANCE
from . import transforms

if TYPE_CHECKING:  # as in convert, which needs RobotPose
    from torch import Tensor

    from ..core.types import OdometryOutput


@dataclass(frozen=True)
class RobotPose:
    """The content of nav_msgs/Odometry. Covariances are (6, 6), translation first, in the axes that the message defines."""

    T_OB: np.ndarray  # (4, 4)
    T_OC: np.ndarray  # (4, 4)
    covariance: np.ndarray  # position and rotation about the axes of the odometry frame
    twist: np.ndarray  # (6,) m/s and rad/s in the base frame; zero in the first pose and in the first after a gap
    twist_covariance: np.ndarray  # NaN (unknown) where there is no twist


@dataclass(frozen=True)
class _Last:
    """The previous pose; covariances of the base, (6, 6), body axes."""

    stamp_ns: int
    pose: RobotPose
    covariance_B: np.ndarray
    covariance_in_map: np.ndarray


@dataclass(frozen=True)
class Start:
    """Where the base is when a map begins: pose (4, 4), and covariance (6, 6) as in nav_msgs/Odometry."""

    T_OB: np.ndarray
    covariance: np.ndarray


AT_ORIGIN = Start(np.eye(4), np.zeros((6, 6)))


class RobotPoseTracker:
    """Keeps the odometry frame continuous.

    The odometry frame O is the pose of the base when the first map began, unless that was given in O (`Start`). The core places every further map at its last pose and
    adds the covariance of the gap itself. A core that was reset starts at zero again: after `restart` the next pose is the last
    one published, and the gap's covariance is added here, from the last known twist. It is compounded along the path from there
    on, so that its heading error grows into position.

    Attributes:
        LEAST_VARIANCE: added to every variance, m^2 and rad^2: the origin is exact by definition, but a filter inverts the covariance.
        GAP_ROTATION_RAD: standard deviation of the rotation about each axis in a gap of any length; at most that of an unknown angle.
        TWIST_SPAN_S: poses farther apart than this give a mean velocity, not the present one.
    """

    LEAST_VARIANCE = 1e-9
    GAP_ROTATION_RAD = 0.1
    TWIST_SPAN_S = 1.0

    def __init__(self, T_BC: np.ndarray, start: Start = AT_ORIGIN) -> None:
        self._T_BC = T_BC
        self._T_OW = start.T_OB @ T_BC
        self._map_id: int | None = None
        self._restarted = False
        # What resets of the core left uncertain: covariance of the base at the pose of the last reset, body axes.
        self._gap_covariance = transforms.fixed_axis_covariance(start.covariance, start.T_OB[:3, :3].T)
        self._T_OB_gap = start.T_OB
        self._last: _Last | None = None
        self._gap = True  # no image with a pose of the same map came just before
        self._speed = np.zeros(2)  # m/s and rad/s, the last known

    def mount(self, T_BC: np.ndarray) -> None:
        """Takes the pose of the camera on the base at the time of the next output; it may move."""
        self._T_BC = T_BC

    def restart(self) -> None:
        """The core was reset, its covariance with it: its next pose is the last pose published."""
        self._restarted = self._last is not None

    def camera_pose(self, T_WC: np.ndarray) -> np.ndarray:
        """(7,) pose of a camera in the map -> its pose (4, 4) in the odometry frame."""
        return self._T_OW @ transforms.from_pose(T_WC)

    def points(self, points_W: np.ndarray) -> np.ndarray:
        """(P, 3) in the map -> in the odometry frame."""
        return points_W @ self._T_OW[:3, :3].T + self._T_OW[:3, 3]

    def update(self, output: OdometryOutput) -> RobotPose | None:
        """The robot's pose at an output with a pose, else None."""
        if output.T_WC is None:
            self._gap = True
            return None
        T_WC = transforms.from_pose(output.T_WC.cpu().numpy())
        if self._restarted and self._last is not None:
            self._T_OW = self._last.pose.T_OB @ self._T_BC @ transforms.inverse(T_WC)
            self._add_gap(output.stamp_ns, self._last)
        elif self._last is not None and output.map_id != self._map_id:
            # The core has placed its new map at the last pose of the camera, which may have moved on the base since.
            T_OC = self._last.pose.T_OC
            self._T_OW = self._last.pose.T_OB @ self._T_BC @ transforms.inverse(T_OC) @ self._T_OW
        self._gap = self._gap or self._restarted or output.map_id != self._map_id
        T_OC = self._T_OW @ T_WC
        T_OB = T_OC @ transforms.inverse(self._T_BC)
        least = np.eye(6) * self.LEAST_VARIANCE
        covariance_B = self._of_base(output.covariance) + self._gap_at(T_OB) + least
        covariance_in_map = self._of_base(output.covariance_in_map) + least
        added = covariance_in_map
        if output.covariance_of_step is not None:
            added = added + self._of_base(output.covariance_of_step)
        twist, twist_covariance = self._twist(output.stamp_ns, T_OB, added)
        covariance = transforms.fixed_axis_covariance(covariance_B, T_OB[:3, :3])
        pose = RobotPose(T_OB, T_OC, covariance, twist, twist_covariance)
        self._last = _Last(output.stamp_ns, pose, covariance_B, covariance_in_map)
        self._map_id, self._restarted, self._gap = output.map_id, False, False
        return pose

    def _of_base(self, covariance: Tensor | None) -> np.ndarray:
        """Covariance of the camera's pose -> of the base's, in body axes; NaN where it is unknown."""
        known = np.full((6, 6), np.nan) if covariance is None else covariance.cpu().numpy().astype(float)
        return transforms.body_covariance(known, self._T_BC)

    def _twist(self, stamp_ns: int, T_OB: np.ndarray, added: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean velocity since the previous pose, and its covariance; zeros and NaN across a gap.

        `added`: the covariance (6, 6) of this pose in the map and of the motion to it.
        """
        dt = 0.0 if self._last is None or self._gap else (stamp_ns - self._last.stamp_ns) / 1e9
        if self._last is None or not 0 < dt <= self.TWIST_SPAN_S:
            return np.zeros(6), np.full((6, 6), np.nan)
        T_last, R = self._last.pose.T_OB, T_OB[:3, :3]
        linear = R.T @ (T_OB[:3, 3] - T_last[:3, 3]) / dt
        angular = transforms.rotation_vector(T_last[:3, :3].T @ R) / dt
        self._speed = np.array([np.linalg.norm(linear), np.linalg.norm(angular)])
        # Drift and errors of landmarks are common to neighbouring poses and cancel in their difference.
        last_in_map = transforms.body_covariance(self._last.covariance_in_map, transforms.inverse(T_OB) @ T_last)
        return np.concatenate([linear, angular]), (added + last_in_map) / dt**2

    def _gap_at(self, T_OB: np.ndarray) -> np.ndarray:
        """The covariance (6, 6) that resets have left, compounded to a pose of the base."""
        return transforms.body_covariance(self._gap_covariance, transforms.inverse(T_OB) @ self._T_OB_gap)

    def _add_gap(self, stamp_ns: int, last: _Last) -> None:
        """Adds the drift as of `last`, which the reset core has lost, and the motion since then at the last known speed."""
        elapsed_s = (stamp_ns - last.stamp_ns) / 1e9
        if elapsed_s < 0:  # the clock was set back: nobody knows how long the gap was
            elapsed_s = self.TWIST_SPAN_S
        sigma = np.repeat(self._speed, 3) * elapsed_s
        sigma[3:] = np.minimum(sigma[3:] + self.GAP_ROTATION_RAD, UNKNOWN_ANGLE_VARIANCE**0.5)
        self._gap_covariance, self._T_OB_gap = last.covariance_B + np.diag(sigma**2), last.pose.T_OB
