"""Cameras from CameraInfo messages and from calibration files; which topics carry rectified images."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .model import Camera
from ..core.errors import CameraError

# Names of distortion models in CameraInfo, Kalibr, EuRoC and camera.json -> the model and how many coefficients it uses.
PLUMB_BOB, RATIONAL, EQUIDISTANT = ("plumb_bob", 5), ("rational_polynomial", 8), ("equidistant", 4)
MODEL_NAMES = {
    "": ("none", 0),
    "none": ("none", 0),
    "pinhole": ("none", 0),
    "plumb_bob": PLUMB_BOB,
    "radtan": PLUMB_BOB,
    "radial-tangential": PLUMB_BOB,
    "rational_polynomial": RATIONAL,
    "equidistant": EQUIDISTANT,
    "fisheye": EQUIDISTANT,
}


def make_camera(
    width: int, height: int, K: Any, model: str, distortion: Any, baseline_m: float | None = None
) -> Camera:
    """A camera from a 3x3 (or 9 numbers) K and a distortion as ROS, Kalibr, EuRoC and camera.json spell it.

    Raises:
        CameraError: an unknown model, too few coefficients, K of zeros.
    """
    K = np.asarray(K, float).reshape(3, 3)
    name, coefficients = _parse_distortion(model, tuple(float(x) for x in distortion))
    fx, fy, cx, cy = (float(x) for x in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    return Camera(int(width), int(height), fx, fy, cx, cy, name, coefficients, baseline_m)


def _parse_distortion(spelling: str, coefficients: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """(model, coefficients) of `Camera`; zeros beyond those that the model uses are dropped."""
    words = str(spelling or "").strip().lower().split()
    if (words[0] if words else "") not in MODEL_NAMES:
        raise CameraError(
            f"unknown distortion model '{spelling}'; known are plumb_bob (radtan), rational_polynomial, "
            "equidistant (fisheye) and none"
        )
    model, used = MODEL_NAMES[words[0] if words else ""]
    if model != "equidistant" and not any(coefficients):
        return "none", ()
    if model == "none":
        raise CameraError(
            f"the camera has the distortion coefficients {coefficients} and no model; name the model (plumb_bob, "
            "rational_polynomial or equidistant)"
        )
    if model == "plumb_bob" and len(coefficients) == 8:
        return "rational_polynomial", coefficients
    return model, coefficients if any(coefficients[used:]) else coefficients[:used]


def is_rectified(topic: str) -> bool:
    """Whether an image topic is named as image_proc names rectified images: image_rect, image_rect_color, image_rect_raw."""
    return "rect" in base_topic(topic).rsplit("/", 1)[-1]


def base_topic(topic: str) -> str:
    """The topic without the transport that image_transport appends."""
    return re.sub(r"/(compressed|compressedDepth|theora|ffmpeg)$", "", topic)


def camera_from_info(info: Any, *, rectified: bool = False) -> Camera:
    """A CameraInfo message (ROS 1 or 2, of rclpy or rosbags) -> the camera of the images it accompanies.

    The calibration in the message is of the full sensor; the region of interest is cut out first and binning (or the
    driver's decimation) is applied to the rest, as sensor_msgs/CameraInfo defines it. Pixel centres stay at integers.

    Args:
        rectified: the images are rectified: P without distortion describes them, not K and D.

    Raises:
        CameraError: K (or P) of zeros, an unknown model, impossible sizes.
    """
    K, D, model = info_field(info, "k"), info_field(info, "d"), info.distortion_model
    if rectified:
        K, D, model = np.asarray(info_field(info, "p"), float).reshape(3, 4)[:, :3], (), "none"
    camera = make_camera(info.width, info.height, K, model, D)
    return _crop_and_bin(camera, info)


def stereo_baseline_m(right_info: Any) -> float | None:
    """The baseline in a right camera's CameraInfo, P = [fx' 0 cx' -fx' * baseline; ...]; None when P[3] is not below 0."""
    P = np.asarray(info_field(right_info, "p"), float).reshape(3, 4)
    return float(-P[0, 3] / P[0, 0]) if P[0, 0] > 0 and P[0, 3] < 0 else None


def info_field(info: Any, name: str) -> Any:
    """ROS 1 spells the matrices K, D, R, P, ROS 2 in lower case."""
    return getattr(info, name) if hasattr(info, name) else getattr(info, name.upper())


def _crop_and_bin(camera: Camera, info: Any) -> Camera:
    roi = getattr(info, "roi", None)
    if roi is not None and roi.width and roi.height:
        camera = replace(
            camera,
            width=int(roi.width),
            height=int(roi.height),
            cx=camera.cx - roi.x_offset,
            cy=camera.cy - roi.y_offset,
        )
    bx, by = max(int(getattr(info, "binning_x", 0)), 1), max(int(getattr(info, "binning_y", 0)), 1)
    if bx > 1 or by > 1:
        camera = replace(
            camera,
            width=camera.width // bx,
            height=camera.height // by,
            fx=camera.fx / bx,
            fy=camera.fy / by,
            cx=(camera.cx + 0.5) / bx - 0.5,
            cy=(camera.cy + 0.5) / by - 0.5,
        )
    return camera


def read_camera(path: str | Path) -> Camera:
    """A calibration file -> camera: camera.json, the yaml of ROS camera_calibration, EuRoC's sensor.yaml, Kalibr's camchain.

    Raises:
        CameraError: a file that is missing or in none of these forms.
    """
    path = Path(path)
    try:
        # EuRoC's and OpenCV's files start with a YAML directive that PyYAML refuses.
        text = path.read_text(encoding="utf-8-sig").replace("%YAML:1.0", "")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise CameraError(f"cannot read the camera file {path}: {error}") from None
    try:
        camera = _parse(data)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CameraError(f"the camera file {path} lacks or spells wrongly {error}") from None
    if camera is None:
        raise CameraError(
            f"the camera file {path} is in no known form; expected camera.json ('cameras'), the yaml of ROS "
            "camera_calibration ('camera_matrix'), EuRoC's sensor.yaml ('intrinsics') or a Kalibr camchain ('cam0')"
        )
    return camera


def _parse(data: Any) -> Camera | None:
    if not isinstance(data, dict):
        return None
    if "cameras" in data:
        camera = parse_json_camera(data["cameras"][0])
        return replace(camera, baseline_m=float(data["baseline_m"])) if data.get("baseline_m") else camera
    if "fx" in data and "width" in data:
        return parse_json_camera(data)
    if "camera_matrix" in data:
        return make_camera(
            data["image_width"],
            data["image_height"],
            data["camera_matrix"]["data"],
            data.get("distortion_model") or data.get("camera_model", ""),
            data.get("distortion_coefficients", {}).get("data", ()),
        )
    if "cam0" in data:
        data = data["cam0"]
    if "intrinsics" in data and "resolution" in data:
        fx, fy, cx, cy = data["intrinsics"][-4:]
        width, height = data["resolution"]
        return make_camera(
            width,
            height,
            [fx, 0, cx, 0, fy, cy, 0, 0, 1],
            data.get("distortion_model", ""),
            data.get("distortion_coefficients", data.get("distortion_coeffs", ())),
        )
    return None


def parse_json_camera(entry: dict) -> Camera:
    """One entry of camera.json's `cameras`."""
    K = [entry["fx"], 0, entry["cx"], 0, entry["fy"], entry["cy"], 0, 0, 1]
    return make_camera(
        entry["width"], entry["height"], K, entry.get("distortion_model", "none"), entry.get("distortion", ())
    )


def check_size(camera: Camera, height: int, width: int, what: str) -> None:
    """Raises CameraError when an image is not of the camera's size."""
    if (width, height) != (camera.width, camera.height):
        raise CameraError(
            f"{what} is {width} x {height}, its camera calibration is for {camera.width} x {camera.height}; calibrate at this "
            "resolution, or give the calibration that belongs to it (in CameraInfo, or by --camera FILE)"
        )
