"""The EuRoC MAV (ASL) layout: mav0/cam0, cam1, imu0, state_groundtruth_estimate0."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import yaml

from ...camera.model import Camera
from ...core.errors import CameraError
from .base import associate
from ...camera.calibration import read_camera
from .folder import Entry, Listing
from ...camera.rectification import Rectification
from .text_files import ENCODING, read_rows, read_stamps
from .truth import read_trajectory

# The cameras are triggered together; stamps of a pair are equal up to a driver's rounding.
_TOLERANCE_NS = 2_000_000


def recognizes(path: Path) -> bool:
    """Whether `path` is mav0 or the folder around it."""
    return any((_root(path) / "cam0" / name).is_file() for name in ("sensor.yaml", "data.csv"))


def _root(path: Path) -> Path:
    return path / "mav0" if (path / "mav0").is_dir() else path


def list_frames(path: Path) -> Listing:
    """Reads both cameras; the truth of the body is carried over to the left camera by T_BS.

    Without sensor.yaml there is the left camera alone, uncalibrated.

    Raises:
        SourceError: a data.csv that cannot be read.
        CameraError: a sensor.yaml that cannot be understood.
    """
    root = _root(path)
    stamps, images = _read_list(root / "cam0")
    own = root / "cam0" / "sensor.yaml"
    camera, T_B_left = _read_sensor(own) if own.is_file() else (None, None)
    rights, rectification = [None] * len(images), None
    if camera is not None and T_B_left is not None and (root / "cam1" / "sensor.yaml").is_file():
        right_stamps, right_images = _read_list(root / "cam1")
        partner = associate(stamps, right_stamps, _TOLERANCE_NS)
        rights = [right_images[p] if p >= 0 else None for p in partner]
        right_camera, T_B_right = _read_sensor(root / "cam1" / "sensor.yaml")

        rectification = partial(Rectification, camera, right_camera, np.linalg.inv(T_B_left) @ T_B_right)

    file = next(
        (p for p in (root / "state_groundtruth_estimate0" / "data.csv", root / "mocap0" / "data.csv") if p.is_file()),
        None,
    )

    truth = None if file is None else partial(read_trajectory, file, T_body_camera=T_B_left)
    entries = [Entry(int(s), image, None, right) for s, image, right in zip(stamps, images, rights)]
    name = root.resolve().parent.name if root.name == "mav0" else root.resolve().name
    return Listing(name, entries, camera, rectification=rectification, truth=truth, T_body_camera=T_B_left, imu=root)


def _read_list(folder: Path) -> tuple[np.ndarray, list[Path]]:
    rows = read_rows(folder / "data.csv", columns=2)
    return read_stamps(rows, unit_ns=1), [folder / "data" / row.text(1) for row in rows]


def _read_sensor(path: Path) -> tuple[Camera, np.ndarray]:
    camera = read_camera(path)
    try:
        T_BS = yaml.safe_load(path.read_text(encoding=ENCODING).replace("%YAML:1.0", ""))["T_BS"]["data"]
        return camera, np.array(T_BS, float).reshape(4, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise CameraError(f"the camera file {path} holds no 4 x 4 pose T_BS: {type(error).__name__} {error}") from None
