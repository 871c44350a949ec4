"""Plays a rosbag2 over DDS at its own speed and with the QoS that it recorded, for machines without `ros2 bag`.

Prints one line of JSON at the end: messages per topic, and by how much stamps were moved.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection, QosDurability, QosReliability
from rosgraph_msgs.msg import Clock

from ..progress import Progress
from ...core.errors import SourceError
from ...ros.convert import make_stamp
from .program import run_program
from .serialized import find_type, move_stamp, starts_with_header

_CLOCK_PERIOD_S = 0.005
_DEPTH, _MAX_DEPTH = 20, 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, help="rosbag2: a folder, .mcap or .db3")
    parser.add_argument("--topics", nargs="*", metavar="TOPIC", help="only these")
    parser.add_argument("--rate", type=float, default=1.0, help="times real time (default 1)")
    parser.add_argument("--clock", action="store_true", help="publish /clock, for nodes with use_sim_time")
    parser.add_argument("--restamp", action="store_true", help="move all header stamps so that they are of now")
    parser.add_argument("--wait-for", nargs="*", default=[], metavar="TOPIC", help="start when these have a subscriber")
    parser.add_argument("--wait-s", type=float, default=30.0, help="for so long at most")


def run(args: argparse.Namespace) -> int:
    """Plays once.

    Raises:
        SourceError: no bag, none of the topics, none whose type is installed, or nobody listens in time.
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
        rclpy.init(args=sys.argv)
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
        print(f"warning: not played, for want of their message types: {names}", file=sys.stderr)
    return kinds


def find_qos(connections: list[Connection], topic: str) -> QoSProfile:
    """What the recorded publishers of a topic offered: the most that one of them did, or else reliable and volatile.

    /tf_static is kept for late listeners in any case, and all of it, for each message may name other frames.
    """
    offers = [offer for c in connections if c.topic == topic for offer in getattr(c.ext, "offered_qos_profiles", [])]
    static = topic == "/tf_static"
    latched = static or any(offer.durability == QosDurability.TRANSIENT_LOCAL for offer in offers)
    best_effort = bool(offers) and all(offer.reliability == QosReliability.BEST_EFFORT for offer in offers)
    return QoSProfile(
        depth=_MAX_DEPTH if static else min(max([_DEPTH, *(offer.depth for offer in offers)]), _MAX_DEPTH),
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
    )


def _play(
    node: Node, reader: AnyReader, wanted: list[Connection], kinds: dict[str, type], args: argparse.Namespace
) -> None:
    publishers = {topic: node.create_publisher(kind, topic, find_qos(wanted, topic)) for topic, kind in kinds.items()}
    clock = node.create_publisher(Clock, "/clock", 10) if args.clock else None
    wait_for_subscribers(node, publishers, args.wait_for, args.wait_s)
    counts = dict.fromkeys(kinds, 0)
    first_ns = start_s = last_clock_s = None
    wall_ns = 0
    shift_ns = 0
    with Progress("playing", sum(c.msgcount for c in wanted), "messages") as progress:
        for connection, stamp_ns, data in reader.messages(wanted):
            if first_ns is None:
                first_ns, start_s = stamp_ns, time.monotonic()
                wall_ns = time.time_ns()
            if args.restamp:  # by one and the same amount when the rate is 1
                shift_ns = wall_ns + round((stamp_ns - first_ns) / args.rate) - stamp_ns
            due_s = start_s + (stamp_ns - first_ns) / 1e9 / args.rate
            while True:
                now_s = time.monotonic()
                if clock is not None and (last_clock_s is None or now_s - last_clock_s >= _CLOCK_PERIOD_S):
                    last_clock_s = now_s
                    clock.publish(
                        Clock(
                            clock=make_stamp(
                                min(first_ns + round((now_s - start_s) * 1e9 * args.rate), stamp_ns) + shift_ns
                            )
                        )
                    )
                if now_s >= due_s:
                    break
                time.sleep(min(due_s - now_s, _CLOCK_PERIOD_S if clock is not None else 0.1))
            data = bytes(data)
            publishers[connection.topic].publish(
                move_stamp(data, shift_ns) if shift_ns and starts_with_header(kinds[connection.topic]) else data
            )
            counts[connection.topic] += 1
            progress.update(sum(counts.values()))
    time.sleep(0.2)  # what is on its way
    print(json.dumps({"messages": counts, "shift_ns": shift_ns}))


def wait_for_subscribers(node: Node, publishers: dict, topics: list[str], timeout_s: float) -> None:
    """Raises SourceError when one of the topics is not played, or has no subscriber in time."""
    unknown = [topic for topic in topics if topic not in publishers]
    if unknown:
        raise SourceError(f"{', '.join(unknown)} is not among the topics that are played: {', '.join(publishers)}")
    deadline = time.monotonic() + timeout_s
    while missing := [t for t in topics if publishers[t].get_subscription_count() == 0]:
        if time.monotonic() > deadline:
            raise SourceError(f"nobody listens to {', '.join(missing)} after {timeout_s:g} s")
        rclpy.spin_once(node, timeout_sec=0.05)


def main() -> int:
    """Runs the player."""
    return run_program("imatching_ros.offline.ros_tools.play", __doc__, add_arguments, run)


if __name__ == "__main__":
    sys.exit(main())
