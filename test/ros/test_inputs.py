"""The topics that the node subscribes to, and its warnings when nothing arrives."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import rclpy
from peers import info_message, send_until
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from walls import CAMERA

from imatching_ros.core.errors import ConfigError
from imatching_ros.ros import params
from imatching_ros.ros.inputs import CameraInputs
from imatching_ros.ros.lifecycle import ManagedNode

pytestmark = pytest.mark.ros


@pytest.fixture
def make_inputs(domain) -> Iterator:
    """Subscribes for a node with parameters and remappings."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain, args=[])
    made = []

    def make(remappings: tuple[str, ...] = (), **values) -> tuple[ManagedNode, CameraInputs]:
        arguments = ["--ros-args", *(part for text in remappings for part in ("-r", text))]
        given = [Parameter(name, value=value) for name, value in values.items()]
        node = ManagedNode("eyes", context=context, cli_args=arguments, parameter_overrides=given)
        made.append((node, None))
        params.declare(node)
        inputs = CameraInputs(node, params.read_configs(node).node, lambda image: None)
        made[-1] = (node, inputs)
        return made[-1]

    yield make
    for node, inputs in made:
        if inputs is not None:
            inputs.close()
        node.destroy_node()
    context.shutdown()


@pytest.mark.parametrize(
    ("remappings", "values", "topic"),
    [
        ((), {}, "/camera_info"),
        (("image:=/front/image_raw",), {}, "/front/camera_info"),
        (("image:=/front/rgb/image_raw", "camera_info:=/front/camera_info"), {}, "/front/camera_info"),
        (("image:=/front/image_raw",), {"camera_info_topic": "/camera_info"}, "/camera_info"),
        (("image:=/front/image_raw", "__ns:=/robot"), {"camera_info_topic": "calibration"}, "/robot/calibration"),
        (("image:=/front/image_raw", "camera_info:=/b"), {"camera_info_topic": "/a"}, "/a"),
    ],
)
def test_the_requested_camera_info_is_subscribed_to(make_inputs, remappings, values, topic):
    _, inputs = make_inputs(remappings, **values)
    assert inputs.topics["camera_info"].name == topic


def test_each_camera_of_a_pair_has_its_own_camera_info(make_inputs):
    names = {"camera_info_topic": "/left/camera_info", "right_camera_info_topic": "/right/camera_info"}
    _, inputs = make_inputs(("left/image:=/a/image", "right/image:=/b/image"), mode="stereo", **names)
    assert [inputs.topics[f"{side}/camera_info"].name for side in ("left", "right")] == [
        "/left/camera_info",
        "/right/camera_info",
    ]


def test_cameras_that_are_swapped_by_remapping_are(make_inputs):
    _, inputs = make_inputs(("left/image:=/right/image", "right/image:=/left/image"), mode="stereo")
    for side, other in (("left", "right"), ("right", "left")):
        for name in ("image", "camera_info"):
            topic = inputs.topics[f"{side}/{name}"]
            assert topic.name == topic.subscription.topic_name == f"/{other}/{name}"


def test_external_odometry_is_not_the_node_s_own(make_inputs):
    """As README gives it for a base that publishes /odom itself."""
    node, inputs = make_inputs(("odom:=visual_odom", "external_odometry:=/odom"), **{"external_odometry.use": "both"})
    inputs.close()
    inputs = CameraInputs(node, inputs.config, lambda image: None, with_external_odometry=True)
    assert inputs.topics["external_odometry"].subscription.topic_name == "/odom"
    inputs.close()


def test_topics_of_parameters_are_remapped_once(make_inputs):
    remappings = ("/a:=/b", "/b:=/c", "camera_info:=/d", "/d:=/e")
    _, inputs = make_inputs(remappings, imu_topic="/a", mask_topic="/b")
    names = {name: inputs.topics[name].subscription.topic_name for name in ("imu", "mask", "camera_info")}
    assert names == {"imu": "/b", "mask": "/c", "camera_info": "/d"}


@pytest.mark.parametrize(("offset_s", "words"), [(-3600, "3600.0 s before it"), (3600, "3600.0 s after it")])
def test_masks_of_another_clock_are_named(make_inputs, offset_s, words):
    node, inputs = make_inputs(mask_topic="mask")
    delivered = []
    inputs._on_image = delivered.append
    inputs.topics["camera_info"].receive(info_message(5000 * 10**9, CAMERA))
    for name, second in (("mask", 5000 + offset_s), ("image", 5000), ("mask", 5000 + offset_s)):
        message = Image()
        message.header.stamp.sec = second
        inputs.topics[name].receive(message)
    inputs.synchronizer.expire(time.monotonic() + 10)
    assert f"an image on /image comes without one on /mask: the newest there is stamped {words}" in delivered[0].gap


def test_a_mask_waits_for_its_image(make_inputs):
    node, inputs = make_inputs(image_transport="compressed", mask_topic="people/mask")
    assert inputs.topics["mask"].name == "/people/mask" and inputs.topics["mask"].type is Image
    delivered: list = []
    inputs = CameraInputs(node, inputs.config, delivered.append)
    camera_info, mask = info_message(7, CAMERA), Image()
    image = CompressedImage(header=camera_info.header)
    mask.header = camera_info.header
    for name, message in (("camera_info", camera_info), ("image", image), ("mask", mask)):
        assert not delivered
        inputs.topics[name].receive(message)
    inputs.close()
    assert delivered[0].images == {"image": image, "mask": mask} and inputs.problem == ""


def test_what_is_no_topic_is_refused(make_inputs):
    with pytest.raises(ConfigError, match="parameter mask_topic is 'no topic', expected the name of a topic"):
        make_inputs(mask_topic="no topic")
    with pytest.raises(ConfigError, match="parameter camera_info_topic is 'no topic', expected the name of a topic"):
        make_inputs(camera_info_topic="no topic")


def test_a_camera_info_that_comes_once_is_not_missed(make_inputs, capfd):
    node, inputs = make_inputs(no_data_warning_s=0.5)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    publisher = node.create_publisher(CameraInfo, "camera_info", 1)

    def send() -> None:
        publisher.publish(info_message(1, CAMERA))
        executor.spin_once(timeout_sec=0.1)

    send_until(send, lambda: inputs.topics["camera_info"].count, "the CameraInfo", patience_s=0.2)
    time.sleep(0.6)
    inputs.check_silence()
    warnings = capfd.readouterr().err
    assert "nothing received on /image for" in warnings and "/camera_info for" not in warnings
    executor.shutdown()


def test_a_camera_info_that_was_sent_before_is_taken(make_inputs):
    """Offered transient_local, which a volatile subscription is compatible with, but never gets."""
    node, inputs = make_inputs()
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_publisher(CameraInfo, "camera_info", latched).publish(info_message(1, CAMERA))
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)

    def check() -> None:
        inputs.check_silence()
        executor.spin_once(timeout_sec=0.1)

    send_until(check, lambda: inputs.topics["camera_info"].count, "the CameraInfo", tries=100, patience_s=0.2)
    executor.shutdown()


@pytest.mark.parametrize(
    ("transport", "published", "remedy"),
    [
        ("raw", "/cam/image/compressed", "but /cam/image/compressed is there: set image_transport to compressed"),
        ("compressed", "/cam/image/compressed", "a container of its own, which needs --network=host and --ipc=host"),
        (
            "compressed",
            "/other/image/compressed",
            "sensor_msgs/msg/CompressedImage: /other/image; remap with -r image:=TOPIC",
        ),
    ],
)
def test_the_warning_names_the_remedy_for_images_that_do_not_arrive(make_inputs, capfd, transport, published, remedy):
    node, inputs = make_inputs(("image:=/cam/image",), no_data_warning_s=0.5, image_transport=transport)
    node.create_publisher(CompressedImage, published, 1)
    end = time.monotonic() + 30
    output = ""
    while remedy not in output and time.monotonic() < end:  # discovery takes its time, and a warning comes every 1.5 s
        time.sleep(0.2)
        inputs.check_silence()
        output += capfd.readouterr().err
    assert remedy in output


def test_an_exception_of_a_callback_does_not_end_the_node(make_inputs, capfd):
    """Logged with the topic and throttled, counted each time; for a subscription and a timer."""
    node, _ = make_inputs()

    def fail(*_: object) -> None:
        raise ValueError("a message that nobody expected")

    node.create_subscription(CameraInfo, "/strange", fail, 1)
    node.create_timer(0.05, fail)
    publisher = node.create_publisher(CameraInfo, "/strange", 1)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)

    def send() -> None:
        publisher.publish(info_message(1, CAMERA))
        executor.spin_once(timeout_sec=0.1)

    def failed_often() -> bool:
        return min(node.callback_errors["/strange"], node.callback_errors["a timer"]) >= 3

    send_until(send, failed_often, "three errors of each", patience_s=0.2)
    executor.shutdown()
    errors = capfd.readouterr().err
    for source in ("/strange", "a timer"):
        assert errors.count(f"internal error in the callback of {source} (number 1), the node goes on") == 1
        assert f"callback of {source} (number 2)" not in errors
    assert "ValueError: a message that nobody expected" in errors
