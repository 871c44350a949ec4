"""The thread that owns the odometry: takes images from the inbox, drives the pipeline, publishes."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rclpy.lifecycle import LifecycleNode

from ..core.config import Config
from ..core.types import OdometryOutput, TrackingState
from ..core.errors import ImatchingError
from ..pipeline import Pipeline
from . import transforms
from .convert import stamp_ns
from .diagnostics import SCALE_REMEDY
from .tf import TransformTree
from .inbox import Inbox
from .inputs import CameraImages
from .outputs import Counters, Outputs
from .params import NodeConfig
from .image_decoder import ImageDecoder
from .robot_pose import RobotPoseTracker

_CLOCK_MISMATCH_S = 60.0  # a stamp farther from now is of another clock
_TF_PERIOD_S = 1.0  # how often TF is asked again while the camera is taken as the base


class Processor:
    """One image after another, until closed. All methods but `run` and `close` are called by the thread itself.

    Attributes:
        counters: images so far.
        last: the newest output.
        problem: why the newest image could not be used; empty when it could.
        mounting_problem: why it is not known where the camera sits on the base; empty when it is.
        odometry: messages of external odometry, filled by another thread; set before `run`.
        external_odometry: `off`, `used`, or why it is not used.
    """

    def __init__(
        self,
        node: LifecycleNode,
        config: NodeConfig,
        core: Config,
        pipeline: Pipeline,
        outputs: Outputs,
        tree: TransformTree | None,
        warn: Callable[[str, str], None],
        decoder: ImageDecoder,
    ) -> None:
        """`decoder` counts the frames; learning needs numbers that are unique as long as the pipeline lives."""
        self._node, self._core, self._outputs, self._tree, self._warn = node, core, outputs, tree, warn
        self.config = config
        self.pipeline = pipeline
        self.inbox = Inbox()
        self.counters = Counters()
        self.last: OdometryOutput | None = None
        self.learning: Any = pipeline.learning_status()
        self.problem = ""
        self.mounting_problem = ""
        self.odometry: deque[Any] = deque()
        self.external_odometry = "off" if core.external_odometry.use == "off" else "no odometry has arrived"
        self.latency_ms = self.processing_ms = float("nan")
        self._decoder = decoder
        self._tracker: RobotPoseTracker | None = None
        self._T_BC = np.eye(4)
        self._camera: Any = None
        self._last_stamp_ns: int | None = None
        self._first_s: float | None = None
        self._looked_s = 0.0
        self._dropped = 0
        self._unscaled = False  # and it was said
        self._thread = threading.Thread(target=self._work, name="odometry", daemon=True)

    def run(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Ends the thread after the image that it is at."""
        self.inbox.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def reset(self) -> None:
        """Starts again at the origin, as if the node had just been activated; weights stay."""
        self.pipeline.reset()
        self.inbox.discard()
        self._outputs.reset()
        self._tracker = None
        self._camera = None
        self._last_stamp_ns = None
        self._first_s = None

    def _work(self) -> None:
        torch.set_num_threads(
            self._core.matcher.threads
        )  # of this thread: the learner's, begun before it, has set its own
        while (image := self.inbox.take()) is not None:
            try:
                self._process(image)
                self.problem = ""
            except ImatchingError as error:
                self.counters.rejected += 1
                self.problem = str(error)
                self._warn(str(error)[:24], f"image not used: {error}")  # every kind of problem is throttled by itself
                self._tell_unused(image, self.problem)
            except (
                Exception
            ) as error:  # a bug: say all about it, start again with a clean map, keep the robot's node alive
                self.counters.rejected += 1
                self.problem = f"internal error: {error!r}"
                self._node.get_logger().error(
                    f"internal error, odometry is reset:\n{traceback.format_exc()}", throttle_duration_sec=5.0
                )
                self.pipeline.reset()
                if self._tracker is not None:
                    self._tracker.restart()
                with contextlib.suppress(Exception):  # the bug may be in what is told
                    self._tell_unused(image, self.problem)

    def _process(self, image: CameraImages) -> None:
        if not self._in_order(image):
            return
        frame = self._decoder.decode(image)
        if self._camera is not None and frame.camera != self._camera:
            self._node.get_logger().warning(
                f"the camera has changed from {self._camera} to {frame.camera}: a new map is started"
            )
            self.pipeline.reset()
            if self._tracker is not None:
                self._tracker.restart()
        self._camera = frame.camera
        if self._tracker is not None and self.mounting_problem:
            self._look_again(image)
        if self._tracker is None:  # until TF is there, odometry runs without publishing poses
            T_BC = self._find_camera(image.frame_id)
            if T_BC is not None:
                self._T_BC = T_BC
                self._tracker = RobotPoseTracker(T_BC @ self._decoder.T_optical_camera)
        if self.external_odometry != "off":
            self.external_odometry = self._take_odometry(image.frame_id)
        start = time.perf_counter()

        def publish(output: OdometryOutput) -> None:
            self.processing_ms = (time.perf_counter() - start) * 1e3
            pose = self._tracker.update(output) if self._tracker is not None else None
            if pose is not None:
                self._outputs.publish_pose(frame.stamp_ns, pose)
            age_s = self._node.get_clock().now().nanoseconds / 1e9 - frame.stamp_ns / 1e9
            self.latency_ms = age_s * 1e3 if abs(age_s) < _CLOCK_MISMATCH_S else float("nan")

        dropped = self.inbox.dropped
        output = self.pipeline.process(frame, publish, behind=dropped > self._dropped)
        self._dropped = dropped
        self.last = output
        self.counters.processed += 1
        self.counters.tracked += output.T_WC is not None
        self.counters.lost += output.state.value == "lost"
        if output.T_WC is not None:
            self._tell_scale(output)
        if self._tracker is not None:
            self._outputs.publish_details(
                output, frame, image.frame_id, self.pipeline.window, self._tracker, self._decoder
            )
        self._publish_status(output, image.frame_id, self.latency_ms, self.processing_ms)
        self.learning = self.pipeline.learning_status()
        self._outputs.publish_learning(frame.stamp_ns, self.learning, self._core.learning.mode, self._core.matcher.name)

    def _tell_scale(self, output: OdometryOutput) -> None:
        """A warning when poses are, from now on, in no known unit."""
        if not output.metric and not self._unscaled:
            self._node.get_logger().warning(
                f"poses have no scale ({output.scale}): the unit of length is arbitrary; {SCALE_REMEDY}"
            )
        self._unscaled = not output.metric

    def _publish_status(self, output: OdometryOutput, frame_id: str, latency_ms: float, processing_ms: float) -> None:
        self._outputs.publish_status(
            output,
            frame_id,
            self.pipeline.window,
            self.counters,
            self.inbox.received,
            self.inbox.dropped,
            latency_ms,
            processing_ms,
        )

    def _tell_unused(self, image: CameraImages, reason: str) -> None:
        """A status for an image that could not be used: why, and the state as the last one left it."""
        last = self.last or OdometryOutput(
            0, 0, TrackingState.UNINITIALIZED, "", None, None, 0, False, self.config.mode != "mono", 0, None
        )
        output = replace(last, stamp_ns=image.stamp_ns, reason=reason, inliers=0, is_keyframe=False, matches=None)
        self._publish_status(output, image.frame_id, float("nan"), float("nan"))

    def _in_order(self, image: CameraImages) -> bool:
        stamp_ns = image.stamp_ns
        last, self._last_stamp_ns = self._last_stamp_ns, stamp_ns
        if last is None or stamp_ns > last:
            return True
        if last - stamp_ns > self.config.backward_jump_s * 1e9:
            self._node.get_logger().warning(
                f"stamps jumped back by {(last - stamp_ns) / 1e9:.3f} s (a bag that loops?): odometry is reset"
            )
            self.reset()
            self._last_stamp_ns = stamp_ns
            return True
        self._last_stamp_ns = last
        self.counters.rejected += 1
        reason = f"its stamp is {(last - stamp_ns) / 1e9:.6f} s before the last one; expected ascending stamps"
        self._warn("order", f"image not used: {reason}")
        if stamp_ns != last:  # an image that comes twice has its status
            self._tell_unused(image, reason)
        return False

    def _take_odometry(self, frame_id: str) -> str:
        """Hands on what has arrived of external odometry, as poses of the camera; returns `used`, or why it is not."""
        while self.odometry:
            message = self.odometry[0]
            child = message.child_frame_id or self.config.base_frame
            T = self._find_mount(child, frame_id)
            if T is None:
                return f"no TF from {child} to {frame_id or '(the images name no frame)'}"
            p, q = message.pose.pose.position, message.pose.pose.orientation
            self.odometry.popleft()
            try:
                T_OC = (
                    transforms.from_pose(np.array([p.x, p.y, p.z, q.x, q.y, q.z, q.w]))
                    @ T
                    @ self._decoder.T_optical_camera
                )
            except ValueError as error:
                self._warn("odometry", f"odometry not used: {error}")
                continue
            self.pipeline.add_odometry(
                stamp_ns(message.header.stamp), np.array([*T_OC[:3, 3], *transforms.quaternion(T_OC[:3, :3])])
            )
        return self.pipeline.odometry.input.problem or "used"

    def _find_mount(self, child: str, frame_id: str) -> np.ndarray | None:
        """The camera's optical frame (4, 4) in the frame that odometry is of; None while it is not known."""
        if child == frame_id:
            return np.eye(4)
        if child == self.config.base_frame:
            return None if self._tracker is None else self._T_BC
        T = self._tree.lookup(child, frame_id)
        if (
            T is None and self._tracker is not None
        ):  # the camera's place on the base may be known by other means than TF
            T = self._tree.lookup(child, self.config.base_frame)
            T = None if T is None else T @ self._T_BC
        return T

    def _look_again(self, image: CameraImages) -> None:
        """Starts again as soon as TF has the camera, which was taken as the base so far."""
        if time.monotonic() - self._looked_s < _TF_PERIOD_S:
            return
        self._looked_s = time.monotonic()
        if self._tree.lookup(self.config.base_frame, image.frame_id) is None:
            return
        self._node.get_logger().warning(
            f"TF from {self.config.base_frame} to {image.frame_id} is there now: odometry is reset, for its poses so far were those of "
            "the camera"
        )
        camera = self._camera
        self.reset()
        self._last_stamp_ns, self._camera = image.stamp_ns, camera

    def _find_camera(self, frame_id: str) -> np.ndarray | None:
        """T_BC, or None while TF may still come."""
        c = self.config
        self.mounting_problem = ""
        if any(c.base_from_camera):
            return transforms.from_pose(np.array(c.base_from_camera))
        if frame_id == c.base_frame:
            return np.eye(4)
        T = self._tree.lookup(c.base_frame, frame_id)
        if T is not None:
            return T
        named = frame_id or "(the images name no frame)"
        self.mounting_problem = f"no TF from {c.base_frame} to {named}"
        if self._first_s is None:
            self._first_s = time.monotonic()
        if time.monotonic() - self._first_s < c.tf_timeout_s:
            self._warn("tf wait", f"waiting for TF from {c.base_frame} to {named}")
            return None
        self._looked_s = time.monotonic()
        self._node.get_logger().warning(
            f"{self.mounting_problem} within {c.tf_timeout_s:g} s: until there is, {c.base_frame} is taken to be at the camera, "
            "x along its view. Publish the transform (ros2 run tf2_ros static_transform_publisher) or set base_from_camera"
        )
        return transforms.T_BODY_OPTICAL
