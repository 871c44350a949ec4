"""The true trajectory out of a bag: PoseStamped, PoseWithCovarianceStamped, TransformStamped, Odometry, or TF."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ...core.errors import SourceError
from .bag_reader import BagReader
from .truth import UNUSABLE_POSE, Trajectory, are_poses, from_matrices


def read_truth(reader: BagReader, topic: str, image_topic: str, connected: bool = False) -> Trajectory | None:
    """Poses on a topic as the camera's trajectory.

    The static transforms of the bag carry poses of another frame (child_frame_id of Odometry, TransformStamped) over to the
    frame of the image; a PoseStamped names no such frame and is taken to be the camera's own. On /tf the camera is followed
    from the root of the tree.

    Args:
        connected: a frame that no transform connects to the camera's is an error; else its poses are taken as the camera's.

    Raises:
        SourceError: a TF tree that does not reach the camera.
    """
    camera_frame = next((m.header.frame_id for _, _, m in reader.messages([image_topic])), "")
    static = _static_transforms(reader)
    if reader.topics[topic] == "tf2_msgs/msg/TFMessage":
        return _from_tf(reader, topic, camera_frame.lstrip("/"), static)
    stamps: list = []
    poses: list = []
    child, skipped = "", 0
    for _, _, message in reader.messages([topic]):
        child = getattr(message, "child_frame_id", "") or child
        pose = _pose_of(message)
        if pose is None:
            skipped += 1
            continue
        stamps.append(int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec))
        poses.append(pose)
    _warn_of_skipped(reader, topic, skipped)
    if not poses:
        return None
    order = np.argsort(stamps, kind="stable")
    T = np.array(poses)[order]
    if child and child.lstrip("/") != camera_frame.lstrip("/"):
        T_child_camera = _chain(static, child.lstrip("/"), camera_frame.lstrip("/"))
        if T_child_camera is not None:
            T = T @ T_child_camera
        elif connected:
            raise SourceError(
                f"{topic} gives poses of '{child}', and no static transform of the bag connects it to the camera's frame "
                f"'{camera_frame}'; give poses of the camera as a file"
            )
    return from_matrices(np.array(stamps, np.int64)[order], T)


def camera_pose(reader: BagReader, frame: str, image_topic: str) -> np.ndarray | None:
    """Pose (4, 4) of the camera in a frame, by the static transforms of the bag; None where they do not connect the two."""
    camera_frame = next((m.header.frame_id for _, _, m in reader.messages([image_topic])), "")
    return _chain(_static_transforms(reader), frame.lstrip("/"), camera_frame.lstrip("/"))


def _warn_of_skipped(reader: BagReader, topic: str, count: int) -> None:
    if count:
        reader.warn(f"{count} poses on {topic} are skipped: {UNUSABLE_POSE}")


def _pose_of(message: Any) -> np.ndarray | None:
    """(4, 4) of whichever pose message it is; None when it is no pose."""
    inner = getattr(message, "pose", None) or message.transform
    inner = getattr(inner, "pose", inner)
    position = getattr(inner, "position", None) or inner.translation
    rotation = getattr(inner, "orientation", None) or inner.rotation
    return _matrix(position, rotation)


def _matrix(position: Any, rotation: Any) -> np.ndarray | None:
    pose = [position.x, position.y, position.z, rotation.x, rotation.y, rotation.z, rotation.w]
    if not are_poses(np.array([pose], float))[0]:
        return None
    T = np.eye(4)
    T[:3, :3] = Rotation.from_quat([rotation.x, rotation.y, rotation.z, rotation.w]).as_matrix()
    T[:3, 3] = position.x, position.y, position.z
    return T


def _static_transforms(reader: BagReader) -> dict[str, tuple[str, np.ndarray]]:
    """{child: (parent, T_parent_child)}."""
    result = {}
    skipped = 0
    for topic in ("/tf_static", "tf_static"):
        if topic in reader.topics:
            for _, _, message in reader.messages([topic]):
                for t in message.transforms:
                    T = _matrix(t.transform.translation, t.transform.rotation)
                    if T is None:
                        skipped += 1
                    else:
                        result[t.child_frame_id.lstrip("/")] = t.header.frame_id.lstrip("/"), T
    _warn_of_skipped(reader, "/tf_static", skipped)
    return result


def _to_root(tree: dict[str, tuple[str, np.ndarray]], frame: str) -> tuple[str, np.ndarray, list[str]]:
    """The root above a frame, T_root_frame, and the frames on the way."""
    T, way = np.eye(4), [frame]
    while frame in tree and len(way) < 100:
        parent, T_parent = tree[frame]
        T, frame = T_parent @ T, parent
        way.append(frame)
    return frame, T, way


def _chain(tree: dict[str, tuple[str, np.ndarray]], parent: str, child: str) -> np.ndarray | None:
    """T_parent_child, None when they are not in one tree."""
    root_a, T_a, _ = _to_root(tree, parent)
    root_b, T_b, _ = _to_root(tree, child)
    return np.linalg.inv(T_a) @ T_b if root_a == root_b else None


def _from_tf(
    reader: BagReader, topic: str, camera: str, static: dict[str, tuple[str, np.ndarray]]
) -> Trajectory | None:
    tree = dict(static)
    moving: set[str] = set()
    skipped = 0
    stamps: list = []
    poses: list = []
    for _, _, message in reader.messages([topic]):
        stamp = None
        for t in message.transforms:
            child = t.child_frame_id.lstrip("/")
            T_parent = _matrix(t.transform.translation, t.transform.rotation)
            if T_parent is None:
                skipped += 1
                continue
            tree[child] = t.header.frame_id.lstrip("/"), T_parent
            moving.add(child)
            stamp = int(t.header.stamp.sec) * 1_000_000_000 + int(t.header.stamp.nanosec)
        _, T, way = _to_root(tree, camera)
        if stamp is not None and moving & set(way) and (not stamps or stamp > stamps[-1]):
            stamps.append(stamp)
            poses.append(T)
    _warn_of_skipped(reader, topic, skipped)
    if not poses:
        raise SourceError(
            f"no transform on {topic} moves the camera's frame '{camera}'; frames: {', '.join(sorted(tree)) or 'none'}"
        )
    return from_matrices(np.array(stamps, np.int64), np.array(poses))
