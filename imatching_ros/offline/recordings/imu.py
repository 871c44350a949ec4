"""Angular rates of a recording, and imu0/data.csv of EuRoC and TUM-VI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from ...core.errors import SourceError
from .text_files import ENCODING, read_rows, read_stamps


@dataclass(frozen=True)
class ImuRecording:
    """What a gyroscope has measured about the axes of a camera."""

    stamps_ns: np.ndarray  # (N,) int64 of the sensor, ascending
    rates: np.ndarray  # (N, 3) float64 rad/s

    def turned(self, R: np.ndarray) -> ImuRecording:
        """About the axes that R (3, 3) turns the present ones to."""
        return ImuRecording(self.stamps_ns, self.rates @ R.T)


def read_imu(folder: Path, T_body_camera: np.ndarray | None) -> ImuRecording:
    """imu0/data.csv (ns, rad/s, m/s^2) below a folder, about the axes of the camera.

    The mounting is T_BS of imu0/sensor.yaml, else T_cam_imu of dso/camchain.yaml beside it (TUM-VI).

    Args:
        T_body_camera: (4, 4); None where the camera is the body.

    Raises:
        SourceError: a table or a mounting that cannot be read.
    """
    rows = read_rows(folder / "imu0" / "data.csv")
    values = np.array([[row.number(column) for column in (1, 2, 3)] for row in rows]).reshape(-1, 3)
    stamps = read_stamps(rows, unit_ns=1)
    order = np.argsort(stamps, kind="stable")
    recording = ImuRecording(stamps[order], values[order])
    return recording.turned(_read_mounting(folder, np.eye(4) if T_body_camera is None else T_body_camera))


def _read_mounting(folder: Path, T_body_camera: np.ndarray) -> np.ndarray:
    """R_camera_imu (3, 3)."""
    own, kalibr = folder / "imu0" / "sensor.yaml", folder.parent / "dso" / "camchain.yaml"
    try:
        if own.is_file():
            T_BS = _parse(own)["T_BS"]["data"]
            T = np.linalg.inv(T_body_camera) @ np.array(T_BS, float).reshape(4, 4)
        else:
            T = np.array(_parse(kalibr)["cam0"]["T_cam_imu"], float).reshape(4, 4)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{folder / 'imu0'} has no mounting: expected T_BS in {own.name}, or T_cam_imu of cam0 in {kalibr} "
            f"({type(error).__name__} {error})"
        ) from None
    return _check_rotation(T[:3, :3], own)


def _parse(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding=ENCODING).replace("%YAML:1.0", ""))


def _check_rotation(R: np.ndarray, name: object) -> np.ndarray:
    if not np.allclose(R @ R.T, np.eye(3), atol=1e-3) or not np.linalg.det(R) > 0:
        raise SourceError(f"the mounting in {name} is no rotation: {R.round(4).tolist()}")
    return R
