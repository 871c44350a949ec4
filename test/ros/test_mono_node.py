"""The real node with one camera, fed with rendered images over DDS: everything it publishes, checked against the truth."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from imatching_ros.msg import LearningStatus, Matches, Status
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from peers import Peer, image_message, info_message, send_until
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from imatching_ros.offline.evaluation.trajectory import score_trajectory
from imatching_ros.offline.recordings.truth import Trajectory

pytestmark = [pytest.mark.ros, pytest.mark.slow]

TOPICS = {
    "odom": (Odometry, "/odom"),
    "pose": (PoseWithCovarianceStamped, "/imatching/pose"),
    "path": (PathMessage, "/imatching/path"),
    "matches": (Matches, "/imatching/matches"),
    "matches_image": (Image, "/imatching/matches/image"),
    "landmarks": (PointCloud2, "/imatching/landmarks"),
    "keyframes": (PoseArray, "/imatching/keyframes"),
    "status": (Status, "/imatching/status"),
    "learning": (LearningStatus, "/imatching/learning/status"),
    "diagnostics": (DiagnosticArray, "/diagnostics"),
    "tf": (TFMessage, "/tf"),
}


def stamp_of(message) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


@pytest.fixture(scope="module")
def run(peer: Peer, start_node, tour) -> SimpleNamespace:
    """The tour played to the node, one image at a time; what came back, and how the node ended."""
    node = start_node(
        {"base_from_camera": "[0.0,0.0,0.0,0.0,0.0,0.0,1.0]", "base_frame": "optical"},
        ("-r", "image:=/front/image_raw"),
    )
    seen = {name: peer.collect(kind, topic) for name, (kind, topic) in TOPICS.items()}
    infos = peer.publisher(CameraInfo, "/front/camera_info")  # found beside the image topic, without a remapping
    images = peer.publisher(Image, "/front/image_raw")
    node.wait_for("active")
    peer.meet()
    for count, shot in enumerate(tour, 1):

        def send(shot=shot) -> None:
            infos.publish(info_message(shot.stamp_ns, shot.camera))
            images.publish(image_message(shot.stamp_ns, shot.image, "rgb8"))

        send_until(send, lambda count=count: len(seen["status"]) >= count, f"image {count}:\n{node.output}")
    time.sleep(1.2)  # one more message of diagnostics
    shared_memory = node.shared_memory
    code = node.stop(signal.SIGINT)
    return SimpleNamespace(**seen, code=code, log=node.output, shared_memory=shared_memory)


def test_ends_cleanly_on_sigint(run):
    assert run.code == 0
    assert "Traceback" not in run.log


def test_leaves_no_shared_memory(run):
    """33 MB of RAM for every start of the node, until the computer is restarted."""
    if "/dev/shm/fastrtps_" not in Path("/proc/self/maps").read_text():
        pytest.skip("DDS uses no shared memory on this machine")
    assert run.shared_memory, "this end of the wire uses shared memory, the node does not"
    assert [path for path in run.shared_memory if path.exists()] == []


def test_every_image_has_a_status(run, tour):
    assert [stamp_of(m) for m in run.status] == [shot.stamp_ns for shot in tour]
    last = run.status[-1]
    assert (last.frames_received, last.frames_processed, last.frames_dropped, last.frames_rejected) == (30, 30, 0, 0)
    assert last.state == Status.TRACKING and last.mode == "mono" and not last.metric
    assert last.frames_tracked == len(run.odom) >= 15
    assert last.keyframes >= 2 and last.landmarks >= 50 and last.inliers >= 50 and last.header.frame_id == "optical"


def test_odometry_follows_the_true_path(run, tour):
    truth = Trajectory(np.array([s.stamp_ns for s in tour]), np.array([s.T_WC for s in tour]))
    poses = [m.pose.pose for m in run.odom]
    rows = [
        [p.position.x, p.position.y, p.position.z, p.orientation.x, p.orientation.y, p.orientation.z, p.orientation.w]
        for p in poses
    ]
    estimate = Trajectory(np.array([stamp_of(m) for m in run.odom]), np.array(rows))
    score = score_trajectory(estimate, truth, metric=False)
    assert not isinstance(score, str), score
    assert score.ate["percent_of_path"] < 3.0
    assert all(m.header.frame_id == "odom" and m.child_frame_id == "optical" for m in run.odom)


def test_odometry_states_its_uncertainty(run):
    for message in run.odom:
        covariance = np.array(message.pose.covariance).reshape(6, 6)
        assert np.allclose(covariance, covariance.T) and np.linalg.eigvalsh(covariance).min() > 0
        assert np.isfinite(message.twist.covariance).all()


def test_twist_is_the_motion_between_poses(run):
    a, b = run.odom[-2], run.odom[-1]
    dt = (stamp_of(b) - stamp_of(a)) / 1e9
    R = Rotation.from_quat([getattr(b.pose.pose.orientation, axis) for axis in "xyzw"])
    step = np.array([getattr(b.pose.pose.position, axis) - getattr(a.pose.pose.position, axis) for axis in "xyz"])
    linear = np.array([getattr(b.twist.twist.linear, axis) for axis in "xyz"])
    np.testing.assert_allclose(R.apply(linear) * dt, step, atol=1e-9)


def test_tf_and_pose_say_the_same_as_odometry(run):
    transforms = [t for m in run.tf for t in m.transforms]
    assert len(transforms) == len(run.odom) == len(run.pose)
    for odom, pose, transform in zip(run.odom, run.pose, transforms, strict=True):
        assert stamp_of(odom) == stamp_of(pose) == stamp_of(transform)
        assert (transform.header.frame_id, transform.child_frame_id) == ("odom", "optical")
        assert odom.pose == pose.pose
        assert transform.transform.translation.x == odom.pose.pose.position.x
        assert transform.transform.rotation == odom.pose.pose.orientation


def test_matches_are_right(run, tour):
    shots = {shot.stamp_ns: shot for shot in tour}
    errors = []
    assert len(run.matches) >= 15
    for message in run.matches:
        first = shots[message.stamp_i.sec * 10**9 + message.stamp_i.nanosec]
        second = shots[stamp_of(message)]
        assert first is tour[message.id_i] and second is tour[message.id_j]
        n = len(message.u_i)
        assert all(
            len(getattr(message, name)) == n
            for name in ("v_i", "u_j", "v_j", "score", "sigma_px", "residual_px", "inlier", "landmark_id")
        )
        uv_i, uv_j = np.stack([message.u_i, message.v_i], 1), np.stack([message.u_j, message.v_j], 1)
        errors.append(np.linalg.norm(carry(first, second, uv_i) - uv_j, axis=1)[np.array(message.inlier, bool)])
    errors = np.concatenate(errors)
    assert len(errors) > 1000 and np.median(errors) < 1.0 and (errors < 3).mean() > 0.9


def carry(first, second, uv: np.ndarray) -> np.ndarray:
    """Where pixels (N, 2) of the first image are in the second, by depth and poses."""
    c = first.camera
    u, v = np.rint(uv).astype(int).T
    z = first.depth[v.clip(0, c.height - 1), u.clip(0, c.width - 1)]
    points = np.stack([(uv[:, 0] - c.cx) / c.fx * z, (uv[:, 1] - c.cy) / c.fy * z, z], 1)
    world = Rotation.from_quat(first.T_WC[3:]).apply(points) + first.T_WC[:3]
    x, y, z = Rotation.from_quat(second.T_WC[3:]).inv().apply(world - second.T_WC[:3]).T
    return np.stack([c.fx * x / z + c.cx, c.fy * y / z + c.cy], 1)


def test_matches_are_drawn_where_somebody_looks(run, tour):
    assert [stamp_of(m) for m in run.matches_image] == [stamp_of(m) for m in run.matches]
    image = run.matches_image[-1]
    assert (image.width, image.height, image.encoding, image.step) == (320, 240, "rgb8", 960)
    drawn = np.frombuffer(image.data, np.uint8).reshape(240, 320, 3)
    changed = (drawn != tour[-1].image).any(2)
    assert 0.005 < changed.mean() < 0.6
    assert (drawn[changed] == (0, 220, 0)).all(1).any()


def test_map_topics(run):
    path = run.path[-1]
    assert path.header.frame_id == "odom" and 10 <= len(path.poses) <= len(run.odom)
    assert run.keyframes[-1].header.frame_id == "odom" and len(run.keyframes[-1].poses) >= 2
    cloud = run.landmarks[-1]
    points = np.frombuffer(cloud.data, np.float32).reshape(-1, 3)
    assert cloud.width == len(points) >= 50 and cloud.point_step == 12 and np.isfinite(points).all()
    assert (points[:, 2] > 0).mean() > 0.95  # in front of the camera, whose axes the odometry frame has here


def test_learning_status_says_off(run):
    last = run.learning[-1]
    assert last.mode == "off" and last.matcher == "klt" and last.step == 0 and last.promotions == 0


def test_diagnostics(run):
    statuses = [m.status[0] for m in run.diagnostics]
    assert statuses[-1].name == "/imatching: odometry"
    values = {entry.key: entry.value for entry in statuses[-1].values}
    assert values["lifecycle"] == "active" and values["tracking"] == "tracking" and int(values["images received"]) >= 30
    assert (values["metric"], values["scale"]) == ("False", "unknown")
    tracked = [s for s in statuses if s.message.startswith("tracking, scale unknown: the unit of length is arbitrary")]
    assert tracked and {s.level for s in tracked} == {DiagnosticStatus.WARN} or len(statuses) < 4


def test_a_missing_scale_is_said_once(run):
    assert run.log.count("poses have no scale (unknown)") == 1
