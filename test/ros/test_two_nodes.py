"""Two nodes side by side in two namespaces: a stereo pair, and a compressed camera in simulated time that is always too fast."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from imatching_ros.msg import Status
from nav_msgs.msg import Odometry
from peers import Peer, image_message, info_message, make_stamp, send_until, wait_until
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from walls import CAMERA, look

pytestmark = [pytest.mark.ros, pytest.mark.slow]

BASELINE_M = 0.1


class StereoRobot:
    def __init__(self, peer: Peer, start_node) -> None:
        self.node = start_node(
            {"mode": "stereo", "base_frame": "optical", "sync_slop_s": 0.005}, ("-r", "__ns:=/stereo")
        )
        self.odom, self.status = (
            peer.collect(Odometry, "/stereo/odom"),
            peer.collect(Status, "/stereo/imatching/status"),
        )
        self.left, self.right = (peer.publisher(Image, f"/stereo/{side}/image") for side in ("left", "right"))
        self.left_info, self.right_info = (
            peer.publisher(CameraInfo, f"/stereo/{side}/camera_info") for side in ("left", "right")
        )
        self.stamp = 10**9

    def show(self, z: float) -> Odometry:
        count = len(self.odom)

        def send() -> None:
            self.stamp += 10**8
            self.left_info.publish(info_message(self.stamp, CAMERA))
            self.right_info.publish(info_message(self.stamp, CAMERA, baseline_m=BASELINE_M))
            self.right.publish(image_message(self.stamp + 3 * 10**6, look((BASELINE_M, 0, z))[0], "mono8"))  # 3 ms late
            self.left.publish(image_message(self.stamp, look((0, 0, z))[0], "mono8"))

        send_until(send, lambda: len(self.odom) > count, f"odometry:\n{self.node.output}")
        return self.odom[-1]


class CompressedRobot:
    def __init__(self, peer: Peer, start_node) -> None:
        self.node = start_node(
            {
                "image_transport": "compressed",
                "use_sim_time": "true",
                "base_frame": "optical",
                "no_data_warning_s": 1.0,
                "qos_overrides./mono/image/compressed.subscription.reliability": "reliable",
            },
            ("-r", "__ns:=/mono"),
        )
        self.peer = peer
        self.clock = peer.publisher(Clock, "/clock")
        self.status = peer.collect(Status, "/mono/imatching/status")
        self.infos = peer.publisher(CameraInfo, "/mono/camera_info")
        self.images = None

    def compressed(self, stamp: int, x: float) -> CompressedImage:
        message = CompressedImage(format="jpeg", data=cv2.imencode(".jpg", look((x, 0, 0))[0])[1].tobytes())
        message.header.stamp, message.header.frame_id = make_stamp(stamp), "optical"
        return message


@pytest.fixture(scope="module")
def robots(peer: Peer, start_node) -> tuple[StereoRobot, CompressedRobot]:
    robots = StereoRobot(peer, start_node), CompressedRobot(peer, start_node)
    for robot in robots:
        robot.node.wait_for("active")
    return robots


def test_silence_names_what_is_missing(robots):
    """There is no publisher of compressed images, and another node's images are of another type."""
    robots[1].node.wait_for("nothing received on /mono/image/compressed for")
    assert "nobody publishes it; no topic of type sensor_msgs/msg/CompressedImage exists" in robots[1].node.output


def test_qos_that_does_not_fit_is_told(robots):
    robot = robots[1]
    best_effort = robot.peer.node.create_publisher(
        CompressedImage, "/mono/image/compressed", QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    )
    robot.node.wait_for("QoS does not fit (offered BEST_EFFORT VOLATILE, requested RELIABLE VOLATILE)")
    assert (
        "set for example qos_overrides./mono/image/compressed.subscription.reliability:=best_effort"
        in robot.node.output
    )
    robot.peer.node.destroy_publisher(best_effort)
    robot.images = robot.peer.publisher(CompressedImage, "/mono/image/compressed")


def test_images_before_their_camera_info_are_told(robots):
    robot = robots[1]
    stamp = 100 * 10**9

    def send() -> None:
        robot.images.publish(robot.compressed(stamp, 0.0))

    send_until(
        send,
        lambda: "images arrive on /mono/image/compressed, but no CameraInfo on /mono/camera_info" in robot.node.output,
        robot.node.output,
        tries=40,
        patience_s=0.5,
    )
    assert not robot.status


def test_stereo_is_metric(robots):
    robot = robots[0]
    robot.show(0.0)
    robot.show(0.04)
    last = robot.show(0.08)
    assert robot.status[-1].metric and robot.status[-1].mode == "stereo"
    start = robot.odom[0].pose.pose.position
    assert last.pose.pose.position.z - start.z == pytest.approx(0.08, abs=0.008)
    assert last.header.stamp == make_stamp(robot.stamp)  # of the left image


def test_the_newest_image_is_taken_and_drops_are_counted(robots):
    robot = robots[1]
    stamp = 101 * 10**9
    robot.clock.publish(Clock(clock=make_stamp(stamp)))
    sent = 0

    def flood() -> None:
        nonlocal sent
        for _ in range(100):
            sent += 1
            robot.infos.publish(info_message(stamp + sent * 10**7, CAMERA))
            robot.images.publish(robot.compressed(stamp + sent * 10**7, 0.002 * sent))

    send_until(
        flood, lambda: robot.status and robot.status[-1].frames_dropped > 0, f"dropped images:\n{robot.node.output}"
    )
    wait_until(
        lambda: robot.status[-1].frames_received == robot.status[-1].frames_processed + robot.status[-1].frames_dropped,
        what="sums",
    )
    stamps = [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in robot.status]
    assert stamps == sorted(set(stamps))


def test_a_clock_that_jumps_back_resets(robots):
    robot = robots[1]
    assert "the clock jumped back" not in robot.node.output
    robot.clock.publish(Clock(clock=make_stamp(20 * 10**9)))
    robot.node.wait_for("the clock jumped back by")
    count = len(robot.status)
    stamp = 20 * 10**9

    def send() -> None:
        nonlocal stamp
        stamp += 10**8
        robot.infos.publish(info_message(stamp, CAMERA))
        robot.images.publish(robot.compressed(stamp, 0.0))

    send_until(send, lambda: len(robot.status) > count, f"a status after the jump:\n{robot.node.output}")
    assert robot.status[-1].state == Status.UNINITIALIZED


def test_namespaces_are_separate(robots):
    stereo, mono = robots
    count = len(mono.status)
    stereo.show(0.1)
    assert len(mono.status) == count
    assert {n for n, _ in mono.peer.node.get_topic_names_and_types() if n.endswith("/odom")} == {
        "/stereo/odom",
        "/mono/odom",
    }


def test_both_end_cleanly(robots):
    for robot in robots:
        assert robot.node.stop() == 0
        assert "Traceback" not in robot.node.output


def test_a_subscriber_that_stops_reading_does_not_hold_the_node(peer: Peer, start_node):
    """Matches and images pile up at a peer that never spins; odometry goes on."""
    import rclpy
    from imatching_ros.msg import Matches

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=peer.context.get_domain_id(), args=[])
    sleeper = rclpy.create_node("sleeper", context=context)
    for kind, topic in (
        (Matches, "/late/imatching/matches"),
        (Image, "/late/imatching/matches/image"),
        (Odometry, "/late/odom"),
    ):
        sleeper.create_subscription(
            kind, topic, lambda _: None, QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        )
    node = start_node({"base_frame": "optical", "mode": "rgbd"}, ("-r", "__ns:=/late"))
    status = peer.collect(Status, "/late/imatching/status")
    infos, images, depths = (
        peer.publisher(kind, f"/late/{name}")
        for kind, name in ((CameraInfo, "camera_info"), (Image, "image"), (Image, "depth/image"))
    )
    peer.meet("/late/imatching")
    for k in range(40):
        stamp = (k + 1) * 10**8
        image, depth = look((0.001 * (k % 10), 0, 0))

        def send(stamp=stamp, image=image, depth=depth) -> None:
            infos.publish(info_message(stamp, CAMERA))
            depths.publish(image_message(stamp, depth, "32FC1"))
            images.publish(image_message(stamp, image, "mono8"))

        send_until(send, lambda k=k: len(status) > k, f"image {k}")
    assert np.median([m.processing_ms for m in status]) < 1000
    assert node.stop() == 0
    sleeper.destroy_node()
    context.shutdown()
