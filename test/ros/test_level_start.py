"""Where `odom` begins: level by an IMU at rest, unless a pose was given or the IMU does not show gravity; also on the node."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from imatching_ros.msg import Status
from nav_msgs.msg import Odometry
from peers import Peer, image_message, info_message, send_until, wait_until
from rclpy.qos import qos_profile_sensor_data
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Imu

from imatching_ros.offline.simulation.imu import R_CAMERA_IMU
from imatching_ros.offline.simulation.sequence import SimulatedSequence
from imatching_ros.ros.convert import make_stamp
from imatching_ros.ros.level_start import LevelStart, level
from imatching_ros.ros.robot_pose import AT_ORIGIN, Start
from imatching_ros.srv import SetPose

pytestmark = pytest.mark.ros

MS, G = 1_000_000, 9.81
UP = Rotation.from_euler("xyz", [5, -12, 0], degrees=True).inv().apply([0.0, 0.0, 1.0])  # seen by a tilted base


def started(force: np.ndarray, with_imu: bool = True, milliseconds: int = 600) -> LevelStart:
    start = LevelStart(with_imu)
    for k in range(milliseconds // 5):
        start.gravity.add(k * 5 * MS, np.zeros(3), force)
    return start


def test_roll_and_pitch_are_those_of_gravity_and_the_heading_is_zero():
    found = level(*UP)[:3, :3]
    np.testing.assert_allclose(found @ UP, [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(Rotation.from_matrix(found).as_euler("xyz", degrees=True), [5, -12, 0], atol=1e-9)


def test_a_base_at_rest_begins_level():
    start = started(G * UP)
    found = start.find(AT_ORIGIN, np.eye(4), 0, 600 * MS, "")
    np.testing.assert_allclose(found.T_OB, level(*UP))
    assert start.decided and start.state.startswith("level by the IMU: the base was tilted by 13.0 degrees")


def test_a_given_pose_has_precedence():
    start, given = started(G * UP), Start(np.eye(4), np.eye(6))
    assert start.find(given, np.eye(4), 0, 600 * MS, "") is given and start.state == "at the given pose"


def test_it_waits_a_second_at_most_and_says_why_it_begins_otherwise():
    start = started(G * UP, milliseconds=300)
    assert start.find(AT_ORIGIN, np.eye(4), 0, 900 * MS, "") is None and not start.decided
    assert start.find(AT_ORIGIN, np.eye(4), 0, 1000 * MS, "") is AT_ORIGIN
    assert start.state == "as the base stood, not level by the IMU: too little has arrived"
    for force, blocked, why in (
        (2.0 * UP, "", "its acceleration is 2.00 m/s"),
        (-G * UP, "", "it has the base tilted by 167 degrees"),
        (G * UP, "no TF from imu to optical", "no TF from imu to optical"),
    ):
        start = started(force)
        assert start.find(AT_ORIGIN, np.eye(4), 0, 1000 * MS, blocked) is AT_ORIGIN and why in start.state
    start = started(G * UP, with_imu=False)
    assert start.find(AT_ORIGIN, np.eye(4), 0, 0, "") is AT_ORIGIN and start.state == "as the base stood"


@pytest.fixture(scope="module")
def run(peer: Peer, start_node) -> SimpleNamespace:
    """A rendered camera that stands still, tilted; the base is where it is, x along the optical axis. After ten images its pose is set."""
    sequence = SimulatedSequence(
        kind="clutter", frames=12, seed=3, width=320, height=240, supersample=1, motion="still", imu="bmi088"
    )
    frames, imu = list(sequence.read()), sequence.measure_imu()
    node = start_node(
        {
            "mode": "rgbd",
            "imu_topic": "/imu/data",
            "base_from_camera": [0.0, 0.0, 0.0, -0.5, 0.5, -0.5, 0.5],
            "camera_from_imu": Rotation.from_matrix(R_CAMERA_IMU).as_quat().tolist(),
        }
    )
    status, odom = peer.collect(Status, "/imatching/status"), peer.collect(Odometry, "/odom")
    diagnostics = peer.collect(DiagnosticArray, "/diagnostics")
    infos, images, depths = peer.rgbd_publishers()
    node.wait_for("active")
    peer.meet()
    driver = peer.publisher(Imu, "/imu/data", qos_profile_sensor_data)
    time.sleep(0.5)
    sent = 0

    def measure_until(stamp_ns: int) -> None:
        nonlocal sent
        while sent < len(imu.stamps_ns) and imu.stamps_ns[sent] <= stamp_ns:
            message = Imu()
            message.header.stamp, message.header.frame_id = make_stamp(int(imu.stamps_ns[sent])), "imu"
            for field, values in (
                (message.angular_velocity, imu.rates[sent]),
                (message.linear_acceleration, imu.accelerations[sent]),
            ):
                field.x, field.y, field.z = map(float, values)
            driver.publish(message)
            sent += 1
            time.sleep(0.001)

    def show(frame) -> None:
        count = len(status)
        measure_until(frame.stamp_ns)

        def send() -> None:
            infos.publish(info_message(frame.stamp_ns, frame.camera))
            depths.publish(image_message(frame.stamp_ns, frame.depth.numpy(), "32FC1"))
            images.publish(image_message(frame.stamp_ns, frame.image.permute(1, 2, 0).numpy(), "rgb8", "optical"))

        send_until(send, lambda: len(status) > count, f"image {frame.id}:\n{node.output}")

    for frame, _ in frames[:10]:
        show(frame)
    first = list(odom)
    began = wait_until(lambda: _began(diagnostics), what="diagnostics")
    request = SetPose.Request()
    request.pose.pose.pose.orientation.w = 1.0
    peer.call(SetPose, "/imatching/set_pose", pose=request.pose)
    for frame, _ in frames[10:]:
        show(frame)
    return SimpleNamespace(node=node, first=first, began=began, after=odom[-1], T_WC=frames[0][1].numpy())


def _began(diagnostics: list) -> str:
    values = {entry.key: entry.value for entry in diagnostics[-1].status[0].values} if diagnostics else {}
    return values.get("odom began", "")


def orientation(message: Odometry) -> Rotation:
    q = message.pose.pose.orientation
    return Rotation.from_quat([q.x, q.y, q.z, q.w])


@pytest.mark.slow
def test_odom_begins_level_where_the_camera_stands_tilted(run):
    camera = Rotation.from_quat(run.T_WC[3:])
    up = Rotation.from_quat([-0.5, 0.5, -0.5, 0.5]).apply(camera.inv().apply([0, 0, 1]))
    tilt = np.degrees(np.arccos(up[2]))
    assert tilt > 1.0 and run.first, run.node.output
    for message in run.first:
        level_up = orientation(message).apply(up)
        assert np.degrees(np.arccos(level_up[2])) < 0.6  # the accelerometer's offset
        assert abs(orientation(message).as_euler("xyz", degrees=True)[2]) < 0.1
    assert run.began.startswith("level by the IMU: the base was tilted by") and run.began in run.node.output


@pytest.mark.slow
def test_a_pose_that_is_set_is_not_levelled(run):
    assert orientation(run.after).magnitude() < np.radians(0.1)
    assert "odom begins at the given pose" in run.node.output
