"""A recording of what the node published becomes the folder of a run."""

from __future__ import annotations

import pytest
from imatching_ros.msg import Status
from peers import make_stamp
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer

from imatching_ros.core.config import Config
from imatching_ros.offline.evaluation.run_writer import RunWriter
from imatching_ros.offline.ros_tools.record import add_published, make_typestore

pytestmark = pytest.mark.ros


def test_an_image_that_was_not_used_is_no_frame(tmp_path):
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/imatching/status", "imatching_ros/msg/Status", typestore=make_typestore())
        for k, (processed, rejected) in enumerate([(0, 1), (1, 1), (2, 1), (2, 2), (3, 2)], 1):
            status = Status(state=Status.LOST, mode="mono", frames_processed=processed, frames_rejected=rejected)
            status.header.stamp = make_stamp(k * 10**9)
            writer.write(connection, k * 10**9, serialize_message(status))
    writer = RunWriter(tmp_path / "run", Config())
    metrics = writer.finish(None, [], add_published(writer, tmp_path / "bag"))
    assert (metrics["frames"], metrics["lost_frames"], metrics["frames_rejected"]) == (3, 3, 2)
