"""The player and the recorder for machines without `ros2 bag`: what one plays, the other records."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from peers import NodeProcess, image_message
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from sensor_msgs.msg import Image

from imatching_ros.ros.recorder import make_typestore

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
        program=("-m", "imatching_ros.ros.recorder", str(tmp_path / "second"), "/cam/image:sensor_msgs/msg/Image"),
    )
    command = [sys.executable, "-m", "imatching_ros.ros.player", str(tmp_path / "first"), "--wait-for", "/cam/image"]
    played = subprocess.run(
        command, env=NodeProcess.environment(domain), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(played.stdout.splitlines()[-1]) == {"messages": {"/cam/image": 5}, "shift_ns": 0}
    assert recorder.stop() == 0 and "/cam/image: 5" in recorder.output
    with AnyReader([tmp_path / "second"]) as reader:
        recorded = [deserialize_message(bytes(data), Image) for _, _, data in reader.messages()]
    assert recorded == messages


@pytest.mark.parametrize(
    ("module", "arguments", "reason"),
    [("player", ["nowhere.mcap"], "cannot read the bag nowhere.mcap"), ("recorder", [".", "/x:std_msgs/msg/String"], "exists already")],
)
def test_a_known_error_is_one_line(domain, tmp_path, module, arguments, reason):
    command = [sys.executable, "-m", f"imatching_ros.ros.{module}", *arguments]
    ended = subprocess.run(command, env=NodeProcess.environment(domain), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.startswith("error: ") and reason in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
