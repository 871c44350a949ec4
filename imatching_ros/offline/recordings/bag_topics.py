"""Which topics of a bag are the camera, chosen without asking where only one choice makes sense."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...camera.calibration import base_topic
from ...camera.decoding import ENCODINGS
from ...core.errors import CameraError, SourceError
from .bag_imu import IMU_TYPE
from .bag_reader import BagReader
from .base import SourceOptions

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
INFO_TYPE = "sensor_msgs/msg/CameraInfo"
POSE_TYPES = (
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
    "nav_msgs/msg/Odometry",
    "geometry_msgs/msg/TransformStamped",
)
_TRUTH = re.compile(r"truth|(^|[/_])gt([/_]|$)|mocap|vicon|optitrack|leica", re.IGNORECASE)
_DEPTH = re.compile(r"depth|disparity", re.IGNORECASE)
_ALIGNED = re.compile(r"aligned|registered", re.IGNORECASE)
DEPTH_ENCODINGS = ("16UC1", "32FC1")
# A topic is the right camera's when swapping one of these words gives the left camera's.
_SIDES = (("right", "left"), ("infra2", "infra1"), ("cam1", "cam0"), ("camera1", "camera0"), ("image_1", "image_0"))

_RANKING = ("image_rect_color", "image_rect", "image_raw", "image_color", "image", "image_mono")


@dataclass(frozen=True)
class BagTopics:
    """The topics of one camera."""

    image: str
    info: str | None
    right: str | None
    right_info: str | None
    depth: str | None
    truth: str | None


def choose_topics(reader: BagReader, options: SourceOptions, name: str) -> BagTopics:
    """Chooses among the topics that hold messages.

    Raises:
        SourceError: a requested topic that is not there, no images, several cameras, or several depth topics of one camera.
        CameraError: no CameraInfo and no camera file.
    """
    _check_given(reader, options, name)
    empty = {t for t, count in reader.counts.items() if count == 0}
    topics = {t: kind for t, kind in reader.topics.items() if t not in empty}
    images = {t for t, kind in topics.items() if kind in IMAGE_TYPES}
    if not images:
        silent = sorted(t for t in empty if reader.topics.get(t) in IMAGE_TYPES)
        none = f"; its image topics hold no messages: {', '.join(silent)}" if silent else ""
        raise SourceError(f"{name} has no images{none}; {_list(topics)}")
    depths = {t for t in images if _is_depth(reader, t)}
    colours = _best_transport({t for t in images - depths if not _shows_depth(t)} or images - depths)
    rights = {t: left for t in colours if (left := _left_of(t, colours)) is not None}
    image = options.image_topic or _choose_image(colours - rights.keys(), images, name)
    info = options.info_topic or _info_of(image, topics)
    if info is None and options.camera is None:
        raise CameraError(
            f"{name} has no CameraInfo for {image}; give a calibration with --camera FILE (camera.json, or the yaml of ROS "
            f"camera_calibration) or name its topic with --camera-info-topic; {_list(topics)}"
        )
    right = options.right_topic or next((t for t, left in sorted(rights.items()) if left == image), None)
    depth = options.depth_topic
    if depth is None and options.mode in ("auto", "rgbd"):
        depth = _choose_depth(image, _best_transport(depths), name)
    truth = options.truth_topic or _choose_truth(topics)
    return BagTopics(image, info, right, _info_of(right, topics) if right else None, depth, truth)


def _check_given(reader: BagReader, options: SourceOptions, name: str) -> None:
    """Raises SourceError for a topic that was asked for and is not there, is of another type, or holds no messages."""
    poses = (*POSE_TYPES, "tf2_msgs/msg/TFMessage")
    for given, types in (
        (options.image_topic, IMAGE_TYPES),
        (options.right_topic, IMAGE_TYPES),
        (options.depth_topic, IMAGE_TYPES),
        (options.info_topic, (INFO_TYPE,)),
        (options.truth_topic, poses),
        (options.external_odometry_topic, poses),
        (options.imu_topic, (IMU_TYPE,)),
    ):
        topics = reader.topics
        if given is not None and topics.get(given) not in types:
            there = f"is a {topics[given]}" if given in topics else "is not there"
            raise SourceError(
                f"topic {given} {there} in {name}; expected one of type {' or '.join(types)}; {_list(topics, types)}"
            )
        if given is not None and reader.counts.get(given) == 0:
            raise SourceError(f"topic {given} in {name} holds no messages; {_list(topics, types)}")


def _choose_image(candidates: set[str], images: set[str], name: str) -> str:
    """The image topic of the only camera; SourceError where there are several. `images`: all there are."""
    cameras = _one_per_camera(sorted(candidates))
    if len(cameras) != 1:
        raise SourceError(
            f"{name} has {len(cameras)} cameras; choose one with --image-topic: {', '.join(cameras or sorted(images))}"
        )
    return cameras[0]


def _choose_truth(topics: dict[str, str]) -> str | None:
    """The only topic of poses whose name calls it the truth."""
    named = sorted(t for t, kind in topics.items() if kind in POSE_TYPES and _TRUTH.search(t))
    return named[0] if len(named) == 1 else None


def _is_depth(reader: BagReader, topic: str) -> bool:
    """By the encoding of the first image where that decides, else by the name without the transport.

    image_transport offers compressedDepth of every image, of colour too.
    """
    named = _DEPTH.search(base_topic(topic)) is not None
    first = reader.first(topic)
    encoding = getattr(first, "encoding", None) or getattr(first, "format", "").split(";")[0].strip()
    if encoding in DEPTH_ENCODINGS:
        return True
    return named and (encoding == "mono16" or encoding not in ENCODINGS) and "jp" not in encoding  # `png` or nothing


def _shows_depth(topic: str) -> bool:
    """Whether an image that does not measure depth is one of depth in colours, or colour in the transport of depth."""
    *_, parent, leaf = ("/" + base_topic(topic)).split("/")
    return topic.endswith("/compressedDepth") or parent == "depth" or _DEPTH.search(leaf) is not None


def _choose_depth(image: str, depths: set[str], name: str) -> str | None:
    """The depth topic of an image topic: the only one, the one that its name calls aligned, or the one of its own namespace.

    Raises:
        SourceError: several, none of which is preferable.
    """
    candidates = _one_per_camera(sorted(depths))
    if len(candidates) < 2:
        return candidates[0] if candidates else None

    def rank(topic: str) -> tuple[bool, int]:
        shared = [a == b for a, b in zip(topic.split("/"), image.split("/"))]
        return _ALIGNED.search(topic) is not None, (shared + [False]).index(False)

    best = max(map(rank, candidates))
    chosen = [t for t in candidates if rank(t) == best]
    if len(chosen) > 1:
        raise SourceError(
            f"{name} has {len(candidates)} depth topics, and no name tells which is aligned to {image}; choose one with --depth-topic, or "
            f"use --mode mono: {', '.join(candidates)}"
        )
    return chosen[0]


def _best_transport(topics: set[str]) -> set[str]:
    """Raw before compressed, one for each base topic."""
    best: dict[str, str] = {}
    for topic in sorted(topics, key=len):
        best.setdefault(base_topic(topic), topic)
    return set(best.values())


def _one_per_camera(topics: list[str]) -> list[str]:
    """One camera often has image_raw, image_mono, image_color, image_rect side by side: the best of them is enough."""
    cameras: dict[str, list[str]] = {}
    for topic in topics:
        cameras.setdefault(base_topic(topic).rsplit("/", 1)[0], []).append(topic)
    chosen = []
    for group in cameras.values():
        leaves = {base_topic(topic).rsplit("/", 1)[-1]: topic for topic in group}
        if all(leaf in _RANKING for leaf in leaves):
            chosen.append(leaves[min(leaves, key=_RANKING.index)])
        else:
            chosen += group
    return chosen


def _left_of(topic: str, topics: set[str]) -> str | None:
    for right, left in _SIDES:
        if right in topic and (partner := left.join(topic.rsplit(right, 1))) in topics and partner != topic:
            return partner
    return None


def _info_of(image: str, topics: dict[str, str]) -> str | None:
    """camera_info beside the image, as image_transport demands; else the only one in the bag."""
    infos = [t for t, kind in topics.items() if kind == INFO_TYPE]
    beside = base_topic(image).rsplit("/", 1)[0] + "/camera_info"
    if beside in infos:
        return beside
    return infos[0] if len(infos) == 1 else None


def _list(topics: dict[str, str], types: tuple[str, ...] = ()) -> str:
    """The topics there are, those of the wanted type if any."""
    wanted = {t: kind for t, kind in topics.items() if kind in types} or topics
    return "topics: " + ", ".join(f"{t} ({kind})" for t, kind in sorted(wanted.items()))
