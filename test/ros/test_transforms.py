"""Poses, covariances and continuity of the odometry frame, against SciPy and sampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from imatching_ros.core.types import OdometryOutput, TrackingState
from imatching_ros.ros import transforms
from imatching_ros.ros.robot_pose import RobotPoseTracker, Start

pytestmark = pytest.mark.ros


def random_pose(rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([rng.normal(size=3), Rotation.random(rng=rng).as_quat()])


def exp(twist: np.ndarray) -> np.ndarray:
    generator = np.zeros((4, 4))
    generator[:3, :3], generator[:3, 3] = transforms.skew(twist[3:]), twist[:3]
    return expm(generator)


def output(stamp_s: float, T_WC: np.ndarray | None, map_id: int = 0, sigma: float = 0.01, sigma_in_map: float = 0.002):
    pose = None if T_WC is None else torch.tensor(T_WC, dtype=torch.float64)
    return OdometryOutput(
        0,
        round(stamp_s * 1e9),
        TrackingState.TRACKING,
        "",
        pose,
        torch.eye(6, dtype=torch.float64) * sigma**2,
        50,
        False,
        True,
        map_id,
        None,
        covariance_in_map=torch.eye(6, dtype=torch.float64) * sigma_in_map**2,
    )


@pytest.mark.parametrize("seed", range(20))
def test_matrix_and_quaternion_agree_with_scipy(seed):
    pose = random_pose(np.random.default_rng(seed))
    T = transforms.from_pose(pose)
    np.testing.assert_allclose(T[:3, :3], Rotation.from_quat(pose[3:]).as_matrix(), atol=1e-12)
    q = np.array(transforms.quaternion(T[:3, :3]))
    np.testing.assert_allclose(q, pose[3:] * np.sign(pose[6]), atol=1e-12)
    np.testing.assert_allclose(transforms.rotation_vector(T[:3, :3]), Rotation.from_quat(q).as_rotvec(), atol=1e-9)


@pytest.mark.parametrize("axis", np.eye(3))
def test_half_turns(axis):
    R = Rotation.from_rotvec(np.pi * axis).as_matrix()
    np.testing.assert_allclose(np.abs(transforms.quaternion(R)), [*axis, 0], atol=1e-12)


@pytest.mark.parametrize(
    "pose",
    [[0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 2], [np.nan, 0, 0, 0, 0, 0, 1], [0, 0, 0, np.nan, 0, 0, 1]]
    + [[0, value, 0, 0, 0, 0, 1] for value in (np.inf, -1e300, 1e9)],
)
def test_what_is_no_pose_is_refused(pose):
    with pytest.raises(ValueError, match="is no pose"):
        transforms.from_pose(np.array(pose, float))


def test_covariance_of_the_base_agrees_with_sampling():
    rng = np.random.default_rng(1)
    T_OC, T_BC = transforms.from_pose(random_pose(rng)), transforms.from_pose(random_pose(rng))
    A = rng.normal(size=(6, 6)) * 2e-3
    covariance_C = A @ A.T
    T_OB = T_OC @ transforms.inverse(T_BC)
    samples = []
    for twist in rng.multivariate_normal(np.zeros(6), covariance_C, 20000):
        T = T_OC @ exp(twist) @ transforms.inverse(T_BC)
        samples.append([*(T[:3, 3] - T_OB[:3, 3]), *Rotation.from_matrix(T[:3, :3] @ T_OB[:3, :3].T).as_rotvec()])
    expected = np.cov(np.array(samples).T)
    found = transforms.fixed_axis_covariance(transforms.body_covariance(covariance_C, T_BC), T_OB[:3, :3])
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_odometry_starts_at_the_origin_of_the_base():
    rng = np.random.default_rng(2)
    tracker = RobotPoseTracker(transforms.from_pose(random_pose(rng)))
    np.testing.assert_allclose(tracker.update(output(0, np.array([0, 0, 0, 0, 0, 0, 1.0]))).T_OB, np.eye(4), atol=1e-12)


def test_odometry_starts_where_it_is_told_and_as_uncertain():
    rng = np.random.default_rng(3)
    T_OB = transforms.from_pose(random_pose(rng))
    start = Start(T_OB, np.diag([0.01, 0.02, 0.03, 0.001, 0.002, 0.004]))
    T_BC = transforms.from_pose(random_pose(rng))
    tracker = RobotPoseTracker(T_BC, start)
    pose = tracker.update(output(0, np.array([0, 0, 0, 0, 0, 0, 1.0]), sigma=1e-6, sigma_in_map=1e-6))
    np.testing.assert_allclose(pose.T_OB, T_OB, atol=1e-12)
    np.testing.assert_allclose(np.diag(pose.covariance), np.diag(start.covariance), atol=1e-8)


def test_a_reset_long_after_the_last_pose_leaves_the_rotation_unknown_and_no_more():
    tracker = RobotPoseTracker(np.eye(4))
    tracker.update(output(0, np.array([0, 0, 0, 0, 0, 0, 1.0])))
    turn = Rotation.from_euler("z", 30, degrees=True).as_quat()
    tracker.update(output(0.5, np.array([0, 0, 0, *turn])))
    tracker.restart()
    pose = tracker.update(output(3600, np.array([0, 0, 0, 0, 0, 0, 1.0])))
    np.testing.assert_allclose(np.diag(pose.covariance)[3:], np.pi**2 / 3, rtol=1e-3)


def test_no_pose_gives_no_odometry():
    assert RobotPoseTracker(np.eye(4)).update(output(0, None)) is None


def test_twist_is_in_the_base_frame():
    tracker = RobotPoseTracker(np.eye(4))
    tracker.update(output(0, np.array([0, 0, 0, 0, 0, 0, 1.0])))
    turn = Rotation.from_euler("z", 90, degrees=True).as_quat()
    pose = tracker.update(output(0.5, np.array([0, 1.0, 0, *turn])))
    np.testing.assert_allclose(pose.twist, [2, 0, 0, 0, 0, np.pi], atol=1e-9)  # what was +y of the world is ahead now


def test_errors_of_the_motion_itself_make_the_twist_uncertain():
    tracker, at = RobotPoseTracker(np.eye(4)), np.array([0, 0, 0, 0, 0, 0, 1.0])
    tracker.update(output(0, at))
    step = torch.eye(6, dtype=torch.float64) * 0.01**2
    pose = tracker.update(replace(output(0.5, at), covariance_of_step=step))
    np.testing.assert_allclose(pose.twist_covariance, np.eye(6) * (0.01**2 + 2 * 0.002**2) / 0.25, rtol=1e-3)
    following = tracker.update(output(1.0, at))
    np.testing.assert_allclose(following.twist_covariance, np.eye(6) * 2 * 0.002**2 / 0.25, rtol=1e-3)


def test_certainty_of_the_twist_is_that_of_poses_in_one_map():
    """Sampled: drift moves both poses alike, so only what each pose adds of its own makes the difference uncertain."""
    rng = np.random.default_rng(3)
    poses = [
        np.array([0, 0, 0, 0, 0, 0, 1.0]),
        np.array([0.3, 1.0, 0, *Rotation.from_euler("z", 40, degrees=True).as_quat()]),
    ]
    tracker = RobotPoseTracker(np.eye(4))
    tracker.update(output(0, poses[0], sigma=0.1))
    pose = tracker.update(output(0.5, poses[1], sigma=0.1))
    T = [transforms.from_pose(p) for p in poses]
    samples = []
    for a, b in rng.normal(scale=0.002, size=(20000, 2, 6)):
        motion = transforms.inverse(T[0] @ exp(a)) @ T[1] @ exp(b)
        error = transforms.inverse(transforms.inverse(T[0]) @ T[1]) @ motion
        samples.append([*error[:3, 3], *Rotation.from_matrix(error[:3, :3]).as_rotvec()])
    expected = np.cov(np.array(samples).T) / 0.25
    np.testing.assert_allclose(pose.twist_covariance, expected, atol=0.03 * np.abs(expected).max())


def test_the_gap_before_a_new_map_is_counted_once_by_the_core():
    """The core places a new map at its last pose and adds the gap to the covariance; nothing is added to that here."""
    T_BC = transforms.from_pose(np.array([0.3, 0, 0.5, -0.5, 0.5, -0.5, 0.5]))
    tracker = RobotPoseTracker(T_BC)
    pose = np.array([0, 0, 1.0, 0, 0, 0, 1])
    tracker.update(output(0, np.array([0, 0, 0, 0, 0, 0, 1.0])))
    before = tracker.update(output(1, pose))
    after = tracker.update(output(3, pose, map_id=1, sigma=2.0))
    np.testing.assert_allclose(after.T_OB, before.T_OB)
    of_core = transforms.fixed_axis_covariance(transforms.body_covariance(np.eye(6) * 2.0**2, T_BC), after.T_OB[:3, :3])
    np.testing.assert_allclose(after.covariance, of_core, rtol=1e-6, atol=1e-8)


def test_after_a_restart_the_next_pose_is_the_last():
    tracker = RobotPoseTracker(transforms.T_BODY_OPTICAL)
    tracker.update(output(0, np.array([0, 0, 0, 0, 0, 0, 1.0])))
    before = tracker.update(output(1, np.array([0, 0, 3.0, 0, 0, 0, 1])))
    tracker.restart()
    after = tracker.update(output(2, np.array([0, 0, 0, 0, 0, 0, 1.0])))
    np.testing.assert_allclose(after.T_OB, before.T_OB, atol=1e-12)
    np.testing.assert_allclose(after.T_OB[:3, 3], [3, 0, 0], atol=1e-12)
    np.testing.assert_allclose(tracker.points(np.array([[0, 0, 1.0]])), [[4, 0, 0]], atol=1e-12)


def twist_is_unknown(pose) -> bool:
    return not pose.twist.any() and bool(np.isnan(pose.twist_covariance).all())


@pytest.mark.parametrize(("missing", "stamp_s"), [(None, 2.5), (0.2, 0.3)])  # no images for a while; one without a pose
def test_a_gap_has_no_twist(missing, stamp_s):
    tracker = RobotPoseTracker(np.eye(4))
    still = np.array([0, 0, 0, 0, 0, 0, 1.0])
    assert twist_is_unknown(tracker.update(output(0, still)))
    assert not twist_is_unknown(tracker.update(output(0.1, still + np.array([0.1, 0, 0, 0, 0, 0, 0]))))
    if missing is not None:
        tracker.update(output(missing, None))
    assert twist_is_unknown(tracker.update(output(stamp_s, still + np.array([0.5, 0, 0, 0, 0, 0, 0]))))
    after = tracker.update(output(stamp_s + 0.1, still + np.array([0.6, 0, 0, 0, 0, 0, 0])))
    np.testing.assert_allclose(after.twist, [1, 0, 0, 0, 0, 0], atol=1e-9)


def test_a_new_map_has_no_twist_even_right_after_a_pose():
    tracker = RobotPoseTracker(np.eye(4))
    for stamp_s in (0.0, 0.1):
        tracker.update(output(stamp_s, np.array([stamp_s, 0, 0, 0, 0, 0, 1.0])))
    assert twist_is_unknown(tracker.update(output(0.2, np.array([0.1, 0, 0, 0, 0, 0, 1]), map_id=1)))
    after = tracker.update(output(0.3, np.array([0.2, 0, 0, 0, 0, 0, 1]), map_id=1))
    np.testing.assert_allclose(after.twist, [1, 0, 0, 0, 0, 0], atol=1e-9)


def test_a_reset_has_no_twist():
    tracker = RobotPoseTracker(np.eye(4))
    for stamp_s in (0.0, 0.1):
        tracker.update(output(stamp_s, np.array([stamp_s, 0, 0, 0, 0, 0, 1.0])))
    tracker.restart()
    assert twist_is_unknown(tracker.update(output(0.2, np.array([0, 0, 0, 0, 0, 0, 1.0]), map_id=1)))


def test_a_reset_right_after_a_gap_uses_the_last_known_speed():
    tracker = RobotPoseTracker(np.eye(4))
    for stamp_s in (0.0, 1.0):
        tracker.update(output(stamp_s, np.array([stamp_s, 0, 0, 0, 0, 0, 1.0])))
    tracker.update(output(1.1, None))
    before = tracker.update(output(1.2, np.array([1.0, 0, 0, 0, 0, 0, 1])))
    tracker.restart()
    after = tracker.update(output(3.2, np.array([0, 0, 0, 0, 0, 0, 1.0]), map_id=1, sigma=1e-6))
    np.testing.assert_allclose(after.T_OB, before.T_OB)
    assert after.covariance[0, 0] == pytest.approx(before.covariance[0, 0] + 2.0**2)  # 1 m/s for 2 s


def test_a_core_that_was_reset_does_not_make_the_robot_certain_again():
    tracker = RobotPoseTracker(transforms.T_BODY_OPTICAL)
    tracker.update(output(0, np.array([0, 0, 0, 0, 0, 0, 1.0])))
    before = tracker.update(output(0.1, np.array([0, 0, 0.001, 0, 0, 0, 1]), sigma=0.7))
    for k in range(2):
        tracker.restart()
        after = tracker.update(output(0.2 + 0.1 * k, np.array([0, 0, 0, 0, 0, 0, 1.0]), map_id=k + 1, sigma=1e-4))
        assert np.linalg.eigvalsh(after.covariance - before.covariance).min() > 0
        before = after


def test_the_heading_error_of_a_reset_grows_into_position():
    """Sampled: after the reset the robot drives 10 m ahead and turns; its position depends on its heading at the reset."""
    rng = np.random.default_rng(4)
    tracker = RobotPoseTracker(np.eye(4))
    start = np.array([2.0, 1.0, 0, *Rotation.from_euler("z", 90, degrees=True).as_quat()])
    tracker.update(output(0, start, sigma=1e-6))
    tracker.restart()
    T_gap = np.linalg.inv(transforms.from_pose(start))  # a core that was reset begins at its origin
    goal = transforms.from_pose(start) @ transforms.from_pose(
        np.array([10.0, 0, 0, *Rotation.from_euler("z", 50, degrees=True).as_quat()])
    )

    def show(stamp_s: float, T: np.ndarray):
        T = T_gap @ T
        return tracker.update(
            output(stamp_s, np.array([*T[:3, 3], *transforms.quaternion(T[:3, :3])]), map_id=1, sigma=1e-6)
        )

    show(0.1, transforms.from_pose(start))
    pose = show(5.0, goal)
    T_start = transforms.from_pose(start)
    samples = []
    for phi in rng.normal(scale=0.1, size=(20000, 3)):
        T = T_start @ exp(np.array([0, 0, 0, *phi])) @ transforms.inverse(T_start) @ goal
        samples.append([*(T[:3, 3] - goal[:3, 3]), *Rotation.from_matrix(T[:3, :3] @ goal[:3, :3].T).as_rotvec()])
    expected = np.cov(np.array(samples).T)
    assert expected[0, 0] == pytest.approx(1.0, rel=0.1)  # 10 m times 0.1 rad, across the way
    np.testing.assert_allclose(pose.covariance, expected, atol=0.05 * expected.max())
