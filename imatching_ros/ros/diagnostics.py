"""/diagnostics: health, rates, latency, memory and learning of the node, once a second."""

from __future__ import annotations

import resource
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from .rate import Rate, ordinal

SCALE_REMEDY = "for metres give external odometry (external_odometry.use: scale) or odometry.first_baseline_m, or use stereo or rgbd"

LEARNING_FAILED = "learning has failed, the log has the reason; ~/set_learning starts it again"


@dataclass(frozen=True)
class Snapshot:
    """The state of the node at one moment."""

    lifecycle: str
    received: int
    dropped: int
    processed: int
    tracked: int
    lost: int
    rejected: int
    tracking: str
    reason: str
    metric: bool  # of the newest image; true before the first
    scale: str  # what gives the unit of length; `unknown`, and why, where nothing does
    latency_ms: float
    processing_ms: float
    problem: str  # why the newest image could not be used; empty when it could
    input_problem: str  # what the newest image lacked; empty when it came complete
    mounting_problem: str  # why the camera's pose on the robot is unknown; empty when it is known
    learning: Any  # LearningStatus of the pipeline, or None
    external_odometry: str  # `used`, `off`, or why it is not used; empty while the node is not active
    imu: str  # the same of the gyroscope
    planar: str  # and of the plane of a wheeled robot
    start: str  # what odom began with; empty before
    fault: str  # what is wrong with the newest image although it was used; empty when nothing is
    conflict: str  # what other nodes do that disturbs the odometry; empty when nothing
    callback_errors: int  # exceptions of the node's callbacks so far
    rate: Rate  # of images in and out
    silent: bool  # no images arrive
    remedies: str  # what to change where the computer is too slow
    matcher: str  # and how it runs here
    camera: str  # topics of its images; empty while the node is not active


class Diagnostics:
    """Publishes once a second."""

    SECONDS = 10  # over which drops are counted

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._counts: deque[tuple[int, int]] = deque(maxlen=self.SECONDS)  # images received and dropped

    def publish(self, now: Snapshot) -> None:
        if self._counts and now.received < self._counts[-1][0]:  # after a reset the counts start again
            self._counts.clear()
        self._counts.append((now.received, now.dropped))
        received, dropped = (new - old for new, old in zip(self._counts[-1], self._counts[0], strict=True))
        level, text = judge(now, describe_drops(now, received, dropped))
        values = describe(now)
        status = DiagnosticStatus(
            level=level,
            name=f"{self._node.get_fully_qualified_name()}: odometry",
            message=text,
            hardware_id=now.camera,
            values=[KeyValue(key=k, value=str(v)) for k, v in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)


def describe(now: Snapshot) -> dict[str, Any]:
    """The values of the status."""
    values: dict[str, Any] = {
        "lifecycle": now.lifecycle,
        "tracking": now.tracking,
        "scale": now.scale,
        "metric": now.metric,
        "matcher": now.matcher,
        "input rate [Hz]": f"{0.0 if now.silent else now.rate.input_hz:.2f}",
        "output rate [Hz]": f"{0.0 if now.silent else now.rate.processed_hz:.2f}",
        "processed images": "all" if now.rate.every_nth == 1 else f"every {ordinal(now.rate.every_nth)}",
        "image with keyframe work, p90 [ms]": f"{now.rate.cost_s * 1e3:.1f}",
        "latency [ms]": f"{now.latency_ms:.1f}",
        "processing [ms]": f"{now.processing_ms:.1f}",
        "images received": now.received,
        "images dropped": now.dropped,
        "images rejected": now.rejected,
        "images lost": now.lost,
        "external odometry": now.external_odometry,
        "imu": now.imu,
        "planar": now.planar,
        "odom began": now.start,
        "fault": now.fault,
        "conflict": now.conflict,
        "callback errors": now.callback_errors,
        "memory [MB]": f"{resident_mb():.0f}",
    }
    if torch.cuda.is_initialized():
        values["device memory [MB]"] = f"{torch.cuda.memory_allocated() / 2**20:.0f}"
    if now.learning is not None:
        values |= {
            "learning": now.learning.state,
            "learning steps": now.learning.step,
            "promotions": now.learning.promotions,
            "rollbacks": now.learning.rollbacks,
            "weights": f"{now.learning.weights_version} ({now.learning.weights_hash})",
            "learning time [s]": f"{now.learning.busy_s:.1f}",
        }
    return values


def describe_drops(now: Snapshot, received: int, dropped: int) -> str:
    """That the computer is too slow, and what to change; empty when it is not. The counts are those of the last seconds."""
    slow = now.rate.slow
    if not slow and dropped > received / 4 and dropped > 1:  # not measured yet, or more than a hiccup
        slow = f"{dropped} of the last {received} images dropped"
    return f"{slow}; {now.remedies}" if slow else ""


def judge(now: Snapshot, slow: str) -> tuple[bytes, str]:
    """Level and one line. `slow`: that the computer cannot keep up; empty when it can."""
    if now.lifecycle != "active":
        return DiagnosticStatus.OK, f"node is {now.lifecycle}"
    if now.problem:
        return DiagnosticStatus.ERROR, now.problem
    if now.silent:
        return DiagnosticStatus.STALE, "no images arrive"
    level, text = judge_tracking(now)
    return (max(level, DiagnosticStatus.WARN), f"{text}; {slow}") if slow else (level, text)


def judge_tracking(now: Snapshot) -> tuple[bytes, str]:
    """Level and one line of an active node whose images can be used."""
    if now.input_problem and not now.tracking:
        return DiagnosticStatus.ERROR, now.input_problem
    if now.tracking == "lost":
        return DiagnosticStatus.ERROR, f"lost: {now.reason}"
    if now.mounting_problem:
        return DiagnosticStatus.WARN, f"{now.tracking}, pose of the camera on the robot unknown: {now.mounting_problem}"
    if now.tracking in ("unverified", "uninitialized"):
        return DiagnosticStatus.WARN, f"{now.tracking}: {now.reason}"
    if now.input_problem:
        return DiagnosticStatus.WARN, f"{now.tracking}, {now.input_problem}"
    if now.fault:
        return DiagnosticStatus.WARN, f"{now.tracking}, {now.fault}"
    if now.conflict:
        return DiagnosticStatus.WARN, f"{now.tracking}, {now.conflict}"
    if now.external_odometry not in ("", "off", "used"):
        return DiagnosticStatus.WARN, f"{now.tracking}, without external odometry: {now.external_odometry}"
    if now.learning is not None and now.learning.state == "failed":
        return DiagnosticStatus.WARN, f"{now.tracking}, {LEARNING_FAILED}"
    if not now.metric:  # healthy, but not fit to drive by
        return (
            DiagnosticStatus.WARN,
            f"{now.tracking}, scale {now.scale}: the unit of length is arbitrary; {SCALE_REMEDY}",
        )
    return DiagnosticStatus.OK, now.tracking or "no image is processed yet"


def resident_mb() -> float:
    """Memory of this process that is in RAM; NaN where /proc does not exist."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return float("nan")
