"""Life cycle, services and parameters of the running node."""

from __future__ import annotations

import signal

import pytest
from imatching_ros.msg import LearningStatus, Status
from imatching_ros.srv import Weights
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from peers import Peer, image_message, info_message, send_until, wait_until
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import SetBool, Trigger

from imatching_ros.matching.weights import read_header
from imatching_ros.ros import params

pytestmark = [pytest.mark.ros, pytest.mark.slow]


class Robot:
    """The node with the learned matcher and RGB-D, unconfigured at first, and its camera."""

    def __init__(self, peer: Peer, start_node, tour) -> None:
        self.peer, self.tour = peer, tour
        self.node = start_node(
            {
                "matcher.name": "expectation",
                "learning.mode": "thread",
                "mode": "rgbd",
                "autostart": "false",
                "base_frame": "optical",
                "weights_profile": "yard",
            }
        )
        self.folder = self.node.log.parent
        self.status, self.odom = peer.collect(Status, "/imatching/status"), peer.collect(Odometry, "/odom")
        self.learning = peer.collect(LearningStatus, "/imatching/learning/status")
        self.infos, self.images = (
            peer.publisher(k, t, subscribers=0) for k, t in ((CameraInfo, "/camera_info"), (Image, "/image"))
        )
        self.depths = peer.publisher(Image, "/depth/image", subscribers=0)
        peer.meet()
        self._sent = 0

    def change(self, transition: int) -> bool:
        return self.peer.call(ChangeState, "/imatching/change_state", transition=Transition(id=transition)).success

    @property
    def state(self) -> int:
        return self.peer.call(GetState, "/imatching/get_state").current_state.id

    def show(self, count: int = 1) -> None:
        """The next images, one after another; each answered by a status."""
        for _ in range(count):
            # Forth and back through the first images, with stamps that go on.
            shot = self.tour[[0, 1, 2, 3, 4, 3, 2, 1][self._sent % 8]]
            stamp = self.tour[0].stamp_ns + self._sent * 10**8
            self._sent += 1

            def send(shot=shot, stamp=stamp) -> None:
                self.infos.publish(info_message(stamp, shot.camera))
                self.depths.publish(image_message(stamp, shot.depth, "32FC1"))
                self.images.publish(image_message(stamp, shot.image, "rgb8"))

            before = len(self.status)
            send_until(send, lambda before=before: len(self.status) > before, f"an image:\n{self.node.output}")

    def set(self, name: str, value: ParameterValue):
        request = [Parameter(name=name, value=value)]
        return self.peer.call(SetParameters, "/imatching/set_parameters", parameters=request).results[0]


@pytest.fixture(scope="module")
def robot(peer: Peer, start_node, tour) -> Robot:
    return Robot(peer, start_node, tour)


def whole(value: int) -> ParameterValue:
    return ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)


def text(value: str) -> ParameterValue:
    return ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value)


def number(value: float) -> ParameterValue:
    return ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)


def test_waits_for_its_manager(robot):
    assert robot.state == State.PRIMARY_STATE_UNCONFIGURED
    answer = robot.peer.call(Trigger, "/imatching/reset")
    assert not answer.success and "unconfigured" in answer.message


def test_configures_and_activates(robot):
    assert robot.change(Transition.TRANSITION_CONFIGURE) and robot.state == State.PRIMARY_STATE_INACTIVE
    assert robot.images.get_subscription_count() == 0
    assert robot.change(Transition.TRANSITION_ACTIVATE) and robot.state == State.PRIMARY_STATE_ACTIVE
    wait_until(
        lambda: robot.images.get_subscription_count() and robot.depths.get_subscription_count(), what="subscriptions"
    )
    robot.show(3)
    assert robot.status[-1].state == Status.TRACKING and robot.status[-1].metric and robot.status[-1].mode == "rgbd"
    wait_until(lambda: len(robot.odom) == 3, what="odometry")


def test_reset_starts_again_at_the_origin(robot):
    robot.show(1)
    answer = robot.peer.call(Trigger, "/imatching/reset")
    assert answer.success and "origin" in answer.message
    before = len(robot.odom)
    robot.show(1)
    wait_until(lambda: len(robot.odom) > before, what="odometry after the reset")
    position = robot.odom[-1].pose.pose.position
    assert (position.x, position.y, position.z) == (0.0, 0.0, 0.0)


def test_learning_is_switched(robot):
    answer = robot.peer.call(SetBool, "/imatching/set_learning", data=False)
    assert answer.success and answer.message == "learning is off"
    robot.show(1)
    wait_until(lambda: robot.learning[-1].state == "off", what="the state off")
    assert robot.peer.call(SetBool, "/imatching/set_learning", data=True).success
    robot.show(1)
    wait_until(lambda: robot.learning[-1].state != "off", what="another state than off")
    assert robot.learning[-1].mode == "thread" and robot.learning[-1].matcher == "expectation"


def test_weights_are_saved_and_loaded(robot):
    saved = robot.peer.call(Weights, "/imatching/save_weights", name="warehouse_a")
    assert saved.success, saved.message
    path = robot.folder / "warehouse_a.safetensors"
    assert path.is_file() and saved.path == str(path)
    header = read_header(path)
    assert (header.matcher, header.hash) == ("expectation", saved.hash)
    loaded = robot.peer.call(Weights, "/imatching/load_weights", name="default")
    assert loaded.success and loaded.version > saved.version, loaded.message
    loaded = robot.peer.call(Weights, "/imatching/load_weights", name="previous")
    assert loaded.success and loaded.hash == saved.hash, loaded.message
    robot.show(2)
    assert robot.status[-1].weights_version == loaded.version


def test_an_empty_name_saves_the_profile_in_use(robot):
    assert robot.peer.call(Weights, "/imatching/save_weights").success
    assert (robot.folder / "yard.safetensors").is_file()


@pytest.mark.parametrize(("name", "reason"), [("nowhere", "nowhere"), ("", "no name"), ("../escape", "escape")])
def test_weights_that_are_not_there_are_refused(robot, name, reason):
    answer = robot.peer.call(Weights, "/imatching/load_weights", name=name)
    assert not answer.success and reason in answer.message


def test_damaged_weights_are_refused(robot):
    path = robot.folder / "warehouse_a.safetensors"
    damaged = robot.folder / "damaged.safetensors"
    data = bytearray(path.read_bytes())
    data[-100:] = b"\xff" * 100
    damaged.write_bytes(data)
    answer = robot.peer.call(Weights, "/imatching/load_weights", name=str(damaged))
    assert not answer.success and "damaged" in answer.message
    robot.show(1)
    assert robot.status[-1].state == Status.TRACKING


def test_every_setting_is_a_described_parameter(robot):
    names = set(robot.peer.call(ListParameters, "/imatching/list_parameters").result.names)
    expected = {name: (default, meta) for name, default, meta in params.settings()}
    assert set(expected) <= names
    order = list(expected)
    descriptors = robot.peer.call(DescribeParameters, "/imatching/describe_parameters", names=order).descriptors
    values = robot.peer.call(GetParameters, "/imatching/get_parameters", names=order).values
    for descriptor, value, name in zip(descriptors, values, order, strict=True):
        default, meta = expected[name]
        assert meta["doc"] in descriptor.description and descriptor.read_only == (not meta["live"]), name
        ranges = [*descriptor.floating_point_range, *descriptor.integer_range]
        assert bool(ranges) == (meta["low"] is not None or meta["high"] is not None), name
        for r in ranges:
            assert meta["low"] is None or r.from_value == meta["low"], name
            assert meta["high"] is None or r.to_value == meta["high"], name
        if isinstance(default, float):
            assert value.double_value == default, name


def test_live_parameters_are_set_and_others_refused(robot):
    assert robot.set("learning.budget", number(0.25)).successful
    assert not robot.set("learning.budget", number(7.0)).successful
    for name, value in (
        ("bundle.kernel", text("cauchy")),
        ("matcher.name", text("sift")),
        ("odometry.first_baseline_m", number(1.0)),
    ):
        refused = robot.set(name, value)
        assert not refused.successful and "read-only" in refused.reason and name in refused.reason
    assert robot.set("publish_tf", ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=False)).successful


def test_live_parameters_act_on_the_next_image(robot):
    robot.show(1)
    assert robot.status[-1].state == Status.TRACKING
    matches = robot.status[-1].matches
    assert robot.set("odometry.verified_inliers", whole(1000)).successful
    robot.show(1)
    assert robot.status[-1].state == Status.UNVERIFIED and "matches agree" in robot.status[-1].reason
    assert robot.set("odometry.verified_inliers", whole(30)).successful
    assert robot.set("odometry.landmarks_per_frame", whole(60)).successful
    robot.show(2)
    assert robot.status[-1].state == Status.TRACKING and robot.status[-1].matches <= 60 < matches
    assert robot.set("odometry.landmarks_per_frame", whole(400)).successful
    assert "internal error" not in robot.node.output


def test_pauses_and_goes_on(robot):
    assert robot.change(Transition.TRANSITION_DEACTIVATE) and robot.state == State.PRIMARY_STATE_INACTIVE
    wait_until(lambda: robot.images.get_subscription_count() == 0, what="the subscription to end")
    assert robot.change(Transition.TRANSITION_ACTIVATE)
    wait_until(
        lambda: robot.images.get_subscription_count() and robot.depths.get_subscription_count(), what="subscriptions"
    )
    robot.show(2)
    assert robot.status[-1].frames_processed == 2


def test_cleans_up_and_starts_again(robot):
    assert robot.change(Transition.TRANSITION_DEACTIVATE)
    assert robot.change(Transition.TRANSITION_CLEANUP) and robot.state == State.PRIMARY_STATE_UNCONFIGURED
    assert robot.change(Transition.TRANSITION_CONFIGURE) and robot.change(Transition.TRANSITION_ACTIVATE)
    wait_until(
        lambda: robot.images.get_subscription_count() and robot.depths.get_subscription_count(), what="subscriptions"
    )
    robot.show(1)
    assert robot.status[-1].state == Status.TRACKING


def test_ends_cleanly_on_sigterm(robot):
    assert robot.node.stop(signal.SIGTERM) == 0
    assert "Traceback" not in robot.node.output and "error" not in robot.node.output.lower().replace(
        "internal_error", ""
    )
