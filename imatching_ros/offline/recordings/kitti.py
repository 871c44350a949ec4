"""The KITTI odometry layout: calib.txt, times.txt, image_0 .. image_3, poses beside the sequences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...camera.model import Camera
from ...core.errors import CameraError, SourceError
from .base import list_files
from .folder import Entry, Listing
from ...camera.decoding import read_image
from .text_files import read_rows, read_stamps, read_text
from .truth import Trajectory, read_trajectory


def recognizes(path: Path) -> bool:
    """Whether `path` is a sequence folder."""
    return (path / "calib.txt").is_file() and any((path / f"image_{i}").is_dir() for i in range(4))


def list_frames(path: Path) -> Listing:
    """Reads a sequence; grey (image_0, image_1) before colour (image_2, image_3).

    Raises:
        SourceError: times or images missing.
        CameraError: a calib.txt without the projection of the camera.
    """
    left = next(i for i in range(4) if (path / f"image_{i}").is_dir())
    right = left + 1 if left % 2 == 0 and (path / f"image_{left + 1}").is_dir() else None
    images = _images(path / f"image_{left}")
    if not images:
        raise SourceError(f"{path / f'image_{left}'} holds no images")
    stamps = read_stamps(read_rows(path / "times.txt"))
    if len(stamps) < len(images):
        raise SourceError(f"{path / 'times.txt'} holds {len(stamps)} times for {len(images)} images")
    others = {p.stem: p for p in _images(path / f"image_{right}")} if right is not None else {}
    entries = [Entry(stamp, image, None, others.get(image.stem)) for stamp, image in zip(stamps.tolist(), images)]

    P = _read_calibration(path / "calib.txt")
    if f"P{left}" not in P:
        raise CameraError(f"{path / 'calib.txt'} has no P{left}; found {', '.join(P) or 'nothing'}")
    projection = P[f"P{left}"]
    _, height, width = read_image(images[0]).shape
    camera = Camera(width, height, projection[0, 0], projection[1, 1], projection[0, 2], projection[1, 2])
    if others and f"P{right}" in P:
        baseline = float((projection[0, 3] - P[f"P{right}"][0, 3]) / projection[0, 0])
        camera = replace(camera, baseline_m=baseline)
    # Poses are of camera 0; P = K [I | -C] gives the centre of the others.
    T_0_left = np.eye(4)
    T_0_left[:3, 3] = -np.linalg.solve(projection[:, :3], projection[:, 3])
    poses = next(
        (p for p in (path / "poses.txt", path.parent.parent / "poses" / f"{path.resolve().name}.txt") if p.is_file()),
        None,
    )

    def truth(**how: Any) -> Trajectory | None:
        return None if poses is None else read_trajectory(poses, **how).transformed(T_0_left)

    return Listing(f"KITTI {path.resolve().name}", entries, camera, truth=truth)


def _images(folder: Path) -> list[Path]:
    return list_files(folder, (".png", ".jpg", ".jpeg"))


def _read_calibration(path: Path) -> dict[str, np.ndarray]:
    matrices = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name, _, numbers = line.partition(":")
        try:
            values = np.array(numbers.split(), float)
        except ValueError:
            raise CameraError(f"{path}, line {number}: {name} holds something that is not a number") from None
        if values.size == 12:
            matrices[name.strip()] = values.reshape(3, 4)
    return matrices
