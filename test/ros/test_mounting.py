"""TF to the camera that comes later than the node waits for it: until then the base is assumed at the camera, and log and diagnostics report it."""

from __future__ import annotations

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TransformStamped
from imatching_ros.msg import Status
from nav_msgs.msg import Odometry
from peers import Peer, image_message, info_message, send_until
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage
from walls import CAMERA, look

from imatching_ros.core.errors import ConfigError
from imatching_ros.ros.mount import CameraMount
from imatching_ros.ros.params import NodeConfig
from imatching_ros.ros.processing import find_latency_ms
from imatching_ros.ros.tf_tree import TransformTree

pytestmark = pytest.mark.ros

REASON = "pose of the camera on the robot unknown: no TF from base_link to optical"


def make_link(parent: str, child: str, rotation: tuple[float, ...]) -> TransformStamped:
    link = TransformStamped(child_frame_id=child)
    link.header.frame_id = parent
    r = link.transform.rotation
    r.x, r.y, r.z, r.w = (float(v) for v in rotation)
    return link


class Robot:
    def __init__(self, peer: Peer, start_node) -> None:
        self.node = start_node({"mode": "rgbd", "tf_timeout_s": 0.2})
        self.odom = peer.collect(Odometry, "/odom")
        self.diagnostics = peer.collect(DiagnosticArray, "/diagnostics")
        self.infos, self.images, self.depths = peer.rgbd_publishers()
        peer.meet()
        self.stamp = 10**9

    def send(self, z: float) -> None:
        self.stamp += 10**8
        image, depth = look((0, 0, z))
        self.infos.publish(info_message(self.stamp, CAMERA))
        self.depths.publish(image_message(self.stamp, depth, "32FC1"))
        self.images.publish(image_message(self.stamp, image, "mono8", "/optical"))

    def show(self, z: float) -> np.ndarray:
        """An image from z metres ahead; returns where odometry puts the base."""
        before = self.stamp

        def answer() -> Odometry | None:
            return next((m for m in self.odom if m.header.stamp.sec * 10**9 + m.header.stamp.nanosec > before), None)

        p = send_until(lambda: self.send(z), answer, f"odometry:\n{self.node.output}").pose.pose.position
        return np.array([p.x, p.y, p.z])

    def levels(self) -> list[tuple[bytes, str]]:
        """Level and message of the newest diagnostics, once per message."""
        return [(m.status[0].level, m.status[0].message) for m in self.diagnostics]


@pytest.mark.slow
def test_tf_that_comes_late_is_taken(peer: Peer, start_node):
    robot = Robot(peer, start_node)
    robot.show(0.0)
    assert (
        "no TF from base_link to optical within 0.2 s: until there is, base_link is assumed at the camera"
        in robot.node.output
    )
    np.testing.assert_allclose(robot.show(0.05), [0.05, 0, 0], atol=0.006)  # along the camera's view
    before = len(robot.levels())
    send_until(
        lambda: robot.send(0.05),
        lambda: any(level == DiagnosticStatus.WARN and REASON in text for level, text in robot.levels()[before:]),
        f"the reason in /diagnostics: {robot.levels()}",
        tries=80,
        patience_s=0.5,
    )

    # A camera that looks to the left: ahead of it is +y of the base.
    mount = make_link("base_link", "optical", (-np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)))
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    broken = make_link("base_link", "gripper", (0.0, 0.0, 0.0, 0.0))  # of a part that has nothing to do with the camera
    peer.node.create_publisher(TFMessage, "/tf_static", latched).publish(TFMessage(transforms=[broken, mount]))
    send_until(
        lambda: robot.send(0.05),
        lambda: "TF from base_link to optical has arrived: odometry is reset" in robot.node.output,
        f"the transform to be taken:\n{robot.node.output}",
        tries=80,
        patience_s=0.5,
    )
    assert robot.node.output.count("TF from base_link to gripper is ignored") == 1
    start = robot.show(0.05)
    np.testing.assert_allclose(robot.show(0.1) - start, [0, 0.05, 0], atol=0.006)
    np.testing.assert_allclose(start, 0, atol=0.006)  # odometry was reset
    before = len(robot.levels())
    send_until(
        lambda: robot.send(0.1),
        lambda: any(level == DiagnosticStatus.OK and text == "tracking" for level, text in robot.levels()[before:]),
        f"diagnostics without the reason: {robot.levels()}",
        tries=80,
        patience_s=0.5,
    )
    assert robot.node.stop() == 0


@pytest.mark.parametrize("rotation", [(0, 0, 0, 0), (0, 0, 0, np.nan), (0, 0, 0, 2)])
def test_a_transform_that_is_none_is_ignored_with_one_warning(rotation, caplog):
    tree = TransformTree(None)
    good = make_link("base_link", "optical", (0, 0, 0, 1))
    for _ in range(3):
        tree.add(TFMessage(transforms=[make_link("base_link", "gripper", rotation), good]))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "TF from base_link to gripper is ignored"
    ]
    np.testing.assert_array_equal(tree.lookup("base_link", "optical"), np.eye(4))
    assert tree.lookup("base_link", "gripper") is None
    tree.add(TFMessage(transforms=[make_link("base_link", "gripper", (0, 0, 0, 1))]))
    np.testing.assert_array_equal(tree.lookup("base_link", "gripper"), np.eye(4))


def test_the_camera_cannot_be_the_odometry_frame():
    mount = CameraMount(None, NodeConfig(odom_frame="camera"), None)
    with pytest.raises(ConfigError, match="odom_frame is 'camera', which is the frame of the images too"):
        mount.find("camera", 0)


@pytest.mark.parametrize(
    ("age_ms", "latency_ms"), [(30, 30.0), (0, 0.0), (-30, np.nan), (70_000, np.nan), (-70_000, np.nan)]
)
def test_latency_is_unknown_when_the_stamp_is_ahead_of_the_clock(age_ms, latency_ms):
    np.testing.assert_allclose(find_latency_ms(10**18 + age_ms * 10**6, 10**18), latency_ms)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters, reason",
    [
        (
            {"base_frame": "chassis", "tf_timeout_s": 0.0},
            "no TF from chassis to optical; publish it or set base_from_camera",
        ),
        (
            {"base_frame": "optical"},
            "base_frame is 'optical', the optical frame of the images, whose z axis does not point up",
        ),
    ],
)
def test_the_plane_of_a_base_that_nobody_gives_is_not_used(peer: Peer, start_node, parameters, reason):
    node = start_node({"mode": "rgbd", "odometry.planar": True, **parameters})
    status = peer.collect(Status, "/imatching/status")
    infos, images, depths = peer.rgbd_publishers()
    peer.meet()
    image, depth = look()

    def send() -> None:
        infos.publish(info_message(10**9, CAMERA))
        depths.publish(image_message(10**9, depth, "32FC1"))
        images.publish(image_message(10**9, image, "mono8"))

    send_until(send, lambda: status, f"a status:\n{node.output}")
    assert status[0].warning == f"odometry.planar is not used: {reason}"
    assert f"odometry.planar is not used: {reason}" in node.output
    node.stop()  # before the next one of its name


@pytest.mark.slow
def test_with_require_tf_nothing_is_published_before_the_mounting_is_known(peer: Peer, start_node):
    node = start_node(
        {"mode": "rgbd", "base_frame": "trunk", "require_tf": True, "tf_timeout_s": 0.0}, ("-r", "__ns:=/strict")
    )
    status = peer.collect(Status, "/strict/imatching/status")
    odometry = peer.collect(Odometry, "/strict/odom")
    infos, images, depths = peer.rgbd_publishers("/strict")
    peer.meet("/strict/imatching")
    image, depth = look()
    stamp = 0

    def send() -> None:
        nonlocal stamp
        stamp += 10**8
        infos.publish(info_message(stamp, CAMERA))
        depths.publish(image_message(stamp, depth, "32FC1"))
        images.publish(image_message(stamp, image, "mono8"))

    for count in range(3):
        send_until(send, lambda count=count: len(status) > count, f"a status:\n{node.output}")
    assert status[-1].state == Status.TRACKING and not odometry
    assert status[-1].warning == "no poses are published: no TF from trunk to optical"
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    mount = make_link("trunk", "optical", (-0.5, 0.5, -0.5, 0.5))
    peer.node.create_publisher(TFMessage, "/tf_static", latched).publish(TFMessage(transforms=[mount]))
    send_until(send, lambda: odometry, f"odometry:\n{node.output}", tries=80, patience_s=0.5)
    send_until(send, lambda: status[-1].warning == "", f"a status without a warning: {status[-1]}")
