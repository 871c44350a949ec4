"""Records topics into a rosbag2 (mcap) as they arrive, for machines without `ros2 bag`. Ends on SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from ...core.errors import SourceError
from .program import run_program
from .serialized import find_type
from ...ros.middleware import find_shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, help="folder to write; must not exist")
    parser.add_argument("topics", nargs="+", metavar="TOPIC:TYPE", help="for example /odom:nav_msgs/msg/Odometry")


def make_typestore():
    """The types of Jazzy and those of this package."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name in ("Matches", "LearningStatus", "Status"):
        path = find_shared(f"msg/{name}.msg")
        store.register(get_types_from_msg(path.read_text(), f"imatching_ros/msg/{name}"))
    return store


def run(args: argparse.Namespace) -> int:
    """Records until told to stop; what was recorded so far is always a readable bag.

    Raises:
        SourceError: the folder exists, or a type is not installed.
    """
    if args.bag.exists():
        raise SourceError(f"{args.bag} exists already; name a folder that does not")
    stop = threading.Event()
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


def main() -> int:
    """Runs the recorder."""
    return run_program("imatching_ros.offline.ros_tools.record", __doc__, add_arguments, run)


if __name__ == "__main__":
    sys.exit(main())
