"""Poses of the camera in the map -> poses of the robot's base in the odometry frame, with twist and covariances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..core.types import OdometryOutput
from . import transforms

# Added to every covariance: the origin is exact by definition, but a filter must be able to invert what it is given.
_LEAST_VARIANCE = 1e-9

# What is not known of a rotation during a gap without tracking, rad.
_GAP_ROTATION_RAD = 0.1

# Two poses farther apart say how the robot moved on average, not how fast it is.
_TWIST_SPAN_S = 1.0


@dataclass(frozen=True)
class RobotPose:
    """What nav_msgs/Odometry wants to know. Covariances are (6, 6), translation first, in the axes that the message defines."""

    T_OB: np.ndarray  # (4, 4)
    T_OC: np.ndarray  # (4, 4)
    covariance: np.ndarray  # position and rotation about the axes of the odometry frame
    twist: np.ndarray  # (6,) m/s and rad/s in the base frame; zero in the first pose and in the first after a gap
    twist_covariance: np.ndarray  # NaN, not known, where the twist is zero for want of a pose just before


@dataclass(frozen=True)
class _Last:
    """What the next pose needs of the one before; covariances of the base, (6, 6), body axes."""

    stamp_ns: int
    pose: RobotPose
    covariance_B: np.ndarray
    covariance_in_map: np.ndarray


class RobotPoseTracker:
    """Keeps the odometry frame continuous.

    The odometry frame O is where the base was when the first map began. The core places a map that starts again at its last
    pose; after `restart` (the core was reset) the same is done here. What happened in between is not known: the covariance
    grows by the distance that the last known twist would have covered, and is carried along the path from there on, which makes
    the heading's error grow into position.
    """

    def __init__(self, T_BC: np.ndarray) -> None:
        self._T_BC = T_BC
        self._T_CB = transforms.inverse(T_BC)
        self._T_OW = T_BC
        self._map_id: int | None = None
        self._restarted = False
        self._gap_covariance = np.zeros(
            (6, 6)
        )  # of the base where it was at the last gap, body axes: what the core does not know of
        self._T_OB_gap = np.eye(4)
        self._last: _Last | None = None
        self._interrupted = False  # there was an image without a pose since the last one
        self._speed = np.zeros(2)  # m/s and rad/s, when last known

    def restart(self) -> None:
        """The core was reset, and has forgotten how uncertain it was: its next pose is the last pose published."""
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
            self._interrupted = True
            return None
        T_WC = transforms.from_pose(output.T_WC.cpu().numpy())
        if self._last is not None and (self._restarted or output.map_id != self._map_id):
            if self._restarted:
                self._T_OW = self._last.pose.T_OC @ transforms.inverse(T_WC)
            self._add_gap(output.stamp_ns)
        T_OC = self._T_OW @ T_WC
        T_OB = T_OC @ self._T_CB
        covariance_B = self._of_base(output.covariance) + self._gap_at(T_OB) + np.eye(6) * _LEAST_VARIANCE
        covariance_in_map = self._of_base(output.covariance_in_map) + np.eye(6) * _LEAST_VARIANCE
        twist, twist_covariance = self._twist(output.stamp_ns, T_OB, covariance_in_map)
        pose = RobotPose(
            T_OB, T_OC, transforms.fixed_axis_covariance(covariance_B, T_OB[:3, :3]), twist, twist_covariance
        )
        self._last = _Last(output.stamp_ns, pose, covariance_B, covariance_in_map)
        self._map_id, self._restarted, self._interrupted = output.map_id, False, False
        return pose

    def _of_base(self, covariance: Tensor | None) -> np.ndarray:
        """Covariance of the camera's pose -> of the base's, in body axes; NaN where it is not known."""
        known = np.full((6, 6), np.nan) if covariance is None else covariance.cpu().numpy().astype(float)
        return transforms.body_covariance(known, self._T_BC)

    def _twist(self, stamp_ns: int, T_OB: np.ndarray, covariance_in_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dt = 0.0 if self._last is None or self._interrupted else (stamp_ns - self._last.stamp_ns) / 1e9
        if not 0 < dt <= _TWIST_SPAN_S:
            return np.zeros(6), np.full((6, 6), np.nan)
        T_last, R = self._last.pose.T_OB, T_OB[:3, :3]
        linear = R.T @ (T_OB[:3, 3] - T_last[:3, 3]) / dt
        angular = transforms.rotation_vector(T_last[:3, :3].T @ R) / dt
        self._speed = np.array([np.linalg.norm(linear), np.linalg.norm(angular)])
        # What neighbouring poses have in common, the drift and the error of the landmarks, is not in their difference.
        seen_from_here = transforms.body_covariance(self._last.covariance_in_map, transforms.inverse(T_OB) @ T_last)
        return np.concatenate([linear, angular]), (covariance_in_map + seen_from_here) / dt**2

    def _gap_at(self, T_OB: np.ndarray) -> np.ndarray:
        """The covariance (6, 6) that gaps have left, carried to a pose of the base."""
        return transforms.body_covariance(self._gap_covariance, transforms.inverse(T_OB) @ self._T_OB_gap)

    def _add_gap(self, stamp_ns: int) -> None:
        T_OB = self._last.pose.T_OB
        sigma = np.repeat(self._speed, 3) * (stamp_ns - self._last.stamp_ns) / 1e9
        sigma[3:] += _GAP_ROTATION_RAD
        # A core that was reset begins at zero again; one that only began a new map carries its drift on.
        before = self._last.covariance_B if self._restarted else self._gap_at(T_OB)
        self._gap_covariance, self._T_OB_gap = before + np.diag(sigma**2), T_OB
        self._last = None  # no twist across the gap
