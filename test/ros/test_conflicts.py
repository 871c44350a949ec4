"""What other nodes do to the odometry, each by name: several clocks, cameras or sources of the pose, and a name taken twice."""

from __future__ import annotations

import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from peers import Peer, image_message, info_message, make_stamp, send_until, wait_until
from imatching_ros.msg import Status
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage
from walls import CAMERA, look

from imatching_ros.ros.convert import make_transform

pytestmark = [pytest.mark.ros, pytest.mark.slow]


class Robot:
    def __init__(self, peer: Peer, start_node) -> None:
        self.peer = peer
        self.node = start_node({"mode": "rgbd", "base_frame": "optical", "use_sim_time": "true"})
        self.status = peer.collect(Status, "/imatching/status")
        diagnostics = peer.collect(DiagnosticArray, "/diagnostics")
        self.conflict = lambda: {v.key: v.value for v in diagnostics[-1].status[0].values}["conflict"]
        self.infos, self.images, self.depths = peer.rgbd_publishers()
        peer.meet()
        self.stamp = 100 * 10**9

    def show(self, z: float) -> Status:
        count = len(self.status)

        def send() -> None:
            self.stamp += 10**8
            image, depth = look((0, 0, z))
            self.infos.publish(info_message(self.stamp, CAMERA))
            self.depths.publish(image_message(self.stamp, depth, "32FC1"))
            self.images.publish(image_message(self.stamp, image, "mono8"))

        send_until(send, lambda: len(self.status) > count, f"a status:\n{self.node.output}")
        return self.status[-1]


@pytest.fixture(scope="module")
def robot(peer: Peer, start_node) -> Robot:
    return Robot(peer, start_node)


def test_simulated_time_without_a_clock_is_told(robot):
    robot.node.wait_for("use_sim_time is set, but nobody publishes /clock", 20.0)
    assert robot.show(0.0).state == Status.TRACKING


@pytest.mark.parametrize("apart_s", [0.003, 10.0])
def test_two_clocks_are_named_and_do_not_reset(robot, apart_s):
    maps = robot.show(0.0).map_id
    clocks = [robot.peer.publisher(Clock, "/clock") for _ in range(2)]
    wait_until(lambda: "/clock has 2 publishers (/peer, /peer)" in robot.conflict(), 20.0, "the conflict")
    for k in range(30):
        stamp = robot.stamp + k * 10**7
        for clock, ahead_s in zip(clocks, (apart_s, 0.0), strict=True):
            clock.publish(Clock(clock=make_stamp(stamp + round(ahead_s * 10**9))))
            time.sleep(0.03)  # the node keeps the newest only
    robot.node.wait_for("the clock stepped back by", 20.0)
    assert robot.show(0.02).map_id == maps and "odometry is reset" not in robot.node.output
    assert robot.node.output.count("the clock stepped back by") <= 6  # throttled
    for clock in clocks:
        robot.peer.node.destroy_publisher(clock)
    wait_until(lambda: "publishers" not in robot.conflict(), 20.0, "the end of the conflict")


def test_other_cameras_odometry_and_names_are_told(robot, start_node):
    camera = robot.peer.node.create_publisher(Image, "/image", 1)
    odometry = robot.peer.node.create_publisher(Odometry, "/odom", 1)
    robot.node.wait_for("/image has 2 publishers (/peer, /peer), expected one: images of two cameras are mixed", 20.0)
    robot.node.wait_for("/odom has 2 publishers (/imatching, /peer), expected one: their poses are mixed", 20.0)
    tf = robot.peer.node.create_publisher(TFMessage, "/tf", 1)
    twice = "another node publishes TF from odom to optical too"
    link = make_transform(robot.stamp + 1, np.eye(4), "odom", "optical")
    send_until(
        lambda: tf.publish(TFMessage(transforms=[link])), lambda: twice in robot.conflict(), "TF", patience_s=2.0
    )
    assert twice in robot.node.output
    robot.peer.node.destroy_publisher(tf)
    robot.peer.node.destroy_publisher(camera)
    robot.peer.node.destroy_publisher(odometry)
    twin = start_node({"autostart": "false"})
    robot.node.wait_for("2 nodes are named /imatching: their topics", 60.0)
    assert twin.stop() == 0
    wait_until(
        lambda: (
            robot.conflict() == "use_sim_time is set, but nobody publishes /clock: latencies are unknown; play "
            "the bag with --clock, or set use_sim_time to false"
        ),
        30.0,
        "the end of the conflicts",
    )


def test_ends_cleanly(robot):
    assert robot.node.stop() == 0 and "Traceback" not in robot.node.output
