"""/diagnostics: health, rates, latency, memory and learning of the node, once a second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

SCALE_REMEDY = "for metres give external odometry (external_odometry.use: scale) or odometry.first_baseline_m, or use stereo or rgbd"


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
    conflict: str  # what other nodes do that spoils the odometry; empty when nothing
    callback_errors: int  # exceptions of the node's callbacks so far


class Diagnostics:
    """Publishes once a second. Rates are over the time since the last message."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._last: tuple[float, int, int] | None = None

    def publish(self, now: Snapshot) -> None:
        t = time.monotonic()
        last_t, received, processed = self._last or (t, now.received, now.processed)
        # After a reset the counts start again.
        span = t - last_t if now.received >= received and now.processed >= processed else 0.0
        input_hz = (now.received - received) / span if span > 0 else 0.0
        output_hz = (now.processed - processed) / span if span > 0 else 0.0
        self._last = (t, now.received, now.processed)
        level, text = judge(now, input_hz)
        values = describe(now) | {"input rate [Hz]": f"{input_hz:.1f}", "output rate [Hz]": f"{output_hz:.1f}"}
        status = DiagnosticStatus(
            level=level,
            name=f"{self._node.get_fully_qualified_name()}: odometry",
            message=text,
            hardware_id="",
            values=[KeyValue(key=k, value=str(v)) for k, v in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)


def describe(now: Snapshot) -> dict[str, Any]:
    """The values of the status, without rates."""
    values: dict[str, Any] = {
        "lifecycle": now.lifecycle,
        "tracking": now.tracking,
        "scale": now.scale,
        "metric": now.metric,
        "latency [ms]": f"{now.latency_ms:.1f}",
        "processing [ms]": f"{now.processing_ms:.1f}",
        "images received": now.received,
        "images dropped": now.dropped,
        "images rejected": now.rejected,
        "images lost": now.lost,
        "external odometry": now.external_odometry,
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


def judge(now: Snapshot, input_hz: float) -> tuple[bytes, str]:
    """Level and one line."""
    if now.lifecycle != "active":
        return DiagnosticStatus.OK, f"node is {now.lifecycle}"
    if now.problem:
        return DiagnosticStatus.ERROR, now.problem
    if input_hz == 0:
        return DiagnosticStatus.STALE, "no images arrive"
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
    if now.conflict:
        return DiagnosticStatus.WARN, f"{now.tracking}, {now.conflict}"
    if now.external_odometry not in ("", "off", "used"):
        return DiagnosticStatus.WARN, f"{now.tracking}, without external odometry: {now.external_odometry}"
    if not now.metric:  # healthy, but not fit to drive by
        return (
            DiagnosticStatus.WARN,
            f"{now.tracking}, scale {now.scale}: the unit of length is arbitrary; {SCALE_REMEDY}",
        )
    return DiagnosticStatus.OK, now.tracking


def resident_mb() -> float:
    """Memory of this process that is in RAM; NaN where /proc does not exist."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
    except OSError:
        return float("nan")
