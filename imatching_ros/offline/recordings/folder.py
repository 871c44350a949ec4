"""A recording that is images in a folder; the layouts (frames.csv, TUM, EuRoC, KITTI) differ only in how they list them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...camera.model import Camera
from ...core.types import Frame
from ...core.errors import CameraError, SourceError
from .base import Source, SourceOptions, choose_mode
from ...camera.calibration import check_size, plausibility_warning
from ...camera.decoding import Stretch, read_depth, read_image
from ...camera.rectification import Rectification
from .imu import ImuRecording, read_imu
from .truth import Trajectory, read_trajectory


@dataclass(frozen=True)
class Entry:
    """The files of one frame."""

    stamp_ns: int
    image: Path
    depth: Path | None = None
    right: Path | None = None


@dataclass(frozen=True)
class Listing:
    """What a layout lists of a recording, before the user's options."""

    name: str
    entries: list[Entry]
    camera: Camera | None  # of the images as stored; None when the layout has no calibration
    depth_units_per_metre: float = 1000.0
    rectification: Callable[[], Rectification] | None = None  # for stereo pairs that are not stored rectified
    truth: Callable[..., Trajectory | None] | None = None  # as `read_trajectory`, with stamps_ns and warn
    T_body_camera: np.ndarray | None = None  # (4, 4), of the body whose poses EuRoC's files of truth hold
    imu: Path | None = None  # the folder that holds imu0/


class FolderSource(Source):
    """Frames from a `Listing`."""

    def __init__(self, listing: Listing, options: SourceOptions) -> None:
        super().__init__()
        self.name, self.options = listing.name, options
        self._listing = listing
        if not listing.entries:
            raise SourceError(f"{self.name} lists no images")
        has = [(e.right is not None, e.depth is not None) for e in listing.entries]
        self.mode = choose_mode(options.mode, any(right for right, _ in has), any(depth for _, depth in has), self.name)
        camera = options.camera or listing.camera
        if camera is None:
            raise CameraError(
                f"{self.name} has no camera calibration; give one with --camera FILE (camera.json, or the yaml of ROS "
                "camera_calibration)"
            )
        self._stored_camera = camera
        self._rectification = None
        if self.mode == "stereo" and listing.rectification is not None:
            self._rectification = listing.rectification()
            camera = self._rectification.camera
        elif self.mode == "stereo" and camera.baseline_m is None:
            raise CameraError(
                f"{self.name} has no stereo baseline; give a camera.json with 'baseline_m' by --camera FILE, or use --mode mono"
            )
        self.camera = camera
        if text := plausibility_warning(camera):
            self.warn(text)

    @property
    def length(self) -> int:
        """Frames within the time range (those that turn out unreadable included)."""
        first = self._listing.entries[0].stamp_ns
        start, span = self.options.start_s, self.options.duration_s
        since = [(e.stamp_ns - first) / 1e9 for e in self._listing.entries]
        return sum(s >= start and (span is None or s <= start + span) for s in since)

    def files(self) -> list[Path]:
        return [file for e in self._listing.entries for file in (e.image, e.depth, e.right) if file is not None]

    def read(self) -> Iterator[Frame]:
        first = self._listing.entries[0].stamp_ns
        stretch, loaded = Stretch(), False
        for entry in self._listing.entries:
            # Decoding what the time range leaves out anyway would cost minutes on a long recording.
            if 0 < (entry.stamp_ns - first) / 1e9 < self.options.start_s:
                continue
            try:
                frame = self._load(entry, stretch)
            except (SourceError, CameraError) as error:
                if not loaded and isinstance(error, CameraError):
                    raise  # the calibration is of other images; later it is one image that is
                self.warn(f"{error}: frame skipped", entry.stamp_ns)
                continue
            loaded = True
            yield frame

    def _load(self, entry: Entry, stretch: Stretch) -> Frame:
        image = read_image(entry.image, stretch)
        check_size(self._stored_camera, image.shape[1], image.shape[2], f"the image {entry.image}")
        depth = right = None
        if self.mode == "rgbd" and entry.depth is not None:
            depth = read_depth(entry.depth, self._listing.depth_units_per_metre)
            if depth.shape != image.shape[1:]:
                raise CameraError(
                    f"the depth image {entry.depth} is {depth.shape[1]} x {depth.shape[0]}, its image is "
                    f"{image.shape[2]} x {image.shape[1]}; depth must be registered to the image"
                )
        if self.mode == "stereo":
            if entry.right is None:
                raise SourceError(f"the image {entry.image} has no right image")
            right = read_image(entry.right, stretch)
            if self._rectification is not None:
                image, right = self._rectification.apply(image, right)
        return Frame(0, entry.stamp_ns, image, self.camera, depth, right)

    def groundtruth(self) -> Trajectory | None:
        if self.options.no_groundtruth:
            return None
        stamps = np.array([e.stamp_ns for e in self._listing.entries], np.int64)
        truth: Trajectory | None = None
        if self.options.groundtruth is not None:
            truth = read_trajectory(self.options.groundtruth, stamps, self._listing.T_body_camera, self.warn)
        elif self._listing.truth is not None:
            truth = self._listing.truth(stamps_ns=stamps, warn=self.warn)
        if truth is not None and self._rectification is not None:
            truth = truth.transformed(self._rectification.T_left_rectified)
        return truth

    def imu(self) -> ImuRecording | None:
        folder = self._listing.imu
        if super().imu() is None and (folder is None or not (folder / "imu0" / "data.csv").is_file()):
            return None
        assert folder is not None, "checked above"
        found = read_imu(folder, self._listing.T_body_camera)
        if self._rectification is None:
            return found
        return found.turned(self._rectification.T_left_rectified[:3, :3].T)
