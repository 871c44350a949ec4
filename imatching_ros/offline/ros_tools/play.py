"""Plays a rosbag2 over DDS at its own rate and with the recorded QoS, for machines without `ros2 bag`.

Prints one line of JSON at the end: messages per topic, and by how much stamps were moved.
"""

from __future__ import annotations

import argparse
import json
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection, QosDurability, QosReliability
from rosgraph_msgs.msg import Clock

from ...core.errors import ImatchingError, SourceError
from ...ros.convert import make_stamp
from ...ros.middleware import use_shipped_profile
from ..experiments.realtime import SensorClock
from ..progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, help="rosbag2: a folder, .mcap or .db3")
    parser.add_argument("--topics", nargs="*", metavar="TOPIC", help="only these")
    parser.add_argument("--rate", type=float, default=1.0, help="times real time (default 1)")
    parser.add_argument("--clock", action="store_true", help="publish /clock, for nodes with use_sim_time")
    parser.add_argument("--restamp", action="store_true", help="shift all header stamps to the present")
    parser.add_argument("--wait-for", nargs="*", default=[], metavar="TOPIC", help="start when these have a subscriber")
    parser.add_argument("--wait-s", type=float, default=30.0, help="for so long at most")


def run(args: argparse.Namespace) -> int:
    """Plays once.

    Raises:
        SourceError: no bag, none of the topics, no type that is installed, or no subscriber in time.
    """
    if args.rate <= 0:
        raise SourceError(f"--rate is {args.rate}, expected above zero")
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(AnyReader([args.bag]))
        except (OSError, AnyReaderError) as error:
            raise SourceError(f"cannot read the bag {args.bag}: {error}") from None
        wanted = [c for c in reader.connections if args.topics is None or c.topic in args.topics]
        if not wanted:
            raise SourceError(
                f"{args.bag} has none of the topics {args.topics}; it has {', '.join(sorted(reader.topics))}"
            )
        kinds = find_types(wanted)
        wanted = [c for c in wanted if c.topic in kinds]
        rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
        node = rclpy.create_node("player")
        try:
            _play(node, reader, wanted, kinds, args)
        finally:
            node.destroy_node()
            rclpy.try_shutdown()
    return 0


def find_types(connections: list[Connection]) -> dict[str, type]:
    """{topic: class of its messages}; topics whose type is not installed are left out, with one warning.

    Raises:
        SourceError: none is installed.
    """
    kinds: dict[str, type] = {}
    missing: dict[str, str] = {}
    for connection in connections:
        try:
            kinds[connection.topic] = find_type(connection.msgtype)
        except SourceError:
            missing[connection.topic] = connection.msgtype
    names = ", ".join(f"{topic} ({name})" for topic, name in missing.items())
    if not kinds:
        raise SourceError(f"the message types of {names} are not installed; source the workspace that builds them")
    if missing:
        print(f"warning: not played, their message types are not installed: {names}", file=sys.stderr)
    return kinds


def find_qos(connections: list[Connection], topic: str) -> QoSProfile:
    """The QoS of the recorded publishers of a topic, the strongest of several; without a record reliable and volatile.

    /tf_static is always transient local and kept completely, because each message may name other frames.
    """
    least_depth, most_depth = 20, 1000
    offers = [offer for c in connections if c.topic == topic for offer in getattr(c.ext, "offered_qos_profiles", [])]
    static = topic == "/tf_static"
    latched = static or any(offer.durability == QosDurability.TRANSIENT_LOCAL for offer in offers)
    best_effort = bool(offers) and all(offer.reliability == QosReliability.BEST_EFFORT for offer in offers)
    return QoSProfile(
        depth=most_depth if static else min(max([least_depth, *(offer.depth for offer in offers)]), most_depth),
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
    )


class ClockPublisher:
    """Publishes /clock, at most every PERIOD_S."""

    PERIOD_S = 0.005

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(Clock, "/clock", 10)
        self._last_s = float("-inf")

    def publish(self, time_ns: int) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s >= self.PERIOD_S:
            self._last_s = now_s
            self._publisher.publish(Clock(clock=make_stamp(time_ns)))


def _play(
    node: Node, reader: AnyReader, wanted: list[Connection], kinds: dict[str, type], args: argparse.Namespace
) -> None:
    publishers = {topic: node.create_publisher(kind, topic, find_qos(wanted, topic)) for topic, kind in kinds.items()}
    simulated = ClockPublisher(node) if args.clock else None
    wait_for_subscribers(node, publishers, args.wait_for, args.wait_s)
    counts = dict.fromkeys(kinds, 0)
    first_ns = shift_ns = 0
    clock: SensorClock | None = None
    with Progress("playing", sum(c.msgcount for c in wanted), "messages") as progress:
        for connection, stamp_ns, data in reader.messages(wanted):
            if clock is None:
                first_ns, wall_ns, clock = stamp_ns, time.time_ns(), SensorClock(args.rate)
            if args.restamp:  # a constant shift when the rate is 1
                shift_ns = wall_ns + round((stamp_ns - first_ns) / args.rate) - stamp_ns

            def publish_clock(clock=clock, latest_ns=stamp_ns, shift_ns=shift_ns) -> None:
                if simulated is not None:
                    simulated.publish(min(first_ns + round(clock.now_s * 1e9), latest_ns) + shift_ns)

            meanwhile = publish_clock if simulated is not None else None
            clock.wait_until((stamp_ns - first_ns) / 1e9, meanwhile, ClockPublisher.PERIOD_S)
            data = bytes(data)
            publishers[connection.topic].publish(
                move_stamp(data, shift_ns) if shift_ns and starts_with_header(kinds[connection.topic]) else data
            )
            counts[connection.topic] += 1
            progress.update(sum(counts.values()))
    time.sleep(0.2)  # for messages on their way
    print(json.dumps({"messages": counts, "shift_ns": shift_ns}))


def wait_for_subscribers(node: Node, publishers: dict, topics: list[str], timeout_s: float) -> None:
    """`topics`: as in the bag, or as remapped. Raises SourceError when one is not played, or has no subscriber in time."""
    played = publishers | {publisher.topic_name: publisher for publisher in publishers.values()}
    unknown = [topic for topic in topics if topic not in played]
    if unknown:
        raise SourceError(f"{', '.join(unknown)} is not among the topics that are played: {', '.join(played)}")
    deadline = time.monotonic() + timeout_s
    while missing := [t for t in topics if played[t].get_subscription_count() == 0]:
        if time.monotonic() > deadline:
            raise SourceError(f"no subscriber of {', '.join(missing)} after {timeout_s:g} s")
        rclpy.spin_once(node, timeout_sec=0.05)
    if topics:
        time.sleep(0.5)  # a subscriber may learn of the publisher a moment later, and drops what comes before


def find_type(name: str) -> type:
    """'sensor_msgs/msg/Image' -> its class.

    Raises:
        SourceError: the package is not installed.
    """
    package, _, message = name.split("/")
    try:
        return getattr(import_module(f"{package}.msg"), message)
    except (ImportError, AttributeError):
        raise SourceError(
            f"messages of type {name} are not installed; source the workspace that builds {package}"
        ) from None


def starts_with_header(kind: Any) -> bool:
    """Whether the first field is a std_msgs/Header, so that a stamp stands right behind the encapsulation."""
    return next(iter(kind.get_fields_and_field_types().values()), "") == "std_msgs/Header"


def stamp_format(data: bytes) -> str:
    """Of the stamp behind the CDR encapsulation, whose second byte gives the byte order."""
    return "<iI" if data[1] & 1 else ">iI"


def read_stamp_ns(data: bytes) -> int:
    """The header's stamp of a serialized message that starts with a header."""
    seconds, nanoseconds = struct.unpack_from(stamp_format(data), data, 4)
    return seconds * 10**9 + nanoseconds


def move_stamp(data: bytes, shift_ns: int) -> bytes:
    """The same message with its header's stamp moved."""
    moved = bytearray(data)
    stamp = read_stamp_ns(data) + shift_ns
    struct.pack_into(stamp_format(data), moved, 4, stamp // 10**9, stamp % 10**9)
    return bytes(moved)


def run_program(
    module: str,
    doc: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
) -> int:
    """Runs `python -m module` with the arguments of the process, ROS arguments among them; exit codes as `python -m imatching_ros`.

    SIGINT and SIGTERM raise KeyboardInterrupt. (rclpy's own handlers end the context while it is in use.)
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    use_shipped_profile()
    parser = argparse.ArgumentParser(f"python -m {module}", description=doc)
    add_arguments(parser)
    try:
        return run(parser.parse_args(remove_ros_args(sys.argv)[1:]))
    except ImatchingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def main() -> int:
    """Runs the player."""
    return run_program("imatching_ros.offline.ros_tools.play", __doc__, add_arguments, run)


if __name__ == "__main__":
    sys.exit(main())
