"""The ROS 2 node: images in, odometry out. A callback converts, makes one call, publishes."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from imatching_ros.srv import SetPose, Weights

from ..core.errors import ConfigError, ImatchingError
from ..matching.precision import describe_choice
from ..pipeline import Pipeline
from . import params
from .bond import ManagerBond
from .conflicts import Conflicts
from .convert import read_start
from .diagnostics import Diagnostics, Snapshot
from .image_decoder import ImageDecoder
from .inbox import InboxClosed
from .inputs import CameraInputs
from .lifecycle import ManagedNode, log_errors, run_until_signal
from .outputs import Counters, Outputs
from .processing import Processor, Resources
from .rate import Rate
from .tf_tree import TransformTree

# name: type, what it does
SERVICES = {
    "~/reset": (Trigger, "starts again at the origin with an empty map; the weights stay"),
    "~/set_pose": (SetPose, "starts again at a given pose of the base with an empty map; the weights stay"),
    "~/set_learning": (SetBool, "switches learning on, in the background where learning.mode is off, or off"),
    "~/save_weights": (
        Weights,
        "writes the weights in use as a profile (a name) or a .safetensors file; an empty name is the profile in use",
    ),
    "~/load_weights": (Weights, "takes a profile, a .safetensors file, `default` or `previous` into use"),
}


class OdometryNode(ManagedNode):
    """A managed node. configure loads the weights, activate subscribes and processes, deactivate pauses, cleanup frees.

    Attributes:
        configs: all settings.
        resources: from configure to cleanup, else None.
        inputs, processor: while active, else None.
    """

    # The longest wait for the image, and for the learning step, at hand at the end: launch kills after 10 s.
    ENDING_S = 2.0
    SERVICE_TIMEOUT_S = 20.0  # a command waits for the image in progress, keyframe work included

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(params.NODE_NAME, **kwargs)
        for text in params.declare(self):
            self.get_logger().warning(text)
        self.configs = params.read_configs(self)
        if hasattr(self, "add_pre_set_parameters_callback"):  # Humble refuses an integer for a double
            self.add_pre_set_parameters_callback(params.adapt_parameters)
        self.add_on_set_parameters_callback(self._check_parameters)
        if self._applies_after_setting:
            self.add_post_set_parameters_callback(lambda _: self._apply(params.read_configs(self)))
        self.resources: Resources | None = None
        self.inputs: CameraInputs | None = None
        self.processor: Processor | None = None
        self._bond: ManagerBond | None = None
        self._directory, self._profile, self._matcher = Path(), "", ""
        self._conflicts = Conflicts(self)
        self._diagnostics = Diagnostics(self)
        handlers = {
            "~/reset": self.on_reset,
            "~/set_pose": self.on_set_pose,
            "~/set_learning": self.on_set_learning,
            "~/save_weights": self.on_save_weights,
            "~/load_weights": self.on_load_weights,
        }
        for name, (kind, _) in SERVICES.items():
            self.create_service(kind, name, handlers[name])
        # Not the node's clock: simulated time stops with the bag, which is when a warning is due.
        self.create_timer(1.0, self._on_second, clock=Clock(clock_type=ClockType.STEADY_TIME))
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False)
        self._jump_handle = self.get_clock().create_jump_callback(threshold, post_callback=self._on_clock_jump)

    @property
    def autostart(self) -> bool:
        return self.configs.node.autostart

    # -- life cycle ---------------------------------------------------------------------------------------------------

    @log_errors
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.configs = params.read_configs(self)
        config, core = self.configs.node, self.configs.core
        self._directory = params.weights_directory(config.weights_dir)
        named = config.weights_profile
        self._profile = named or params.default_profile(core.matcher, self.get_namespace(), self.get_name())
        try:
            decoder = ImageDecoder(config.mode, config.mask_file)
            pipeline = Pipeline(core, self._on_event, self._directory, self._profile, bool(named))
        except (ImatchingError, OSError) as error:
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        self._matcher = describe_choice(replace(core.matcher, name=pipeline.matcher.name))
        self.get_logger().info(
            f"matcher {pipeline.matcher.name}: {pipeline.weights.origin}; it runs as {self._matcher}"
        )
        outputs = Outputs(self, config)
        self._conflicts.watch_tf(outputs.tf_stamps)
        tree = TransformTree(self, (config.odom_frame, config.base_frame), self._conflicts.on_tf)
        self.resources = Resources(pipeline, outputs, decoder, tree)
        return super().on_configure(state)

    @log_errors
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self.resources is not None, "configure comes first"
        config, pipeline = self.configs.node, self.resources.pipeline
        self.processor = Processor(self, self.configs, self.resources)
        try:
            p = self.processor
            self.inputs = CameraInputs(
                self, config, p.inbox.put, self._with_external_odometry, p.admit, p.imu.messages.append
            )
        except ConfigError as error:
            self.get_logger().error(str(error))
            self._stop()
            return TransitionCallbackReturn.FAILURE
        self.processor.messages = self.inputs.external_odometry
        result = super().on_activate(state)
        self.processor.run()
        if not config.autostart:
            self._bond = ManagerBond(self)
        names = ", ".join(topic.name for topic in self.inputs.topics.values())
        self.get_logger().info(
            f"active: {config.mode}, matcher {pipeline.matcher.name} on {pipeline.config.matcher.device}, "
            f"learning {pipeline.learning_status().mode}, "
            f"subscribed to {names}"
        )
        return result

    @log_errors
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self.resources is not None, "what is active is configured"
        self._stop()
        self.resources.pipeline.reset()
        self.resources.outputs.reset()
        return super().on_deactivate(state)

    @log_errors
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._free()
        return super().on_cleanup(state)

    @log_errors
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop(self.ENDING_S)
        self._free(self.ENDING_S)
        return super().on_shutdown(state)

    @log_errors
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After a transition that raised: unconfigured, everything freed."""
        self._stop()
        self._free()
        return super().on_error(state)

    @property
    def _with_external_odometry(self) -> bool:
        return self.configs.core.external_odometry.use != "off"

    def _stop(self, timeout_s: float | None = None) -> None:
        if self._bond is not None:
            self._bond.close()
            self._bond = None
        if self.inputs is not None:
            self.inputs.close()
            self.inputs = None
        if self.processor is not None:
            self.processor.close(timeout_s)
            self.processor = None

    def _free(self, timeout_s: float | None = None) -> None:
        if self.resources is not None:
            self.resources.close(timeout_s)
            self.resources = None

    # -- services -----------------------------------------------------------------------------------------------------

    def on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def reset() -> str:
            assert self.processor is not None, "_command has checked it"
            self.processor.reset()
            return "odometry starts again at the origin; the weights stay"

        response.success, response.message = self._command(lambda _: reset(), active=True)
        return response

    def on_set_pose(self, request: SetPose.Request, response: SetPose.Response) -> SetPose.Response:
        def place() -> str:
            assert self.processor is not None, "_command has checked it"
            self.processor.reset(read_start(request.pose, self.configs.node.odom_frame))
            return "odometry starts again at the given pose; the weights stay"

        response.success, response.message = self._command(lambda _: place(), active=True)
        return response

    def on_set_learning(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        def switch(pipeline: Pipeline) -> str:
            pipeline.set_learning(request.data)
            return f"learning is {'on' if request.data else 'off'}"

        response.success, response.message = self._command(switch)
        return response

    def on_save_weights(self, request: Weights.Request, response: Weights.Response) -> Weights.Response:
        name = request.name or self._profile
        return self._answer_weights(response, name, lambda pipeline: pipeline.save_weights(name))

    def on_load_weights(self, request: Weights.Request, response: Weights.Response) -> Weights.Response:
        return self._answer_weights(response, request.name, lambda pipeline: pipeline.load_weights(request.name))

    def _answer_weights(
        self, response: Weights.Response, name: str, command: Callable[[Pipeline], str]
    ) -> Weights.Response:
        if not name:
            response.message = "no name was given; expected a profile, a .safetensors file, 'default' or 'previous'"
            return response
        response.success, response.message = self._command(command)
        if response.success and self.resources is not None:
            if name not in ("default", "previous"):
                response.path = str(name if name.endswith(".safetensors") else self._directory / f"{name}.safetensors")
            status = self.resources.pipeline.learning_status()
            response.version, response.hash = int(status.weights_version), str(status.weights_hash)
        return response

    def _command(self, command: Callable[[Pipeline], str], active: bool = False) -> tuple[bool, str]:
        """Runs a command between two images, in the thread that owns the odometry; returns whether it worked, and a message."""
        if self.resources is None or (active and self.processor is None):
            return False, f"the node is {self.state_label}; {'activate' if active else 'configure'} it first"
        pipeline = self.resources.pipeline
        try:
            if self.processor is None:
                return True, command(pipeline)
            return True, self.processor.inbox.run(lambda: command(pipeline), self.SERVICE_TIMEOUT_S)
        except (ImatchingError, OSError) as error:
            return False, str(error)

    # -- parameters ---------------------------------------------------------------------------------------------------

    @property
    def _applies_after_setting(self) -> bool:
        """Humble has no callback after parameters are set: there values are applied when they have been checked."""
        return hasattr(self, "add_post_set_parameters_callback")

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            configs = params.read_configs(self, parameters)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if not self._applies_after_setting:
            self._apply(configs)
        return SetParametersResult(successful=True)

    def _apply(self, configs: params.Configs) -> None:
        self.configs = configs
        if self.inputs is not None:
            self.inputs.config = configs.node
        if self.processor is not None:
            processor = self.processor
            self._queue(processor, lambda: processor.configure(configs))
        elif self.resources is not None:
            self.resources.outputs.config = configs.node
            self.resources.pipeline.configure(configs.core)

    # -- timer, clock and events --------------------------------------------------------------------------------------

    def _on_second(self) -> None:
        if self.inputs is not None:
            self.inputs.check_silence()
        self._conflicts.look(self.inputs.images if self.inputs else [], self.configs.node)
        self._diagnostics.publish(self._snapshot())

    def _snapshot(self) -> Snapshot:
        inputs, p = self.inputs, self.processor
        counters, last = (p.counters, p.last) if p else (Counters(), None)
        return Snapshot(
            lifecycle=self.state_label,
            received=inputs.received if inputs else 0,
            dropped=p.dropped if p else 0,
            processed=counters.processed,
            tracked=counters.tracked,
            lost=counters.lost,
            rejected=counters.rejected + (inputs.missing_info if inputs else 0),
            tracking=last.state.value if last else "",
            reason=last.reason if last else "",
            metric=last.metric if last else True,
            scale=last.scale if last else "",
            latency_ms=p.timing.latency_ms if p else float("nan"),
            processing_ms=p.timing.processing_ms if p else float("nan"),
            problem=p.problem if p else "",
            input_problem=inputs.problem if inputs else "",
            mounting_problem=p.mount.problem if p else "",
            learning=p.learning if p else None,
            external_odometry=p.external_odometry if p else "",
            imu=p.imu.state if p else "",
            start=p.imu.level.state if p else "",
            planar=p.pipeline.odometry.planar.describe() if p else "",
            fault=last.fault if last else "",
            conflict="; ".join(self._conflicts.found),
            rate=p.rate.state() if p else Rate(),
            silent=p.rate.is_silent(time.monotonic(), self.configs.node.no_data_warning_s) if p else True,
            remedies=p.remedies if p else "",
            matcher=self._matcher,
            camera=" ".join(inputs.images) if inputs else "",
            callback_errors=sum(self.callback_errors.values()),
        )

    def _on_clock_jump(self, jump: TimeJump) -> None:
        back_s = -jump.delta.nanoseconds / 1e9
        if self.count_publishers("/clock") > 1 or back_s <= self.configs.node.backward_jump_s:
            text = f"the clock stepped back by {back_s:.3f} s: odometry goes on, by the stamps of the images"
            self.warn_throttled("clock", text)
        elif self.processor is not None:
            self.get_logger().warning(f"the clock jumped back by {back_s:.3f} s: odometry is reset")
            self._queue(self.processor, self.processor.reset)

    def _queue(self, processor: Processor, command: Callable[[], None]) -> None:
        """A command whose result nobody waits for; an error is logged."""

        def report(future: Future) -> None:
            error = future.exception()
            if error is not None and not isinstance(error, InboxClosed):
                text = "".join(traceback.format_exception(error))
                self.get_logger().error(f"internal error in a command to the odometry, which goes on:\n{text}")

        processor.inbox.call(command).add_done_callback(report)

    def _on_event(self, event: dict) -> None:
        if event["event"] == "warning":
            self.get_logger().warning(event["text"])
        if event["event"] == "learning_failed":
            self.get_logger().error(
                f"learning has failed, odometry goes on: {event['error']}; ~/set_learning starts it again\n{event['traceback']}"
            )
        if self.resources is not None:
            self.resources.outputs.publish_event(event)


def main(argv: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM. `argv`: arguments after the program's name, ROS arguments included."""
    return run_until_signal(OdometryNode, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
