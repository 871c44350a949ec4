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
    "kannala_brandt": EQUIDISTANT,
    "kannala_brandt4": EQUIDISTANT,
}
# Projections that no distortion of a pinhole describes (Kalibr's camera models, OpenCV's omnidir, CamOdoCal): never taken as one,
# whatever their coefficients.
OTHER_PROJECTIONS = (
    "omni",
    "mei",
    "unified",
    "ds",
    "double_sphere",
    "eucm",
    "ucm",
    "extended_unified",
    "fov",
    "ocam",
    "scaramuzza",
    "cylindrical",
    "equirectangular",
    "panoramic",
    "orthographic",
)
LONGEST_BASELINE_M = 3.0  # of a pair on a robot; more is a baseline in mm or cm


def make_camera(
    width: int, height: int, K: Any, model: str, distortion: Any, baseline_m: float | None = None
) -> Camera:
    """A camera from a 3x3 (or 9 numbers) K and a distortion as ROS, Kalibr, EuRoC and camera.json spell it.

    Raises:
        CameraError: an unknown model, too few coefficients, K of zeros or of another unit.
    """
    K = np.asarray(K, float).reshape(3, 3)
    name, coefficients = _parse_distortion(model, tuple(float(x) for x in distortion))
    fx, fy, cx, cy = (float(x) for x in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    return Camera(int(width), int(height), fx, fy, cx, cy, name, coefficients, baseline_m)


def _parse_distortion(spelling: str, coefficients: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """(model, coefficients) of `Camera`; zeros beyond those that the model uses are dropped."""
    word = next(iter(str(spelling or "").strip().lower().split()), "")
    _refuse_other_projections(word)
    model, used = MODEL_NAMES.get(word, ("", 0))
    if model != "equidistant" and not any(coefficients):
        return "none", ()  # also under a name that is not known, as drivers of undistorted cameras give
    if not model:
        raise CameraError(
            f"unknown distortion model '{spelling}'; known are plumb_bob (radtan), rational_polynomial, "
            "equidistant (fisheye) and none"
        )
    if model == "none":
        raise CameraError(
            f"the camera has the distortion coefficients {coefficients} and no model; name the model (plumb_bob, "
            "rational_polynomial or equidistant)"
        )
    if model == "plumb_bob" and len(coefficients) == 8:
        return "rational_polynomial", coefficients
    return model, coefficients if any(coefficients[used:]) else coefficients[:used]


def _refuse_other_projections(word: str) -> None:
    if word.replace("-", "_") in OTHER_PROJECTIONS:
        raise CameraError(
            f"the camera model '{word}' is not supported, and is no pinhole with a distortion; calibrate as pinhole with plumb_bob "
            "(radtan) or equidistant distortion, or undistort the images"
        )


def is_rectified(topic: str) -> bool:
    """Whether an image topic is named as image_proc names rectified images: image_rect, image_rect_color, image_rect_raw."""
    return "rect" in base_topic(topic).rsplit("/", 1)[-1]


def base_topic(topic: str) -> str:
    """The topic without the transport that image_transport appends."""
    return re.sub(r"/(compressed|compressedDepth|theora|ffmpeg)$", "", topic)


def camera_from_info(info: Any, *, rectified: bool = False, image_size: tuple[int, int] | None = None) -> Camera:
    """A CameraInfo message (ROS 1 or 2, of rclpy or rosbags) -> the camera of the images it accompanies.

    The calibration in the message is of the full sensor; the region of interest is cut out first and binning (or the
    driver's decimation) is applied to the rest, as sensor_msgs/CameraInfo defines it. Pixel centres stay at integers.

    Args:
        rectified: the images are rectified: P without distortion describes them, not K and D.
        image_size: (width, height) px of the images, where known: some drivers bin the stated size, or all numbers, beforehand.

    Raises:
        CameraError: K (or P) of zeros, an unknown model, impossible sizes.
    """
    K, D, model = info_field(info, "k"), info_field(info, "d"), info.distortion_model
    if rectified:
        K, D, model = _rectified_intrinsics(info), (), "none"
    camera = make_camera(info.width, info.height, K, model, D)
    return _crop_and_bin(camera, info, image_size)


def _rectified_intrinsics(info: Any) -> np.ndarray:
    """(3, 3) of rectified images: P; K where P is not given and nothing is distorted."""
    P = np.asarray(info_field(info, "p"), float).reshape(3, 4)
    K = np.asarray(info_field(info, "k"), float).reshape(3, 3)
    if P.any() or not K.any():
        return P[:, :3]
    if any(info_field(info, "d")):
        raise CameraError(
            "the images are taken as rectified, and P of their CameraInfo holds zeros while K and D are given; calibrate again, or, "
            "where the images are raw, set rectified to 'no' (--rectified no of a replay)"
        )
    return K


def stereo_baseline_m(left_info: Any, right_info: Any) -> float | None:
    """The baseline in the CameraInfo of a pair, P[3] = -fx * (x of the camera in the rectified frame); None when the second
    camera is not at +x of the first. Mostly P[3] is 0 for the left camera, but not in a rig of several."""
    P_left, P_right = (np.asarray(info_field(info, "p"), float).reshape(3, 4) for info in (left_info, right_info))
    if not (P_right[0, 0] > 0 and P_left[0, 0] > 0):
        return None
    baseline = float(P_left[0, 3]) / float(P_left[0, 0]) - float(P_right[0, 3]) / float(P_right[0, 0])
    return baseline if baseline > 0 else None


def plausibility_warning(camera: Camera) -> str:
    """Why a calibration that can be used is probably wrong; empty where nothing speaks against it."""
    if camera.baseline_m is not None and camera.baseline_m > LONGEST_BASELINE_M:
        return (
            f"the stereo baseline is {camera.baseline_m:.4g} m, more than {LONGEST_BASELINE_M:g} m: is it in mm or cm? Positions would be "
            "too large by as much; P[3] of the right CameraInfo is -fx * baseline in metres"
        )
    return ""


def info_field(info: Any, name: str) -> Any:
    """ROS 1 spells the matrices K, D, R, P, ROS 2 in lower case."""
    return getattr(info, name) if hasattr(info, name) else getattr(info, name.upper())


def _crop_and_bin(camera: Camera, info: Any, image_size: tuple[int, int] | None) -> Camera:
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
    if bx == by == 1:
        return camera
    size, full = (camera.width // bx, camera.height // by), camera
    if image_size == (full.width, full.height):  # the size is of the binned image already, and perhaps K too
        size = image_size
        if abs(full.cx - size[0] / 2) < abs(full.cx / bx - size[0] / 2):
            return full
    return replace(
        full,
        width=size[0],
        height=size[1],
        fx=full.fx / bx,
        fy=full.fy / by,
        cx=(full.cx + 0.5) / bx - 0.5,
        cy=(full.cy + 0.5) / by - 0.5,
    )


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
    except CameraError as error:
        raise CameraError(f"the camera file {path}: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
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
        _refuse_other_projections(str(data.get("camera_model", "")).strip().lower())
        fx, fy, cx, cy = data["intrinsics"]
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
    camera = make_camera(
        entry["width"], entry["height"], K, entry.get("distortion_model", "none"), entry.get("distortion", ())
    )
    return replace(camera, readout_s=float(entry.get("readout_ms", 0.0)) / 1e3)


def check_size(camera: Camera, height: int, width: int, what: str) -> None:
    """Raises CameraError when an image is not of the camera's size."""
    if (width, height) != (camera.width, camera.height):
        raise CameraError(
            f"{what} is {width} x {height}, its camera calibration is for {camera.width} x {camera.height}; calibrate at this "
            "resolution, or give the calibration that belongs to it (in CameraInfo, or by --camera FILE)"
        )
