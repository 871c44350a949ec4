"""Writing rendered videos: rosbag2 (mcap) or the TUM RGB-D layout, with exact poses and depth."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import yaml
from scipy.spatial.transform import Rotation
from torch import Tensor

from ...camera.model import Camera
from ...core.types import Frame
from ...core.errors import ConfigError, SourceError
from .imu import R_CAMERA_IMU, SENSORS
from .imu import RATE_HZ as IMU_RATE_HZ
from .sequence import SimulatedSequence

FORMATS = ("mcap", "tum")
DEPTHS = ("16UC1", "32FC1", "none")
IMAGE_TOPIC = "/camera/image_raw"
INFO_TOPIC = "/camera/camera_info"
DEPTH_TOPIC = "/camera/depth/image_raw"
TRUTH_TOPIC = "/ground_truth/pose"
IMU_TOPIC = "/imu/data"
IMU_FRAME = "imu"
CAMERA_FRAME = "camera_optical"
WORLD_FRAME = "world"


def write_recording(
    path: str | Path,
    sequence: SimulatedSequence,
    format: str = "mcap",
    depth: str = "16UC1",
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Renders a sequence into a file or folder. When interrupted, what was written so far is a valid recording.

    Args:
        path: for mcap a rosbag2 folder, or with the suffix .mcap one bare file; for tum a folder.
        format: "mcap" or "tum".
        depth: encoding of the depth images of a bag: "16UC1" (millimetres), "32FC1" (metres) or "none".
        overwrite: replaces what is at `path`.
        progress: called with the number of frames written.

    Raises:
        ConfigError: an unknown format or encoding.
        SourceError: something is at `path` already, or it cannot be written.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ConfigError(f"unknown recording format '{format}'; known are {', '.join(FORMATS)}")
    if depth not in DEPTHS:
        raise ConfigError(f"unknown depth encoding '{depth}'; known are {', '.join(DEPTHS)}")
    if format == "mcap" and sequence.baseline_m > 0:
        raise ConfigError(
            "a stereo pair is written in the tum format only; choose it (--format tum) or leave the baseline out"
        )
    if path.exists():
        if not overwrite:
            raise SourceError(f"{path} exists; choose another name or overwrite it (--overwrite)")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        report = progress or (lambda done: None)
        if format == "mcap":
            _write_bag(path, sequence, depth, report)
        else:
            _write_tum(path, sequence, report)
    except OSError as error:
        raise SourceError(f"cannot write {path}: {error}") from None
    return path


def _write_bag(path: Path, sequence: SimulatedSequence, depth: str, progress: Callable[[int], None]) -> None:
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    bare = path.suffix == ".mcap"
    folder = path.with_name(path.name + ".writing") if bare else path
    if bare and folder.exists():
        shutil.rmtree(folder)
    types = {
        IMAGE_TOPIC: "sensor_msgs/msg/Image",
        INFO_TOPIC: "sensor_msgs/msg/CameraInfo",
        DEPTH_TOPIC: "sensor_msgs/msg/Image",
        TRUTH_TOPIC: "geometry_msgs/msg/PoseStamped",
    }
    if depth == "none":
        del types[DEPTH_TOPIC]
    messages_imu = _ImuMessages(store, sequence) if sequence.imu != "none" else None
    bag = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
    bag.open()
    try:
        connections = {topic: bag.add_connection(topic, kind, typestore=store) for topic, kind in types.items()}
        if messages_imu is not None:
            messages_imu.begin(bag)
        for done, (frame, T_WC) in enumerate(sequence.read(), 1):
            if messages_imu is not None:
                messages_imu.write_until(frame.stamp_ns)
            messages = {
                TRUTH_TOPIC: _pose(store, frame.stamp_ns, T_WC),
                INFO_TOPIC: _camera_info(store, frame.stamp_ns, frame.camera),
                DEPTH_TOPIC: _image(store, frame.stamp_ns, _encode_depth(frame, depth), depth),
                IMAGE_TOPIC: _image(store, frame.stamp_ns, frame.image.permute(1, 2, 0).contiguous().numpy(), "rgb8"),
            }
            for topic, connection in connections.items():
                bag.write(connection, frame.stamp_ns, store.serialize_cdr(messages[topic], types[topic]))
            progress(done)
        if messages_imu is not None:
            messages_imu.write_until(None)
    finally:
        bag.close()  # also when interrupted; as a context manager the writer would throw away what it has
        if bare and folder.exists():
            written = next(folder.glob("*.mcap"), None)
            if written is not None:
                written.replace(path)
            shutil.rmtree(folder)


def _encode_depth(frame: Frame, encoding: str) -> np.ndarray:
    assert frame.depth is not None, "rendered frames have depth"
    metres = frame.depth.numpy()
    if encoding == "16UC1":
        return _quantise(metres, 1000.0)
    return metres.astype("<f4")


def _quantise(metres: np.ndarray, units: float) -> np.ndarray:
    """Depth as uint16; what does not fit is 0, unknown."""
    scaled = np.round(metres * units)
    return np.where(scaled <= 65535, scaled, 0).astype("<u2")


def _header(store, stamp_ns: int, frame_id: str):
    stamp = store.types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return store.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)


def _image(store, stamp_ns: int, pixels: np.ndarray, encoding: str):
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).view(np.uint8).reshape(-1)
    return store.types["sensor_msgs/msg/Image"](
        header=_header(store, stamp_ns, CAMERA_FRAME),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=len(data) // height,
        data=data,
    )


def _camera_info(store, stamp_ns: int, camera: Camera):
    roi = store.types["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    model, coefficients = ("plumb_bob", (0.0,) * 5) if camera.model == "none" else (camera.model, camera.distortion)
    fx, fy, cx, cy = camera.fx, camera.fy, camera.cx, camera.cy
    return store.types["sensor_msgs/msg/CameraInfo"](
        header=_header(store, stamp_ns, CAMERA_FRAME),
        height=camera.height,
        width=camera.width,
        distortion_model=model,
        d=np.array(coefficients, np.float64),
        k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1], np.float64),
        r=np.eye(3).reshape(-1),
        p=np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0], np.float64),
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


def _pose(store, stamp_ns: int, T_WC: Tensor):
    x, y, z, qx, qy, qz, qw = T_WC.tolist()
    pose = store.types["geometry_msgs/msg/Pose"](
        position=store.types["geometry_msgs/msg/Point"](x=x, y=y, z=z),
        orientation=store.types["geometry_msgs/msg/Quaternion"](x=qx, y=qy, z=qz, w=qw),
    )
    return store.types["geometry_msgs/msg/PoseStamped"](header=_header(store, stamp_ns, WORLD_FRAME), pose=pose)


class _ImuMessages:
    """The messages of the sensor, and its mounting on /tf_static, in the order of time."""

    TYPES = {IMU_TOPIC: "sensor_msgs/msg/Imu", "/tf_static": "tf2_msgs/msg/TFMessage"}

    def __init__(self, store, sequence: SimulatedSequence) -> None:
        self._store, self._start_ns = store, sequence.start_ns
        self._samples, self._next = sequence.measure_imu(), 0

    def begin(self, bag) -> None:
        self._bag = bag
        self._connections = {t: bag.add_connection(t, kind, typestore=self._store) for t, kind in self.TYPES.items()}
        types = self._store.types
        x, y, z, w = Rotation.from_matrix(R_CAMERA_IMU).as_quat().tolist()
        mounting = types["geometry_msgs/msg/TransformStamped"](
            header=_header(self._store, self._start_ns, CAMERA_FRAME),
            child_frame_id=IMU_FRAME,
            transform=types["geometry_msgs/msg/Transform"](
                translation=types["geometry_msgs/msg/Vector3"](x=0.0, y=0.0, z=0.0),
                rotation=types["geometry_msgs/msg/Quaternion"](x=x, y=y, z=z, w=w),
            ),
        )
        self._write("/tf_static", self._start_ns, types["tf2_msgs/msg/TFMessage"](transforms=[mounting]))

    def write_until(self, stamp_ns: int | None) -> None:
        """Those up to a time; None: all that are left."""
        s, types = self._samples, self._store.types
        vector, unknown = types["geometry_msgs/msg/Vector3"], np.array([-1.0] + [0.0] * 8)
        while self._next < len(s.stamps_ns) and (stamp_ns is None or s.stamps_ns[self._next] <= stamp_ns):
            at, k = int(s.stamps_ns[self._next]), self._next
            message = types[self.TYPES[IMU_TOPIC]](
                header=_header(self._store, at, IMU_FRAME),
                orientation=types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0),
                orientation_covariance=unknown,
                angular_velocity=vector(*s.rates[k].tolist()),
                angular_velocity_covariance=np.zeros(9),
                linear_acceleration=vector(*s.accelerations[k].tolist()),
                linear_acceleration_covariance=np.zeros(9),
            )
            self._write(IMU_TOPIC, at, message)
            self._next += 1

    def _write(self, topic: str, stamp_ns: int, message) -> None:
        self._bag.write(self._connections[topic], stamp_ns, self._store.serialize_cdr(message, self.TYPES[topic]))


def _write_imu(path: Path, sequence: SimulatedSequence) -> None:
    """imu0/data.csv and sensor.yaml as of EuRoC; the body is the camera."""
    sensor, T_BS = SENSORS[sequence.imu], np.eye(4)
    samples, T_BS[:3, :3] = sequence.measure_imu(), R_CAMERA_IMU
    folder = path / "imu0"
    folder.mkdir(parents=True)
    names = [f"w_RS_S_{axis} [rad s^-1]" for axis in "xyz"] + [f"a_RS_S_{axis} [m s^-2]" for axis in "xyz"]
    with open(folder / "data.csv", "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["#timestamp [ns]", *names])
        for stamp, *values in zip(samples.stamps_ns.tolist(), *samples.rates.T, *samples.accelerations.T):
            rows.writerow([stamp, *(f"{value:.9g}" for value in values)])
    data = {
        "sensor_type": "imu",
        "comment": f"simulated {sequence.imu}",
        "T_BS": {"cols": 4, "rows": 4, "data": T_BS.ravel().tolist()},
        "rate_hz": IMU_RATE_HZ,
        "gyroscope_noise_density": sensor.gyroscope,
        "gyroscope_random_walk": sensor.gyroscope_walk,
        "accelerometer_noise_density": sensor.accelerometer,
        "accelerometer_random_walk": sensor.accelerometer_walk,
    }
    (folder / "sensor.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def _write_tum(path: Path, sequence: SimulatedSequence, progress: Callable[[int], None]) -> None:
    kinds = ("rgb", "depth", "right") if sequence.baseline_m > 0 else ("rgb", "depth")
    for name in kinds:
        (path / name).mkdir(parents=True)
    if sequence.imu != "none":
        _write_imu(path, sequence)
    # Depth units per metre. 5000 is what TUM RGB-D has and ends at 13 m; long places need the range more than the resolution.
    units = {"room": 5000.0, "clutter": 5000.0, "corridor": 1000.0, "outdoor": 250.0}[sequence.kind]
    (path / "camera.json").write_text(json.dumps(_camera_json(sequence, units), indent=1) + "\n")
    with (
        open(path / "rgb.txt", "w") as rgb,
        open(path / "depth.txt", "w") as depths,
        open(path / "groundtruth.txt", "w") as truth,
        open(path / "frames.csv", "w", newline="") as table,
    ):
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["index", "timestamp", *kinds])
        truth.write(
            "# camera to world, OpenCV optical axes (x right, y down, z forward)\n# timestamp tx ty tz qx qy qz qw\n"
        )
        for done, (frame, T_WC) in enumerate(sequence.read(), 1):
            stamp = f"{frame.stamp_ns // 10**9}.{frame.stamp_ns % 10**9:09d}"
            image_name, depth_name, *others = (f"{kind}/{frame.id:06d}.png" for kind in kinds)
            _write_png(path / image_name, _bgr(frame.image))
            for name in others:
                assert frame.right is not None, "a stereo sequence renders right images"
                _write_png(path / name, _bgr(frame.right))
            assert frame.depth is not None, "rendered frames have depth"
            _write_png(path / depth_name, _quantise(frame.depth.numpy(), units))
            rgb.write(f"{stamp} {image_name}\n")
            depths.write(f"{stamp} {depth_name}\n")
            truth.write(f"{stamp} " + " ".join(f"{x:.9f}" for x in T_WC.tolist()) + "\n")
            rows.writerow([frame.id, stamp, image_name, depth_name, *others])
            for file in (rgb, depths, truth, table):  # an interrupted rendering leaves a whole recording
                file.flush()
            progress(done)


def _bgr(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy()[..., ::-1])


def _write_png(path: Path, pixels: np.ndarray) -> None:
    if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"{path} could not be written")


def _camera_json(sequence: SimulatedSequence, units: float) -> dict:
    camera = sequence.shifted_camera
    model = "none" if camera.model == "none" else camera.model
    return {
        "cameras": [
            {
                "name": "rgb",
                "model": "pinhole",
                "width": camera.width,
                "height": camera.height,
                "fx": camera.fx,
                "fy": camera.fy,
                "cx": camera.cx,
                "cy": camera.cy,
                "distortion_model": model,
                "distortion": list(camera.distortion),
                "pixel_convention": "pixel centres at integer coordinates (OpenCV)",
                "rate_hz": sequence.rate_hz,
            }
        ],
        **({"baseline_m": sequence.baseline_m} if sequence.baseline_m > 0 else {}),
        "depth_scale": units,
        "depth_note": f"uint16 PNG, metres = value/{units:g} along the optical axis, "
        + (
            f"standard deviation {sequence.depth_noise:g} of 1/m; "
            if sequence.depth_noise
            else "exact up to rounding; "
        )
        + f"0 = sky or beyond {65535 / units:.0f} m",
        "simulation": {
            "kind": sequence.kind,
            "seed": sequence.seed,
            "shift": sequence.shift,
            "motion": sequence.motion,
            "exposure_ms": sequence.exposure_ms,
            "readout_ms": sequence.readout_ms,
        },
    }
