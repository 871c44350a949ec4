"""Axes, TF and bad input, on the running node with an RGB-D camera on a mast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from imatching_ros.msg import Status
from nav_msgs.msg import Odometry
from peers import Peer, image_message, info_message, make_stamp, send_until, wait_until
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile
from scipy.spatial.transform import Rotation
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from walls import CAMERA, look

from imatching_ros.srv import SetPose

pytestmark = [pytest.mark.ros, pytest.mark.slow]

MOUNT = np.array([0.2, 0.0, 0.5])  # of the camera on the base: ahead and above


def link(parent: str, child: str, xyz: tuple, xyzw: tuple) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.transform.translation.x, message.transform.translation.y, message.transform.translation.z = map(float, xyz)
    q = message.transform.rotation
    q.x, q.y, q.z, q.w = map(float, xyzw)
    return message


class Robot:
    def __init__(self, peer: Peer, start_node) -> None:
        self.peer = peer
        self.node = start_node(
            {"mode": "rgbd", "tf_timeout_s": 30.0, "use_sim_time": True},
            ("-r", "image:=/cam/image", "-r", "depth/image:=/cam/depth"),
        )
        # base -> mast -> optical frame, in two steps, latched before the node subscribes
        static = peer.node.create_publisher(
            TFMessage, "/tf_static", QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        )
        static.publish(
            TFMessage(
                transforms=[
                    link("base_link", "mast", (0.2, 0, 0.1), (0, 0, 0, 1)),
                    link("mast", "optical", (0, 0, 0.4), (-0.5, 0.5, -0.5, 0.5)),
                ]
            )
        )
        self.status, self.odom = peer.collect(Status, "/imatching/status"), peer.collect(Odometry, "/odom")
        self.tf = peer.collect(TFMessage, "/tf")
        self.infos, self.images, self.depths = peer.rgbd_publishers("/cam", "depth")
        self.stamp = 50 * 10**9

    def send(
        self, image: np.ndarray, depth: np.ndarray, encoding: str = "mono8", camera=CAMERA, stamp: int | None = None
    ) -> None:
        stamp = self.stamp if stamp is None else stamp
        self.infos.publish(info_message(stamp, camera))
        self.depths.publish(image_message(stamp, depth, "32FC1"))
        self.images.publish(image_message(stamp, image, encoding))

    def show(self, position=(0, 0, 0), rotation_deg=(0, 0, 0), camera=CAMERA) -> Odometry:
        """One image from a pose of the camera; returns the odometry that it gave."""
        images = look(position, rotation_deg, camera)
        count = len(self.odom)

        def send() -> None:
            self.stamp += 10**8
            self.send(*images, camera=camera)

        # The answer to an earlier try may come late.
        send_until(
            send,
            lambda: len(self.odom) > count and self.odom[-1].header.stamp == make_stamp(self.stamp),
            f"odometry:\n{self.node.output}",
        )
        return self.odom[-1]

    def start_again(self) -> Odometry:
        """Images from the origin after a jump back of simulated time, which resets when the second one confirms it."""
        self.stamp -= 20 * 10**9
        self.reject("it counts when the next image confirms it", *look())
        return self.show()

    def set_sim_time(self, on: bool) -> bool:
        value = ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=on)
        request = [Parameter(name="use_sim_time", value=value)]
        return self.peer.call(SetParameters, "/imatching/set_parameters", parameters=request).results[0].successful

    def reject(self, text: str, *arguments, **options) -> None:
        """Sends an image that cannot be used, until the status reports it."""
        self.stamp += 10**8
        send_until(
            lambda: self.send(*arguments, **options), lambda: text in self.node.output, f"'{text}':\n{self.node.output}"
        )
        stamp = make_stamp(self.stamp)
        index = wait_until(
            lambda: [k for k, m in enumerate(self.status) if m.header.stamp == stamp], what="its status"
        )[0]
        before, rejected = self.status[index - 1], self.status[index]
        assert text in rejected.reason and rejected.frames_rejected > before.frames_rejected
        assert (rejected.state, rejected.frames_processed, rejected.matches, rejected.is_keyframe) == (
            before.state,
            before.frames_processed,
            0,
            False,
        )


@pytest.fixture(scope="module")
def robot(peer: Peer, start_node) -> Robot:
    robot = Robot(peer, start_node)
    robot.node.wait_for("active")
    robot.show()
    return robot


def pose_of(message: Odometry) -> tuple[np.ndarray, Rotation]:
    p, q = message.pose.pose.position, message.pose.pose.orientation
    return np.array([p.x, p.y, p.z]), Rotation.from_quat([q.x, q.y, q.z, q.w])


# What the camera does in its optical axes (x right, y down, z forward), and the base in those of REP-103 (forward, left, up).
@pytest.mark.parametrize(
    ("camera", "base"), [((0, 0, 0.08), (0.08, 0, 0)), ((0.08, 0, 0), (0, -0.08, 0)), ((0, 0.08, 0), (0, 0, -0.08))]
)
def test_translation_axes(robot, camera, base):
    robot.start_again()
    robot.show(np.array(camera) / 2)
    position, rotation = pose_of(robot.show(camera))
    np.testing.assert_allclose(position, base, atol=0.006)
    assert rotation.magnitude() < np.radians(0.3)
    twist = robot.odom[-1].twist.twist.linear
    np.testing.assert_allclose([twist.x, twist.y, twist.z], np.array(base) / 2 / 0.1, atol=0.08)


@pytest.mark.parametrize(("camera", "base"), [((0, 4, 0), (0, 0, -4)), ((4, 0, 0), (0, -4, 0)), ((0, 0, 4), (4, 0, 0))])
def test_rotation_axes(robot, camera, base):
    robot.start_again()
    robot.show(rotation_deg=np.array(camera) / 2)
    position, rotation = pose_of(robot.show(rotation_deg=camera))
    np.testing.assert_allclose(rotation.as_rotvec(degrees=True), base, atol=0.3)
    # The camera turned on the spot, so the base swung around it.
    np.testing.assert_allclose(position, MOUNT - rotation.apply(MOUNT), atol=0.01)


def test_odometry_starts_at_a_given_pose(robot):
    """At rest, then the way ahead: to the left of odom, for the base was turned there."""
    request = PoseWithCovarianceStamped()
    request.header.frame_id = "map"
    refused = robot.peer.call(SetPose, "/imatching/set_pose", pose=request)
    assert not refused.success and "expected 'odom'" in refused.message
    request.header.frame_id = "odom"
    p, q = request.pose.pose.position, request.pose.pose.orientation
    p.x, p.y, q.z, q.w = 3.0, -2.0, np.sqrt(0.5), np.sqrt(0.5)
    request.pose.covariance = np.diag([0.04, 0.04, 0.01, 0.001, 0.001, 0.002]).ravel()
    answer = robot.peer.call(SetPose, "/imatching/set_pose", pose=request)
    assert answer.success, answer.message
    first = robot.show()
    np.testing.assert_allclose(pose_of(first)[0], [3, -2, 0], atol=1e-6)
    np.testing.assert_allclose(np.diag(np.reshape(first.pose.covariance, (6, 6)))[[0, 5]], [0.04, 0.002], rtol=0.05)
    np.testing.assert_allclose(pose_of(robot.show((0, 0, 0.08)))[0], [3, -1.92, 0], atol=0.006)
    np.testing.assert_allclose(pose_of(robot.start_again())[0], 0, atol=1e-9)  # a reset is to the origin


def test_tf_is_of_odom_and_base(robot):
    transform = robot.tf[-1].transforms[0]
    assert (transform.header.frame_id, transform.child_frame_id) == ("odom", "base_link")


def test_a_loop_in_time_resets(robot):
    robot.show((0, 0, 0.05))
    first = robot.start_again()
    assert "stamps jumped back" in robot.node.output
    np.testing.assert_allclose(pose_of(first)[0], 0, atol=1e-9)


@pytest.fixture
def wall_clock(robot) -> Iterator[None]:
    assert robot.set_sim_time(False)
    yield
    assert robot.set_sim_time(True)


def test_a_clock_that_is_set_back_moves_no_robot(robot, wall_clock):
    """Without simulated time. The next image but one goes on from the last pose; the way is unknown for a second, not for an hour."""
    assert robot.peer.call(Trigger, "/imatching/reset").success
    for z in (0, 0.04):
        robot.show((0, 0, z))
    before, maps = robot.show((0, 0, 0.08)), robot.status[-1].map_id
    robot.stamp -= 3600 * 10**9
    robot.reject("it counts when the next image confirms it", *look((0, 0, 0.08)))
    after = robot.show((0, 0, 0.08))
    np.testing.assert_allclose(pose_of(after)[0], pose_of(before)[0], atol=1e-6)
    assert "a new map goes on from the last pose" in robot.node.output
    wait_until(lambda: robot.status[-1].map_id > maps, what="the status of another map")  # which comes after the pose
    assert 0.01 < np.sqrt(after.pose.covariance[0]) < 2.0
    np.testing.assert_allclose(pose_of(robot.show((0, 0, 0.12)))[0], [0.12, 0, 0], atol=0.008)


@pytest.mark.parametrize(
    ("stamp", "cause"), [(0, "leaves header.stamp empty"), (7 * 10**9, "repeats header.stamp, or its clock stands")]
)
def test_stamps_that_do_not_advance_are_told(robot, stamp, cause):
    """By the status, and by /diagnostics as long as it lasts."""
    diagnostics = robot.peer.collect(DiagnosticArray, "/diagnostics")
    assert robot.peer.call(Trigger, "/imatching/reset").success
    count = len(robot.status)

    def find(messages: list, text: str) -> bool:
        return any(text in message.reason for message in messages[count:])

    for _ in range(2):
        send_until(
            lambda: robot.send(*look(), stamp=stamp),
            lambda: find(robot.status, "stamps do not advance: "),
            "a status",
            patience_s=0.2,
        )
    told = next(m for m in robot.status[count:] if m.reason)
    assert cause in told.reason and "images on /cam/image have the stamp" in told.reason and told.frames_rejected >= 3
    reports = wait_until(
        lambda: [s for m in diagnostics for s in m.status if "stamps do not" in s.message], what="a report"
    )
    assert reports[-1].level == DiagnosticStatus.ERROR and cause in reports[-1].message
    robot.show()


def test_a_rejected_image_after_a_reset_has_the_state_after_it(robot):
    robot.show()
    assert robot.peer.call(Trigger, "/imatching/reset").success
    robot.stamp += 10**8
    count = len(robot.status)
    send_until(lambda: robot.send(*look(), encoding="32SC4"), lambda: len(robot.status) > count, "a status")
    assert robot.status[-1].reason and robot.status[-1].state == Status.UNINITIALIZED
    robot.show()


@pytest.mark.parametrize("wrong_s", [-10, 10**8])
def test_one_stamp_far_from_the_others_is_dropped_and_counted(robot, wrong_s):
    robot.start_again()
    before, count, maps = robot.show((0, 0, 0.04)), len(robot.odom), robot.status[-1].map_id
    kept, robot.stamp = robot.stamp, robot.stamp + wrong_s * 10**9
    robot.reject("it counts when the next image confirms it", *look((0, 0, 0.08)))
    robot.stamp = kept
    after = robot.show((0, 0, 0.08))
    assert len(robot.odom) == count + 1 and robot.status[-1].map_id == maps
    np.testing.assert_allclose(pose_of(after)[0] - pose_of(before)[0], [0.04, 0, 0], atol=0.006)


def test_a_stamp_a_little_too_old_is_dropped(robot):
    robot.show()
    count = len(robot.odom)
    image, depth = look()
    send_until(
        lambda: robot.send(image, depth, stamp=robot.stamp - 2 * 10**8),
        lambda: "before the last one" in robot.node.output,
        "a warning",
    )
    rejected = make_stamp(robot.stamp - 2 * 10**8)
    old = wait_until(lambda: [m for m in robot.status if m.header.stamp == rejected and m.reason], what="its status")[
        -1
    ]
    assert (
        "its stamp is 0.200000 s before the last one" in old.reason
        and old.frames_rejected
        and old.state == Status.TRACKING
    )
    robot.show()
    assert len(robot.odom) == count + 1


def test_a_image_without_its_depth_is_tracked_and_told(robot):
    image, depth = look()
    robot.start_again()
    lonely, robot.stamp = robot.stamp + 10**8, robot.stamp + 2 * 10**8
    robot.images.publish(image_message(lonely, image, "mono8"))
    robot.depths.publish(image_message(robot.stamp, depth, "32FC1"))
    wait_until(lambda: robot.odom[-1].header.stamp == make_stamp(lonely), what="odometry of the lonely image")
    robot.node.wait_for("an image on /cam/image comes without one on /cam/depth: the nearest is 100.000 ms away")


def test_a_depth_camera_that_stops_holds_nothing_up(robot):
    """Each pose comes before the next image is sent, and the status names what is missing; its return is used at once."""
    robot.start_again()
    robot.show()
    image, depth = look()
    for _ in range(5):
        robot.stamp += 10**8
        robot.images.publish(image_message(robot.stamp, image, "mono8"))
        wait_until(lambda: robot.odom[-1].header.stamp == make_stamp(robot.stamp), 20.0, "a pose without depth")
    lonely = wait_until(
        lambda: next((m for m in robot.status if m.header.stamp == make_stamp(robot.stamp)), None), what="its status"
    )
    assert lonely.state == Status.TRACKING and not lonely.reason
    assert "an image on /cam/image comes without one on /cam/depth" in lonely.warning
    robot.show()
    wait_until(lambda: robot.status[-1].header.stamp == make_stamp(robot.stamp), what="status of a whole pair")
    wait_until(lambda: robot.status[-1].warning == "", what="a status without the warning")


def test_unknown_encoding(robot):
    image, depth = look()
    robot.reject("images of encoding 'mono42' cannot be used; expected one of mono8", image, depth, "mono42")
    robot.show()


def test_image_of_another_size_than_its_camera_info(robot):
    image, depth = look()
    robot.reject("the image is 160 x 240, its camera calibration is for 320 x 240", image[:, :160], depth[:, :160])
    robot.show()


def test_depth_of_another_size(robot):
    image, depth = look()
    robot.reject("the depth image is 160 x 120", image, depth[::2, ::2])
    robot.show()


def test_uncalibrated_camera(robot):
    """K of zeros, as drivers send it before calibration."""
    image, depth = look()
    robot.stamp += 10**8

    def send() -> None:
        info = info_message(robot.stamp, CAMERA)
        info.k = [0.0] * 9
        robot.infos.publish(info)
        robot.depths.publish(image_message(robot.stamp, depth, "32FC1"))
        robot.images.publish(image_message(robot.stamp, image, "mono8"))

    send_until(send, lambda: "the camera is not calibrated" in robot.node.output, "a warning")
    robot.show()


def test_camera_that_changes_size_while_running(robot):
    robot.start_again()
    robot.show((0, 0, 0.04))
    before = pose_of(robot.show((0, 0, 0.08)))[0]
    small = replace(CAMERA, width=240, height=180, fx=192.0, fy=192.0, cx=119.5, cy=89.5)
    after = pose_of(robot.show((0, 0, 0.08), camera=small))[0]
    assert "the camera has changed" in robot.node.output
    np.testing.assert_allclose(after, before, atol=1e-6)  # goes on from the last pose, with more uncertainty
    assert robot.odom[-1].pose.covariance[0] > robot.odom[-2].pose.covariance[0]
    np.testing.assert_allclose(pose_of(robot.show((0, 0, 0.12), camera=small))[0][0], 0.12, atol=0.01)


def test_a_calibration_that_changes_with_every_image_keeps_the_map(robot):
    """As with autofocus: by .02 %, and at last by 2 %."""
    begun = robot.start_again().header.stamp
    wait_until(lambda: robot.status[-1].header.stamp == begun, what="its status")
    maps, changes = robot.status[-1].map_id, robot.node.output.count("the camera has changed")
    for k, share in enumerate((2e-4, -2e-4, 2e-4, -2e-4, 2e-2)):
        camera = replace(CAMERA, fx=CAMERA.fx * (1 + share), fy=CAMERA.fy * (1 + share))
        after = robot.show((0, 0, 0.02 * k), camera=camera)
    np.testing.assert_allclose(pose_of(after)[0], [0.08, 0, 0], atol=0.01)
    assert robot.status[-1].map_id == maps and robot.status[-1].state == Status.TRACKING
    assert robot.node.output.count("the camera has changed") == changes
    assert robot.node.output.count("each image is used with its own") == 1


def test_depth_of_another_frame_is_told(robot):
    image, depth = look()
    robot.start_again()

    def send() -> None:
        robot.stamp += 10**8
        robot.infos.publish(info_message(robot.stamp, CAMERA))
        robot.depths.publish(image_message(robot.stamp, depth, "32FC1", "depth_optical"))
        robot.images.publish(image_message(robot.stamp, image, "mono8"))

    told = "depth images are of the frame 'depth_optical', images of 'optical'; expected depth registered to the image"
    send_until(send, lambda: told in robot.status[-1].warning, "the warning in ~/status")
    robot.show()
    wait_until(lambda: robot.status[-1].warning == "", what="a status without the warning")


def test_ends_cleanly(robot):
    assert robot.node.stop() == 0
    assert "internal error" not in robot.node.output and "Traceback" not in robot.node.output
    assert "no scale" not in robot.node.output
