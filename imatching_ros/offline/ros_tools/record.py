"""Records topics into a rosbag2 (mcap) as they arrive, for machines without `ros2 bag`. Ends on SIGINT or SIGTERM.

A recording of the node becomes a run (`add_published`).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from ...core.errors import SourceError
from ...ros import transforms
from ...ros.convert import read_pose
from ...ros.convert import stamp_ns as to_ns
from ...ros.lifecycle import StopFlag
from ...ros.middleware import find_shared
from .play import find_type, run_program

if TYPE_CHECKING:  # the recorder starts without torch
    from ...core.types import Matches, OdometryOutput
    from ..evaluation.run_writer import RunWriter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, help="folder to write; must not exist")
    parser.add_argument("topics", nargs="+", metavar="TOPIC:TYPE", help="for example /odom:nav_msgs/msg/Odometry")


def make_typestore() -> Typestore:
    """The types of Jazzy and those of this package."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name in ("Matches", "LearningStatus", "Status"):
        path = find_shared(f"msg/{name}.msg")
        if path is None:
            raise SourceError(f"msg/{name}.msg is not installed; build the package with colcon")
        store.register(get_types_from_msg(path.read_text(), f"imatching_ros/msg/{name}"))
    return store


def run(args: argparse.Namespace) -> int:
    """Records until SIGINT or SIGTERM; the bag is readable however it ends.

    Raises:
        SourceError: the folder exists, or a type is not installed.
    """
    if args.bag.exists():
        raise SourceError(f"{args.bag} exists already; name a folder that does not")
    stop = StopFlag()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("recorder")
    store = make_typestore()
    counts: dict = {}
    with Writer(args.bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for entry in args.topics:
            topic, _, name = entry.partition(":")
            connection = writer.add_connection(topic, name, typestore=store)

            def write(data: bytes, connection=connection) -> None:
                writer.write(connection, time.time_ns(), data)
                counts[connection.topic] = counts.get(connection.topic, 0) + 1

            node.create_subscription(find_type(name), topic, write, QoSProfile(depth=200), raw=True)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.2)
    node.destroy_node()
    rclpy.shutdown()
    print(", ".join(f"{topic}: {count}" for topic, count in counts.items()) or "nothing was recorded")
    return 0


# {topic: type} of which a run is made
TOPICS = {
    "odom": "nav_msgs/msg/Odometry",
    "imatching/status": "imatching_ros/msg/Status",
    "imatching/matches": "imatching_ros/msg/Matches",
    "imatching/learning/status": "imatching_ros/msg/LearningStatus",
    "imatching/keyframes": "geometry_msgs/msg/PoseArray",
    "imatching/events": "std_msgs/msg/String",
}


def add_published(writer: RunWriter, bag: Path, shift_ns: int = 0) -> dict[str, Any]:
    """Adds what the node published, frames and events, to a run.

    Args:
        bag: recording of TOPICS; the camera is at the base, whose x axis is the optical axis.
        shift_ns: added to the stamps when the recording was played; subtracted here.

    Returns:
        Entries of metrics.json.

    Raises:
        SourceError: the node published nothing.
    """
    messages = read_messages(bag)
    statuses = messages["imatching/status"]
    if not statuses:
        raise SourceError(f"{bag} holds no status of the node; did it receive images and CameraInfo?")
    poses = {to_ns(m.header.stamp): m for m in messages["odom"]}
    matches = {to_ns(m.header.stamp): m for m in messages["imatching/matches"]}
    processed = 0
    for number, status in enumerate(statuses):
        if status.frames_processed == processed:  # the image was not used
            continue
        processed = status.frames_processed
        stamp = to_ns(status.header.stamp)
        output = _output(number, stamp - shift_ns, status, poses.get(stamp), matches.get(stamp))
        writer.add_frame(output, status.latency_ms, status.processing_ms)
    for message in messages["imatching/events"]:
        event = json.loads(message.data)
        if event.get("stamp_ns") is not None:
            event["stamp_ns"] -= shift_ns
        writer.add_event(event)
    counts = {"frames_dropped": statuses[-1].frames_dropped, "frames_rejected": statuses[-1].frames_rejected}
    learning = messages["imatching/learning/status"]
    return counts | (_learning(learning[-1]) if learning else {})


def read_messages(bag: Path) -> dict[str, list[Any]]:
    """All messages of the node's topics, by relative topic name."""
    messages: dict[str, list[Any]] = {name: [] for name in TOPICS}
    with AnyReader([bag], default_typestore=make_typestore()) as reader:
        for connection, _, data in reader.messages():
            name = connection.topic.lstrip("/")
            if name in messages:
                messages[name].append(reader.deserialize(data, connection.msgtype))
    return messages


def _output(number: int, stamp_ns: int, status: Any, odometry: Any, matches: Any) -> OdometryOutput:
    import torch

    from ...core.types import OdometryOutput, TrackingState

    states = (TrackingState.UNINITIALIZED, TrackingState.TRACKING, TrackingState.UNVERIFIED, TrackingState.LOST)
    T_WC = None
    if odometry is not None:
        T = read_pose(odometry.pose.pose) @ transforms.T_BODY_OPTICAL
        T_WC = torch.tensor([*T[:3, 3], *transforms.quaternion(T[:3, :3])], dtype=torch.float64)
    return OdometryOutput(
        number,
        stamp_ns,
        states[status.state],
        status.reason,
        T_WC,
        None,
        status.inliers,
        status.is_keyframe,
        status.metric,
        status.map_id,
        None if matches is None else _matches(matches),
        None,
        status.weights_version,
        scale=status.scale,
    )


def _matches(m: Any) -> Matches:
    import torch

    from ...core.types import Matches

    def tensor(values: Any, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.as_tensor(np.array(values), dtype=kind)

    return Matches(
        m.id_i,
        m.id_j,
        to_ns(m.stamp_i),
        to_ns(m.header.stamp),
        torch.stack([tensor(m.u_i), tensor(m.v_i)], 1),
        torch.stack([tensor(m.u_j), tensor(m.v_j)], 1),
        tensor(m.score),
        tensor(m.sigma_px),
        tensor(m.residual_px),
        tensor(m.inlier, torch.bool),
        tensor(m.landmark_id, torch.int64),
        m.weights_version,
    )


def _learning(m: Any) -> dict[str, Any]:
    rejected = dict(zip(m.rejected_reason, map(int, m.rejected_count), strict=True))
    return {
        "learning": {
            "mode": m.mode,
            "state": m.state,
            "steps": m.step,
            "samples": m.samples,
            "rejected": rejected,
            "promotions": m.promotions,
            "rollbacks": m.rollbacks,
            "validation_before": m.validation_before,
            "validation_after": m.validation_after,
            "busy_s": m.busy_s,
            "memory_mb": m.memory_mb,
        },
        "weights": {"matcher": m.matcher, "version": m.weights_version, "hash": m.weights_hash},
    }


def main() -> int:
    """Runs the recorder."""
    return run_program("imatching_ros.offline.ros_tools.record", __doc__, add_arguments, run)


if __name__ == "__main__":
    sys.exit(main())
