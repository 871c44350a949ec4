"""Poses of the camera in the map -> poses of the robot's base in the odometry frame, with twist and covariances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..datatypes import OdometryOutput
from . import transforms

# Added to every covariance: the origin is exact by definition, but a filter must be able to invert what it is given.
_LEAST_VARIANCE = 1e-9

# What is not known of a rotation during a gap without tracking, rad.
_GAP_ROTATION_RAD = 0.1


@dataclass(frozen=True)
class RobotPose:
    """What nav_msgs/Odometry wants to know. Covariances are (6, 6), translation first, in the axes that the message defines."""

    T_OB: np.ndarray  # (4, 4)
    T_OC: np.ndarray  # (4, 4)
    covariance: np.ndarray  # position and rotation about the axes of the odometry frame
    twist: np.ndarray  # (6,) m/s and rad/s in the base frame; zero in the first pose
    twist_covariance: np.ndarray


class RobotPoseTracker:
    """Keeps the odometry frame continuous.

    The odometry frame O is where the base was when the first map began. The core places a map that starts again at its last
    pose; after `restart` (the core was reset) the same is done here. What happened in between is not known: the covariance
    grows by the distance that the last twist would have covered.
    """

    def __init__(self, T_BC: np.ndarray) -> None:
        self._T_BC = T_BC
        self._T_CB = transforms.inverse(T_BC)
        self._T_OW = T_BC
        self._map_id: int | None = None
        self._restarted = False
        self._gap_covariance = np.eye(6) * _LEAST_VARIANCE  # of the base, body axes
        self._last: tuple[int, RobotPose, np.ndarray] | None = None  # stamp, pose, covariance in the map of the base

    def restart(self) -> None:
        """The core was reset: its next pose is the last pose published."""
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
            return None
        T_WC = transforms.from_pose(output.T_WC.cpu().numpy())
        if self._last is not None and (self._restarted or output.map_id != self._map_id):
            if self._restarted:
                self._T_OW = self._last[1].T_OC @ transforms.inverse(T_WC)
            self._add_gap(output.stamp_ns)
        self._map_id, self._restarted = output.map_id, False
        T_OC = self._T_OW @ T_WC
        T_OB = T_OC @ self._T_CB
        covariance_B = self._of_base(output.covariance) + self._gap_covariance
        covariance_in_map = self._of_base(output.covariance_in_map) + np.eye(6) * _LEAST_VARIANCE
        twist, twist_covariance = self._twist(output.stamp_ns, T_OB, covariance_in_map)
        pose = RobotPose(T_OB, T_OC, transforms.fixed_axis_covariance(covariance_B, T_OB[:3, :3]), twist, twist_covariance)
        self._last = (output.stamp_ns, pose, covariance_in_map)
        return pose

    def _of_base(self, covariance: Tensor | None) -> np.ndarray:
        """Covariance of the camera's pose -> of the base's, in body axes; NaN where it is not known."""
        known = np.full((6, 6), np.nan) if covariance is None else covariance.cpu().numpy().astype(float)
        return transforms.body_covariance(known, self._T_BC)

    def _twist(self, stamp_ns: int, T_OB: np.ndarray, covariance_in_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._last is None or stamp_ns <= self._last[0]:
            return np.zeros(6), np.full((6, 6), np.nan)
        last_ns, last, last_covariance = self._last
        dt = (stamp_ns - last_ns) / 1e9
        R = T_OB[:3, :3]
        linear = R.T @ (T_OB[:3, 3] - last.T_OB[:3, 3]) / dt
        angular = transforms.rotation_vector(last.T_OB[:3, :3].T @ R) / dt
        # What neighbouring poses have in common, the drift and the error of the landmarks, is not in their difference.
        seen_from_here = transforms.body_covariance(last_covariance, transforms.inverse(T_OB) @ last.T_OB)
        return np.concatenate([linear, angular]), (covariance_in_map + seen_from_here) / dt**2

    def _add_gap(self, stamp_ns: int) -> None:
        last_ns, pose, _ = self._last
        gap_s = (stamp_ns - last_ns) / 1e9
        sigma = np.repeat([np.linalg.norm(pose.twist[:3]), np.linalg.norm(pose.twist[3:])], 3) * gap_s
        sigma[3:] += _GAP_ROTATION_RAD
        self._gap_covariance = self._gap_covariance + np.diag(sigma**2)
        self._last = None  # no twist across the gap
