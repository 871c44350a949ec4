"""rosbag2 and ROS 1 bags as frames: images with their CameraInfo, joined with depth or a right image by stamp."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...camera.model import Camera
from ...core.types import Frame
from ...core.errors import CameraError, SourceError
from .bag_reader import BagReader
from .bag_topics import BagTopics, choose_topics
from .bag_truth import read_truth
from .base import Source, SourceOptions, choose_mode
from ...camera.calibration import camera_from_info, check_size, is_rectified
from ...camera.decoding import decode_depth, decode_image
from ...camera.rectification import Rectification, calibrate_stereo
from .truth import Trajectory, read_trajectory

_STEREO_TOLERANCE_NS = 5_000_000
_DEPTH_TOLERANCE_NS = 20_000_000
_PENDING = 30  # a partner that has not come after so many images will not come


class BagSource(Source):
    """A bag. Opening it reads the topics and the first CameraInfo; images are read as they are iterated."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        """Raises:
        SourceError: unreadable bag, missing or ambiguous topics.
        CameraError: no calibration, or one of zeros.
        """
        super().__init__()
        self.name, self.options = path.resolve().name, options
        self._reader = BagReader(path, self.warn)
        self._first_ns: int | None = None
        self._count: int | None = None
        self.topics: BagTopics = choose_topics(self._reader.topics, options, self.name)
        topics = self.topics
        self.mode = choose_mode(options.mode, topics.right is not None, topics.depth is not None, self.name)
        infos = self._first_infos()
        self._rectification: Rectification | None = None
        self._stored_camera = options.camera or camera_from_info(
            infos[topics.info or ""], rectified=is_rectified(topics.image)
        )
        self.camera = self._stored_camera
        if self.mode == "stereo":
            self.camera = self._stereo_camera(infos)

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
        for _, _, message in self._reader.messages([self.topics.image]):
            stamp = stamp_of(message)
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
        self._first_ns = None
        partner_topic = {"stereo": self.topics.right, "rgbd": self.topics.depth}.get(self.mode)
        if partner_topic is None:
            for _, _, message in self._reader.messages([self.topics.image]):
                yield from self._frame(message, None)
            return
        tolerance = _STEREO_TOLERANCE_NS if self.mode == "stereo" else _DEPTH_TOLERANCE_NS
        pending: deque[Any] = deque()
        partners: deque[Any] = deque()
        for topic, _, message in self._reader.messages([self.topics.image, partner_topic]):
            (pending if topic == self.topics.image else partners).append(message)
            # An image waits until a partner as late as itself has come, so that the nearest is known.
            while pending and (
                len(pending) > _PENDING or (partners and stamp_of(partners[-1]) >= stamp_of(pending[0]))
            ):
                yield from self._join(pending.popleft(), partners, tolerance)
        while pending:
            yield from self._join(pending.popleft(), partners, tolerance)

    def groundtruth(self) -> Trajectory | None:
        if self.options.no_groundtruth:
            return None
        if self.options.groundtruth is not None:
            stamps = np.array([stamp_of(m) for _, _, m in self._reader.messages([self.topics.image])], np.int64)
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

    def _to_frames(self, truth: Trajectory | None) -> Trajectory | None:
        if truth is None or self._rectification is None:
            return truth
        return truth.transformed(self._rectification.T_left_rectified)

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

    def _stereo_camera(self, infos: dict[str, Any]) -> Camera:
        """The camera of the rectified pair; prepares the rectification when the images are raw."""
        if self.options.camera is not None:
            if self.options.camera.baseline_m is None or self.options.camera.is_distorted:
                raise CameraError(
                    "a camera file for a stereo bag must describe rectified images and hold 'baseline_m'; or use --mode mono"
                )
            return self.options.camera
        left, right = (infos.get(topic or "") for topic in (self.topics.info, self.topics.right_info))
        if right is None:
            raise CameraError(
                f"the CameraInfo of {self.topics.right} is missing; record it, give a camera file with 'baseline_m', or use --mode mono"
            )
        camera, self._rectification = calibrate_stereo(left, right, is_rectified(self.topics.image))
        return camera

    def _join(self, message: Any, partners: deque[Any], tolerance_ns: int) -> Iterator[Frame]:
        stamp = stamp_of(message)
        while len(partners) > 1 and abs(stamp_of(partners[1]) - stamp) <= abs(stamp_of(partners[0]) - stamp):
            partners.popleft()
        partner = partners[0] if partners and abs(stamp_of(partners[0]) - stamp) <= tolerance_ns else None
        yield from self._frame(message, partner)

    def _frame(self, message: Any, partner: Any) -> Iterator[Frame]:
        """One frame, or none when the image cannot be decoded."""
        stamp = stamp_of(message)
        if self._first_ns is None:
            self._first_ns = stamp
        elif (stamp - self._first_ns) / 1e9 < self.options.start_s:
            return  # decoding what the time range leaves out would take minutes on a long recording
        try:
            image = decode_image(message)
        except SourceError as error:
            self.warn(f"{error}: frame skipped", stamp)
            return
        check_size(self._stored_camera, image.shape[1], image.shape[2], f"the image on {self.topics.image}")
        depth = right = None
        try:
            if partner is not None and self.mode == "rgbd":
                depth = decode_depth(partner)
            elif partner is not None:
                right = decode_image(partner)
        except SourceError as error:
            self.warn(f"{error}: frame skipped", stamp)
            return
        if depth is not None and depth.shape != image.shape[1:]:
            raise CameraError(
                f"depth on {self.topics.depth} is {depth.shape[1]} x {depth.shape[0]}, the image {image.shape[2]} x "
                f"{image.shape[1]}; use depth registered to the image (aligned_depth_to_color) or --mode mono"
            )
        if self._rectification is not None:
            image, right = self._rectification.apply(image, right)
        yield Frame(0, stamp, image, self.camera, depth, right)


def stamp_of(message: Any) -> int:
    """The header's stamp in ns, of a ROS 1 or ROS 2 message of rosbags."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
