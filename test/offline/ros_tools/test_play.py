"""The player and, at its other end, the recorder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from peers import NodeProcess, image_message, wait_until
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg
from sensor_msgs.msg import Image
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from imatching_ros.core.errors import SourceError
from imatching_ros.ros.mount import TransformTree
from imatching_ros.offline.ros_tools.play import find_qos, find_types, move_stamp, read_stamp_ns, starts_with_header
from imatching_ros.offline.ros_tools.record import make_typestore

pytestmark = [pytest.mark.ros, pytest.mark.slow]

STAMPS = [10**9 + k * 50_000_000 for k in range(5)]


def test_a_bag_is_played_and_recorded(domain, tmp_path):
    messages = [image_message(stamp, np.full((4, 6), k, np.uint8), "mono8") for k, stamp in enumerate(STAMPS)]
    with Writer(tmp_path / "first", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/cam/image", "sensor_msgs/msg/Image", typestore=make_typestore())
        for stamp, message in zip(STAMPS, messages, strict=True):
            writer.write(connection, stamp, serialize_message(message))
    recorder = NodeProcess(
        domain,
        tmp_path / "recorder.txt",
        program=(
            "-m",
            "imatching_ros.offline.ros_tools.record",
            str(tmp_path / "second"),
            "/front/image:sensor_msgs/msg/Image",
        ),
    )
    command = [
        sys.executable,
        "-m",
        "imatching_ros.offline.ros_tools.play",
        str(tmp_path / "first"),
        "--wait-for",
        "/front/image",
        "--ros-args",
        "--remap",
        "/cam/image:=/front/image",
    ]
    played = subprocess.run(
        command,
        env=NodeProcess.environment(domain),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(played.stdout.splitlines()[-1]) == {"messages": {"/cam/image": 5}, "shift_ns": 0}
    assert recorder.stop() == 0 and "/front/image: 5" in recorder.output
    with AnyReader([tmp_path / "second"]) as reader:
        recorded = [deserialize_message(bytes(data), Image) for _, _, data in reader.messages()]
    assert recorded == messages


def test_stamps_are_moved_without_unpacking():
    message = image_message(5 * 10**9 + 7, np.zeros((2, 3), np.uint8), "mono8")
    data = serialize_message(message)
    assert read_stamp_ns(data) == 5 * 10**9 + 7 and starts_with_header(Image)
    moved = deserialize_message(move_stamp(data, 10**9 + 1), Image)
    assert (moved.header.stamp.sec, moved.header.stamp.nanosec) == (6, 8)
    moved.header.stamp = message.header.stamp
    assert moved == message


def offer(durability: QosDurability, reliability: QosReliability) -> Qos:
    never = QosTime(0, 0)
    return Qos(QosHistory.KEEP_LAST, 1, reliability, durability, never, never, QosLiveliness.AUTOMATIC, never, False)


LATCHED = offer(QosDurability.TRANSIENT_LOCAL, QosReliability.RELIABLE)
SENSOR = offer(QosDurability.VOLATILE, QosReliability.BEST_EFFORT)


@pytest.fixture
def robot_bag(tmp_path):
    """TF of a camera in two messages on /tf_static, a latched description, images, and a type that is not installed."""
    store = make_typestore()
    store.register(get_types_from_msg("int32 x", "nowhere_msgs/msg/Strange"))
    with Writer(tmp_path / "robot", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        strange = writer.add_connection("/strange", "nowhere_msgs/msg/Strange", typestore=store)
        static = writer.add_connection("/tf_static", "tf2_msgs/msg/TFMessage", typestore=store)  # without QoS
        latched = writer.add_connection(
            "/description", "std_msgs/msg/String", typestore=store, offered_qos_profiles=[LATCHED]
        )
        image = writer.add_connection(
            "/cam/image", "sensor_msgs/msg/Image", typestore=store, offered_qos_profiles=[SENSOR]
        )
        writer.write(strange, STAMPS[0], serialize_message(String(data="x")))
        for parent, child, x in (("base_link", "mast", 1.0), ("mast", "optical", 2.0)):
            link = TransformStamped(child_frame_id=child)
            link.header.frame_id = parent
            link.transform.translation.x = x
            writer.write(static, STAMPS[0], serialize_message(TFMessage(transforms=[link])))
        writer.write(latched, STAMPS[0], serialize_message(String(data="a robot")))
        for k in range(200):  # the player is there for 10 s
            message = image_message(STAMPS[0] + k * 50_000_000, np.zeros((2, 2), np.uint8), "mono8")
            writer.write(image, STAMPS[0] + k * 50_000_000, serialize_message(message))
    return tmp_path / "robot"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_player(peer, robot_bag, tmp_path, number):
    images = peer.collect(Image, "/cam/image", QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT))
    program = ("-m", "imatching_ros.offline.ros_tools.play", str(robot_bag))
    player = NodeProcess(peer.context.get_domain_id(), tmp_path / "player.txt", program=program)
    wait_until(lambda: images, what="an image")
    memory = player.shared_memory
    assert player.stop(number) == 130 and "Traceback" not in player.output
    assert [path for path in memory if path.exists()] == []


def test_late_subscribers_receive_latched_messages(peer, robot_bag, tmp_path):
    """A node that starts after the bag still receives the TF of the camera. Topics of unknown types are not played."""
    log = tmp_path / "player.txt"
    player = NodeProcess(
        peer.context.get_domain_id(), log, program=("-m", "imatching_ros.offline.ros_tools.play", str(robot_bag))
    )
    images = peer.collect(Image, "/cam/image", QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT))
    wait_until(lambda: images, what=f"the first image:\n{player.output}")
    tree = TransformTree(peer.node)
    descriptions = peer.collect(
        String, "/description", QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    )
    wait_until(lambda: tree.lookup("base_link", "optical") is not None and descriptions, what=f"TF:\n{player.output}")
    assert tree.lookup("base_link", "optical")[0, 3] == 3.0 and descriptions == [String(data="a robot")]
    player.stop()
    assert (
        player.output.count("warning") == 1
        and "their message types are not installed: /strange (nowhere_msgs/msg/Strange)" in player.output
    )


def test_qos_is_that_of_the_bag(robot_bag):
    with AnyReader([robot_bag], default_typestore=make_typestore()) as reader:
        found = {c.topic: find_qos(reader.connections, c.topic) for c in reader.connections}
        played = find_types(reader.connections)
        unknown = [c for c in reader.connections if c.topic == "/strange"]
    assert found["/cam/image"].reliability == ReliabilityPolicy.BEST_EFFORT
    assert found["/cam/image"].durability == found["/strange"].durability == DurabilityPolicy.VOLATILE
    assert found["/strange"].reliability == ReliabilityPolicy.RELIABLE
    assert list(played) == ["/tf_static", "/description", "/cam/image"]
    with pytest.raises(SourceError, match="nowhere_msgs/msg/Strange"):
        find_types(unknown)


@pytest.mark.parametrize(
    ("module", "arguments", "reason"),
    [
        ("play", ["nowhere.mcap"], "cannot read the bag nowhere.mcap"),
        ("record", [".", "/x:std_msgs/msg/String"], "exists already"),
    ],
)
def test_a_known_error_is_one_line(domain, tmp_path, module, arguments, reason):
    command = [sys.executable, "-m", f"imatching_ros.offline.ros_tools.{module}", *arguments]
    ended = subprocess.run(
        command, env=NodeProcess.environment(domain), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1 and ended.stderr.startswith("error: ") and reason in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
