"""Shows a running node in the Rerun viewer (https://rerun.io; the extra `viewer`): path, landmarks, matches, tracking, learning.

A process of its own, also on another computer: `python -m imatching_ros view` opens a window, `--out FILE.rrd` writes a file that
`rerun FILE` shows. Ends on SIGINT. `python -m imatching_ros replay --view` shows a recording instead.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import Image, PointCloud2

from imatching_ros.msg import LearningStatus, Status

from ...ros.convert import stamp_ns
from ...ros.middleware import use_shipped_profile
from ...ros.outputs import STATES
from ..evaluation.viewer import JPEG_QUALITY, open_rerun

STATUS_CURVES = ("inliers", "matches", "latency_ms", "processed_hz")
STATE_NAMES = {value: state.name for state, value in STATES.items()}
LEARNING_CURVES = ("step", "loss", "validation_before", "validation_after", "promotions", "rollbacks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", default="/imatching", help="full name of the node (default /imatching)")
    parser.add_argument("--odom", metavar="TOPIC", help="its odometry, when remapped (default: odom beside the node)")
    parser.add_argument("--out", type=Path, metavar="FILE.rrd", help="write a file instead of opening a window")


def run(args: argparse.Namespace) -> int:
    """Shows until SIGINT.

    Raises:
        ConfigError: rerun-sdk is not installed.
    """
    rerun = open_rerun(args.out)
    use_shipped_profile()
    rclpy.init()
    node = rclpy.create_node("imatching_viewer")
    viewer = NodeViewer(node, rerun, args.node, args.odom or f"{args.node.rpartition('/')[0]}/odom")
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    node.destroy_node()
    rclpy.try_shutdown()
    print(f"{viewer.shown} messages shown" + (f", in {args.out}" if args.out else ""))
    return 0


class NodeViewer:
    """Logs what a node publishes. `world` is the odometry frame.

    Attributes:
        shown: messages so far.
    """

    def __init__(self, node: Node, rerun: Any, name: str, odom: str) -> None:
        self.shown = 0
        self._rr, self._state = rerun, ""
        rerun.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        axes = rerun.Arrows3D(vectors=0.3 * np.eye(3), colors=255 * np.eye(3, dtype=np.uint8))
        rerun.log("world/base/axes", axes, static=True)
        for kind, topic, show in (
            (Odometry, odom, self._show_pose),
            (PathMessage, f"{name}/path", self._show_path),
            (PointCloud2, f"{name}/landmarks", self._show_landmarks),
            (Image, f"{name}/matches/image", self._show_matches),
            (Status, f"{name}/status", self._show_status),
            (LearningStatus, f"{name}/learning/status", self._show_learning),
        ):
            node.create_subscription(kind, topic, partial(self._at_its_time, show), 5)

    def _at_its_time(self, show: Callable[[Any], None], message: Any) -> None:
        self._rr.set_time("stamp", timestamp=np.datetime64(stamp_ns(message.header.stamp), "ns"))
        show(message)
        self.shown += 1

    def _show_pose(self, odometry: Odometry) -> None:
        p, q = odometry.pose.pose.position, odometry.pose.pose.orientation
        rotation = self._rr.Quaternion(xyzw=(q.x, q.y, q.z, q.w))
        self._rr.log("world/base", self._rr.Transform3D(translation=(p.x, p.y, p.z), quaternion=rotation))

    def _show_path(self, path: PathMessage) -> None:
        points = [(p.pose.position.x, p.pose.position.y, p.pose.position.z) for p in path.poses]
        self._rr.log("world/path", self._rr.LineStrips3D([points]))

    def _show_landmarks(self, cloud: PointCloud2) -> None:
        points = np.frombuffer(cloud.data, np.float32).reshape(-1, cloud.point_step // 4)[:, :3]
        self._rr.log("world/landmarks", self._rr.Points3D(points, radii=self._rr.Radius.ui_points(1.5)))

    def _show_matches(self, image: Image) -> None:
        pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
        self._rr.log("matches", self._rr.Image(pixels, "RGB").compress(jpeg_quality=JPEG_QUALITY))

    def _show_status(self, status: Status) -> None:
        self._plot("tracking", status, STATUS_CURVES)
        text = f"{STATE_NAMES[status.state]} {status.reason} {status.warning}".strip()
        if text != self._state:
            self._state = text
            self._rr.log("state", self._rr.TextLog(text, level="INFO" if text == "TRACKING" else "WARN"))

    def _show_learning(self, status: LearningStatus) -> None:
        self._plot("learning", status, LEARNING_CURVES)

    def _plot(self, group: str, message: Any, names: tuple[str, ...]) -> None:
        for name in names:
            value = float(getattr(message, name))
            if math.isfinite(value):
                self._rr.log(f"{group}/{name}", self._rr.Scalars(value))
