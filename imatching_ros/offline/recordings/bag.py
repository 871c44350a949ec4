"""rosbag2 and ROS 1 bags as frames: images with their CameraInfo, joined with depth or a right image by stamp."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...camera.model import Camera
from ...core.timing import SYNC_SLOP_S
from ...core.types import Frame
from ...core.errors import CameraError, SourceError
from .bag_imu import read_imu_topic
from .bag_reader import BagReader
from .bag_topics import BagTopics, choose_topics
from .bag_truth import read_truth
from .base import Source, SourceOptions, choose_mode
from ...camera.calibration import camera_from_info, check_size, plausibility_warning, info_field, is_rectified
from ...camera.decoding import Stretch, decode_depth, decode_image
from ...camera.rectification import Rectification, calibrate_stereo
from .imu import ImuRecording
from .truth import Trajectory, read_trajectory

_PENDING = 30  # a partner that has not come after so many images will not come


class BagSource(Source):
    """A bag. Opening it reads the topics and the first CameraInfo; images are read as they are iterated."""

    _stored_camera: Camera

    def __init__(self, path: Path, options: SourceOptions) -> None:
        """Raises:
        SourceError: unreadable bag, missing or ambiguous topics.
        CameraError: no calibration, or one of zeros.
        """
        super().__init__()
        self.name, self.options = path.resolve().name, options
        self._reader = BagReader(path, self.warn)
        self._first_ns: int | None = None
        self._recorded_ns = 0
        self._count: int | None = None
        self.topics: BagTopics = choose_topics(self._reader, options, self.name)
        topics = self.topics
        self.mode = choose_mode(options.mode, topics.right is not None, topics.depth is not None, self.name)
        self._partner = {"stereo": topics.right, "rgbd": topics.depth}.get(self.mode)
        self._unstamped = self._find_unstamped()
        self._image_size = self._first_size()
        self._rectification: Rectification | None = None
        self._stretch = Stretch()
        self._infos = self._first_infos()
        self._calibrate(self._infos)
        if text := plausibility_warning(self.camera):
            self.warn(text)

    @property
    def length(self) -> int | None:
        """Messages of the image topic, unless there is a time range."""
        if self.options.start_s or self.options.duration_s is not None:
            return None
        return self._reader.counts.get(self.topics.image) or None

    def count_frames(self) -> int:
        """Reads the stamps where the bag holds no count; images are not decoded."""
        if self._count is None:
            self._count = self.length if self.length is not None else self._count_stamps()
        return self._count

    def _count_stamps(self) -> int:
        first = last = None
        count = 0
        end_s = math.inf if self.options.duration_s is None else self.options.start_s + self.options.duration_s
        for _, recorded_ns, message in self._reader.messages([self.topics.image]):
            stamp = self._stamp(recorded_ns, message)
            first = stamp if first is None else first
            if last is not None and stamp <= last:
                continue  # so does iteration
            last = stamp
            if (stamp - first) / 1e9 > end_s:
                break
            count += (stamp - first) / 1e9 >= self.options.start_s
        return count

    def files(self) -> list[Path]:
        return self._reader.files

    def read(self) -> Iterator[Frame]:
        self._first_ns, self._stretch = None, Stretch()
        infos = dict(self._infos)
        self._calibrate(infos)
        topics = self.topics
        info_topics = {topics.info, topics.right_info} if self.options.camera is None else set()
        wanted = {t for t in (topics.image, self._partner, *info_topics) if t is not None}
        unpaired = _Unpaired()
        pending: deque[tuple[int, Any]] = deque()
        partners: deque[tuple[int, Any]] = deque()
        changes: deque[tuple[int, str, Any]] = deque()
        for topic, recorded_ns, message in self._reader.messages(wanted):
            self._recorded_ns = recorded_ns
            stamped = self._stamp(recorded_ns, message), message
            if topic in info_topics:
                changes.append((stamped[0], topic, message))
                continue
            (pending if topic == topics.image else partners).append(stamped)
            # An image waits until a partner as late as itself has come, so that the nearest is known.
            while pending and (
                self._partner is None or len(pending) > _PENDING or (partners and partners[-1][0] >= pending[0][0])
            ):
                self._follow_infos(infos, changes, pending[0][0])
                yield from self._join(*pending.popleft(), partners, unpaired)
        while pending:
            self._follow_infos(infos, changes, pending[0][0])
            yield from self._join(*pending.popleft(), partners, unpaired)
        if unpaired.count:
            self.warn(unpaired.describe(topics.image, self._partner, self._slop_ns))

    def recorded_s(self) -> float:
        return self._recorded_ns / 1e9

    @property
    def _slop_ns(self) -> int:
        given = self.options.sync_slop_s
        return round((SYNC_SLOP_S if given is None else given) * 1e9)

    def groundtruth(self) -> Trajectory | None:
        if self.options.no_groundtruth:
            return None
        if self.options.groundtruth is not None:
            images = self._reader.messages([self.topics.image])
            stamps = np.array([self._stamp(recorded_ns, m) for _, recorded_ns, m in images], np.int64)
            return self._to_frames(read_trajectory(self.options.groundtruth, stamps, warn=self.warn))
        if self.topics.truth is None:
            return None
        return self._to_frames(read_truth(self._reader, self.topics.truth, self.topics.image))

    def odometry(self) -> Trajectory | None:
        topic = self.options.external_odometry_topic
        if topic is None:
            return self._to_frames(super().odometry())
        found = read_truth(self._reader, topic, self.topics.image, connected=True)
        if found is None:
            raise SourceError(f"{topic} in {self.name} holds no message")
        return self._to_frames(found)

    def imu(self) -> ImuRecording | None:
        topic = self.options.imu_topic
        if topic is None:
            return None
        found = read_imu_topic(self._reader, topic, self.topics.image)
        if self._rectification is None:
            return found
        return found.turned(self._rectification.T_left_rectified[:3, :3].T)

    def _to_frames(self, truth: Trajectory | None) -> Trajectory | None:
        if truth is None or self._rectification is None:
            return truth
        return truth.transformed(self._rectification.T_left_rectified)

    # -- stamps -------------------------------------------------------------------------------------------------------

    def _stamp(self, recorded_ns: int, message: Any) -> int:
        """The header's stamp in ns; the time of recording where the images carry none."""
        return recorded_ns if self._unstamped else stamp_of(message)

    def _find_unstamped(self) -> bool:
        """Whether the first images carry no stamp. One may be of a driver that is starting."""
        first = [stamp_of(message) for _, _, message in islice(self._reader.messages([self.topics.image]), 2)]
        if not first or any(first):
            return False
        self.warn(f"the images on {self.topics.image} carry no stamp (all zeros): the time of recording is used")
        return True

    # -- calibration --------------------------------------------------------------------------------------------------

    def _first_infos(self) -> dict[str, Any]:
        """{topic: its first message} of the CameraInfo topics."""
        wanted = {t for t in (self.topics.info, self.topics.right_info) if t is not None}
        found: dict[str, Any] = {}
        for topic, _, message in self._reader.messages(wanted) if wanted else ():
            found.setdefault(topic, message)
            if len(found) == len(wanted):
                break
        if self.options.camera is None and self.topics.info not in found:
            raise CameraError(
                f"{self.topics.info} in {self.name} holds no message; give a calibration with --camera FILE"
            )
        return found

    def _first_size(self) -> tuple[int, int] | None:
        """(width, height) of the first image that can be decoded; None where the first ones cannot."""
        for _, _, message in islice(self._reader.messages([self.topics.image]), 3):
            try:
                _, height, width = decode_image(message).shape
            except SourceError:
                continue
            return width, height
        return None

    def _follow_infos(self, infos: dict[str, Any], changes: deque[tuple[int, str, Any]], stamp_ns: int) -> None:
        """Takes over what CameraInfo says by the stamp of an image: a lens that focuses, a driver that starts again."""
        before = dict(infos)
        while changes and changes[0][0] <= stamp_ns:
            _, topic, message = changes.popleft()
            infos[topic] = message
        if all(_same_calibration(before.get(topic), info) for topic, info in infos.items()):
            return
        camera = self.camera
        try:
            self._calibrate(infos)
        except CameraError as error:
            self.warn(f"CameraInfo changes to one that cannot be used, and the one before is kept: {error}", stamp_ns)
            infos.update(before)
            return
        if not self.camera.is_like(camera):
            self.warn(f"CameraInfo changes from {camera} to {self.camera}", stamp_ns)

    def _calibrate(self, infos: dict[str, Any]) -> None:
        """Sets the camera of the stored images, that of the frames, and how raw pairs are rectified."""
        topics, given, size = self.topics, self.options.camera, self._image_size
        if self.options.rectified is None:
            rectified = is_rectified(topics.image)
        else:
            rectified = self.options.rectified == "yes"
        stored = given or camera_from_info(infos[topics.info or ""], rectified=rectified, image_size=size)
        camera, rectification = stored, None
        if self.mode == "stereo" and given is not None:
            if given.baseline_m is None or given.is_distorted:
                raise CameraError(
                    "a camera file for a stereo bag must describe rectified images and hold 'baseline_m'; or use --mode mono"
                )
        elif self.mode == "stereo":
            left, right = (infos.get(topic or "") for topic in (topics.info, topics.right_info))
            if right is None:
                raise CameraError(
                    f"the CameraInfo of {topics.right} is missing; record it, give a camera file with 'baseline_m', or use --mode mono"
                )
            camera, rectification = calibrate_stereo(left, right, rectified, size)
        self._stored_camera, self.camera, self._rectification = stored, camera, rectification

    # -- frames -------------------------------------------------------------------------------------------------------

    def _join(self, stamp: int, message: Any, partners: deque[tuple[int, Any]], unpaired: _Unpaired) -> Iterator[Frame]:
        """The frame of an image with the nearest partner within the slop."""
        while len(partners) > 1 and abs(partners[1][0] - stamp) <= abs(partners[0][0] - stamp):
            partners.popleft()
        partner = None
        if partners and abs(partners[0][0] - stamp) <= self._slop_ns:
            partner = partners[0][1]
        elif self._partner is not None:
            unpaired.add(abs(partners[0][0] - stamp) if partners else None)
        yield from self._frame(stamp, message, partner)

    def _frame(self, stamp: int, message: Any, partner: Any) -> Iterator[Frame]:
        """One frame, or none when the image cannot be used."""
        begins = self._first_ns is None
        first_ns = self._first_ns = stamp if self._first_ns is None else self._first_ns
        if 0 < (stamp - first_ns) / 1e9 < self.options.start_s:
            return  # decoding what the time range leaves out would take minutes on a long recording
        try:
            yield self._decode(stamp, message, partner)
        except (SourceError, CameraError) as error:
            if begins and isinstance(error, CameraError):
                raise  # the calibration is of other images; later it is one image that is
            self.warn(f"{error}: frame skipped", stamp)

    def _decode(self, stamp: int, message: Any, partner: Any) -> Frame:
        image = decode_image(message, self._stretch)
        check_size(self._stored_camera, image.shape[1], image.shape[2], f"the image on {self.topics.image}")
        depth = right = None
        if partner is not None and self.mode == "rgbd":
            depth = decode_depth(partner)
        elif partner is not None:
            right = decode_image(partner, self._stretch)
        if depth is not None and depth.shape != image.shape[1:]:
            raise CameraError(
                f"depth on {self.topics.depth} is {depth.shape[1]} x {depth.shape[0]}, the image {image.shape[2]} x "
                f"{image.shape[1]}; use depth registered to the image (aligned_depth_to_color) or --mode mono"
            )
        if self._rectification is not None:
            image, right = self._rectification.apply(image, right)
        return Frame(0, stamp, image, self.camera, depth, right)


class _Unpaired:
    """Images without a partner, and how far the nearest one was."""

    def __init__(self) -> None:
        self.count = 0
        self._gaps_ns: list[int] = []

    def add(self, gap_ns: int | None) -> None:
        self.count += 1
        if gap_ns is not None:
            self._gaps_ns.append(gap_ns)

    def describe(self, image: str, partner: str | None, slop_ns: int) -> str:
        nearest = "none is there"
        if self._gaps_ns:
            nearest = f"the nearest is {float(np.median(self._gaps_ns)) / 1e6:.3f} ms away (median; --sync-slop-s)"
        return f"{self.count} images on {image} come without one on {partner} within {slop_ns / 1e6:g} ms: {nearest}; they are only tracked"


def _same_calibration(a: Any, b: Any) -> bool:
    if a is None:
        return False
    names = ("d", "k", "r", "p")
    plain = ("width", "height", "distortion_model", "binning_x", "binning_y", "roi")
    return all(np.array_equal(info_field(a, n), info_field(b, n)) for n in names) and all(
        getattr(a, n, None) == getattr(b, n, None) for n in plain
    )


def stamp_of(message: Any) -> int:
    """The header's stamp in ns, of a ROS 1 or ROS 2 message of rosbags."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
