"""Transforms between frames at a time, from /tf_static and /tf, cheap on a busy /tf.

tf2_ros turns every message into Python objects, which costs half a processor core at 200 messages a second. Here the messages of
/tf arrive as bytes, and only those are decoded that name a link between frames that were looked up.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message

from . import transforms
from .convert import stamp_ns

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # a ROS without tf2: no TF to receive or to publish
    TFMessage = None

log = logging.getLogger(__name__)


class Link:
    """The pose of a frame in its parent over time. Of a pose that stays, the oldest and the newest stamp are kept."""

    HISTORY_NS = 10_000_000_000  # as much as tf2 keeps
    # A stamp older than the newest by more than this begins anew; by less, it is late and left out.
    RESTART_NS = 1_000_000_000
    EXTRAPOLATION_NS = 100_000_000  # at most
    VELOCITY_NS = 50_000_000  # over which the velocity is taken: stamps may be a millisecond apart
    TOLERANCE = 1e-9  # m, and of the entries of a rotation: the pose stays

    def __init__(self, parent: str, static: bool) -> None:
        self.parent, self.static = parent, static
        self._stamps: list[int] = []
        self._poses: list[np.ndarray] = []  # (4, 4)
        self._moved_ns: int | None = None

    def add(self, stamp: int, T: np.ndarray) -> None:
        if self.static:
            self._stamps, self._poses = [stamp], [T]
            return
        if self._stamps and stamp <= self._stamps[-1]:
            if self._stamps[-1] - stamp < self.RESTART_NS:
                return
            self._stamps, self._poses, self._moved_ns = [], [], None
        stays = [bool(np.abs(T - pose).max() < self.TOLERANCE) for pose in self._poses[:-3:-1]]
        if stays[:1] == [False]:
            self._moved_ns = stamp
        if len(stays) == 2 and all(stays):
            del self._stamps[-1], self._poses[-1]
        self._stamps.append(stamp)
        self._poses.append(T)
        while len(self._stamps) > 2 and self._stamps[1] < stamp - self.HISTORY_NS:
            del self._stamps[0], self._poses[0]

    def at(self, stamp: int | None) -> np.ndarray:
        """The pose (4, 4) at a time, interpolated, or extrapolated for .1 s; the oldest before it, the newest without a time."""
        if stamp is None or len(self._stamps) < 2 or stamp <= self._stamps[0]:
            return self._poses[-1 if stamp is None else 0]
        newest = self._stamps[-1]
        if stamp > newest:
            before = max(newest - self.VELOCITY_NS, self._stamps[0])
            share = (min(stamp, newest + self.EXTRAPOLATION_NS) - before) / (newest - before)
            return transforms.interpolate(self.at(before), self._poses[-1], share)
        right = bisect_left(self._stamps, stamp)
        a, b = self._stamps[right - 1], self._stamps[right]
        return transforms.interpolate(self._poses[right - 1], self._poses[right], (stamp - a) / (b - a))

    def lag_s(self, stamp: int) -> float:
        """By how much its newest pose is older than a time; 0 for one that has not moved of late."""
        moves = self._moved_ns is not None and self._stamps[-1] - self._moved_ns < self.HISTORY_NS
        return max(0.0, (stamp - self._stamps[-1]) / 1e9) if moves else 0.0


class TransformTree:
    """The transforms of /tf_static and /tf. Its callbacks run in the executor's thread, the rest in that of the odometry.

    Attributes:
        on_watched: called with the stamp in ns of every transform on /tf between the two watched frames.
    """

    LOOKUPS = 20  # pairs of frames whose links are decoded, the newest

    def __init__(
        self,
        node: Node | None,
        watched: tuple[str, str] | None = None,
        on_watched: Callable[[int], None] = lambda stamp: None,
    ) -> None:
        """`watched`: parent and child."""
        self._node = node
        self._lock = threading.Lock()
        self._links: dict[str, Link] = {}  # by child
        self._refused: set[tuple[str, str]] = set()  # links of which a transform was ignored, parent first
        self._lookups: dict[tuple[str, str], frozenset[str]] = {}  # frames whose links each pair needs
        self._watched, self.on_watched = watched, on_watched
        self._names = self._choose_names()
        self._subscriptions = []
        if node is not None and TFMessage is not None:
            static = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._subscriptions = [
                node.create_subscription(TFMessage, "/tf_static", lambda message: self.add(message, True), static),
                node.create_subscription(TFMessage, "/tf", self.receive, QoSProfile(depth=100), raw=True),
            ]

    def receive(self, data: bytes) -> None:
        """Takes a serialized message of /tf over, if it names a frame that is needed."""
        if any(all(name in data for name in names) for names in self._names):
            self.add(deserialize_message(data, TFMessage))

    def add(self, message: TFMessage, static: bool = False) -> None:
        """Takes the transforms of a message over; one that is no rigid transform is ignored, with one warning for each link."""
        for stamped in message.transforms:
            parent, child = stamped.header.frame_id.lstrip("/"), stamped.child_frame_id.lstrip("/")
            if (parent, child) == self._watched:
                self.on_watched(stamp_ns(stamped.header.stamp))
            try:
                T = _matrix(stamped.transform)
            except ValueError as error:
                if (parent, child) not in self._refused:
                    self._refused.add((parent, child))
                    log.warning(f"TF from {parent} to {child} is ignored: {error}")
                continue
            with self._lock:
                link = self._links.get(child)
                if link is None or (link.parent, link.static) != (parent, static):
                    link = self._links[child] = Link(parent, static)
                link.add(stamp_ns(stamped.header.stamp), T)

    def lookup(self, target: str, source: str, stamp: int | None = None) -> np.ndarray | None:
        """T_target_source (4, 4) at a time in ns (None: the newest), or None while the two are not connected."""
        with self._lock:
            path = self._connect(target, source)
            if path is None:
                return None
            T_target, T_source = (self._multiply(frames, stamp) for frames in path)
        return transforms.inverse(T_target) @ T_source

    def lag_s(self, target: str, source: str, stamp: int) -> float:
        """By how much the newest transform of a link that moves is older than a time, s; 0 where nothing moves between the two."""
        with self._lock:
            path = self._connect(target, source) or ([], [])
            return max((self._links[frame].lag_s(stamp) for frame in path[0] + path[1]), default=0.0)

    def close(self) -> None:
        if self._node is not None:
            for subscription in self._subscriptions:
                self._node.destroy_subscription(subscription)

    def _connect(self, target: str, source: str) -> tuple[list[str], list[str]] | None:
        """Frames below the common ancestor of the two, from each of them upwards; None while they have none."""
        up_target, up_source = self._climb(target), self._climb(source)
        top = next((frame for frame in up_source if frame in up_target), None)
        if top is None:
            needed = {*up_target, *up_source}
        else:
            up_target, up_source = up_target[: up_target.index(top)], up_source[: up_source.index(top)]
            needed = {frame for frame in up_target + up_source if not self._links[frame].static}
        self._need((target, source), frozenset(needed))
        return None if top is None else (up_target, up_source)

    def _climb(self, frame: str) -> list[str]:
        """A frame and its ancestors; ends at the root, or where a loop was published."""
        chain: list[str] = []
        while frame not in chain:
            chain.append(frame)
            if frame not in self._links:
                break
            frame = self._links[frame].parent
        return chain

    def _multiply(self, frames: list[str], stamp: int | None) -> np.ndarray:
        """T_ancestor_frame (4, 4) along the links of frames, the lowest first."""
        T = np.eye(4)
        for frame in frames:
            T = self._links[frame].at(stamp) @ T
        return T

    def _need(self, pair: tuple[str, str], frames: frozenset[str]) -> None:
        if self._lookups.get(pair) == frames:
            return
        self._lookups.pop(pair, None)
        self._lookups[pair] = frames
        while len(self._lookups) > self.LOOKUPS:
            del self._lookups[next(iter(self._lookups))]
        self._names = self._choose_names()

    def _choose_names(self) -> list[tuple[bytes, ...]]:
        """What a message must hold to be decoded, one of these: names as they are serialized."""
        frames = {frame for needed in self._lookups.values() for frame in needed}
        groups = [(frame,) for frame in sorted(frames) if frame] + ([self._watched] if self._watched else [])
        return [tuple(frame.encode() + b"\0" for frame in group) for group in groups]


def _matrix(transform: Any) -> np.ndarray:
    t, q = transform.translation, transform.rotation
    return transforms.from_pose(np.array([t.x, t.y, t.z, q.x, q.y, q.z, q.w]))
