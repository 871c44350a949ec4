"""A recording of what the node published -> the same folder that a replay leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rosbags.highlevel import AnyReader

from ...core.config import Config
from ...core.types import Matches, OdometryOutput, TrackingState
from ...core.errors import SourceError
from ..evaluation.run_writer import RunWriter
from ..recordings.truth import Trajectory
from ...ros import transforms
from .record import make_typestore

# name of the message: type; what a run is made of
TOPICS = {
    "odom": "nav_msgs/msg/Odometry",
    "imatching/status": "imatching_ros/msg/Status",
    "imatching/matches": "imatching_ros/msg/Matches",
    "imatching/learning/status": "imatching_ros/msg/LearningStatus",
    "imatching/keyframes": "geometry_msgs/msg/PoseArray",
    "imatching/events": "std_msgs/msg/String",
}
_STATES = (TrackingState.UNINITIALIZED, TrackingState.TRACKING, TrackingState.UNVERIFIED, TrackingState.LOST)


def write_run(
    bag: Path,
    folder: Path,
    config: Config,
    truth: Trajectory | None,
    shift_ns: int = 0,
    namespace: str = "",
    T_BC: np.ndarray = transforms.T_BODY_OPTICAL,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes trajectory.txt, frames.csv, events.jsonl, metrics.json and returns the metrics.

    Args:
        shift_ns: what was added to the stamps of the recording that was played, to be taken off again.
        T_BC: (4, 4) pose of the camera on the base whose odometry was recorded.
        more: further entries of metrics.json.

    Raises:
        SourceError: the node published nothing.
    """
    messages = read_messages(bag, namespace)
    statuses = messages["imatching/status"]
    if not statuses:
        raise SourceError(f"{bag} holds no status of the node; did it receive images and CameraInfo?")
    poses = {_stamp(m): m for m in messages["odom"]}
    matches = {_stamp(m): m for m in messages["imatching/matches"]}
    writer = RunWriter(folder, config)
    processed = 0
    for number, status in enumerate(statuses):
        if status.frames_processed == processed:  # of an image that was not used
            continue
        processed = status.frames_processed
        stamp = _stamp(status)
        writer.add_frame(
            _output(number, stamp - shift_ns, status, poses.get(stamp), matches.get(stamp), T_BC),
            status.latency_ms,
            status.processing_ms,
        )
    for message in messages["imatching/events"]:
        event = json.loads(message.data)
        if event.get("stamp_ns") is not None:
            event["stamp_ns"] -= shift_ns
        writer.add_event(event)
    last = statuses[-1]
    more = {
        **(more or {}),
        "frames_dropped": last.frames_dropped,
        "frames_rejected": last.frames_rejected,
        "seed": config.seed,
    }
    if messages["imatching/learning/status"]:
        more |= _learning(messages["imatching/learning/status"][-1])
    return writer.finish(truth, [], more)


def read_messages(bag: Path, namespace: str = "") -> dict[str, list[Any]]:
    """All messages of the node's topics, by relative topic name."""
    messages: dict[str, list[Any]] = {name: [] for name in TOPICS}
    with AnyReader([bag], default_typestore=make_typestore()) as reader:
        for connection, _, data in reader.messages():
            name = connection.topic.removeprefix(namespace).lstrip("/")
            if name in messages:
                messages[name].append(reader.deserialize(data, connection.msgtype))
    return messages


def _stamp(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def _output(number: int, stamp_ns: int, status: Any, odometry: Any, matches: Any, T_BC: np.ndarray) -> OdometryOutput:
    T_WC = None
    if odometry is not None:
        p, q = odometry.pose.pose.position, odometry.pose.pose.orientation
        T = transforms.from_pose(np.array([p.x, p.y, p.z, q.x, q.y, q.z, q.w])) @ T_BC
        T_WC = torch.tensor([*T[:3, 3], *transforms.quaternion(T[:3, :3])], dtype=torch.float64)
    return OdometryOutput(
        number,
        stamp_ns,
        _STATES[status.state],
        status.reason,
        T_WC,
        None,
        status.inliers,
        status.is_keyframe,
        status.metric,
        status.map_id,
        None if matches is None else _matches(matches),
        None,
        status.weights_version,
        scale=status.scale,
    )


def _matches(m: Any) -> Matches:
    def tensor(values: Any, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.as_tensor(np.array(values), dtype=kind)

    return Matches(
        m.id_i,
        m.id_j,
        m.stamp_i.sec * 10**9 + m.stamp_i.nanosec,
        _stamp(m),
        torch.stack([tensor(m.u_i), tensor(m.v_i)], 1),
        torch.stack([tensor(m.u_j), tensor(m.v_j)], 1),
        tensor(m.score),
        tensor(m.sigma_px),
        tensor(m.residual_px),
        tensor(m.inlier, torch.bool),
        tensor(m.landmark_id, torch.int64),
        m.weights_version,
    )


def _learning(m: Any) -> dict[str, Any]:
    rejected = dict(zip(m.rejected_reason, map(int, m.rejected_count), strict=True))
    return {
        "learning": {
            "mode": m.mode,
            "state": m.state,
            "steps": m.step,
            "samples": m.samples,
            "rejected": rejected,
            "promotions": m.promotions,
            "rollbacks": m.rollbacks,
            "validation_before": m.validation_before,
            "validation_after": m.validation_after,
            "busy_s": m.busy_s,
            "memory_mb": m.memory_mb,
        },
        "weights": {"matcher": m.matcher, "version": m.weights_version, "hash": m.weights_hash},
    }
