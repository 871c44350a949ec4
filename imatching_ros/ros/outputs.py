"""The publishers of the node. Without a subscriber nothing is computed."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from geometry_msgs.msg import PoseArray, PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry, Path
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import String

from imatching_ros.msg import LearningStatus as LearningStatusMsg
from imatching_ros.msg import Matches as MatchesMsg
from imatching_ros.msg import Status

from ..core.types import Frame, Matches, OdometryOutput, TrackingState, to_json_value
from . import convert
from .params import NodeConfig
from .image_decoder import ImageDecoder
from .inputs import CameraImages
from .rate import Rate
from .robot_pose import RobotPose, RobotPoseTracker

try:
    from tf2_msgs.msg import TFMessage
except ImportError:
    TFMessage = None

# name: (type, history depth, meaning); all are reliable and volatile.
TOPICS: dict[str, tuple[type | None, int, str]] = {
    "odom": (
        Odometry,
        10,
        "pose of the base in the odometry frame, twist in the base frame, both with covariance; only for images "
        "whose own matches support a pose",
    ),
    "/tf": (TFMessage, 100, "odom -> base_link, when `publish_tf`"),
    "~/pose": (PoseWithCovarianceStamped, 10, "the pose of `odom` alone"),
    "~/path": (Path, 1, "the last `path_length` poses, twice a second"),
    "~/matches": (MatchesMsg, 5, "matches between the newest keyframe and the image"),
    "~/matches/image": (
        Image,
        1,
        "the image (of a raw pair, rectified) with the matches drawn: inliers green, outliers red",
    ),
    "~/landmarks": (PointCloud2, 1, "points of the window in the odometry frame, with each keyframe"),
    "~/keyframes": (PoseArray, 1, "camera poses of the window in the odometry frame, with each keyframe"),
    "~/status": (Status, 10, "tracking state, counts, latency, for every image; for one that is not used, the reason"),
    "~/learning/status": (LearningStatusMsg, 10, "state of the learner, for every image"),
    "~/events": (
        String,
        100,
        "keyframes, losses, decisions of learning: one JSON object each, as in a replay's events.jsonl",
    ),
}

STATES = {
    TrackingState.UNINITIALIZED: Status.UNINITIALIZED,
    TrackingState.TRACKING: Status.TRACKING,
    TrackingState.UNVERIFIED: Status.UNVERIFIED,
    TrackingState.LOST: Status.LOST,
}


@dataclass
class Counters:
    """Images since activation. Written by the thread of the odometry, read by diagnostics."""

    received: int = 0
    dropped: int = 0  # left out to hold the rate, or replaced by a newer one before they could be processed
    processed: int = 0
    tracked: int = 0
    lost: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class Timing:
    """Of one image, ms, NaN where unknown; and the rates when it was published."""

    latency_ms: float = float("nan")  # from its stamp to its publication
    processing_ms: float = float("nan")  # from the start of its processing to its pose
    rate: Rate = Rate()


class Outputs:
    """Used by the thread that owns the odometry.

    Attributes:
        tf_stamps: of the newest transforms on /tf; the executor's thread recognizes by them those that are not from here.
    """

    TF_STAMPS = 200
    PATH_PERIOD_NS = 500_000_000  # a whole path is a large message

    def __init__(self, node: LifecycleNode, config: NodeConfig) -> None:
        self._node = node
        self.config = config
        self._publishers = {
            name: node.create_lifecycle_publisher(kind, name, QoSProfile(depth=depth))
            for name, (kind, depth, _) in TOPICS.items()
            if kind is not None
        }
        self._tf = self._publishers.get("/tf")
        if self._tf is None and config.publish_tf:
            node.get_logger().warning(
                "tf2_msgs is not installed: no TF is published (apt install ros-$ROS_DISTRO-tf2-msgs)"
            )
        self.tf_stamps: dict[int, None] = {}
        self._poses: deque[PoseStamped] = deque(maxlen=config.path_length)
        self._path_ns = 0

    def reset(self) -> None:
        """Clears the path: the next pose is at the origin, and its stamp may be older."""
        self._poses.clear()
        self._path_ns = 0

    def close(self) -> None:
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)

    def publish_pose(self, stamp_ns: int, pose: RobotPose) -> None:
        """Odometry, TF, pose and path of one image."""
        c = self.config
        self._send("odom", convert.make_odometry(stamp_ns, pose, c.odom_frame, c.base_frame))
        if self._tf is not None and c.publish_tf:
            self.tf_stamps[stamp_ns] = None
            if len(self.tf_stamps) > self.TF_STAMPS:
                del self.tf_stamps[next(iter(self.tf_stamps))]
            self._tf.publish(
                TFMessage(transforms=[convert.make_transform(stamp_ns, pose.T_OB, c.odom_frame, c.base_frame)])
            )
        if self._has_subscribers("~/pose"):
            self._send("~/pose", convert.make_pose_with_covariance(stamp_ns, pose, c.odom_frame))
        if self._poses.maxlen != c.path_length:
            self._poses = deque(self._poses, c.path_length)
        self._poses.append(
            PoseStamped(header=convert.make_header(stamp_ns, c.odom_frame), pose=convert.make_pose(pose.T_OB))
        )
        if self._has_subscribers("~/path") and stamp_ns - self._path_ns >= self.PATH_PERIOD_NS:
            self._path_ns = stamp_ns
            self._send("~/path", convert.make_path(self._poses, c.odom_frame))

    def publish_matches(self, output: OdometryOutput, frame: Frame, camera_frame: str, decoder: ImageDecoder) -> None:
        if output.matches is None:
            return
        if self._has_subscribers("~/matches"):
            self._send("~/matches", convert.make_matches(decoder.as_delivered(output.matches), camera_frame))
        if self._has_subscribers("~/matches/image"):
            image = draw_matches(frame, output.matches)
            self._send("~/matches/image", convert.make_image(output.stamp_ns, camera_frame, image, "rgb8"))

    def publish_map(self, output: OdometryOutput, window: Any, tracker: RobotPoseTracker) -> None:
        """Keyframes and landmarks of the window, with each keyframe."""
        if not output.is_keyframe:
            return
        odom_frame = self.config.odom_frame
        if self._has_subscribers("~/keyframes"):
            poses = [tracker.camera_pose(T) for T in window.T_WC.numpy()]
            self._send("~/keyframes", convert.make_keyframes(output.stamp_ns, poses, odom_frame))
        if self._has_subscribers("~/landmarks"):
            points = tracker.points(window.landmarks.points_W[window.placed()].numpy())
            self._send("~/landmarks", convert.make_cloud(output.stamp_ns, points, odom_frame))

    def publish_status(
        self, output: OdometryOutput, image: CameraImages, window: Any, counters: Counters, timing: Timing
    ) -> None:
        msg = Status(
            header=convert.make_header(output.stamp_ns, image.frame_id),
            state=STATES[output.state],
            reason=output.reason,
            warning="; ".join(text for text in (image.gap, output.fault) if text),
            mode=self.config.mode,
            metric=bool(output.metric),
            scale=output.scale,
            map_id=int(output.map_id),
            is_keyframe=bool(output.is_keyframe),
            inliers=int(output.inliers),
            matches=0 if output.matches is None else len(output.matches.uv_j),
            keyframes=len(window.keyframes),
            landmarks=int(window.placed().sum()),
            frames_received=counters.received,
            frames_processed=counters.processed,
            frames_tracked=counters.tracked,
            frames_lost=counters.lost,
            frames_dropped=counters.dropped,
            frames_rejected=counters.rejected,
            latency_ms=float(timing.latency_ms),
            processing_ms=float(timing.processing_ms),
            weights_version=int(output.weights_version),
            input_hz=float(timing.rate.input_hz),
            processed_hz=float(timing.rate.processed_hz),
            every_nth=int(timing.rate.every_nth),
        )
        self._send("~/status", msg)

    def publish_learning(self, stamp_ns: int, status: Any, matcher: str) -> None:
        self._send("~/learning/status", convert.make_learning_status(stamp_ns, status, matcher))

    def publish_event(self, event: dict[str, Any]) -> None:
        """One JSON object, as a line of the events.jsonl of a replay."""
        self._send("~/events", String(data=json.dumps(to_json_value(event))))

    def _send(self, name: str, message: Any) -> None:
        self._publishers[name].publish(message)

    def _has_subscribers(self, name: str) -> bool:
        return self._publishers[name].get_subscription_count() > 0


def draw_matches(frame: Frame, matches: Matches) -> np.ndarray:
    """The image with the motion of every matched point since the keyframe, inliers green, outliers red: (H, W, 3) uint8 RGB."""
    image = np.ascontiguousarray(frame.image.permute(1, 2, 0).expand(-1, -1, 3).numpy())
    before, now = (np.rint(uv.cpu().numpy()).astype(int).tolist() for uv in (matches.uv_i, matches.uv_j))
    for p, q, inlier in zip(before, now, matches.inlier.tolist(), strict=True):
        colour = (0, 220, 0) if inlier else (230, 40, 40)
        cv2.line(image, p, q, colour, 1, cv2.LINE_AA)
        cv2.circle(image, q, 2, colour, -1, cv2.LINE_AA)
    return image
