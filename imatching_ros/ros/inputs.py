"""Inputs of the node: camera topics paired by stamp, external odometry, and the reason when nothing arrives."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu

from ..camera.calibration import is_rectified
from ..core.errors import ConfigError
from .convert import stamp_ns
from .lifecycle import ManagedNode
from .middleware import OVERRIDES, explain_publisher, find_unknown_overrides, latched_only, make_qos, type_name
from .params import NodeConfig
from .synchronizer import Synchronizer

# Names of the image topics of each mode, the leading one first, and of their CameraInfo.
TOPICS = {
    "mono": {"image": "camera_info"},
    "stereo": {"left/image": "left/camera_info", "right/image": "right/camera_info"},
    "rgbd": {"image": "camera_info", "depth/image": ""},
}

MASK = "mask"  # subscribed to under the name that the parameter `mask_topic` gives
IMU = "imu"  # of `imu_topic`
EXTERNAL_ODOMETRY = "external_odometry"  # subscribed to unless `external_odometry.use` is off


@dataclass(frozen=True)
class CameraImages:
    """The messages of one instant: undecoded images by topic name, the leading one first, and the CameraInfo of each image topic.

    The leading image may come without its partner.
    """

    stamp_ns: int
    frame_id: str
    images: dict[str, Any]
    infos: dict[str, CameraInfo]
    rectified: bool
    gap: str = ""  # why the partner is missing; empty when it is there


@dataclass
class Topic:
    """A subscription and what arrived on it."""

    name: str  # resolved
    type: type
    take: Callable[[Any], None]
    given: str = ""  # what rclpy resolves to `name`
    subscription: Any = None
    last_s: float = field(default_factory=time.monotonic)  # of the newest message, or of the subscription
    count: int = 0
    newest_ns: int | None = None  # stamp of the newest image

    def receive(self, message: Any) -> None:
        self.last_s = time.monotonic()
        self.count += 1
        self.take(message)


class CameraInputs:
    """Subscribes while it exists. Its callbacks only store messages; `on_image` must do no more than that either.

    Raises:
        ConfigError: a QoS override or a name of a topic that is not possible; nothing is subscribed to then.

    Attributes:
        config: the node's settings; replaced when they change.
        topics: by relative name.
        external_odometry: messages that wait for the odometry, bounded; `append` and `popleft` are safe between threads.
        missing_info: images that could not be used because no CameraInfo has arrived.
        problem: what the newest image lacked; empty when it came complete.
    """

    ODOMETRY_WAITING = 2000  # messages: 10 s at 200 Hz
    ODOMETRY_DEPTH = 50  # of the subscription: a burst of 0.25 s at 200 Hz while Python is busy
    IMU_DEPTH = 200  # the same at 1 kHz
    CLOCKS_APART_S = 2.0  # no partner is so late
    INFO_GRACE_S = 1.0  # the first images may overtake the first CameraInfo

    def __init__(
        self,
        node: ManagedNode,
        config: NodeConfig,
        on_image: Callable[[CameraImages], None],
        with_external_odometry: bool = False,
        admit: Callable[[], bool] = lambda: True,
        on_imu: Callable[[Imu], None] = lambda message: None,
    ) -> None:
        """`admit` is called for each image of the leading camera; one that it refuses is not used. `on_imu` only stores messages."""
        self._node, self.config, self._on_image, self._admit = node, config, on_image, admit
        self.external_odometry: deque[Odometry] = deque(maxlen=self.ODOMETRY_WAITING)
        self._infos: dict[str, CameraInfo] = {}
        self._silence_warned_s: dict[str, float] = {}
        self.topics: dict[str, Topic] = {}
        self.missing_info = 0
        self.problem = ""
        self._first_missing_s: float | None = None
        # {image topic: CameraInfo topic}.
        self._images = TOPICS[config.mode] | ({MASK: ""} if config.mask_topic else {})
        self._leader = next(iter(self._images))
        slop_ns = round(config.sync_slop_s * 1e9) if config.sync == "approximate" else 0
        names = tuple(self._images)
        self.synchronizer = Synchronizer(names, slop_ns, self._deliver) if len(names) > 1 else None
        self._expiry = Expiry(node, self.synchronizer) if self.synchronizer is not None else None
        try:
            self._subscribe_cameras()
            if with_external_odometry:
                self._subscribe_external_odometry()
            if config.imu_topic:
                topic = resolve_parameter(node, "imu_topic")
                self._subscribe(IMU, Topic(topic, Imu, on_imu), depth=self.IMU_DEPTH)
        except Exception:
            self.close()
            raise
        for text in find_unknown_overrides(node):
            node.get_logger().warning(text)
        by_name = is_rectified(node.resolve_topic_name(self._leader))
        self.rectified = config.rectified == "yes" or (config.rectified == "auto" and by_name)

    def close(self) -> None:
        if self._expiry is not None:
            self._expiry.close()
        for topic in self.topics.values():
            self._node.destroy_subscription(topic.subscription)
        self.topics = {}

    @property
    def received(self) -> int:
        """Images of the leading camera so far."""
        return self.topics[self._leader].count if self.topics else 0

    @property
    def images(self) -> list[str]:
        """Names of the image topics, the leading one first."""
        return [self.topics[name].name for name in self._images if name in self.topics]

    def check_silence(self) -> None:
        """Warns of every topic on which nothing has arrived for `no_data_warning_s`, with the likely reason."""
        now = time.monotonic()
        for relative, topic in self.topics.items():
            if topic.type is CameraInfo and topic.count:
                continue  # it is kept; some drivers send it only once
            if topic.type is CameraInfo:
                self._take_latched(topic)
            silent_s = now - topic.last_s
            patience_s = self.config.no_data_warning_s
            if silent_s >= patience_s and now - self._silence_warned_s.get(topic.name, -1e9) >= 3 * patience_s:
                self._silence_warned_s[topic.name] = now
                self._node.get_logger().warning(
                    f"nothing received on {topic.name} for {silent_s:.0f} s: {self._explain(relative)}"
                )

    # -- subscriptions ------------------------------------------------------------------------------------------------

    def _subscribe_cameras(self) -> None:
        compressed = self.config.image_transport == "compressed"
        kind = CompressedImage if compressed else Image
        for name, info_name in self._images.items():
            if name == MASK:
                topic = resolve_parameter(self._node, "mask_topic")
                self._subscribe(name, Topic(topic, Image, partial(self._take, name)))
                continue
            topic = self._node.resolve_topic_name(name)
            topic = f"{topic}/{compressed_name(name)}" if compressed else topic
            self._subscribe(name, Topic(topic, kind, partial(self._take, name)))
            if info_name:
                topic = find_info_topic(self._node, name, info_name, info_parameter(name))
                self._subscribe(info_name, Topic(topic, CameraInfo, partial(self._infos.__setitem__, name)))

    def _subscribe_external_odometry(self) -> None:
        topic = self._node.resolve_topic_name(EXTERNAL_ODOMETRY)
        if topic == self._node.resolve_topic_name("odom"):
            self._node.get_logger().warning(
                f"{EXTERNAL_ODOMETRY} is remapped to {topic}, which this node publishes itself: not subscribed to; "
                "give its own odometry another name: -r odom:=visual_odom, or odom_topic:=visual_odom of the launch file"
            )
            return
        self._subscribe(
            EXTERNAL_ODOMETRY, Topic(topic, Odometry, self.external_odometry.append), depth=self.ODOMETRY_DEPTH
        )

    def _subscribe(self, name: str, topic: Topic, depth: int = qos_profile_sensor_data.depth) -> None:
        qos = make_qos(self._node, topic.name, depth)
        topic.given = self._find_given(name, topic.name)
        topic.subscription = self._node.create_subscription(
            topic.type, topic.given, topic.receive, qos, qos_overriding_options=OVERRIDES
        )
        self.topics[name] = topic

    def _find_given(self, name: str, resolved: str) -> str:
        """A name that becomes the resolved one: rclpy remaps a resolved name again.

        With external_odometry:=/odom and odom:=visual_odom, /odom would become the node's own odometry.
        """
        c = self.config
        parameters = (c.imu_topic, c.mask_topic, c.camera_info_topic, c.right_camera_info_topic)
        names = (resolved, name, *filter(None, parameters))
        return next((given for given in names if self._node.resolve_topic_name(given) == resolved), resolved)

    def _take_latched(self, topic: Topic) -> None:
        """Subscribes again for what was published before, where that is what the publisher offers."""
        transient = DurabilityPolicy.TRANSIENT_LOCAL
        if topic.subscription.qos_profile.durability == transient or not latched_only(self._node, topic.name):
            return
        self._node.destroy_subscription(topic.subscription)
        qos = QoSProfile(depth=1, durability=transient, reliability=ReliabilityPolicy.RELIABLE)
        topic.subscription = self._node.create_subscription(topic.type, topic.given, topic.receive, qos)

    # -- delivery -----------------------------------------------------------------------------------------------------

    def _take(self, name: str, message: Any) -> None:
        if name == self._leader and not self._admit():
            return
        if self.synchronizer is None or self._expiry is None:
            self._deliver({name: message})
        else:
            stamp = self.topics[name].newest_ns = stamp_ns(message.header.stamp)
            self.synchronizer.add(name, stamp, message, time.monotonic())
            self._expiry.schedule()

    def _deliver(self, images: dict[str, Any]) -> None:
        """Hands on the images of one instant, the leading one at least, when their calibration is there."""
        wanted = [name for name, info in self._images.items() if info]
        missing = next((name for name in wanted if name not in self._infos), None)
        if missing is not None:
            self._miss_info(missing)
            return
        lacking = next((name for name in self._images if name not in images), None)
        header = images[self._leader].header
        self.problem = "" if lacking is None else self._describe_gap(lacking, stamp_ns(header.stamp))
        if self.problem:
            self._node.warn_throttled("unpaired", self.problem)
        infos = {name: self._infos[name] for name in wanted}
        frame_id = header.frame_id.lstrip("/")  # ROS 1 wrote a slash, which TF2 does not know
        self._on_image(CameraImages(stamp_ns(header.stamp), frame_id, images, infos, self.rectified, self.problem))

    def _miss_info(self, name: str) -> None:
        now = time.monotonic()
        self.missing_info += 1
        self._first_missing_s = self._first_missing_s or now
        if now - self._first_missing_s < self.INFO_GRACE_S:
            return
        info_name = self._images[name]
        self.problem = f"images arrive on {self.topics[name].name}, but no CameraInfo on {self.topics[info_name].name}"
        self._node.warn_throttled("camera_info", f"{self.problem}: {self._explain(info_name)}")

    # -- reasons ------------------------------------------------------------------------------------------------------

    def _describe_gap(self, name: str, image_ns: int) -> str:
        """Why an image of a stamp comes without its partner of this name."""
        leader, partner = self.topics[self._leader], self.topics[name]
        text = f"an image on {leader.name} comes without one on {partner.name}"
        age_s = 0.0 if partner.newest_ns is None else (image_ns - partner.newest_ns) / 1e9
        if abs(age_s) > self.CLOCKS_APART_S and time.monotonic() - partner.last_s < 1.0:
            return f"{text}: the newest there is stamped {abs(age_s):.1f} s {'before' if age_s > 0 else 'after'} it: of another clock?"
        if self.synchronizer is None or self.synchronizer.gap_ns is None:
            late_s = 1.0  # where it is silent for longer, nothing comes any more
            late = time.monotonic() - partner.last_s < late_s
            return f"{text}, {'which has not come in time' if late else 'where nothing arrives'}"
        slop = f", sync_slop_s: {self.config.sync_slop_s:g}" if self.config.sync == "approximate" else ""
        gap_ms = self.synchronizer.gap_ns / 1e6
        return f"{text}: the nearest is {gap_ms:.3f} ms away (sync: {self.config.sync}{slop})"

    def _explain(self, relative: str) -> str:
        """Why nothing arrives on a topic."""
        topic = self.topics[relative]
        publishers = self._node.get_publishers_info_by_topic(topic.given)
        if not publishers:
            return f"nobody publishes it{self._suggest_topic(relative, topic)}"
        requested = topic.subscription.qos_profile
        return "; ".join(explain_publisher(p, topic.name, topic.type, requested) for p in publishers)

    def _suggest_topic(self, relative: str, topic: Topic) -> str:
        """Topics that do have a publisher, and how to subscribe to them."""
        node = self._node
        suffix = f"/{compressed_name(relative)}"
        if topic.type is Image and node.count_publishers(topic.name + suffix):
            return f", but {topic.name + suffix} is there: set image_transport to compressed, and leave the topic's name as it is"
        wanted = type_name(topic.type)
        others = sorted(
            name.removesuffix(suffix) if topic.type is CompressedImage else name
            for name, types in node.get_topic_names_and_types()
            if wanted in types and node.count_publishers(name) and not name.startswith(node.get_fully_qualified_name())
        )
        if not others:
            domain = node.context.get_domain_id()
            return f"; no topic of type {wanted} exists; is the camera running, with ROS_DOMAIN_ID {domain}?"
        image = next((name for name, info in self._images.items() if info == relative), None)
        own = {MASK: "mask_topic", IMU: "imu_topic"}
        parameter = own.get(relative, "" if image is None else info_parameter(image))
        remedy = f"set -p {parameter}:=TOPIC" if parameter else f"remap with -r {relative}:=TOPIC"
        return f"; topics of type {wanted}: {', '.join(others)}; {remedy}"


class Expiry:
    """The timer for messages that wait for a partner: it runs only while one waits."""

    # The executor runs timers first: a partner that has arrived, but was not taken yet, has its chance then.
    SECOND_LOOK_S = 0.001

    def __init__(self, node: ManagedNode, synchronizer: Synchronizer) -> None:
        self._node, self._synchronizer = node, synchronizer
        self._deadline_s: float | None = None
        self._due = False
        self._timer = node.create_timer(1.0, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._timer.cancel()

    def close(self) -> None:
        self._node.destroy_timer(self._timer)

    def schedule(self) -> None:
        """After each message: waits for the deadline, if that is a new one."""
        deadline_s = self._synchronizer.deadline_s
        if deadline_s == self._deadline_s:
            return
        self._deadline_s, self._due = deadline_s, False
        if deadline_s is None:
            self._timer.cancel()
        else:
            self._wait(deadline_s - time.monotonic())

    def _wait(self, seconds: float) -> None:
        self._timer.timer_period_ns = round(max(seconds, self.SECOND_LOOK_S) * 1e9)
        self._timer.reset()

    def _on_timer(self) -> None:
        self._timer.cancel()
        if not self._due:
            self._due = True
            self._wait(self.SECOND_LOOK_S)
            return
        self._synchronizer.expire(time.monotonic())
        self._deadline_s = None
        self.schedule()


def compressed_name(topic: str) -> str:
    """The name below an image topic under which image_transport publishes compressed images, colour or depth."""
    return "compressedDepth" if topic.startswith("depth/") else "compressed"


def info_parameter(image: str) -> str:
    """The parameter that names the CameraInfo topic of an image topic."""
    return "right_camera_info_topic" if image.startswith("right/") else "camera_info_topic"


def resolve_parameter(node: Node, parameter: str) -> str:
    """The full name of the topic that a parameter gives.

    Raises:
        ConfigError: it is no name of a topic.
    """
    given = node.get_parameter(parameter).value
    try:
        return node.resolve_topic_name(given)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"parameter {parameter} is {given!r}, expected the name of a topic: {error}") from None


def find_info_topic(node: Node, image: str, info: str, parameter: str) -> str:
    """The CameraInfo topic: the parameter's, else as remapped, else the sibling `camera_info` of the (remapped) image topic.

    rclpy cannot distinguish a remapping to the topic's own default name from none; hence the parameter.

    Raises:
        ConfigError: the parameter is no name of a topic.
    """
    if node.get_parameter(parameter).value:
        return resolve_parameter(node, parameter)
    resolved = node.resolve_topic_name(info)
    if resolved != node.resolve_topic_name(info, only_expand=True):
        return resolved
    return node.resolve_topic_name(image).rsplit("/", 1)[0] + "/camera_info"
