"""Overrides of the QoS of inputs, over DDS: a CameraInfo that was published once, before the node started."""

from __future__ import annotations

import pytest
from imatching_ros.msg import Status
from peers import image_message, info_message, send_until
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from walls import CAMERA, look

pytestmark = [pytest.mark.ros, pytest.mark.slow]


def test_a_latched_camera_info_is_received_and_a_misspelt_override_gives_a_warning(peer, start_node):
    once = peer.publisher(
        CameraInfo, "/camera_info", QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL), subscribers=0
    )
    once.publish(info_message(10**9, CAMERA))
    misspelt = "qos_overrides./camera_inf.subscription.reliability"
    node = start_node(
        {
            "base_frame": "optical",
            "qos_overrides./camera_info.subscription.durability": "transient_local",
            misspelt: "reliable",
        }
    )
    status = peer.collect(Status, "/imatching/status")
    images = peer.publisher(Image, "/image")
    peer.meet()
    stamp = 10**9

    def send() -> None:
        nonlocal stamp
        stamp += 10**8
        images.publish(image_message(stamp, look((0, 0, 0))[0], "mono8"))

    send_until(send, lambda: status, f"a status:\n{node.output}")
    assert status[0].state == Status.UNINITIALIZED
    warnings = [line for line in node.output.splitlines() if misspelt in line]
    assert len(warnings) == 1 and "did you mean 'qos_overrides./camera_info.subscription.reliability'?" in warnings[0]
    assert "TOPIC one of /camera_info, /image, POLICY one of depth, durability, history, reliability" in warnings[0]
