"""Camera topics: which ones, with which QoS, paired by stamp, and a word when nothing arrives."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import (
    QoSCompatibility,
    QoSDurabilityPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_check_compatible,
    qos_profile_sensor_data,
)
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ..camera.calibration import is_rectified
from ..core.errors import ConfigError
from .convert import stamp_ns
from .params import NodeConfig
from .qos import OVERRIDES, find_unknown_overrides, make_qos
from .synchronizer import Synchronizer

# Names of the image topics of each mode, the leading one first, and of their CameraInfo.
TOPICS = {
    "mono": {"image": "camera_info"},
    "stereo": {"left/image": "left/camera_info", "right/image": "right/camera_info"},
    "rgbd": {"image": "camera_info", "depth/image": ""},
}

ODOMETRY = "odometry"  # from elsewhere; listened to when `external_odometry.use` asks for it
_ODOMETRY_WAITING = 2000  # messages: 10 s at 200 Hz
_ODOMETRY_DEPTH = 50  # of the subscription: they come in bursts while Python is busy

_INFO_GRACE_S = 1.0  # the first images may overtake the first CameraInfo


@dataclass(frozen=True)
class CameraImages:
    """What the cameras delivered at one instant: undecoded messages by topic name, and the CameraInfo of each image topic.

    The image that leads may come without its partner.
    """

    stamp_ns: int
    frame_id: str
    images: dict[str, Any]
    infos: dict[str, CameraInfo]
    rectified: bool


@dataclass
class _Topic:
    name: str
    type: type
    subscription: Any
    last_s: float  # monotonic time of the newest message, or of the subscription
    count: int = 0


class CameraInputs:
    """Subscribes while it exists. Its callbacks only store messages; `on_image` must do no more than that either.

    Raises:
        ConfigError: a QoS override or a topic that cannot be; nothing is subscribed to then.

    Attributes:
        topics: by relative name.
        odometry: messages from elsewhere that nobody has taken yet, bounded; `append` and `popleft` are safe between threads.
        missing_info: images that could not be used because no CameraInfo has arrived.
        problem: what the newest image lacked; empty when it came complete.
    """

    def __init__(
        self,
        node: Node,
        config: NodeConfig,
        on_image: Callable[[CameraImages], None],
        warn: Callable[[str, str], None],
        with_odometry: bool = False,
    ) -> None:
        self._node, self.config, self._on_image, self._warn = node, config, on_image, warn
        self.odometry: deque[Odometry] = deque(maxlen=_ODOMETRY_WAITING)
        self._infos: dict[str, CameraInfo] = {}
        self._warned_s: dict[str, float] = {}
        self.topics: dict[str, _Topic] = {}
        self.missing_info = 0
        self.problem = ""
        self._first_missing_s: float | None = None
        images = TOPICS[config.mode]
        leader = next(iter(images))
        self._leader = leader
        slop_ns = round(config.sync_slop_s * 1e9) if config.sync == "approximate" else 0
        self.synchronizer = Synchronizer(tuple(images), slop_ns, self._deliver) if len(images) > 1 else None
        try:
            self._subscribe_all(with_odometry)
        except Exception:
            self.close()
            raise
        for text in find_unknown_overrides(node):
            node.get_logger().warning(text)
        named_so = is_rectified(node.resolve_topic_name(leader))
        self.rectified = config.rectified == "yes" or (config.rectified == "auto" and named_so)

    def close(self) -> None:
        for topic in self.topics.values():
            self._node.destroy_subscription(topic.subscription)
        self.topics = {}

    @property
    def received(self) -> int:
        """Images of the leading camera so far."""
        return self.topics[self._leader].count if self.topics else 0

    def check_silence(self) -> None:
        """Warns of every topic that has been silent for too long, with all that is known about why."""
        now = time.monotonic()
        for topic in self.topics.values():
            if topic.type is CameraInfo and topic.count:
                continue  # it is kept; some drivers send it only once
            silent_s = now - topic.last_s
            patience_s = self.config.no_data_warning_s
            if silent_s >= patience_s and now - self._warned_s.get(topic.name, -1e9) >= 3 * patience_s:
                self._warned_s[topic.name] = now
                self._node.get_logger().warning(
                    f"nothing received on {topic.name} for {silent_s:.0f} s: {self._explain(topic)}"
                )

    def _subscribe_all(self, with_odometry: bool) -> None:
        for name, info_name in TOPICS[self.config.mode].items():
            topic = self._node.resolve_topic_name(name)
            compressed = self.config.image_transport == "compressed"
            self._subscribe(
                name,
                f"{topic}/{compressed_name(name)}" if compressed else topic,
                CompressedImage if compressed else Image,
                lambda message, name=name: self._take(name, message),
            )
            if info_name:
                self._subscribe(
                    info_name,
                    find_info_topic(self._node, name, info_name, self._info_parameter(name)),
                    CameraInfo,
                    lambda message, name=name: self._infos.__setitem__(name, message),
                )
        if with_odometry:
            self._subscribe_odometry()

    @staticmethod
    def _info_parameter(image: str) -> str:
        """Which parameter names the CameraInfo of an image topic."""
        return "right_camera_info_topic" if image.startswith("right/") else "camera_info_topic"

    def _subscribe_odometry(self) -> None:
        topic = self._node.resolve_topic_name(ODOMETRY)
        if topic == self._node.resolve_topic_name("odom"):
            self._node.get_logger().warning(
                f"{ODOMETRY} is remapped to {topic}, which this node publishes itself: not listened to; "
                "give its own odometry another name: -r odom:=visual_odom, or odom_topic:=visual_odom of the launch file"
            )
            return
        self._subscribe(ODOMETRY, topic, Odometry, self.odometry.append, _ODOMETRY_DEPTH)

    def _subscribe(
        self, name: str, topic: str, kind: type, take: Callable[[Any], None], depth: int = qos_profile_sensor_data.depth
    ) -> None:
        entry = _Topic(topic, kind, None, time.monotonic())

        def receive(message: Any) -> None:
            entry.last_s = time.monotonic()
            entry.count += 1
            take(message)

        qos = make_qos(self._node, topic, depth)
        entry.subscription = self._node.create_subscription(kind, topic, receive, qos, qos_overriding_options=OVERRIDES)
        self.topics[name] = entry

    def _take(self, name: str, message: Any) -> None:
        if self.synchronizer is None:
            self._deliver({name: message})
        else:
            self.synchronizer.add(name, stamp_ns(message.header.stamp), message)

    def _deliver(self, images: dict[str, Any]) -> None:
        wanted = [name for name, info in TOPICS[self.config.mode].items() if info]
        for name in wanted:
            if name not in self._infos:
                self.missing_info += 1
                self._first_missing_s = self._first_missing_s or time.monotonic()
                if time.monotonic() - self._first_missing_s < _INFO_GRACE_S:
                    return
                info = self.topics[TOPICS[self.config.mode][name]]
                self.problem = f"images arrive on {self.topics[name].name}, but no CameraInfo on {info.name}"
                self._warn("camera_info", f"{self.problem}: {self._explain(info)}")
                return
        self.problem = self._describe_gap() if len(images) < len(TOPICS[self.config.mode]) else ""
        if self.problem:
            self._warn("alone", self.problem)
        header = images[self._leader].header
        self._on_image(
            CameraImages(
                stamp_ns(header.stamp),
                header.frame_id,
                images,
                {name: self._infos[name] for name in wanted},
                self.rectified,
            )
        )

    def _describe_gap(self) -> str:
        """Why an image comes without its partner."""
        leader, partner = (self.topics[name] for name in TOPICS[self.config.mode])
        text = f"an image on {leader.name} comes without one on {partner.name}"
        if self.synchronizer is None or self.synchronizer.gap_ns is None:
            return f"{text}, where nothing arrives"
        return f"{text}: the nearest is {self.synchronizer.gap_ns / 1e6:.3f} ms away (sync: {self.config.sync}" + (
            f", sync_slop_s: {self.config.sync_slop_s:g})" if self.config.sync == "approximate" else ")"
        )

    def _explain(self, topic: _Topic) -> str:
        publishers = self._node.get_publishers_info_by_topic(topic.name)
        wanted_type = f"{topic.type.__module__.split('.')[0]}/msg/{topic.type.__name__}"
        if not publishers:
            relative = next(name for name, entry in self.topics.items() if entry is topic)
            suffix = f"/{compressed_name(relative)}"
            if topic.type is Image and self._node.count_publishers(topic.name + suffix):
                return f"nobody publishes it, but {topic.name + suffix} is there: set image_transport to compressed, and leave the topic's name as it is"
            others = sorted(
                name.removesuffix(suffix) if topic.type is CompressedImage else name
                for name, types in self._node.get_topic_names_and_types()
                if wanted_type in types
                and self._node.count_publishers(name)
                and not name.startswith(self._node.get_fully_qualified_name())
            )
            image = next((name for name, info in TOPICS[self.config.mode].items() if info == relative), None)
            remedy = (
                f"remap with -r {relative}:=TOPIC"
                if image is None
                else f"give one by -p {self._info_parameter(image)}:=TOPIC"
            )
            hint = (
                f"topics of type {wanted_type}: {', '.join(others)}; {remedy}"
                if others
                else f"no topic of type {wanted_type} exists; is the camera running, with ROS_DOMAIN_ID {self._domain()}?"
            )
            return f"nobody publishes it; {hint}"
        reasons = []
        requested = topic.subscription.qos_profile
        for publisher in publishers:
            node_name = f"{publisher.node_namespace.rstrip('/')}/{publisher.node_name}"
            if publisher.topic_type != wanted_type:
                reasons.append(
                    f"{node_name} publishes {publisher.topic_type}, expected {wanted_type} (see the parameter image_transport)"
                )
                continue
            verdict, reason = qos_check_compatible(publisher.qos_profile, requested)
            offers = f"offered {describe_qos(publisher.qos_profile)}, requested {describe_qos(requested)}"
            if verdict != QoSCompatibility.ERROR:
                reasons.append(f"{node_name} publishes it with fitting QoS ({offers}), but sends nothing")
            else:
                late = (publisher.qos_profile.durability, requested.durability) == (
                    QoSDurabilityPolicy.VOLATILE,
                    QoSDurabilityPolicy.TRANSIENT_LOCAL,
                )
                reasons.append(
                    f"{node_name} publishes it, QoS does not fit ({offers}): {reason.rstrip(';')}; set for example "
                    f"qos_overrides.{topic.name}.subscription.{'durability:=volatile' if late else 'reliability:=best_effort'}"
                )
        return "; ".join(reasons)

    def _domain(self) -> int:
        return self._node.context.get_domain_id()


def describe_qos(qos: QoSProfile) -> str:
    return f"{QoSReliabilityPolicy(qos.reliability).name} {QoSDurabilityPolicy(qos.durability).name}"


def compressed_name(topic: str) -> str:
    """Under which name image_transport publishes a compressed image of a topic, colour or depth."""
    return "compressedDepth" if topic.startswith("depth/") else "compressed"


def find_info_topic(node: Node, image: str, info: str, parameter: str) -> str:
    """The CameraInfo topic: what the parameter says, else as remapped, else the sibling `camera_info` of the (remapped) image topic.

    A remapping to the very name that the topic has without one cannot be told from none; hence the parameter.

    Raises:
        ConfigError: the parameter is no name of a topic.
    """
    given = node.get_parameter(parameter).value
    if given:
        try:
            return node.resolve_topic_name(given)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"parameter {parameter} is {given!r}, expected the name of a topic: {error}") from None
    resolved = node.resolve_topic_name(info)
    if resolved != node.resolve_topic_name(info, only_expand=True):
        return resolved
    return node.resolve_topic_name(image).rsplit("/", 1)[0] + "/camera_info"
