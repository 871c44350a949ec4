"""Types of the core <-> ROS messages. Every number is cast: rclpy sends a numpy scalar in a message field as garbage."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, PoseArray, PoseStamped, PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import Header

from imatching_ros.msg import LearningStatus as LearningStatusMsg
from imatching_ros.msg import Matches as MatchesMsg

from ..core.errors import SourceError
from . import transforms
from .robot_pose import RobotPose, Start

if TYPE_CHECKING:  # the player and the recorder start without torch
    from torch import Tensor

    from ..core.types import Matches

try:  # where ROS is installed, its own packing of clouds
    from sensor_msgs_py import point_cloud2
except ImportError:
    point_cloud2 = None

# Variance of an unknown quantity, m^2 or rad^2, as robot_localization and Nav2 expect it: NaN would invalidate a filter's state.
UNKNOWN_VARIANCE = 1e6
MAX_VARIANCE = 1e12  # of a given pose: far above any "unknown", and products of covariances do not overflow


def make_stamp(stamp_ns: int) -> Time:
    return Time(sec=int(stamp_ns // 10**9), nanosec=int(stamp_ns % 10**9))


def stamp_ns(stamp: Any) -> int:
    """builtin_interfaces/Time -> nanoseconds."""
    return stamp.sec * 10**9 + stamp.nanosec


def make_header(stamp: int, frame_id: str) -> Header:
    return Header(stamp=make_stamp(stamp), frame_id=frame_id)


def read_pose(pose: Pose) -> np.ndarray:
    """Pose -> (4, 4).

    Raises:
        ValueError: as `transforms.from_pose`.
    """
    p, q = pose.position, pose.orientation
    return transforms.from_pose(np.array([p.x, p.y, p.z, q.x, q.y, q.z, q.w]))


def read_start(message: PoseWithCovarianceStamped, odom_frame: str) -> Start:
    """Where odometry is to start.

    Raises:
        SourceError: another frame, a pose or a covariance that is not valid.
    """
    frame = message.header.frame_id.lstrip("/")
    if frame not in ("", odom_frame):
        raise SourceError(f"the pose is in the frame '{frame}', expected '{odom_frame}' (odom_frame) or none")
    covariance = np.array(message.pose.covariance, float).reshape(6, 6)
    try:
        T_OB = read_pose(message.pose.pose)
    except ValueError as error:
        raise SourceError(f"the pose cannot be used: {error}") from None
    largest = np.abs(covariance).max()
    rounding = 1e-9 * max(1.0, largest)
    if not largest <= MAX_VARIANCE or np.linalg.eigvalsh((covariance + covariance.T) / 2).min() < -rounding:
        raise SourceError(
            f"the covariance cannot be used: expected numbers of at most {MAX_VARIANCE:g}, and no variance below zero"
        )
    return Start(T_OB, covariance)


def make_pose(T: np.ndarray) -> Pose:
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = (float(v) for v in T[:3, 3])
    pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w = transforms.quaternion(T[:3, :3])
    return pose


def make_covariance(covariance: np.ndarray) -> array:
    """(6, 6) -> 36 doubles; an unknown one (NaN) becomes UNKNOWN_VARIANCE on the diagonal."""
    known = np.isfinite(covariance).all()
    values = covariance if known else np.eye(6) * UNKNOWN_VARIANCE
    return array("d", np.ascontiguousarray(values, dtype=np.float64).tobytes())


def make_odometry(stamp: int, pose: RobotPose, odom_frame: str, base_frame: str) -> Odometry:
    msg = Odometry(header=make_header(stamp, odom_frame), child_frame_id=base_frame)
    msg.pose.pose = make_pose(pose.T_OB)
    msg.pose.covariance = make_covariance(pose.covariance)
    linear, angular = msg.twist.twist.linear, msg.twist.twist.angular
    linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = (float(v) for v in pose.twist)
    msg.twist.covariance = make_covariance(pose.twist_covariance)
    return msg


def make_pose_with_covariance(stamp: int, pose: RobotPose, odom_frame: str) -> PoseWithCovarianceStamped:
    msg = PoseWithCovarianceStamped(header=make_header(stamp, odom_frame))
    msg.pose.pose = make_pose(pose.T_OB)
    msg.pose.covariance = make_covariance(pose.covariance)
    return msg


def make_transform(stamp: int, T: np.ndarray, parent: str, child: str) -> TransformStamped:
    msg = TransformStamped(header=make_header(stamp, parent), child_frame_id=child)
    pose = make_pose(T)
    t, p = msg.transform.translation, pose.position
    t.x, t.y, t.z = p.x, p.y, p.z
    msg.transform.rotation = pose.orientation
    return msg


def make_path(poses: Iterable[PoseStamped], odom_frame: str) -> Path:
    poses = list(poses)
    msg = Path(poses=poses)
    msg.header.frame_id = odom_frame
    if poses:
        msg.header.stamp = poses[-1].header.stamp
    return msg


def make_keyframes(stamp: int, transforms_OC: Iterable[np.ndarray], odom_frame: str) -> PoseArray:
    return PoseArray(header=make_header(stamp, odom_frame), poses=[make_pose(T) for T in transforms_OC])


def make_cloud(stamp: int, points: np.ndarray, frame_id: str) -> PointCloud2:
    """(P, 3) -> a cloud of float32 x, y, z."""
    header, points = make_header(stamp, frame_id), np.ascontiguousarray(points, np.float32).reshape(-1, 3)
    return pack_cloud(header, points) if point_cloud2 is None else point_cloud2.create_cloud_xyz32(header, points)


def pack_cloud(header: Header, points: np.ndarray) -> PointCloud2:
    """Equal to sensor_msgs_py.point_cloud2.create_cloud_xyz32, for machines without it. (P, 3) float32."""
    fields = [PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, name in enumerate("xyz")]
    return PointCloud2(
        header=header,
        height=1,
        width=len(points),
        fields=fields,
        is_bigendian=False,
        point_step=12,
        row_step=12 * len(points),
        data=array("B", points.tobytes()),
        is_dense=False,
    )


def make_image(stamp: int, frame_id: str, image: np.ndarray, encoding: str) -> Image:
    """(H, W, C) or (H, W) uint8 -> Image."""
    return Image(
        header=make_header(stamp, frame_id),
        height=image.shape[0],
        width=image.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=image.strides[0],
        data=array("B", image.tobytes()),
    )


def make_matches(matches: Matches, frame_id: str) -> MatchesMsg:
    msg = MatchesMsg(
        header=make_header(matches.stamp_j_ns, frame_id),
        stamp_i=make_stamp(matches.stamp_i_ns),
        frame_id_i=frame_id,
        id_i=int(matches.id_i),
        id_j=int(matches.id_j),
        weights_version=int(matches.weights_version),
    )
    msg.u_i, msg.v_i = _floats(matches.uv_i[:, 0]), _floats(matches.uv_i[:, 1])
    msg.u_j, msg.v_j = _floats(matches.uv_j[:, 0]), _floats(matches.uv_j[:, 1])
    msg.score, msg.sigma_px = _floats(matches.score), _floats(matches.sigma_px)
    msg.residual_px = _floats(matches.residual_px)
    msg.inlier = matches.inlier.cpu().tolist()
    msg.landmark_id = array("q", matches.landmark_id.cpu().numpy().astype(np.int64).tobytes())
    return msg


def make_learning_status(stamp: int, status: Any, matcher: str) -> LearningStatusMsg:
    """From the LearningStatus of the pipeline."""
    msg = LearningStatusMsg(
        header=make_header(stamp, ""), mode=status.mode, state=str(status.state), step=int(status.step), matcher=matcher
    )
    msg.samples, msg.loss = int(status.samples), float(status.loss)
    msg.validation_before, msg.validation_after = float(status.validation_before), float(status.validation_after)
    msg.rejected_reason = [str(reason) for reason in status.rejected]
    msg.rejected_count = array("Q", [int(count) for count in status.rejected.values()])
    msg.promotions, msg.rollbacks = int(status.promotions), int(status.rollbacks)
    msg.weights_version, msg.weights_hash = int(status.weights_version), str(status.weights_hash)
    msg.busy_s, msg.memory_mb = float(status.busy_s), float(status.memory_mb)
    return msg


def _floats(values: Tensor) -> array:
    return array("f", np.ascontiguousarray(values.detach().cpu().numpy(), np.float32).tobytes())
