"""The ROS 2 node: images in, odometry out. A callback converts, makes one call, publishes."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import SetBool, Trigger

from imatching_ros.srv import Weights

from ..core.config import Config
from ..core.errors import ConfigError, ImatchingError
from ..pipeline import Pipeline
from . import params
from .diagnostics import Diagnostics, Snapshot
from .tf import make_lookup
from .inputs import CameraInputs
from .managed import ManagedNode, tell_errors
from .outputs import Counters, Outputs
from .image_decoder import ImageDecoder
from .processing import Processor
from .transport import use_shipped_profile
from .weights_folder import default_profile, weights_directory

# name: type, what it does
SERVICES = {
    "~/reset": (Trigger, "starts again at the origin with an empty map; the weights stay"),
    "~/set_learning": (SetBool, "switches learning on or off"),
    "~/save_weights": (
        Weights,
        "writes the weights in use as a profile (a name) or a .safetensors file; an empty name is the profile in use",
    ),
    "~/load_weights": (Weights, "takes a profile, a .safetensors file, `default` or `previous` into use"),
}

_SERVICE_TIMEOUT_S = 20.0
_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class OdometryNode(ManagedNode):
    """A managed node. configure loads the weights, activate subscribes and processes, deactivate pauses, cleanup frees."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("imatching", **kwargs)
        self._warned_s: dict[str, float] = {}
        for text in params.declare(self):
            self.get_logger().warning(text)
        self.config, self.core = params.read_configs(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        if self._tells_after_setting:
            self.add_post_set_parameters_callback(lambda _: self._apply(*params.read_configs(self)))
        self._pipeline: Pipeline | None = None
        self._directory, self._profile = Path(), ""
        self._outputs: Outputs | None = None
        self._decoder: ImageDecoder | None = None
        self._tree: Any = None
        self._inputs: CameraInputs | None = None
        self._processor: Processor | None = None
        self._diagnostics = Diagnostics(self)
        answers = {
            "~/reset": self._on_reset,
            "~/set_learning": self._on_set_learning,
            "~/save_weights": self._on_save_weights,
            "~/load_weights": self._on_load_weights,
        }
        for name, (kind, _) in SERVICES.items():
            self.create_service(kind, name, answers[name])
        # Not the node's clock: with simulated time that stops when the bag stops, which is when a warning is due.
        self.create_timer(1.0, self._on_second, clock=Clock(clock_type=ClockType.STEADY_TIME))
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False)
        self._jump_handle = self.get_clock().create_jump_callback(threshold, post_callback=self._on_clock_jump)

    # -- life cycle ---------------------------------------------------------------------------------------------------

    @tell_errors
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.config, self.core = params.read_configs(self)
        self._directory = weights_directory(self.config.weights_dir)
        named = self.config.weights_profile
        self._profile = named or default_profile(self.core.matcher, self.get_namespace())
        try:
            self._pipeline = Pipeline(self.core, self._on_event, self._directory, self._profile, bool(named))
        except (ImatchingError, OSError) as error:
            self.get_logger().error(str(error))
            return _FAILURE
        self.get_logger().info(f"matcher {self.core.matcher.name}: {self._pipeline.origin}")
        self._outputs = Outputs(self, self.config)
        self._decoder = ImageDecoder(self.config.mode)
        self._tree = None if any(self.config.base_from_camera) and not self._with_odometry else make_lookup(self)
        return super().on_configure(state)

    @tell_errors
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._processor = Processor(
            self, self.config, self.core, self._pipeline, self._outputs, self._tree, self.warn_throttled, self._decoder
        )
        try:
            self._inputs = CameraInputs(
                self, self.config, self._processor.inbox.put, self.warn_throttled, self._with_odometry
            )
        except ConfigError as error:
            self.get_logger().error(str(error))
            self._stop()
            return _FAILURE
        self._processor.odometry = self._inputs.odometry
        result = super().on_activate(state)
        self._processor.run()
        names = ", ".join(topic.name for topic in self._inputs.topics.values())
        self.get_logger().info(
            f"active: {self.config.mode}, matcher {self.core.matcher.name} on {self.core.matcher.device}, learning "
            f"{self.core.learning.mode}, listening to {names}"
        )
        return result

    @tell_errors
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        self._pipeline.reset()
        self._outputs.reset()
        return super().on_deactivate(state)

    @tell_errors
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._free()
        return super().on_cleanup(state)

    @tell_errors
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        self._free()
        return super().on_shutdown(state)

    @tell_errors
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After a transition that raised: back to unconfigured, with nothing left of what it had made."""
        self._stop()
        self._free()
        return super().on_error(state)

    @property
    def _with_odometry(self) -> bool:
        return self.core.external_odometry.use != "off"

    def _stop(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._processor is not None:
            self._processor.close()
            self._processor = None

    def _free(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None
        if self._tree is not None:
            self._tree.close()
            self._tree = None
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None

    # -- services -----------------------------------------------------------------------------------------------------

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = self._command(
            lambda: self._processor.reset() or "odometry starts again at the origin; the weights stay", active=True
        )
        return response

    def _on_set_learning(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        def switch() -> str:
            self._pipeline.set_learning(request.data)
            return f"learning is {'on' if request.data else 'off'}"

        response.success, response.message = self._command(switch)
        return response

    def _on_save_weights(self, request: Weights.Request, response: Weights.Response) -> Weights.Response:
        name = request.name or self._profile
        return self._answer_weights(response, name, lambda: self._pipeline.save_weights(name))

    def _on_load_weights(self, request: Weights.Request, response: Weights.Response) -> Weights.Response:
        return self._answer_weights(response, request.name, lambda: self._pipeline.load_weights(request.name))

    def _answer_weights(self, response: Weights.Response, name: str, command: Callable[[], str]) -> Weights.Response:
        if not name:
            response.message = "no name was given; expected a profile, a .safetensors file, 'default' or 'previous'"
            return response
        response.success, response.message = self._command(command)
        if response.success:
            if name not in ("default", "previous"):
                response.path = str(name if name.endswith(".safetensors") else self._directory / f"{name}.safetensors")
            status = self._pipeline.learning_status()
            response.version, response.hash = int(status.weights_version), str(status.weights_hash)
        return response

    def _command(self, function: Callable[[], str], active: bool = False) -> tuple[bool, str]:
        """Has the owner of the odometry do something between two images; returns whether it worked and what was done."""
        if self._pipeline is None or (active and self._processor is None):
            return False, f"the node is {self.state_label}; {'activate' if active else 'configure'} it first"
        try:
            if self._processor is None:
                return True, function()
            future = self._processor.inbox.call(function)
            if not wait([future], _SERVICE_TIMEOUT_S).done:
                return False, f"not done within {_SERVICE_TIMEOUT_S:g} s"
            return True, future.result()
        except (ImatchingError, OSError) as error:
            return False, str(error)
        except Exception as error:  # a bug: say all about it, keep the robot's node alive
            self.get_logger().error(f"internal error in a service:\n{traceback.format_exc()}")
            return False, f"internal error: {error!r}"

    # -- parameters ---------------------------------------------------------------------------------------------------

    @property
    def _tells_after_setting(self) -> bool:
        """Humble does not: there values are applied when they have been found right, before they are stored."""
        return hasattr(self, "add_post_set_parameters_callback")

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            configs = params.make_configs(params.changed(self, parameters))
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if not self._tells_after_setting:
            self._apply(*configs)
        return SetParametersResult(successful=True)

    def _apply(self, config: params.NodeConfig, core: Config) -> None:
        self.config, self.core = config, core
        if self._processor is not None:

            def apply() -> None:
                self._processor.config = self._outputs.config = config
                self._pipeline.configure(core)

            if self._inputs is not None:  # while subscribing, its own QoS parameters come by here
                self._inputs.config = config
            self._processor.inbox.call(apply)
        elif self._pipeline is not None:
            self._outputs.config = config
            self._pipeline.configure(core)

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _on_second(self) -> None:
        if self._inputs is not None:
            self._inputs.check_silence()
        p = self._processor
        counters, last = (p.counters, p.last) if p else (Counters(), None)
        self._diagnostics.publish(
            Snapshot(
                lifecycle=self.state_label,
                received=self._inputs.received if self._inputs else 0,
                dropped=p.inbox.dropped if p else 0,
                processed=counters.processed,
                tracked=counters.tracked,
                lost=counters.lost,
                rejected=counters.rejected + (self._inputs.missing_info if self._inputs else 0),
                tracking=last.state.value if last else "",
                reason=last.reason if last else "",
                metric=last.metric if last else True,
                scale=last.scale if last else "",
                latency_ms=p.latency_ms if p else float("nan"),
                processing_ms=p.processing_ms if p else float("nan"),
                problem=p.problem if p else "",
                input_problem=self._inputs.problem if self._inputs else "",
                mounting_problem=p.mounting_problem if p else "",
                learning=p.learning if p else None,
                external_odometry=p.external_odometry if p else "",
            )
        )

    def _on_clock_jump(self, jump: TimeJump) -> None:
        if self._processor is not None:
            self.get_logger().warning(
                f"the clock jumped back by {-jump.delta.nanoseconds / 1e9:.3f} s: odometry is reset"
            )
            self._processor.inbox.call(self._processor.reset)

    def _on_event(self, event: dict) -> None:
        if self._outputs is not None:
            self._outputs.publish_event(event)

    def warn_throttled(self, key: str, text: str) -> None:
        """A warning, at most every 5 s for the same key."""
        now = time.monotonic()
        if now - self._warned_s.get(key, -1e9) >= 5.0:
            self._warned_s[key] = now
            self.get_logger().warning(text)


class _RosLog(logging.Handler):
    """Sends what the core logs to the node's logger."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        log = (
            self._logger.error
            if record.levelno >= logging.ERROR
            else self._logger.warning
            if record.levelno >= logging.WARNING
            else self._logger.info
        )
        log(record.getMessage())


def main(argv: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM, then ends the process. `argv`: arguments after the program's name, ROS arguments
    included. Returns only when the parameters are wrong."""
    use_shipped_profile()
    stop = threading.Event()
    # rclpy's own handlers end the context under the feet of the running threads; ours only end the loop, however often they come.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(
        args=sys.argv[:1] + list(sys.argv[1:] if argv is None else argv), signal_handler_options=SignalHandlerOptions.NO
    )
    try:
        code = _run(stop)
    except ConfigError as error:
        print(f"imatching_ros: {error}", file=sys.stderr)
        rclpy.shutdown()
        return 1
    # FastDDS removes its shared memory (33 MB a process) only with the last object of rclpy, and some of these are in cycles.
    gc.collect()
    # All that was open is closed. Taking torch down at leisure lasts longer on a busy computer than launch waits before SIGTERM.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(stop: threading.Event) -> int:
    """Spins a node until the event; returns the exit code."""
    node = OdometryNode()
    handler = _RosLog(node.get_logger())
    logging.getLogger("imatching_ros").addHandler(handler)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    code = 0
    try:
        if node.config.autostart and (node.trigger_configure() != _SUCCESS or node.trigger_activate() != _SUCCESS):
            code = 1
            stop.set()
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.2)
    finally:
        logging.getLogger("imatching_ros").removeHandler(handler)
        if node.state_label != "finalized":  # as after a transition `shutdown`
            node.trigger_shutdown()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
