"""The frames.csv layout: frames.csv (index, timestamp, files), camera.json, groundtruth.txt in TUM format."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...core.errors import CameraError, SourceError
from ...camera.calibration import parse_json_camera
from .folder import Entry, Listing
from .text_files import ENCODING, Row, read_stamps
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
    try:
        with (path / "frames.csv").open(newline="", encoding=ENCODING) as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"cannot read {path / 'frames.csv'}: {error}") from None
    columns = list(rows[0]) if rows else []
    image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    if image is None or "timestamp" not in columns:
        raise SourceError(
            f"{path / 'frames.csv'} has the columns {', '.join(map(str, columns)) or 'none'}; expected timestamp and one "
            f"of {', '.join(_IMAGE_COLUMNS)} (and depth or right)"
        )

    def named(row: dict, column: str) -> Path | None:
        return path / row[column] if row.get(column) else None

    for line, row in enumerate(rows, 2):
        if not row["timestamp"] or not row[image]:
            raise SourceError(f"{path / 'frames.csv'}, line {line}: no timestamp or no image")
    stamps = read_stamps([Row(path / "frames.csv", line, [row["timestamp"]]) for line, row in enumerate(rows, 2)])
    entries = [
        Entry(stamp, path / row[image], named(row, "depth"), named(row, "right"))
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
    return Listing(
        path.resolve().name, entries, camera, units, None, partial(read_trajectory, truth) if truth.is_file() else None
    )
