"""The TUM RGB-D layout: rgb.txt, depth.txt, groundtruth.txt."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ...camera.model import Camera
from .base import associate
from ...camera.calibration import read_camera
from .folder import Entry, Listing
from .text_files import read_rows, read_stamps
from .truth import read_trajectory

# Colour and depth of a Kinect are not synchronised; the benchmark's own tool associates within 20 ms.
_TOLERANCE_NS = 20_000_000
_DEPTH_UNITS_PER_METRE = 5000.0

# As published on the benchmark's page (intrinsic calibration of the RGB cameras).
_PUBLISHED = {
    "freiburg1": Camera(640, 480, 517.3, 516.5, 318.6, 255.3, "plumb_bob", (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "freiburg2": Camera(640, 480, 520.9, 521.0, 325.1, 249.7, "plumb_bob", (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "freiburg3": Camera(640, 480, 535.4, 539.2, 320.1, 247.6),
}


def recognizes(path: Path) -> bool:
    """Whether `path` is such a folder."""
    return (path / "rgb.txt").is_file()


def list_frames(path: Path) -> Listing:
    """Reads the lists; the camera is camera.json or camera.yaml in the folder, or the published one of the series.

    Raises:
        SourceError: a list that cannot be read.
    """
    stamps, images = _read_list(path / "rgb.txt")
    depth_stamps, depths = (
        _read_list(path / "depth.txt") if (path / "depth.txt").is_file() else (np.zeros(0, np.int64), [])
    )
    partner = associate(stamps, depth_stamps, _TOLERANCE_NS)
    entries = [
        Entry(int(s), path / image, path / depths[p] if p >= 0 else None)
        for s, image, p in zip(stamps, images, partner)
    ]
    calibration = next((path / name for name in ("camera.json", "camera.yaml") if (path / name).is_file()), None)
    if calibration is not None:
        camera: Camera | None = read_camera(calibration)
    else:
        camera = next((c for name, c in _PUBLISHED.items() if name in path.resolve().name), None)
    truth = path / "groundtruth.txt"
    return Listing(
        path.resolve().name,
        entries,
        camera,
        _DEPTH_UNITS_PER_METRE,
        None,
        partial(read_trajectory, truth) if truth.is_file() else None,
        imu=path,
    )


def _read_list(path: Path) -> tuple[np.ndarray, list[str]]:
    rows = read_rows(path, columns=2)
    return read_stamps(rows), [row.text(1) for row in rows]
