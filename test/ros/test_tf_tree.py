"""TF at the time of an image: a mounting that moves is followed, and messages that nobody needs are not decoded."""

from __future__ import annotations

import time

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from rclpy.serialization import serialize_message
from scipy.spatial.transform import Rotation
from tf2_msgs.msg import TFMessage

from imatching_ros.core.types import OdometryOutput, TrackingState
from imatching_ros.ros import transforms
from imatching_ros.ros.convert import make_transform
from imatching_ros.ros.mount import CameraMount
from imatching_ros.ros.params import NodeConfig
from imatching_ros.ros.robot_pose import RobotPoseTracker
from imatching_ros.ros.tf_tree import TransformTree

pytestmark = pytest.mark.ros

SECOND = 10**9


class Log:
    """Collects the warnings of a node."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn_throttled(self, key: str, text: str) -> None:
        self.lines.append(text)


def pan(degrees: float) -> np.ndarray:
    """The head on the base, turned about the base's z axis."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    T[:3, 3] = [0.1, 0.0, 1.0]
    return T


def link(parent: str, child: str, T: np.ndarray, stamp: int = 0) -> TransformStamped:
    return make_transform(stamp, T, parent, child)


def head_tree(**options) -> TransformTree:
    """A head on the base, to which the camera is fixed; nothing of the head's motion yet."""
    tree = TransformTree(None, **options)
    tree.add(TFMessage(transforms=[link("head", "optical", transforms.T_BODY_OPTICAL)]), static=True)
    return tree


def turn(tree: TransformTree, stamps: range, degrees_per_s: float) -> None:
    for stamp in stamps:
        T = pan(degrees_per_s * stamp / SECOND)
        tree.receive(serialize_message(TFMessage(transforms=[link("base_link", "head", T, stamp)])))


def test_a_head_that_pans_is_followed_at_the_stamp_of_the_image():
    tree, log = head_tree(), Log()
    mount = CameraMount(log, NodeConfig(tf_timeout_s=10.0), tree)
    assert mount.find("optical", 0) is None  # the chain is not known yet
    turn(tree, range(0, SECOND, SECOND // 50), 60.0)
    for stamp in (123_456_789, 500_000_000, 977_000_000):
        expected = pan(60.0 * stamp / SECOND) @ transforms.T_BODY_OPTICAL
        np.testing.assert_allclose(mount.find("optical", stamp), expected, atol=1e-9)
        assert mount.problem == ""
    ahead = mount.find("optical", SECOND + 30_000_000)  # 50 ms after the newest: by its velocity
    np.testing.assert_allclose(ahead, pan(60 * 1.03) @ transforms.T_BODY_OPTICAL, atol=1e-9)
    mount.find("optical", 3 * SECOND)
    assert mount.problem == "TF from base_link to optical, which moves, is 2.02 s older than the image"


def test_stamps_a_millisecond_apart_do_not_make_a_mounting_fast():
    tree = head_tree()
    tree.lookup("base_link", "head")
    turn(tree, range(0, SECOND, SECOND // 50), 0.0)
    T = pan(0.05)  # jitter
    stamp = SECOND - SECOND // 50 + 10**6
    tree.receive(serialize_message(TFMessage(transforms=[link("base_link", "head", T, stamp)])))
    found = tree.lookup("base_link", "head", stamp + SECOND // 20)
    np.testing.assert_allclose(found, pan(0.1), atol=1e-4)


def test_nothing_is_assumed_where_tf_is_required():
    log, tree = Log(), TransformTree(None)
    config = NodeConfig(tf_timeout_s=0.0, require_tf=True)
    strict = CameraMount(log, config, tree)
    assert strict.find("optical", 0) is None  # tf_timeout_s is over
    assert (
        log.lines == ["waiting for TF from base_link to optical"]
        and "no TF from base_link to optical" in strict.problem
    )
    tree.add(TFMessage(transforms=[link("base_link", "optical", transforms.T_BODY_OPTICAL)]), static=True)
    np.testing.assert_allclose(strict.find("optical", SECOND), transforms.T_BODY_OPTICAL, atol=1e-9)
    assert strict.problem == ""


def test_a_mounting_that_stays_is_known_for_ever_and_decoded_no_more():
    tree = TransformTree(None)
    chain = [link("base_link", "head", pan(20)), link("head", "optical", transforms.T_BODY_OPTICAL)]
    tree.add(TFMessage(transforms=chain), static=True)
    mount = CameraMount(Log(), NodeConfig(), tree)
    for stamp in (SECOND, 10**6 * SECOND):
        np.testing.assert_allclose(mount.find("optical", stamp), pan(20) @ transforms.T_BODY_OPTICAL, atol=1e-12)
        assert mount.problem == ""
    busy = TFMessage(transforms=[link("base_link", f"joint_{k}", pan(k), SECOND) for k in range(30)])
    data = serialize_message(busy)
    tree.receive(data)
    assert tree.lookup("base_link", "joint_3") is None  # never asked for before
    tree.receive(data)
    np.testing.assert_allclose(tree.lookup("base_link", "joint_3"), pan(3), atol=1e-12)


def test_a_busy_tf_costs_little_when_the_mounting_is_known():
    tree = TransformTree(None)
    tree.add(TFMessage(transforms=[link("base_link", "optical", pan(0))]), static=True)
    tree.lookup("base_link", "optical")
    data = serialize_message(TFMessage(transforms=[link("base_link", f"joint_{k}", pan(k)) for k in range(30)]))

    def cost_s(take, count: int) -> float:
        start = time.process_time()
        for _ in range(count):
            take(data)
        return (time.process_time() - start) / count

    from rclpy.serialization import deserialize_message

    decoded = cost_s(lambda given: tree.add(deserialize_message(given, TFMessage)), 20)
    assert cost_s(tree.receive, 1000) < decoded / 20


def test_the_base_stands_while_the_head_pans():
    """The camera turns by 60 degrees on the robot, which does not move: its pose must not either, nor that of a new map."""
    tree = head_tree()
    tree.lookup("base_link", "optical")
    turn(tree, range(0, 2 * SECOND, SECOND // 20), 30.0)
    mount = CameraMount(Log(), NodeConfig(), tree)
    tracker, map_id = RobotPoseTracker(mount.find("optical", 0)), 0
    T_start, T_map = mount.find("optical", 0), np.eye(4)
    T_last = T_map
    for stamp in range(0, 2 * SECOND, SECOND // 10):
        T_BC = mount.find("optical", stamp)
        T_WC = T_map @ transforms.inverse(T_start) @ T_BC
        if stamp == SECOND:  # the core begins a map at the camera's last pose
            map_id, T_map = 1, T_last @ transforms.inverse(T_WC) @ T_map
            T_WC = T_last
        T_last = T_WC
        pose = np.array([*T_WC[:3, 3], *transforms.quaternion(T_WC[:3, :3])])
        tracker.mount(T_BC)
        np.testing.assert_allclose(tracker.update(output(stamp, pose, map_id)).T_OB, np.eye(4), atol=1e-9)


def output(stamp: int, pose: np.ndarray, map_id: int) -> OdometryOutput:
    import torch

    eye = torch.eye(6, dtype=torch.float64) * 1e-6
    return OdometryOutput(
        0,
        stamp,
        TrackingState.TRACKING,
        "",
        torch.from_numpy(pose),
        eye,
        99,
        False,
        True,
        map_id,
        None,
        covariance_in_map=eye,
    )


def test_another_frame_of_the_images_is_followed_or_told():
    tree, log = TransformTree(None), Log()
    cameras = [link("base_link", name, pan(angle)) for name, angle in (("front", 0), ("left", 90))]
    tree.add(TFMessage(transforms=cameras), static=True)
    mount = CameraMount(log, NodeConfig(), tree)
    np.testing.assert_allclose(mount.find("front", 0), pan(0), atol=1e-12)
    np.testing.assert_allclose(mount.find("left", 1), pan(90), atol=1e-12)
    assert log.lines == ["the frame of the images has changed from 'front' to 'left'"]
    np.testing.assert_allclose(mount.find("moon", 2), pan(90), atol=1e-12)
    assert mount.problem == "no TF from base_link to moon; the pose of 'left' is taken, which images named before"


def test_late_stamps_are_left_out_and_time_may_begin_again():
    tree = head_tree()
    tree.lookup("base_link", "optical")
    turn(tree, range(10 * SECOND, 12 * SECOND, SECOND // 10), 10.0)
    turn(tree, range(11 * SECOND, 11 * SECOND + 1), 50.0)  # late
    np.testing.assert_allclose(tree.lookup("base_link", "head", 11 * SECOND), pan(110), atol=1e-9)
    turn(tree, range(0, SECOND, SECOND // 10), 10.0)  # a bag that loops
    np.testing.assert_allclose(tree.lookup("base_link", "head", SECOND // 2), pan(5), atol=1e-9)


def test_transforms_of_the_pose_are_noticed():
    seen: list[int] = []
    tree = TransformTree(None, ("odom", "base_link"), seen.append)
    for parent, child, stamp in (("odom", "base_link", 5), ("base_link", "wheel", 6), ("map", "odom", 7)):
        tree.receive(serialize_message(TFMessage(transforms=[link(parent, child, np.eye(4), stamp)])))
    assert seen == [5]
