"""The thread that owns the odometry: takes images from the inbox, drives the pipeline, publishes."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..camera.calibration import plausibility_warning
from ..core.errors import ImatchingError
from ..core.timing import StampOrder
from ..core.types import Frame, OdometryOutput, TrackingState
from ..odometry.external_odometry import NOTHING_ARRIVED
from ..pipeline import Pipeline
from . import transforms
from .convert import read_pose, stamp_ns
from .diagnostics import SCALE_REMEDY
from .image_decoder import ImageDecoder
from .imu import ImuInput
from .inbox import Inbox
from .inputs import CameraImages
from .lifecycle import ManagedNode
from .mount import CameraMount
from .outputs import Counters, Outputs, Timing
from .params import Configs
from .rate import RateControl, remedies
from .robot_pose import AT_ORIGIN, RobotPoseTracker, Start
from .tf_tree import TransformTree


@dataclass(frozen=True)
class Resources:
    """Made by `configure`, kept through activations, freed by `cleanup`."""

    pipeline: Pipeline
    outputs: Outputs
    decoder: ImageDecoder  # numbers the frames; learning needs ids that are unique as long as the pipeline lives
    tree: TransformTree | None

    def close(self, timeout_s: float | None = None) -> None:
        self.pipeline.close(timeout_s)
        self.outputs.close()
        if self.tree is not None:
            self.tree.close()


class Processor:
    """One image after another, until closed. `run`, `close` and the inbox are for other threads; the rest is the thread's own.

    Attributes:
        counters: images so far.
        rate: which images are processed; `admit` decides as they arrive.
        timing: of the newest image.
        last: the newest output.
        learning: the newest status of the learner.
        problem: why the newest image could not be used; empty when it could.
        mount: the camera's pose on the robot.
        messages: of external odometry, filled by another thread; set before `run`.
        external_odometry: `off`, `used`, or why it is not used.
        imu: the same, and the messages of a gyroscope, filled by another thread.
    """

    PATIENCE_S = 10.0  # until `close` warns of an image that takes longer
    STUCK_AFTER = 3  # images with the stamp of the one before: fewer are images that come twice

    def __init__(self, node: ManagedNode, configs: Configs, resources: Resources) -> None:
        self._node = node
        self.configs = configs
        self.pipeline, self._outputs, self.decoder = resources.pipeline, resources.outputs, resources.decoder
        self.inbox = Inbox()
        self.rate = RateControl()
        self.counters = Counters()
        self.timing = Timing()
        self.last: OdometryOutput | None = None
        self.learning: Any = self.pipeline.learning_status()
        self.problem = ""
        self.mount = CameraMount(node, configs.node, resources.tree)
        self.messages: deque[Any] = deque()
        use = configs.core.external_odometry.use
        self.external_odometry = "off" if use == "off" else NOTHING_ARRIVED
        self.imu = ImuInput(node, configs.node, self.pipeline)
        self._start = AT_ORIGIN
        self._tracker: RobotPoseTracker | None = None
        self._T_BC: np.ndarray | None = None
        self._map_began_ns: int | None = None
        self._camera: Any = None
        self._order, self._repeated = StampOrder(), 0
        self._scale_warned = self._slow_warned = self._calibration_told = False
        self._thread = threading.Thread(target=self._work, name="odometry", daemon=True)

    def run(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float | None = None) -> None:
        """Ends the thread after the image in progress, and waits for that, since two threads must not use one pipeline.

        With `timeout_s`, for a process that ends, the thread is left to an image that takes longer.
        """
        self.inbox.close()
        if self._thread.is_alive():
            self._thread.join(self.PATIENCE_S if timeout_s is None else timeout_s)
        while timeout_s is None and self._thread.is_alive():
            self._node.get_logger().warning("the image in progress takes long: waiting for its end")
            self._thread.join(self.PATIENCE_S)

    def admit(self) -> bool:
        """Whether an image that arrives now is to be processed; called by the thread that receives it."""
        return self.rate.admit(time.monotonic())

    @property
    def dropped(self) -> int:
        """Images that were received and not processed, to hold the rate or because too many were waiting."""
        return self.rate.skipped + self.inbox.dropped

    def configure(self, configs: Configs) -> None:
        """Takes other settings over, between two images."""
        self.configs = configs
        self.mount.config = self._outputs.config = configs.node
        self.pipeline.configure(configs.core)

    def reset(self, start: Start = AT_ORIGIN) -> None:
        """Starts again at the origin, or elsewhere, as if the node had just been activated; weights stay."""
        self.inbox.discard()
        self._begin_again(start)

    def _begin_again(self, start: Start) -> None:
        """As `reset`, with the images that wait."""
        self._start = start
        self.pipeline.reset()
        self._outputs.reset()
        self.mount.reset()
        self.imu.level.reset()
        self._tracker = self._T_BC = self._map_began_ns = None
        self._camera = None
        self._order, self._repeated = StampOrder(), 0
        self.last = None

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        # For this thread: the learner's, started earlier, has set its own.
        torch.set_num_threads(self.configs.core.matcher.threads)
        while (image := self.inbox.take()) is not None:
            try:
                self._process_or_reject(image)
            except Exception as error:  # a bug: report it, continue with an empty map, keep the node alive
                self._node.get_logger().error(
                    f"internal error, odometry is reset:\n{traceback.format_exc()}", throttle_duration_sec=5.0
                )
                with contextlib.suppress(Exception):  # the bug may be there
                    self._restart()
                with contextlib.suppress(Exception):
                    self._reject(image, f"internal error: {error!r}")

    def _process_or_reject(self, image: CameraImages) -> None:
        try:
            self._process(image)
        except ImatchingError as error:
            self._node.warn_throttled(str(error)[:24], f"image not used: {error}")  # each kind of problem by itself
            self._reject(image, str(error))

    def _watch_rate(self, start_s: float) -> None:
        """After an image: whether images as they come can be processed; warns once when not."""
        now_s = time.monotonic()
        if self.rate.finish(now_s, now_s - start_s, self.inbox.waiting):
            self.inbox.catch_up()  # what waits is late already, and would stay so for long
        slow = self.rate.state().slow
        if slow and not self._slow_warned:
            self._slow_warned = True
            self._node.get_logger().warning(f"this computer cannot keep up with the images: {slow}; {self.remedies}")

    @property
    def remedies(self) -> str:
        """What to change where images cannot be processed as fast as they come."""
        width = self._camera.width if self._camera is not None else 0
        core = self.configs.core
        return remedies(replace(core, matcher=replace(core.matcher, name=self.pipeline.matcher.name)), width)

    def _process(self, image: CameraImages) -> None:
        start_s = time.monotonic()
        if not self._check_stamp(image):
            return
        frame = self.decoder.decode(image)
        self._check_camera(frame)
        self._check_mount(image)
        if self.external_odometry != "off":
            self.external_odometry = self._add_external_odometry(image.frame_id)
        self.imu.feed(image.stamp_ns, image.frame_id, self.mount, self.decoder.T_optical_camera)
        output = self._track(frame)
        fault = output.fault or self._depth_fault(image) or self.imu.report() or self._planar_fault()
        fault = fault or describe_mask(frame.mask) or self._mount_fault()
        output = replace(output, fault=fault)
        self._count(output)
        self._publish(output, frame, image)
        self.problem = ""
        self._watch_rate(start_s)

    def _track(self, frame: Frame) -> OdometryOutput:
        """One frame through the pipeline; its pose is published before the keyframe work."""
        start = time.perf_counter()

        def publish(output: OdometryOutput) -> None:
            processing_ms = (time.perf_counter() - start) * 1e3
            if self._tracker is None and output.T_WC is not None:
                self._tracker = self._begin(output)
            pose = self._tracker.update(output) if self._tracker is not None else None
            if pose is not None:
                self._outputs.publish_pose(frame.stamp_ns, pose)
            self.timing = Timing(
                find_latency_ms(self._node.get_clock().now().nanoseconds, frame.stamp_ns), processing_ms
            )

        return self.pipeline.process(frame, publish, behind=self.inbox.behind)

    def _begin(self, output: OdometryOutput) -> RobotPoseTracker | None:
        """With the first poses: None while the camera's pose on the robot or the level start are pending."""
        if self._map_began_ns is None:
            self._map_began_ns = self.pipeline.window.keyframes[0].stamp_ns
        if self._T_BC is None:
            return None
        start = self.imu.find_start(self._start, self._T_BC, self._map_began_ns, output.stamp_ns)
        return None if start is None else RobotPoseTracker(self._T_BC, start)

    def _count(self, output: OdometryOutput) -> None:
        self.last = output
        self.counters.processed += 1
        self.counters.tracked += output.T_WC is not None
        self.counters.lost += output.state.value == "lost"

    def _publish(self, output: OdometryOutput, frame: Frame, image: CameraImages) -> None:
        if output.T_WC is not None:
            self._warn_of_scale(output)
        if self._tracker is not None:  # else the camera's pose on the robot is pending
            self._outputs.publish_matches(output, frame, image.frame_id, self.decoder)
            self._outputs.publish_map(output, self.pipeline.window, self._tracker)
        self._publish_status(output, image, self.timing)
        self.learning = self.pipeline.learning_status()
        self._outputs.publish_learning(frame.stamp_ns, self.learning, self.pipeline.matcher.name)

    def _publish_status(self, output: OdometryOutput, image: CameraImages, timing: Timing) -> None:
        self.counters.received, self.counters.dropped = self.rate.skipped + self.inbox.received, self.dropped
        timing = replace(timing, rate=self.rate.state())
        self._outputs.publish_status(output, image, self.pipeline.window, self.counters, timing)

    def _warn_of_scale(self, output: OdometryOutput) -> None:
        """Once, when poses begin to be in an arbitrary unit."""
        if not output.metric and not self._scale_warned:
            self._node.get_logger().warning(
                f"poses have no scale ({output.scale}): the unit of length is arbitrary; {SCALE_REMEDY}"
            )
        self._scale_warned = not output.metric

    # -- images that are not used, and new beginnings -----------------------------------------------------------------

    def _reject(self, image: CameraImages, reason: str) -> None:
        """Counts an image that is not used, and publishes the reason with the state as the last image left it."""
        self.counters.rejected += 1
        self.problem = reason
        self._publish_rejected(image, reason)

    def _publish_rejected(self, image: CameraImages, reason: str) -> None:
        metric = self.configs.node.mode != "mono"
        last = self.last or OdometryOutput(0, 0, TrackingState.UNINITIALIZED, "", None, None, 0, False, metric, 0, None)
        output = replace(last, stamp_ns=image.stamp_ns, reason=reason, inliers=0, is_keyframe=False, matches=None)
        self._publish_status(output, image, Timing())

    def _restart(self) -> None:
        """An empty map that continues at the last published pose."""
        self.pipeline.reset()
        self._map_began_ns = None
        if self._tracker is not None:
            self._tracker.restart()

    def _check_stamp(self, image: CameraImages) -> bool:
        """Whether the image is used, by its stamp; after a jump back that the image confirms, odometry begins again before."""
        verdict = self._order.check(image.stamp_ns, self.configs.node.backward_jump_s)
        self._repeated = self._repeated + 1 if verdict.repeated else 0
        if verdict.dropped:
            stuck = self._repeated >= self.STUCK_AFTER
            reason = self._explain_stuck(image) if stuck else verdict.reason
            self._node.warn_throttled("order", f"image not used: {reason}")
            if verdict.repeated and not stuck:  # an image that comes twice has its status
                self.counters.rejected += 1
            else:
                self._reject(image, reason)
        elif verdict.restarts:
            self._begin_after_jump(verdict.reason)
        return not verdict.dropped

    def _explain_stuck(self, image: CameraImages) -> str:
        topic = self._node.resolve_topic_name(next(iter(image.images)))
        cause = (
            "the driver leaves header.stamp empty, or takes the time from a /clock that nobody publishes (its use_sim_time)"
            if image.stamp_ns == 0
            else "the driver repeats header.stamp, or its clock stands still"
        )
        return (
            f"stamps do not advance: {self._repeated + 1} images on {topic} have the stamp {image.stamp_ns / 1e9:.6f} s; {cause}; "
            "expected the time of each image"
        )

    def _begin_after_jump(self, reason: str) -> None:
        """Simulated time begins again with a bag that loops, and so does the robot; a clock that is set back moves no robot."""
        if self._node.get_parameter("use_sim_time").value:
            self._node.get_logger().warning(f"{reason} (a bag that loops?): odometry is reset")
            order = self._order
            self._begin_again(AT_ORIGIN)
            self._order = order
        else:
            self._node.get_logger().warning(
                f"{reason} (was the clock set?): a new map goes on from the last pose; a bag that loops needs use_sim_time, or ~/reset"
            )
            self._restart()
            self._outputs.reset()

    def _check_camera(self, frame: Frame) -> None:
        """An image of another size, or another model of the lens, starts another map; other numbers are followed."""
        before, now = self._camera, frame.camera
        self._camera = now
        another = before is None or not now.is_like(before)
        if another and (text := plausibility_warning(now)):
            self._node.get_logger().warning(text)
        if before is None or before == now:
            return
        change = f"from {before} to {now}"
        if another:
            self._node.get_logger().warning(f"the camera has changed {change}: a new map is started")
            self._restart()
        elif not self._calibration_told:
            self._calibration_told = True
            self._node.get_logger().info(f"the calibration changes {change}: each image is used with its own")

    def _depth_fault(self, image: CameraImages) -> str:
        """That depth is of another camera than the image: it is then looked up at the wrong pixels."""
        depth = image.images.get("depth/image")
        frame = image.frame_id if depth is None else depth.header.frame_id.lstrip("/")
        if self.mount.coincide(frame, image.frame_id):
            return ""
        return (
            f"depth images are of the frame '{frame}', images of '{image.frame_id}'; expected depth registered to the image (the "
            "driver's aligned depth, or depth_image_proc/register)"
        )

    def _check_mount(self, image: CameraImages) -> None:
        """Follows the camera's pose on the robot. Publishing begins when it is found, and again when TF replaces an assumption."""
        if self.mount.arrived_late(image.frame_id):
            self._node.get_logger().warning(
                f"TF from {self.configs.node.base_frame} to {image.frame_id} has arrived: odometry is reset, because its poses so far "
                "were those of the camera"
            )
            camera, order = self._camera, self._order
            self._begin_again(self._start)
            self._camera, self._order = camera, order
        T_BC = self.mount.find(image.frame_id, image.stamp_ns)
        T_BC = None if T_BC is None else T_BC @ self.decoder.T_optical_camera
        if self.configs.core.odometry.planar:
            self._mount_planar(T_BC)
        self._T_BC = T_BC
        if self._tracker is not None and T_BC is not None:
            self._tracker.mount(T_BC)

    def _mount_fault(self) -> str:
        """That no pose can be published before the camera's pose on the robot is known."""
        return f"no poses are published: {self.mount.problem}" if self._T_BC is None else ""

    def _mount_planar(self, T_BC: np.ndarray | None) -> None:
        """The plane of the base needs a pose of the camera (4, 4) that is known."""
        why = self.mount.unknown
        if T_BC is None or why:
            self.pipeline.mount_camera(None, why)
            self._node.warn_throttled("planar", f"odometry.planar is not used: {why}")
        else:
            pose = np.array([*T_BC[:3, 3], *transforms.quaternion(T_BC[:3, :3])])
            self.pipeline.mount_camera(torch.from_numpy(pose))

    def _planar_fault(self) -> str:
        problem = self.pipeline.odometry.planar.problem
        return f"odometry.planar is not used: {problem}" if problem else ""

    def _add_external_odometry(self, camera_frame: str) -> str:
        """Passes external odometry on as poses of the camera; returns `used`, or why it is not used."""
        external = self.pipeline.odometry.external
        external.blocked = ""
        while self.messages:
            message = self.messages[0]
            child = message.child_frame_id.lstrip("/") or self.configs.node.base_frame
            T_child_optical = self.mount.camera_in(child, camera_frame, stamp_ns(message.header.stamp))
            if T_child_optical is None:
                external.blocked = f"no TF from {child} to {camera_frame or '(the images name no frame)'}"
                self._node.warn_throttled("external odometry", f"external odometry not used: {external.blocked}")
                break
            self.messages.popleft()
            try:
                T_OC = read_pose(message.pose.pose) @ T_child_optical @ self.decoder.T_optical_camera
            except ValueError as error:
                self._node.warn_throttled("external odometry", f"external odometry not used: {error}")
                continue
            pose = np.array([*T_OC[:3, 3], *transforms.quaternion(T_OC[:3, :3])])
            self.pipeline.add_external_odometry(stamp_ns(message.header.stamp), torch.from_numpy(pose))
        return external.problem or "used"


def describe_mask(mask: Tensor | None) -> str:
    """That a mask (H, W) leaves hardly anything of the image; empty otherwise."""
    most = 0.9
    share = 0.0 if mask is None else float(mask.count_nonzero()) / mask.numel()
    return f"the mask covers {100 * share:.0f} % of the image" if share > most else ""


def find_latency_ms(now_ns: int, stamp_ns: int) -> float:
    """Age of an image, ms. NaN when the stamp is ahead of the clock (simulated time lags behind the images) or of another clock."""
    mismatch_s = 60.0  # no image takes that long
    age_s = (now_ns - stamp_ns) / 1e9
    return age_s * 1e3 if 0 <= age_s < mismatch_s else float("nan")
