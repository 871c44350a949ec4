"""The pose of the camera on the robot at the time of an image: by parameter, by TF, or assumed."""

from __future__ import annotations

import time

import numpy as np

from ..core.errors import ConfigError
from . import transforms
from .lifecycle import ManagedNode
from .params import NodeConfig
from .tf_tree import TransformTree


class CameraMount:
    """Finds T_BC, the pose of the camera's optical frame C, which the images name, in the base frame B.

    Attributes:
        config: the node's settings; replaced when they change.
        problem: why T_BC is unknown or inexact; empty when it is known. With a problem T_BC is pending, or an assumption.
    """

    RETRY_PERIOD_S = 1.0  # of looking TF up while T_BC is an assumption
    COINCIDENCE = 1e-3  # m and rad: half a pixel at 500 px of focal length
    MOST_LAG_S = 0.2  # of the TF of a mounting that moves, behind the image

    def __init__(self, node: ManagedNode, config: NodeConfig, tree: TransformTree | None) -> None:
        self._node, self.config, self._tree = node, config, tree
        self.problem = ""
        self.reset()

    def reset(self) -> None:
        self._T_BC: np.ndarray | None = None
        self._frame: str | None = None  # of the newest image
        self._known_frame = ""  # whose pose T_BC is
        self._assumed = False
        self._waiting_since_s: float | None = None
        self._looked_up_s = 0.0

    def find(self, camera_frame: str, stamp: int) -> np.ndarray | None:
        """T_BC (4, 4) at a time in ns, or None while TF may still arrive (`tf_timeout_s`, with `require_tf` for ever).

        Raises:
            ConfigError: the camera's frame is `odom_frame`, which must not move with the robot.
        """
        if camera_frame and camera_frame == self.config.odom_frame:
            raise ConfigError(
                f"odom_frame is '{camera_frame}', which is the frame of the images too; expected a frame that does not "
                "move with the robot"
            )
        self._note_frame(camera_frame)
        if not self._assumed:
            self._T_BC = self._find(camera_frame, stamp)
        return self._T_BC

    @property
    def unknown(self) -> str:
        """Why nobody knows where the base is, whose pose `find` has assumed or waits for; empty when it is known."""
        c, frame = self.config, self._frame or "(the images name no frame)"
        if not any(c.base_from_camera) and frame == c.base_frame:
            return f"base_frame is '{frame}', the optical frame of the images, whose z axis does not point up"
        if self._T_BC is not None and not self._assumed:
            return ""
        return f"no TF from {c.base_frame} to {frame}; publish it or set base_from_camera"

    def arrived_late(self, camera_frame: str) -> bool:
        """Whether TF has arrived after T_BC was assumed without it; looks it up once a period."""
        now = time.monotonic()
        if not self._assumed or now - self._looked_up_s < self.RETRY_PERIOD_S:
            return False
        self._looked_up_s = now
        return self._lookup(self.config.base_frame, camera_frame) is not None

    def camera_in(self, frame: str, camera_frame: str, stamp: int) -> np.ndarray | None:
        """Pose (4, 4) of the camera's optical frame in a frame of the robot at a time in ns; None while it is unknown."""
        if frame == camera_frame:
            return np.eye(4)
        T = None if any(self.config.base_from_camera) else self._lookup(frame, camera_frame, stamp)
        if T is None and self._T_BC is not None:  # TF may lack the camera, whose pose on the base is given otherwise
            base = self.config.base_frame
            T_frame_base = np.eye(4) if frame == base else self._lookup(frame, base, stamp)
            T = None if T_frame_base is None else T_frame_base @ self._T_BC
        return T

    def coincide(self, frame: str, camera_frame: str) -> bool:
        """Whether a frame is the camera's own: of the same name, or in the same place by TF, and turned alike."""
        if frame == camera_frame or not (frame and camera_frame):
            return True
        T = self._lookup(camera_frame, frame)
        return T is not None and bool(np.allclose(T, np.eye(4), atol=self.COINCIDENCE))

    def _note_frame(self, camera_frame: str) -> None:
        if self._frame not in (None, camera_frame):
            self._node.warn_throttled(
                "camera frame", f"the frame of the images has changed from '{self._frame}' to '{camera_frame}'"
            )
        self._frame = camera_frame

    def _find(self, camera_frame: str, stamp: int) -> np.ndarray | None:
        c = self.config
        self.problem = ""
        if any(c.base_from_camera):
            return transforms.from_pose(np.array(c.base_from_camera))
        if camera_frame == c.base_frame:
            return np.eye(4)
        T = self._lookup(c.base_frame, camera_frame, stamp)
        if T is not None:
            self._known_frame = camera_frame
            self._check_lag(camera_frame, stamp)
            return T
        named = camera_frame or "(the images name no frame)"
        self.problem = f"no TF from {c.base_frame} to {named}"
        if self._T_BC is not None:
            self.problem += f"; the pose of '{self._known_frame}' is taken, which images named before"
            self._node.warn_throttled("tf", self.problem)
            return self._T_BC
        return self._assume(named)

    def _assume(self, named: str) -> np.ndarray | None:
        """None while TF may still arrive, then the base at the camera."""
        c, now = self.config, time.monotonic()
        if self._waiting_since_s is None:
            self._waiting_since_s = now
        if c.require_tf or now - self._waiting_since_s < c.tf_timeout_s:
            self._node.warn_throttled("tf wait", f"waiting for TF from {c.base_frame} to {named}")
            return None
        self._assumed, self._looked_up_s = True, now
        self._node.get_logger().warning(
            f"{self.problem} within {c.tf_timeout_s:g} s: until there is, {c.base_frame} is assumed at the camera, x along its "
            "optical axis. Publish the transform (ros2 run tf2_ros static_transform_publisher) or set base_from_camera"
        )
        return transforms.T_BODY_OPTICAL

    def _check_lag(self, camera_frame: str, stamp: int) -> None:
        """The camera moves on the robot, and TF does not say how at the time of the image."""
        lag_s = 0.0 if self._tree is None else self._tree.lag_s(self.config.base_frame, camera_frame, stamp)
        if lag_s > self.MOST_LAG_S:
            self.problem = f"TF from {self.config.base_frame} to {camera_frame}, which moves, is {lag_s:.2f} s older than the image"
            self._node.warn_throttled("tf", f"{self.problem}: its newest pose is extrapolated")

    def _lookup(self, target: str, source: str, stamp: int | None = None) -> np.ndarray | None:
        return None if self._tree is None else self._tree.lookup(target, source, stamp)
