"""What rclpy lacks around a managed node: reported errors, throttled warnings, the package's log, a clean end on signals."""

from __future__ import annotations

import functools
import gc
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.service import Service
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.timer import Timer
from rclpy.utilities import remove_ros_args

from ..core.errors import ConfigError
from .middleware import use_shipped_profile


# What rclpy raises for a parameter file, a remapping or a name that it cannot read.
REFUSED_ARGUMENTS = (
    rclpy_implementation.RCLError,
    rclpy_implementation.RCLInvalidROSArgsError,
    rclpy_implementation.UnknownROSArgsError,
    ParameterException,
    NameValidationException,
    UnicodeEncodeError,  # arguments that are not UTF-8
)


class ManagedNode(LifecycleNode):
    """A node with a life cycle. An exception of a callback of a subscription, timer or service does not end it.

    Attributes:
        callback_errors: exceptions of callbacks so far, by topic, timer or service.
    """

    WARNING_PERIOD_S = 5.0  # of `warn_throttled`, for one key

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self._warned_s: dict[str, float] = {}
        self.callback_errors: Counter[str] = Counter()
        service = self._service_change_state
        service.callback = functools.partial(self._change_state, service.callback)

    @property
    def state_label(self) -> str:
        """unconfigured, inactive, active, finalized, or the transition that is under way."""
        return self._state_machine.current_state[1]

    def warn_throttled(self, key: str, text: str) -> None:
        """A warning, unless there was one of the same key just before. (rclpy throttles by line of code, not by key.)"""
        if self._is_due(key):
            self.get_logger().warning(text)

    def create_subscription(
        self, msg_type: Any, topic: str, callback: Callable, *args: Any, **kwargs: Any
    ) -> Subscription:
        return super().create_subscription(msg_type, topic, self._guard(topic, callback), *args, **kwargs)

    def create_timer(self, timer_period_sec: float, callback: Callable, *args: Any, **kwargs: Any) -> Timer:
        return super().create_timer(timer_period_sec, self._guard("a timer", callback), *args, **kwargs)

    def create_service(self, srv_type: Any, srv_name: str, callback: Callable, *args: Any, **kwargs: Any) -> Service:
        def fail(error: Exception) -> Any:
            response = srv_type.Response()
            if hasattr(response, "success") and hasattr(response, "message"):
                response.success, response.message = False, f"internal error: {error!r}"
            return response

        guarded = self._guard(f"the service {srv_name}", callback, fail)
        return super().create_service(srv_type, srv_name, guarded, *args, **kwargs)

    def _guard(
        self, source: str, callback: Callable, answer: Callable[[Exception], Any] = lambda error: None
    ) -> Callable:
        """The callback, with its exceptions counted and logged: rclpy would end the node at the first one.

        `answer` gives what is returned after one.
        """

        @functools.wraps(callback)
        def guarded(*args: Any) -> Any:
            try:
                return callback(*args)
            except Exception as error:
                self.callback_errors[source] += 1
                if self._is_due(f"callback of {source}"):
                    self.get_logger().error(
                        f"internal error in the callback of {source} (number {self.callback_errors[source]}), the node goes "
                        f"on:\n{traceback.format_exc()}"
                    )
                return answer(error)

        return guarded

    def _is_due(self, key: str) -> bool:
        """Whether nothing of this key was logged just before."""
        now = time.monotonic()
        due = now - self._warned_s.get(key, -1e9) >= self.WARNING_PERIOD_S
        if due:
            self._warned_s[key] = now
        return due

    def _change_state(
        self, change: Callable, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """rclpy's service callback, which lets a transition that is not possible end the node."""
        before = self.state_label
        try:
            return change(request, response)
        except rclpy_implementation.RCLError:
            requested = request.transition.label or request.transition.id
            self.get_logger().error(f"the transition {requested} is not possible: the node is {before}")
            response.success = False
            return response


def log_errors(transition: Callable) -> Callable:
    """Logs an exception of a transition; rclpy turns it into a return code without a message."""

    @functools.wraps(transition)
    def logged(node: LifecycleNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception:
            node.get_logger().error(f"{transition.__name__} failed:\n{traceback.format_exc()}")
            raise

    return logged


class RosLogHandler(logging.Handler):
    """Sends records of Python's logging to a node's logger."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self._logger.error(record.getMessage())
        elif record.levelno >= logging.WARNING:
            self._logger.warning(record.getMessage())
        else:
            self._logger.info(record.getMessage())


class StopFlag:
    """Set by signals. Not threading.Event: its lock makes a signal wait for ever that comes within the handler of another."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set


def run_until_signal(make_node: Callable[[], ManagedNode], arguments: list[str]) -> int:
    """Runs a node until SIGINT or SIGTERM, then ends the process.

    Args:
        make_node: a node with an attribute `autostart`; a ConfigError is printed as one line.
        arguments: of the program, ROS arguments included.

    Returns:
        1 when the node could not be made, 2 for arguments that are none of ROS; otherwise the process has ended.
    """
    use_shipped_profile()
    stop = StopFlag()
    try:
        # rclpy ignores them: a forgotten --ros-args would leave every setting out.
        if foreign := remove_ros_args(arguments):
            print(
                f"imatching_ros: unexpected {' '.join(foreign)}: settings follow --ros-args; see --help",
                file=sys.stderr,
            )
            return 2
        # rclpy's own handlers end the context while threads still use it; these only end the loop, however often they come.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        rclpy.init(args=sys.argv[:1] + arguments, signal_handler_options=SignalHandlerOptions.NO)
        node = make_node()
    except (ConfigError, *REFUSED_ARGUMENTS) as error:
        print(f"imatching_ros: {describe_refused(error)}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    code = _spin(node, stop)
    del node
    # FastDDS removes its shared memory (33 MB a process) only with the last object of rclpy, and some of these are in cycles.
    gc.collect()
    # Everything open is closed. An orderly end of torch takes longer on a busy computer than launch waits before SIGTERM.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def describe_refused(error: Exception) -> str:
    """One line for an error at the start: ours, or that of rclpy about its arguments."""
    if isinstance(error, ConfigError):
        return str(error)
    # rcl adds where in its source the error arose; NameValidationException draws an arrow on lines of its own.
    text = re.sub(r", at /\S+:\d+", "", str(error).splitlines()[0].removeprefix("failed to initialize rcl: "))
    if "log directory" in text:
        return f"{text}; name a folder that can be written to by ROS_LOG_DIR"
    mixed = "Sequence should be of same type" in text
    remedy = "; write every number of a list with a decimal point, or none" if mixed else ""
    return f"the ROS arguments or a parameter file cannot be used: {text}{remedy}"


def _spin(node: Any, stop: StopFlag) -> int:
    """Spins a node until the event; returns the exit code."""
    handler = RosLogHandler(node.get_logger())
    logging.getLogger("imatching_ros").addHandler(handler)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    success = TransitionCallbackReturn.SUCCESS
    code = 0
    try:
        for transition in (node.trigger_configure, node.trigger_activate) if node.autostart else ():
            if not stop.is_set() and transition() != success:
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
