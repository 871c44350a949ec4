"""The pose of the camera on the robot: by parameter, by TF, or assumed."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

from ..core.errors import ConfigError
from . import transforms
from .lifecycle import ManagedNode
from .params import NodeConfig

try:
    import tf2_ros
    from rclpy.time import Time
except ImportError:
    tf2_ros = None

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # a ROS without tf2: no TF to receive or to publish
    TFMessage = None

log = logging.getLogger(__name__)


class CameraMount:
    """Finds T_BC, the pose of the camera's optical frame C in the base frame B, when the first image names C.

    Attributes:
        config: the node's settings; replaced when they change.
        problem: why T_BC is unknown; empty when it is known. With a problem T_BC is pending, or an assumption.
    """

    RETRY_PERIOD_S = 1.0  # of looking TF up while T_BC is an assumption

    def __init__(self, node: ManagedNode, config: NodeConfig, tree: TransformTree | InstalledTransforms | None) -> None:
        self._node, self.config, self._tree = node, config, tree
        self.problem = ""
        self.reset()

    def reset(self) -> None:
        self._T_BC: np.ndarray | None = None
        self._waiting_since_s: float | None = None
        self._looked_up_s = 0.0

    def find(self, camera_frame: str) -> np.ndarray | None:
        """T_BC (4, 4), or None while TF may still arrive (`tf_timeout_s`).

        Raises:
            ConfigError: the camera's frame is `odom_frame`, which must not move with the robot.
        """
        if camera_frame and camera_frame == self.config.odom_frame:
            raise ConfigError(
                f"odom_frame is '{camera_frame}', which is the frame of the images too; expected a frame that does not "
                "move with the robot"
            )
        if self._T_BC is None:
            self._T_BC = self._find(camera_frame)
        return self._T_BC

    def arrived_late(self, camera_frame: str) -> bool:
        """Whether TF has arrived after T_BC was assumed without it; looks it up once a period."""
        now = time.monotonic()
        if not self.problem or self._T_BC is None or now - self._looked_up_s < self.RETRY_PERIOD_S:
            return False
        self._looked_up_s = now
        return self._lookup(self.config.base_frame, camera_frame) is not None

    def camera_in(self, frame: str, camera_frame: str) -> np.ndarray | None:
        """Pose (4, 4) of the camera's optical frame in a frame of the robot; None while it is unknown."""
        if frame == camera_frame:
            return np.eye(4)
        if frame == self.config.base_frame:
            return self._T_BC
        T = self._lookup(frame, camera_frame)
        if T is None and self._T_BC is not None:  # TF may lack the camera, whose pose on the base is given otherwise
            T_frame_base = self._lookup(frame, self.config.base_frame)
            T = None if T_frame_base is None else T_frame_base @ self._T_BC
        return T

    def _find(self, camera_frame: str) -> np.ndarray | None:
        c = self.config
        self.problem = ""
        if any(c.base_from_camera):
            return transforms.from_pose(np.array(c.base_from_camera))
        if camera_frame == c.base_frame:
            return np.eye(4)
        T = self._lookup(c.base_frame, camera_frame)
        if T is not None:
            return T
        named = camera_frame or "(the images name no frame)"
        self.problem = f"no TF from {c.base_frame} to {named}"
        now = time.monotonic()
        if self._waiting_since_s is None:
            self._waiting_since_s = now
        if now - self._waiting_since_s < c.tf_timeout_s:
            self._node.warn_throttled("tf wait", f"waiting for TF from {c.base_frame} to {named}")
            return None
        self._looked_up_s = now
        self._node.get_logger().warning(
            f"{self.problem} within {c.tf_timeout_s:g} s: until there is, {c.base_frame} is assumed at the camera, x along its "
            "optical axis. Publish the transform (ros2 run tf2_ros static_transform_publisher) or set base_from_camera"
        )
        return transforms.T_BODY_OPTICAL

    def _lookup(self, target: str, source: str) -> np.ndarray | None:
        return None if self._tree is None else self._tree.lookup(target, source)


def make_lookup(node: Node) -> TransformTree | InstalledTransforms:
    """tf2_ros where it is installed, else a listener of our own."""
    return TransformTree(node) if tf2_ros is None else InstalledTransforms(node)


class InstalledTransforms:
    """tf2_ros behind the interface of TransformTree."""

    def __init__(self, node: Node) -> None:
        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def lookup(self, target: str, source: str) -> np.ndarray | None:
        try:
            found = self._buffer.lookup_transform(target, source, Time()).transform
        except tf2_ros.TransformException:
            return None
        return _matrix(found)

    def close(self) -> None:
        self._listener.unregister()


class TransformTree:
    """The newest transform between frames, from /tf_static and /tf, for machines without tf2_ros. Does not interpolate."""

    def __init__(self, node: Node | None) -> None:
        self._node = node
        self._parents: dict[str, tuple[str, np.ndarray]] = {}
        self._refused: set[tuple[str, str]] = set()  # links of which a transform was ignored, parent first
        self._subscriptions = []
        if node is not None and TFMessage is not None:
            static = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._subscriptions = [
                node.create_subscription(TFMessage, "/tf_static", self.add, static),
                node.create_subscription(TFMessage, "/tf", self.add, QoSProfile(depth=100)),
            ]

    def add(self, message: TFMessage) -> None:
        """Takes the transforms of a message over; one that is no rigid transform is ignored, with one warning for each link."""
        for stamped in message.transforms:
            parent, child = stamped.header.frame_id.lstrip("/"), stamped.child_frame_id.lstrip("/")
            try:
                # Replaces an entry as a whole: `lookup` runs in another thread.
                self._parents[child] = parent, _matrix(stamped.transform)
            except ValueError as error:
                if (parent, child) not in self._refused:
                    self._refused.add((parent, child))
                    log.warning(f"TF from {parent} to {child} is ignored: {error}")

    def lookup(self, target: str, source: str) -> np.ndarray | None:
        """T_target_source (4, 4), or None while the two are not connected."""
        up_source, up_target = self._climb(source), self._climb(target)
        for frame, T in up_source.items():
            if frame in up_target:
                return transforms.inverse(up_target[frame]) @ T
        return None

    def close(self) -> None:
        if self._node is not None:
            for subscription in self._subscriptions:
                self._node.destroy_subscription(subscription)

    def _climb(self, frame: str) -> dict[str, np.ndarray]:
        """{ancestor: T_ancestor_frame}, the frame itself first."""
        T, chain = np.eye(4), {}
        while frame not in chain:  # ends at the root, or where a loop was published
            chain[frame] = T
            if frame not in self._parents:
                break
            frame, T_parent = self._parents[frame]
            T = T_parent @ T
        return chain


def _matrix(transform: Any) -> np.ndarray:
    t, q = transform.translation, transform.rotation
    return transforms.from_pose(np.array([t.x, t.y, t.z, q.x, q.y, q.z, q.w]))
