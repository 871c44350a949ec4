"""What every recording offers: frames in time order, a camera, and the true trajectory where there is one."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...camera.masks import check_mask, read_mask
from ...camera.model import Camera
from ...core.timing import BACKWARD_JUMP_S, StampOrder
from ...core.types import Frame
from ...odometry.measurements import lacking
from ...core.errors import SourceError
from .imu import ImuRecording
from .truth import Trajectory, read_trajectory

log = logging.getLogger(__name__)

BAG_SUFFIXES = (".mcap", ".db3", ".bag", ".mcap.zstd", ".db3.zstd")
MODES = ("auto", "mono", "stereo", "rgbd")


@dataclass(frozen=True)
class SourceOptions:
    """The options of a recording; what is not given is found out from the recording."""

    mode: str = "auto"  # mono drops depth and right images; stereo and rgbd demand them
    camera: Camera | None = None  # replaces the recording's own
    mask: Path | None = None  # image file, non-zero where the frames are not used
    groundtruth: Path | None = None
    start_s: float = 0.0  # relative to the first frame
    duration_s: float | None = None
    image_topic: str | None = None
    info_topic: str | None = None
    right_topic: str | None = None
    depth_topic: str | None = None
    truth_topic: str | None = None
    external_odometry: Path | None = None  # poses of the camera
    external_odometry_topic: str | None = None
    imu_topic: str | None = None  # of a bag
    rectified: str | None = None  # yes or no; None: by the name of the topic
    sync_slop_s: float | None = None  # largest difference of the stamps of a pair; None: the node's default
    no_groundtruth: bool | None = None  # True leaves the true trajectory aside; None as all that is not given


class Source(ABC):
    """A recording. Iterating yields frames of strictly ascending stamps; iterating again starts again.

    Where the clock was set back, frames are left out until the old time is reached, unless `on_jump` is set.

    Attributes:
        name: for people.
        mode: mono, stereo or rgbd: what the frames carry.
        camera: of the frames; with `baseline_m` in stereo.
        warnings: what was wrong and survivable, in order.
        on_warning: called with (stamp_ns or None, text) as it happens.
        on_jump: called before the first frame of the new time when the stamps have jumped back; stamps ascend from there.
    """

    name: str
    mode: str
    camera: Camera
    options: SourceOptions

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.on_warning: Callable[[int | None, str], None] | None = None
        self.on_jump: Callable[[], None] | None = None
        self._reads = 0

    @abstractmethod
    def read(self) -> Iterator[Frame]:
        """Frames as recorded; ids and order are put right by `__iter__`."""

    @abstractmethod
    def groundtruth(self) -> Trajectory | None:
        """The true trajectory of the frames' camera, all of it, or None."""

    def odometry(self) -> Trajectory | None:
        """External odometry as a trajectory of the frames' camera, where the user has named some, else None.

        A file holds poses of the camera; on a topic, the static transforms of the bag carry another frame over to it.

        Raises:
            SourceError: unreadable file, no such topic, or a topic whose frame is not connected to the camera's.
        """
        if self.options.external_odometry_topic is not None:
            raise SourceError(
                f"{self.name} is no bag and has no topic {self.options.external_odometry_topic}; give the odometry as a file"
            )
        return (
            None
            if self.options.external_odometry is None
            else read_trajectory(self.options.external_odometry, warn=self.warn)
        )

    def imu(self) -> ImuRecording | None:
        """Angular rates about the axes of the frames' camera, where the recording holds some, or the user has named a topic; else None.

        Raises:
            SourceError: no such topic, or rates whose mounting is not known.
        """
        if self.options.imu_topic is not None:
            raise SourceError(f"{self.name} is no bag and has no topic {self.options.imu_topic}; it is read from imu0/")
        return None

    def recorded_s(self) -> float:
        """When the newest frame was recorded, s; where that is not held, endless time passes between frames: a gap is no jump."""
        self._reads += 1
        return self._reads * 1e9

    @property
    def length(self) -> int | None:
        """The number of frames where it is known before reading."""
        return None

    def count_frames(self) -> int:
        """The number of frames; read through where it is not known before (unreadable ones may be counted).

        Raises:
            SourceError: no frames.
        """
        return self.length if self.length is not None else sum(1 for _ in self)

    def files(self) -> list[Path]:
        """The files that hold the images, in their order."""
        return []

    def __iter__(self) -> Iterator[Frame]:
        order = StampOrder(self.recorded_s)
        tolerance_s = math.inf if self.on_jump is None else BACKWARD_JUMP_S
        first_ns = last_ns = None  # first: of the time that the options count from
        count = 0
        mask = None if self.options.mask is None else read_mask(self.options.mask)
        for frame in self.read():
            stamp_ns = frame.stamp_ns
            verdict = order.check(stamp_ns, tolerance_s)
            if verdict.dropped:
                self.warn(f"frame after frame {count - 1} skipped: {verdict.reason}", stamp_ns)
                continue
            if verdict.restarts and self.on_jump is not None and first_ns is not None and last_ns is not None:
                self.warn(f"{verdict.reason}: odometry starts again", stamp_ns)
                self.on_jump()
                first_ns += stamp_ns - last_ns
            last_ns = stamp_ns
            first_ns = stamp_ns if first_ns is None else first_ns
            since_start = (stamp_ns - first_ns) / 1e9
            if since_start < self.options.start_s:
                continue
            if self.options.duration_s is not None and since_start > self.options.start_s + self.options.duration_s:
                break
            lacks = lacking(frame, self.mode)
            if not count and lacks:
                self.warn(f"no {lacks} image of this time, with which a map begins: frame skipped", stamp_ns)
                continue
            if mask is not None:
                _, height, width = frame.image.shape
                check_mask(mask, height, width, f"the mask {self.options.mask}")
            yield replace(frame, id=count, stamp_ns=stamp_ns, mask=mask)
            count += 1
        if not count:
            raise SourceError(
                f"{self.name} yields no frames" + (" in the requested time range" if first_ns is not None else "")
            )

    def warn(self, text: str, stamp_ns: int | None = None) -> None:
        """Notes something survivable."""
        self.warnings.append(text)
        if self.on_warning is not None:
            self.on_warning(stamp_ns, text)
        else:
            log.warning("%s: %s", self.name, text)


def choose_mode(requested: str, has_right: bool, has_depth: bool, name: str) -> str:
    """The mode of a source that offers these.

    Raises:
        SourceError: the recording cannot serve the requested mode.
    """
    if requested == "stereo" and not has_right:
        raise SourceError(f"{name} has no second camera; expected one for --mode stereo")
    if requested == "rgbd" and not has_depth:
        raise SourceError(f"{name} has no depth; expected depth images for --mode rgbd")
    if requested != "auto":
        return requested
    return "rgbd" if has_depth else "stereo" if has_right else "mono"


def list_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files of a folder with these suffixes, numbers in their names counted: 2 before 10.

    Hidden files are left out: macOS puts a `._NAME` beside every NAME on foreign disks.
    """
    ends = tuple(suffixes)
    found = [p for p in folder.iterdir() if p.name.lower().endswith(ends) and not p.name.startswith(".")]
    return sorted(found, key=lambda p: [int(s) if s.isdecimal() else s for s in re.split(r"([0-9]+)", p.name)])


def associate(stamps_ns: np.ndarray, others_ns: np.ndarray, tolerance_ns: int) -> np.ndarray:
    """The index of the nearest of `others_ns` (ascending) for every stamp; -1 beyond the tolerance. (N,), (M,) -> (N,) int64."""
    if not len(others_ns):
        return np.full(len(stamps_ns), -1)
    right = np.clip(np.searchsorted(others_ns, stamps_ns), 1, max(len(others_ns) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(others_ns) - 1)
    nearest = np.where(np.abs(others_ns[left] - stamps_ns) <= np.abs(others_ns[right] - stamps_ns), left, right)
    return np.where(np.abs(others_ns[nearest] - stamps_ns) <= tolerance_ns, nearest, -1)


def identify(source: Source) -> str:
    """16 hex digits of the SHA-256 over the sizes of a recording's files and over their beginnings and ends.

    It survives a move and a renaming; a bag that has grown is another recording.
    """
    part_bytes, most_read = 65536, 16  # of thousands of images, sizes and the first and last few suffice
    digest = hashlib.sha256()
    files = source.files()
    read = {*files[: most_read // 2], *files[-most_read // 2 :]}
    for file in files:
        try:
            size = file.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            if file in read:
                with file.open("rb") as opened:
                    digest.update(opened.read(part_bytes))
                    opened.seek(max(size - part_bytes, 0))
                    digest.update(opened.read(part_bytes))
        except OSError:  # an image that is missing is skipped when it is read, too
            digest.update(b"missing")
    return digest.hexdigest()[:16]
