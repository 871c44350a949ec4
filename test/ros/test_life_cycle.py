"""Failures that the node outlives: transitions that fail or are not possible, commands that raise or take too long; other
releases of ROS 2 and Python."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import rclpy
import torch
from imatching_ros.msg import Status
from imatching_ros.srv import Weights
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Path
from peers import NodeProcess, send_until, wait_until
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from imatching_ros.core.errors import ConfigError, SourceError
from imatching_ros.ros.convert import make_learning_status
from imatching_ros.ros.inputs import CameraImages
from imatching_ros.ros.node import OdometryNode, main
from imatching_ros.ros.processing import Processor
from imatching_ros.ros.robot_pose import RobotPose

pytestmark = [pytest.mark.ros, pytest.mark.slow]

SUCCESS, FAILURE, ERROR = (getattr(TransitionCallbackReturn, name) for name in ("SUCCESS", "FAILURE", "ERROR"))
BAD_QOS = "qos_overrides./camera_info.subscription.reliability"


class HumbleNode(OdometryNode):
    """As with rclpy of Humble, which has no callbacks after parameters are set."""

    @property
    def add_post_set_parameters_callback(self):
        raise AttributeError("not in Humble")


@pytest.fixture(scope="module")
def context(domain) -> Iterator[rclpy.Context]:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain, args=[])
    yield context
    context.shutdown()


@pytest.fixture
def make_node(context, tmp_path) -> Iterator:
    """Makes nodes in this process; they are not spun."""
    nodes = []

    def make(kind: type[OdometryNode] = OdometryNode, namespace: str = "", **values) -> OdometryNode:
        values = {"matcher.name": "klt", "learning.mode": "off", "weights_dir": str(tmp_path), **values}
        given = [Parameter(k, value=v) for k, v in values.items()]
        nodes.append(kind(context=context, namespace=namespace, parameter_overrides=given))
        return nodes[-1]

    yield make
    for node in nodes:
        if node.state_label != "finalized":
            node.trigger_shutdown()
        node.destroy_node()


@contextmanager
def spun(node: OdometryNode) -> Iterator[None]:
    """A thread runs the node's callbacks meanwhile."""
    executor, stop = SingleThreadedExecutor(context=node.context), threading.Event()
    executor.add_node(node)

    def spin() -> None:
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.1)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        executor.shutdown()


def count(node: OdometryNode) -> tuple[int, int, int]:
    """Publishers, subscriptions and threads, which must not accumulate."""
    return len(list(node.publishers)), len(list(node.subscriptions)), threading.active_count()


@pytest.mark.parametrize("kind", [OdometryNode, HumbleNode])
def test_live_parameters_are_applied(make_node, kind):
    node = make_node(kind)
    assert node.trigger_configure() == SUCCESS
    assert node.set_parameters([Parameter("odometry.verified_inliers", value=40)])[0].successful
    assert node.resources.pipeline.config.odometry.verified_inliers == 40
    assert node.trigger_activate() == SUCCESS
    wrong = [Parameter("odometry.verified_inliers", value=5000), Parameter("bundle.kernel", value="cauchy")]
    assert not any(result.successful for result in node.set_parameters(wrong))
    assert node.set_parameters(
        [Parameter("no_data_warning_s", value=2.5), Parameter("odometry.verified_inliers", value=50)]
    )[1].successful
    wait_until(
        lambda: node.resources.pipeline.config.odometry.verified_inliers == 50, what="the setting to reach the pipeline"
    )
    assert node.configs.node.no_data_warning_s == node.inputs.config.no_data_warning_s == 2.5
    assert node.get_parameter("odometry.verified_inliers").value == 50 and node.configs.core.bundle.kernel == "huber"


def test_a_number_without_a_point_and_a_word_that_yaml_reads_as_a_boolean_are_taken(make_node):
    """`ros2 param set /imatching odometry.depth_max_m 15` sends an integer, which rclpy refuses for a double."""
    node = make_node(**{"external_odometry.use": False})
    assert node.set_parameters([Parameter("odometry.depth_max_m", value=15)])[0].successful
    assert node.get_parameter("odometry.depth_max_m").value == node.configs.core.odometry.depth_max_m == 15.0
    assert "Wrong parameter type" in node.set_parameters([Parameter("odometry.min_inliers", value=20.0)])[0].reason
    assert node.get_parameter("external_odometry.use").value == "off"


@pytest.mark.parametrize("active", [False, True])
def test_an_error_in_a_service_is_answered_counted_and_logged_once(make_node, monkeypatch, capfd, peer, active):
    """Of the node's own services and of those that rclpy gives it, such as those of parameters."""
    node = make_node(namespace=f"/failing_{active}".lower())
    assert node.trigger_configure() == SUCCESS and (not active or node.trigger_activate() == SUCCESS)

    def fail(*_) -> None:
        raise KeyError("broken")

    def call(kind: type, name: str, **request):
        with spun(node):
            return peer.call(kind, f"{node.get_fully_qualified_name()}/{name}", **request)

    monkeypatch.setattr(node.resources.pipeline, "set_learning", fail)
    for _ in range(2):
        answer = call(SetBool, "set_learning", data=False)
        assert not answer.success and answer.message == "internal error: KeyError('broken')"
    assert node.callback_errors["the service ~/set_learning"] == 2
    assert capfd.readouterr().err.count("internal error in the callback of the service ~/set_learning (number") == 1
    monkeypatch.setattr(node, "get_parameter", fail)
    call(GetParameters, "get_parameters", names=["mode"])
    assert "KeyError: 'broken'" in capfd.readouterr().err
    assert node.callback_errors["the service imatching/get_parameters"] == 1  # a timer may have failed too
    monkeypatch.undo()
    assert call(SetBool, "set_learning", data=False).success


def test_a_command_that_has_to_wait_too_long_is_answered_and_not_done_later(make_node, monkeypatch):
    """Up to Python 3.10 the TimeoutError of futures is not the built-in one."""
    monkeypatch.setattr(concurrent.futures._base, "TimeoutError", type("TimeoutError", (Exception,), {}))
    monkeypatch.setattr(OdometryNode, "SERVICE_TIMEOUT_S", 0.2)
    node = make_node()
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
    release = threading.Event()
    resets = []
    monkeypatch.setattr(node.processor, "reset", lambda: resets.append(1))
    node.processor.inbox.call(release.wait)
    answer = node.on_reset(Trigger.Request(), Trigger.Response())
    assert not answer.success and answer.message == "not begun within 0.2 s, and given up"
    release.set()
    assert node.on_reset(Trigger.Request(), Trigger.Response()).success and resets == [1]  # not that of before as well


def test_a_setting_that_cannot_be_taken_over_is_logged(make_node, monkeypatch, capfd):
    node = make_node()
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS

    def fail(config) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(node.resources.pipeline, "configure", fail)
    assert node.set_parameters([Parameter("odometry.verified_inliers", value=50)])[0].successful
    assert node.processor.inbox.call(lambda: "alive").result(timeout=60) == "alive"
    logged = capfd.readouterr().err
    assert "internal error in a command to the odometry, which goes on" in logged and "KeyError: 'broken'" in logged


def test_a_learner_that_has_failed_is_reported_and_started_again(make_node, capfd):
    node = make_node(**{"matcher.name": "expectation", "learning.mode": "thread"})
    assert node.trigger_configure() == SUCCESS
    failed = node.resources.pipeline.weights.learning
    failed.submit(())  # no window
    wait_until(lambda: node.resources.pipeline.learning_status().state == "failed", what="the end of learning")
    assert node.on_set_learning(SetBool.Request(data=True), SetBool.Response()).success
    assert node.resources.pipeline.learning_status().state != "failed"
    node.resources.pipeline.close()  # passes events on
    assert "learning has failed, odometry goes on: " in capfd.readouterr().err


def test_learning_that_was_off_at_the_start_is_switched_on(make_node):
    node = make_node(**{"matcher.name": "expectation"})
    assert node.trigger_configure() == SUCCESS
    answer = node.on_set_learning(SetBool.Request(data=True), SetBool.Response())
    assert answer.success and answer.message == "learning is on"
    status = node.resources.pipeline.learning_status()
    assert status.state != "off" and make_learning_status(0, status, "expectation").mode == "thread"
    assert node.on_set_learning(SetBool.Request(data=False), SetBool.Response()).success
    status = node.resources.pipeline.learning_status()
    assert status.state == status.mode == "off"


def test_the_end_does_not_wait_for_a_large_image(make_node):
    """launch sends SIGTERM 5 s after SIGINT."""
    node = make_node()
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
    release, begun = threading.Event(), threading.Event()
    node.processor.inbox.call(lambda: (begun.set(), release.wait(60)))  # occupies the thread as an image does
    assert begun.wait(30)
    start = time.monotonic()
    assert node.trigger_shutdown() == SUCCESS and time.monotonic() - start < 4.0
    release.set()


def test_a_pause_waits_for_the_image_in_progress(make_node, monkeypatch, capfd):
    """Else the map is reset while that image is still inserted into it."""
    monkeypatch.setattr(Processor, "PATIENCE_S", 0.1)
    node = make_node()
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
    order, begun = [], threading.Event()

    def occupy() -> None:
        begun.set()
        time.sleep(0.5)
        order.append("image")

    monkeypatch.setattr(node.resources.pipeline, "reset", lambda: order.append("reset"))
    node.processor.inbox.call(occupy)
    assert begun.wait(30)
    assert node.trigger_deactivate() == SUCCESS and order == ["image", "reset"]
    assert "waiting for its end" in capfd.readouterr().err


INTERRUPTED = """
import os, signal, sys
from imatching_ros.ros.lifecycle import run_until_signal
from imatching_ros.ros.node import OdometryNode, main

class Interrupted(OdometryNode):
    def on_configure(self, state):
        os.kill(os.getpid(), signal.SIGINT)
        return super().on_configure(state)

sys.exit(run_until_signal(Interrupted, sys.argv[1:]))
"""


def test_a_node_that_is_interrupted_while_it_loads_its_weights_does_not_start(domain, tmp_path):
    node = NodeProcess(domain, tmp_path / "node.txt", {"matcher.name": "klt"}, program=("-c", INTERRUPTED))
    assert node.process.wait(60) == 0, node.output
    assert "matcher klt" in node.output and "active:" not in node.output, node.output


def test_a_bug_is_logged_once_and_every_image_has_its_status(make_node, monkeypatch, capfd, peer):
    node = make_node(namespace="/broken")
    assert node.trigger_configure() == node.trigger_activate() == SUCCESS
    statuses = peer.collect(Status, "/broken/imatching/status")
    wait_until(lambda: node.count_subscribers("/broken/imatching/status"), what="the subscription")

    def fail(image) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(node.processor.decoder, "decode", fail)
    sent = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        node.processor.inbox.put(CameraImages(sent * 10**8, "optical", {}, {}, False))

    for count in range(3):
        send_until(send, lambda count=count: len(statuses) > count, "a status")
    assert all(m.reason == "internal error: KeyError('broken')" and m.frames_rejected for m in statuses)
    assert capfd.readouterr().err.count("Traceback") == 1


@pytest.mark.parametrize("error", [KeyError("broken"), SourceError("broken")])
def test_odometry_outlives_a_bug_in_what_reports_problems(make_node, monkeypatch, capfd, error):
    node = make_node(namespace="/mute")
    assert node.trigger_configure() == node.trigger_activate() == SUCCESS

    def fail(*_) -> None:
        raise error

    def fail_too(*_) -> None:
        raise ValueError("no status")

    monkeypatch.setattr(node.processor.decoder, "decode", fail)
    monkeypatch.setattr(node.processor, "_publish_status", fail_too)
    monkeypatch.setattr(node.processor.pipeline, "reset", fail_too)
    for number in range(1, 3):
        node.processor.inbox.put(CameraImages(number * 10**8, "optical", {}, {}, False))
        wait_until(lambda: not node.processor.inbox.waiting, what="the image to be taken")
    assert node.processor.inbox.call(lambda: "alive").result(timeout=60) == "alive"
    assert "internal error, odometry is reset" in capfd.readouterr().err
    monkeypatch.undo()


def test_after_a_pause_the_path_begins_again(make_node, peer):
    node = make_node(namespace="/paused")
    assert node.trigger_configure() == node.trigger_activate() == SUCCESS
    paths = peer.collect(Path, "/paused/imatching/path")
    wait_until(lambda: node.count_subscribers("/paused/imatching/path"), what="the subscription")
    pose = RobotPose(np.eye(4), np.eye(4), np.eye(6), np.zeros(6), np.eye(6))

    def show(stamp_s: int) -> None:
        node.resources.outputs.publish_pose(stamp_s * 10**9, pose)

    stamps = iter(range(1000, 2000))
    send_until(lambda: show(next(stamps)), lambda: paths, "a path")
    assert node.trigger_deactivate() == node.trigger_activate() == SUCCESS
    count = len(paths)
    show(1)  # a bag that is played again
    wait_until(lambda: len(paths) > count, 10.0, "a path after the pause")
    assert [p.header.stamp.sec for p in paths[-1].poses] == [1]


def test_a_wrong_qos_override_is_one_line_and_leaves_nothing_behind(make_node, capfd):
    node = make_node(**{BAD_QOS: "bestest"})
    assert node.trigger_configure() == SUCCESS
    before, pipeline = count(node), node.resources.pipeline
    for _ in range(2):
        assert node.trigger_activate() == FAILURE and node.state_label == "inactive"
        assert count(node) == before and node.resources.pipeline is pipeline
        logged = capfd.readouterr().err
        assert f"parameter {BAD_QOS} is 'bestest', expected one of system_default, reliable, best_effort" in logged
        assert logged.count("[ERROR]") == 1 and "Traceback" not in logged
    node._parameter_overrides[BAD_QOS] = Parameter(BAD_QOS, value="reliable")
    assert node.trigger_activate() == SUCCESS and count(node) > before


@pytest.mark.parametrize(
    ("name", "value"), [("depth", "many"), ("depth", 0), ("history", "some"), ("durability", True)]
)
def test_every_override_is_checked(make_node, capfd, name, value):
    node = make_node(**{f"qos_overrides./image.subscription.{name}": value})
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == FAILURE
    assert f"subscription.{name} is {value!r}, expected" in capfd.readouterr().err


def test_odometry_has_its_threads_beside_learning_and_counts_on_after_a_pause(make_node):
    node = make_node(**{"matcher.name": "expectation", "learning.mode": "thread", "matcher.threads": 2})
    assert node.trigger_configure() == node.trigger_activate() == SUCCESS
    assert node.processor.inbox.call(torch.get_num_threads).result(timeout=60) == 2
    decoder = node.processor.decoder
    assert node.trigger_deactivate() == node.trigger_activate() == SUCCESS
    assert node.processor.decoder is decoder


def test_a_transition_that_raises_frees_everything(make_node, monkeypatch, capfd):
    node = make_node(**{"matcher.name": "expectation", "learning.mode": "thread"})
    before = count(node)

    def fail(*_) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Processor, "run", fail)
    for _ in range(2):
        assert node.trigger_configure() == SUCCESS and node.trigger_activate() == ERROR
        assert node.state_label == "unconfigured" and node.resources is None
        assert count(node) == before
        assert "on_activate failed" in capfd.readouterr().err
    monkeypatch.undo()
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS


def test_weights_in_use_are_logged_and_kept_apart_by_namespace(make_node, tmp_path, capfd):
    node = make_node(namespace="/front", **{"matcher.name": "expectation"})
    assert node.trigger_configure() == SUCCESS
    assert "matcher expectation: weights 'default', version 1" in capfd.readouterr().err
    saved = node.on_save_weights(Weights.Request(), Weights.Response())
    assert saved.success and saved.path == str(tmp_path / "front_expectation.safetensors")
    refused = node.on_save_weights(Weights.Request(name="default"), Weights.Response())
    assert not refused.success and "'default' cannot be the name of a profile" in refused.message
    again = make_node(namespace="/front", **{"matcher.name": "expectation"})
    assert again.trigger_configure() == SUCCESS
    assert f"weights of profile 'front_expectation' resumed from {saved.path}" in capfd.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["front_expectation.safetensors"]


def test_a_transition_that_is_not_possible_is_refused_and_a_shutdown_ends_cleanly(peer, start_node):
    node = start_node(arguments=("-r", "__ns:=/apart"))  # from the nodes of this process: rclpy keeps their services
    node.wait_for("active:")

    def change(transition: int) -> bool:
        return peer.call(ChangeState, "/apart/imatching/change_state", transition=Transition(id=transition)).success

    def state() -> int:
        return peer.call(GetState, "/apart/imatching/get_state").current_state.id

    assert not change(Transition.TRANSITION_CONFIGURE) and state() == State.PRIMARY_STATE_ACTIVE
    assert "is not possible: the node is active" in node.output
    assert change(Transition.TRANSITION_ACTIVE_SHUTDOWN) and state() == State.PRIMARY_STATE_FINALIZED
    assert not change(Transition.TRANSITION_CONFIGURE)
    assert node.stop() == 0 and "Traceback" not in node.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ("--params-file", "mixed.yaml"),
            "do not belong at line_num 3; write every number of a list with a decimal point",
        ),
        (("-r", "image:=/a b"), "Couldn't parse remap rule"),
        (("-p", "use_sim_time:=1"), "use_sim_time"),
        (("-p", b"weights_profile:=\xe4"), "codec can't encode"),
    ],
)
def test_arguments_that_rclpy_cannot_read_are_one_line(tmp_path, arguments, reason):
    (tmp_path / "mixed.yaml").write_text("/**:\n  ros__parameters:\n    base_from_camera: [0, 0, 0.5, 0, 0, 0, 1]\n")
    command = [sys.executable, "-m", "imatching_ros", "online", "--ros-args", *arguments]
    environment = NodeProcess.environment(0)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stderr.splitlines() if line and "[rcl]" not in line]  # it logs a line of its own
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert reason in lines[0] and "/project/src" not in lines[0]


def test_a_home_that_cannot_be_written_to_is_one_line_with_a_remedy(tmp_path):
    (tmp_path / "home").touch()
    environment = NodeProcess.environment(0) | {"ROS_HOME": str(tmp_path / "home")}
    environment.pop("ROS_LOG_DIR", None)
    command = [sys.executable, "-m", "imatching_ros", "online"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Failed to create log directory" in done.stderr and "ROS_LOG_DIR" in done.stderr, done.stderr


def test_settings_without_the_words_ros_args_are_not_left_out_silently(capsys):
    assert main(["--params-file", "mine.yaml", "--ros-args", "-p", "autostart:=false"]) == 2
    expected = "imatching_ros: unexpected --params-file mine.yaml: settings follow --ros-args; see --help\n"
    assert capsys.readouterr().err == expected


def test_numbers_without_a_decimal_point_are_taken(make_node):
    node = make_node(base_from_camera=[0, 0, 2, 0, 0, 0, 1], sync_slop_s=1)
    assert (
        node.configs.node.base_from_camera == (0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0)
        and node.configs.node.sync_slop_s == 1.0
    )
    with pytest.raises(ConfigError, match="sync_slop_s is True, expected a number"):
        make_node(sync_slop_s=True)
