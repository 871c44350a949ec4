"""The real node with a gyroscope over DDS: a fast turn, its mounting on TF, and what becomes of it when it falls silent."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from imatching_ros.msg import Status
from nav_msgs.msg import Odometry
from peers import Peer, image_message, info_message, send_until, wait_until
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Imu
from tf2_msgs.msg import TFMessage
from walls import CAMERA, look

from imatching_ros.ros.convert import make_stamp

pytestmark = [pytest.mark.ros, pytest.mark.slow]

STEP_NS, IMU_STEP_NS = 100_000_000, 2_500_000
TURNS_DEG = [0, 1, 2, 3, 4, 20, 19, 18, 17, 16]  # from one image to the next by 16 degrees, farther than is searched
MOUNTING = Rotation.from_euler("xyz", [-90, 0, -90], degrees=True)  # of the camera's axes in those of the IMU


def stamp_of(message) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def rates(before: float, now: float, end_ns: int, rng) -> list[Imu]:
    """Messages of the interval before an image."""
    messages = []
    for k in range(STEP_NS // IMU_STEP_NS):
        message = Imu()
        message.header.stamp = make_stamp(end_ns - STEP_NS + (k + 1) * IMU_STEP_NS)
        message.header.frame_id = "imu_link"
        about_y = np.array([0.0, np.radians(now - before) / (STEP_NS * 1e-9), 0.0])
        w = MOUNTING.apply(about_y) + rng.normal(0, 0.004, 3)
        message.angular_velocity.x, message.angular_velocity.y, message.angular_velocity.z = map(float, w)
        messages.append(message)
    return messages


@pytest.fixture(scope="module")
def run(peer: Peer, start_node) -> SimpleNamespace:
    node = start_node({"mode": "rgbd", "base_frame": "optical", "imu_topic": "/imu/data", "camera.readout_ms": 0.01})
    status, odom = peer.collect(Status, "/imatching/status"), peer.collect(Odometry, "/odom")
    diagnostics = peer.collect(DiagnosticArray, "/diagnostics")
    mount = TransformStamped(child_frame_id="imu_link")
    mount.header.frame_id = "optical"
    r = mount.transform.rotation
    r.x, r.y, r.z, r.w = map(float, MOUNTING.inv().as_quat())
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    peer.node.create_publisher(TFMessage, "/tf_static", latched).publish(TFMessage(transforms=[mount]))
    infos, images, depths = peer.rgbd_publishers()
    node.wait_for("active")
    peer.meet()
    driver = peer.publisher(Imu, "/imu/data", qos_profile_sensor_data)
    time.sleep(0.5)
    rng, start = np.random.default_rng(0), 1000 * 10**9

    def show(number: int, degrees: float, before: float | None) -> None:
        stamp, count = start + number * STEP_NS, len(status)
        if before is not None:
            for message in rates(before, degrees, stamp, rng):
                driver.publish(message)
                time.sleep(0.001)
        image, depth = look(rotation_deg=(0, degrees, 0))

        def send() -> None:
            infos.publish(info_message(stamp, CAMERA))
            depths.publish(image_message(stamp, depth, "32FC1"))
            images.publish(image_message(stamp, image, "mono8", "optical"))

        send_until(send, lambda: len(status) > count, f"image {number}:\n{node.output}")

    def newest() -> str:
        seen = len(diagnostics)
        wait_until(lambda: len(diagnostics) > seen + 1, what="diagnostics")
        return {entry.key: entry.value for entry in diagnostics[-1].status[0].values}["imu"]

    for number, degrees in enumerate(TURNS_DEG):
        show(number, degrees, TURNS_DEG[max(number - 1, 0)])
    turned, used = len(status), newest()
    for number in range(len(TURNS_DEG), len(TURNS_DEG) + 12):
        show(number, 16, None)
    return SimpleNamespace(node=node, status=status, odom=odom, turned=turned, used=used, silent=newest())


def test_a_turn_that_constant_velocity_loses_is_followed(run):
    assert all(m.state == Status.TRACKING and m.map_id == 0 for m in run.status[: run.turned]), run.node.output
    last = next(m for m in run.odom if stamp_of(m) == stamp_of(run.status[run.turned - 1]))
    turned = Rotation.from_quat([getattr(last.pose.pose.orientation, axis) for axis in "xyzw"])
    assert (turned * Rotation.from_rotvec([0, np.radians(16), 0]).inv()).magnitude() < np.radians(0.7)


def test_its_use_is_in_the_diagnostics(run):
    assert run.used == "used" and "subscribed to" in run.node.output and "/imu/data" in run.node.output


def test_its_silence_is_named_and_tracking_goes_on(run):
    assert run.status[-1].state == Status.TRACKING
    assert run.status[-1].warning.startswith("the IMU is not used: nothing has arrived for 1.2 s")
    assert run.silent == "nothing has arrived for 1.2 s"
    assert "the IMU is not used: the newest message is" in run.node.output or "nothing has arrived" in run.node.output
