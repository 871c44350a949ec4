"""The frames.csv layout: frames.csv (index, timestamp, files), camera.json, groundtruth.txt in TUM format."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...core.errors import CameraError, SourceError
from ...camera.calibration import parse_json_camera
from .folder import Entry, Listing
from .text_files import ENCODING, Row, read_stamps, read_table
from .truth import read_trajectory

# The first of these columns that a file has is the image that odometry sees.
_IMAGE_COLUMNS = ("left", "rgb", "image", "gray", "grey")


def recognizes(path: Path) -> bool:
    """Whether `path` is such a folder."""
    return (path / "frames.csv").is_file()


def list_frames(path: Path) -> Listing:
    """Reads frames.csv and camera.json.

    Raises:
        SourceError: a csv without the columns that are needed.
        CameraError: a camera.json that cannot be understood.
    """
    columns, rows = read_table(path / "frames.csv")
    image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    if image is None or "timestamp" not in columns:
        raise SourceError(
            f"{path / 'frames.csv'} has the columns {', '.join(columns) or 'none'}; expected timestamp and one "
            f"of {', '.join(_IMAGE_COLUMNS)} (and depth or right)"
        )
    at = {name: columns.index(name) for name in ("timestamp", image, "depth", "right") if name in columns}

    def named(row: Row, column: str) -> Path | None:
        name = row.fields[at[column]] if column in at and at[column] < len(row.fields) else ""
        return path / name if name else None

    for row in rows:
        if named(row, "timestamp") is None or named(row, image) is None:
            raise SourceError(f"{row.path}, line {row.line}: no timestamp or no image")
    stamps = read_stamps([Row(row.path, row.line, [row.text(at["timestamp"])]) for row in rows])
    entries = [
        Entry(stamp, path / row.text(at[image]), named(row, "depth"), named(row, "right"))
        for stamp, row in zip(stamps.tolist(), rows)
    ]
    camera, units = None, 1000.0
    if (path / "camera.json").is_file():
        try:
            data = json.loads((path / "camera.json").read_text(encoding=ENCODING))
            camera = parse_json_camera(data["cameras"][0])
            if data.get("baseline_m"):
                camera = replace(camera, baseline_m=float(data["baseline_m"]))
            elif len(data["cameras"]) > 1 and "T_cam0_cam1" in data["cameras"][1]:
                camera = replace(camera, baseline_m=float(data["cameras"][1]["T_cam0_cam1"][0][3]))
            units = float(data.get("depth_scale", units))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CameraError(f"{path / 'camera.json'} cannot be understood: {type(error).__name__} {error}") from None
    truth = path / "groundtruth.txt"
    read_truth = partial(read_trajectory, truth) if truth.is_file() else None
    return Listing(path.resolve().name, entries, camera, units, None, read_truth, imu=path)
