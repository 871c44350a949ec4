"""Where the camera sits on the robot: by parameter, by TF, or not known."""

from __future__ import annotations

from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

from . import transforms

try:
    import tf2_ros
    from rclpy.time import Time
except ImportError:
    tf2_ros = None

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # a ROS without tf2: nothing to listen to, nothing to publish
    TFMessage = None


def make_lookup(node: Node) -> TransformTree | InstalledTransforms:
    """tf2_ros where it is installed, else our own listener."""
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
        self._subscriptions = []
        if node is not None and TFMessage is not None:
            static = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._subscriptions = [
                node.create_subscription(TFMessage, "/tf_static", self.add, static),
                node.create_subscription(TFMessage, "/tf", self.add, QoSProfile(depth=100)),
            ]

    def add(self, message: TFMessage) -> None:
        for stamped in message.transforms:
            # Replaces the entry as a whole: `lookup` runs in another thread.
            self._parents[stamped.child_frame_id.lstrip("/")] = (
                stamped.header.frame_id.lstrip("/"),
                _matrix(stamped.transform),
            )

    def lookup(self, target: str, source: str) -> np.ndarray | None:
        """T_target_source (4, 4), or None while the two are not connected."""
        up_source, up_target = self._climb(source), self._climb(target)
        for frame, T in up_source.items():
            if frame in up_target:
                return transforms.inverse(up_target[frame]) @ T
        return None

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _climb(self, frame: str) -> dict[str, np.ndarray]:
        """{ancestor: T_ancestor_frame}, the frame itself first."""
        T, chain = np.eye(4), {}
        while frame not in chain:  # ends at the root, or where somebody published a loop
            chain[frame] = T
            if frame not in self._parents:
                break
            frame, T_parent = self._parents[frame]
            T = T_parent @ T
        return chain


def _matrix(transform: Any) -> np.ndarray:
    t, q = transform.translation, transform.rotation
    return transforms.from_pose(np.array([t.x, t.y, t.z, q.x, q.y, q.z, q.w]))
