"""Which topics of a bag are the camera, chosen without asking where only one choice makes sense."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...camera.calibration import base_topic
from ...core.errors import CameraError, SourceError
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


def choose_topics(topics: dict[str, str], options: SourceOptions, name: str) -> BagTopics:
    """Chooses among {topic: type}.

    Raises:
        SourceError: a requested topic that is not there, no images, or several cameras.
        CameraError: no CameraInfo and no camera file.
    """
    for given, types in (
        (options.image_topic, IMAGE_TYPES),
        (options.right_topic, IMAGE_TYPES),
        (options.depth_topic, IMAGE_TYPES),
        (options.info_topic, (INFO_TYPE,)),
        (options.truth_topic, (*POSE_TYPES, "tf2_msgs/msg/TFMessage")),
        (options.external_odometry_topic, (*POSE_TYPES, "tf2_msgs/msg/TFMessage")),
    ):
        if given is not None and topics.get(given) not in types:
            there = f"is a {topics[given]}" if given in topics else "is not there"
            raise SourceError(
                f"topic {given} {there} in {name}; expected one of type {' or '.join(types)}; {_list(topics, types)}"
            )

    images = {t for t, kind in topics.items() if kind in IMAGE_TYPES}
    if not images:
        raise SourceError(f"{name} has no images; {_list(topics)}")
    depths = {t for t in images if _DEPTH.search(t)}
    colours = _best_transport(images - depths)
    rights = {t: left for t in colours if (left := _left_of(t, colours)) is not None}
    image = options.image_topic
    if image is None:
        candidates = sorted(t for t in colours if t not in rights)
        candidates = _one_per_camera(candidates)
        if len(candidates) != 1:
            raise SourceError(
                f"{name} has {len(candidates)} cameras; choose one with --image-topic: {', '.join(candidates or sorted(images))}"
            )
        image = candidates[0]
    info = options.info_topic or _info_of(image, topics)
    if info is None and options.camera is None:
        raise CameraError(
            f"{name} has no CameraInfo for {image}; give a calibration with --camera FILE (camera.json, or the yaml of ROS "
            f"camera_calibration) or name its topic with --camera-info-topic; {_list(topics)}"
        )
    right = options.right_topic or next((t for t, left in sorted(rights.items()) if left == image), None)
    depth = options.depth_topic
    if depth is None and len(_best_transport(depths)) == 1:
        depth = next(iter(_best_transport(depths)))
    truth = options.truth_topic
    if truth is None:
        named = sorted(t for t, kind in topics.items() if kind in POSE_TYPES and _TRUTH.search(t))
        truth = named[0] if len(named) == 1 else None
    return BagTopics(image, info, right, _info_of(right, topics) if right else None, depth, truth)


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
