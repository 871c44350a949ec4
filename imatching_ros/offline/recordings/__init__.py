"""Recordings as frames: rosbags and folders of data sets, behind one `Source`."""

from __future__ import annotations

from pathlib import Path

from ...core.errors import SourceError
from . import euroc, frames_csv, kitti, tum
from .base import BAG_SUFFIXES, Source, SourceOptions, list_files
from .folder import FolderSource


def open_source(path: str | Path, options: SourceOptions = SourceOptions()) -> Source:
    """Opens a rosbag2 (folder, .mcap, bare .db3), a ROS 1 .bag, or a folder in one of the four layouts.

    Raises:
        SourceError: no such path, or nothing that is known in it; the message names what was looked for.
        CameraError: no usable calibration.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(f"{path} does not exist; expected a rosbag or a folder of images")
    if is_bag(path):
        from .bag import BagSource

        return BagSource(path, options)
    if path.is_dir():
        for layout in (frames_csv, tum, euroc, kitti):
            if layout.recognizes(path):
                return FolderSource(layout.list_frames(path), options)
        inside = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))[:8]
        raise SourceError(
            f"{path} is not a known recording. Looked for: metadata.yaml, *.mcap or *.db3 (rosbag2), *.bag (ROS 1), "
            "frames.csv, rgb.txt (TUM RGB-D), mav0/cam0/sensor.yaml or data.csv (EuRoC), calib.txt with image_0 .. image_3 (KITTI odometry). "
            f"Found: {', '.join(inside) or 'an empty folder'}"
        )
    raise SourceError(
        f"{path} is a file of unknown kind; expected .mcap, .db3 (both also with .zstd) or .bag, or a folder"
    )


def is_bag(path: Path) -> bool:
    """Whether `path` is a bag file or a folder that holds one."""
    if path.is_file():
        return path.name.lower().endswith(BAG_SUFFIXES)
    return (path / "metadata.yaml").is_file() or bool(list_files(path, BAG_SUFFIXES))
