"""Whatever arrives, only named errors: calibrations, image headers, text files, weights and bags, made up or damaged at random.

Seeded and the same in every run. 2,000 cases of each are marked `slow`; the default run takes fewer.
"""

import json
import resource
import shutil
import struct
from datetime import timedelta
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from imatching_ros.camera.calibration import camera_from_info, read_camera
from imatching_ros.camera.decoding import decode_depth, decode_image
from imatching_ros.camera.rectification import calibrate_stereo
from imatching_ros.core.errors import CameraError, ImatchingError, SourceError, WeightsError
from imatching_ros.matching.weights import read_header, read_weights, write_weights
from imatching_ros.offline.recordings import open_source
from imatching_ros.offline.recordings.base import SourceOptions
from imatching_ros.offline.recordings.truth import read_trajectory

FULL, LONGEST_CASE_S, MOST_GROWTH_KB = 2000, 30, 400_000
H, W = 12, 16


def cases(quick):
    """Runs a test with so many cases, and with all of them where slow tests are run."""
    return pytest.mark.parametrize("count", [quick, pytest.param(FULL, marks=pytest.mark.slow)])


def run(count, strategy, check):
    """`check` with `count` values of the strategy: no hang, no growth."""
    rules = settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=timedelta(seconds=LONGEST_CASE_S),
        suppress_health_check=list(HealthCheck),
    )
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rules(given(strategy)(check))()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < MOST_GROWTH_KB


def fails_by_name(kinds, call):
    """The result, or None after one of the errors."""
    try:
        return call()
    except kinds as error:
        assert str(error)
        return None


# -- calibrations -----------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 8.0, 50.0, 500.0, -6.0, float("nan"), float("inf"), 1e-320, 1e308]),
    st.floats(-1e4, 1e4),
)
SIZES = st.sampled_from([0, 1, 2, 16, 640, 480, 2**31, 2**32 - 1])
MODELS = st.sampled_from(["plumb_bob", "rational_polynomial", "equidistant", "", "none", "omni", "?", "plumb_bob k1"])


def arrays(count):
    plausible = st.sampled_from([(50.0, 0, 8, 0, 50, 6, 0, 0, 1), (1.0, 0, 0, 0, 1, 0, 0, 0, 1)] if count == 9 else [(50.0, 0, 8, -5, 0, 50, 6, 0, 0, 0, 1, 0)])  # fmt: skip
    return st.one_of(plausible, st.just((0.0,) * count), st.lists(NUMBERS, min_size=count, max_size=count))


INFOS = st.builds(
    lambda roi, **values: SimpleNamespace(roi=SimpleNamespace(**roi), **values),
    st.fixed_dictionaries({name: SIZES for name in ("x_offset", "y_offset", "width", "height")}),
    width=SIZES,
    height=SIZES,
    k=arrays(9),
    r=arrays(9),
    p=arrays(12),
    d=st.one_of(st.just([]), st.lists(NUMBERS, max_size=14)),
    distortion_model=MODELS,
    binning_x=SIZES,
    binning_y=SIZES,
)


@cases(400)
def test_camera_info(count):
    def check(case):
        left, right, rectified = case
        camera = fails_by_name(CameraError, lambda: camera_from_info(left, rectified=rectified, image_size=(640, 480)))
        if camera is not None:
            assert camera.undistort(torch.tensor([[8.0, 6.0]])).shape == (1, 2)
        if left.width * left.height < 1_000_000 and right.width * right.height < 1_000_000:  # maps of the images' size
            fails_by_name(CameraError, lambda: calibrate_stereo(left, right, rectified))

    run(count, st.tuples(INFOS, INFOS, st.booleans()), check)


# -- images -----------------------------------------------------------------------------------------------------------

ENCODING = st.sampled_from(["mono8", "mono16", "rgb8", "bgra8", "yuv422", "bayer_rggb8", "bayer_rggb16", "16UC1", "32FC1", "nv12", ""])  # fmt: skip
PIXELS = st.sampled_from([0, 1, 2, 3, 4, 7, 16, 2**31, 2**32 - 1])
PNG = cv2.imencode(".png", np.arange(H * W, dtype=np.uint16).reshape(H, W))[1].tobytes()


def damaged(data):
    """Some bytes changed, the end cut off, something added."""
    edits = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=8)

    def apply(edits, end, added):
        changed = bytearray(data)
        for at, value in edits:
            changed[at] = value
        return bytes(changed[:end]) + added

    whole = st.just(len(data))
    return st.builds(apply, edits, st.one_of(whole, whole, st.integers(0, len(data))), st.binary(max_size=8))


@cases(400)
def test_image_headers(count):
    images = st.builds(
        SimpleNamespace,
        width=PIXELS,
        height=PIXELS,
        step=PIXELS,
        encoding=ENCODING,
        is_bigendian=st.integers(0, 255),
        data=st.binary(max_size=64),
    )
    formats = st.sampled_from(["png", "jpeg", "16UC1; compressedDepth png", "32FC1; compressedDepth", ""])
    compressed = st.builds(SimpleNamespace, format=formats, data=damaged(PNG))

    def check(message):
        for decode in (decode_image, decode_depth):
            fails_by_name(SourceError, lambda: decode(message))

    run(count, st.one_of(images, compressed), check)


# -- text files -------------------------------------------------------------------------------------------------------

WORDS = st.one_of(
    st.sampled_from(
        "0 1 -1 0.5 nan inf 1e400 -1e-400 0x10 1403636579763555584 a.png rgb/0.png # , ; timestamp left".split()
        + ["", "\ufeff", "\0", '"', "\u0663", "1_0", "९"]
    ),  # fmt: skip
    st.text(max_size=4),
)
ROWS = st.lists(WORDS, max_size=13)
PLAUSIBLE = st.lists(st.sampled_from(["0", "1", "0.5", "1403636579763555584"]), min_size=8, max_size=12)
TEXTS = st.builds(
    lambda rows, separator, end: end.join(separator.join(row) for row in rows),
    st.lists(st.one_of(ROWS, PLAUSIBLE), max_size=6),
    st.sampled_from([" ", ",", ";", "\t", ", "]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
CONTENTS = st.one_of(TEXTS.map(lambda text: text.encode(errors="replace")), st.binary(max_size=40))


@cases(150)
def test_trajectories(count, tmp_path):
    file = tmp_path / "t.txt"

    def check(data):
        file.write_bytes(data)
        fails_by_name(SourceError, lambda: read_trajectory(file, np.arange(3), warn=lambda text: None))

    run(count, CONTENTS, check)


# Fmt: skip.
LAYOUTS = {
    "frames": {
        "frames.csv": "index,timestamp,left,depth\n0,0.0,0.png,\n",
        "camera.json": '{"cameras": [{"width": 16}]}',
    },
    "tum": {"rgb.txt": "0.0 0.png\n", "depth.txt": "0.0 0.png\n"},
    "kitti": {
        "calib.txt": "P0: 50 0 8 0 0 50 6 0 0 0 1 0\n",
        "times.txt": "0.0\n",
        "poses.txt": "1 0 0 0 0 1 0 0 0 0 1 0\n",
    },
    "euroc": {"cam0/data.csv": "#t,file\n0,0.png\n", "cam0/sensor.yaml": "T_BS: {data: [1]}\n"},
}


@cases(60)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_lists_and_calibrations_of_data_sets(count, layout, tmp_path):
    names = sorted(LAYOUTS[layout])

    def check(case):
        changed, data = case
        shutil.rmtree(tmp_path)
        for name in ("image_0/0.png", "0.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / name), np.zeros((H, W), np.uint8))
        for name, text in LAYOUTS[layout].items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data if name == changed else text.encode())

        def read():
            source = open_source(tmp_path, SourceOptions("mono"))
            source.groundtruth()
            return list(source)

        fails_by_name((SourceError, CameraError), read)

    changed = st.one_of(st.tuples(st.just(name), st.one_of(CONTENTS, damaged(LAYOUTS[layout][name].encode()))) for name in names)  # fmt: skip
    run(count, changed, check)


CALIBRATION = yaml.safe_dump(
    {
        "image_width": W,
        "image_height": H,
        "camera_matrix": {"data": [50.0, 0, 8, 0, 50, 6, 0, 0, 1]},
        "distortion_model": "plumb_bob",
        "distortion_coefficients": {"data": [0.1, 0, 0, 0, 0]},
    }
).encode()
CAMERA_JSON = json.dumps({"cameras": [dict(width=W, height=H, fx=50, fy=50, cx=8, cy=6)], "baseline_m": 0.1}).encode()


@cases(150)
@pytest.mark.parametrize("name, text", [("c.yaml", CALIBRATION), ("c.json", CAMERA_JSON)], ids=["yaml", "json"])
def test_camera_files(count, name, text, tmp_path):
    def check(data):
        (tmp_path / name).write_bytes(data)
        fails_by_name(CameraError, lambda: read_camera(tmp_path / name))

    run(count, st.one_of(damaged(text), CONTENTS), check)


# -- weights ----------------------------------------------------------------------------------------------------------


@cases(300)
def test_weights_files(count, tmp_path):
    file = tmp_path / "w.safetensors"
    write_weights(file, "expectation", {"a": torch.ones(4), "b": torch.zeros(2, 2)}, 3, {"made_by": "test"})
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    values = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2))

    def replaced(key, value):
        changed = json.dumps({**header, key: value}).encode()
        return struct.pack("<Q", len(changed)) + changed + data[8 + length :]

    metadata = st.dictionaries(st.sampled_from([*header["__metadata__"], "x"]), st.one_of(values, st.text(max_size=8)))
    headers = st.builds(replaced, st.sampled_from([*header, "c"]), st.one_of(values, metadata))

    def check(data):
        file.write_bytes(data)
        for read in (read_header, read_weights):
            fails_by_name(WeightsError, lambda: read(file))

    run(count, st.one_of(damaged(data), headers), check)


# -- bags -------------------------------------------------------------------------------------------------------------


def write_bag(folder, storage):
    """Two images with their CameraInfo -> the bytes of the storage file."""
    store = get_typestore(Stores.ROS2_JAZZY)
    kind = store.types
    with Writer(folder, version=9, storage_plugin=storage) as writer:
        topics = {"/c/image_raw": "sensor_msgs/msg/Image", "/c/camera_info": "sensor_msgs/msg/CameraInfo"}
        connections = {topic: writer.add_connection(topic, name, typestore=store) for topic, name in topics.items()}
        for k in (1, 2):
            time = kind["builtin_interfaces/msg/Time"](sec=k, nanosec=0)
            header = kind["std_msgs/msg/Header"](stamp=time, frame_id="camera")
            roi = kind["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
            matrices = dict(k=np.array([50.0, 0, 8, 0, 50, 6, 0, 0, 1]), r=np.eye(3).ravel(), p=np.zeros(12))
            sizes = dict(header=header, height=H, width=W)
            info = kind[topics["/c/camera_info"]](
                **sizes, **matrices, d=np.zeros(5), distortion_model="plumb_bob", binning_x=0, binning_y=0, roi=roi
            )
            image = kind[topics["/c/image_raw"]](
                **sizes, encoding="mono8", is_bigendian=0, step=W, data=np.zeros(H * W, np.uint8)
            )
            for topic, message in (("/c/camera_info", info), ("/c/image_raw", image)):
                data = store.serialize_cdr(message, message.__msgtype__)
                writer.write(connections[topic], k * 10**9, data)
    return next(file for file in folder.iterdir() if file.suffix != ".yaml").read_bytes()


@cases(25)
@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_bags(count, storage, tmp_path):
    data = write_bag(tmp_path / "bag", storage)
    file = tmp_path / ("a.mcap" if storage is StoragePlugin.MCAP else "a.db3")

    def check(data):
        file.write_bytes(data)
        fails_by_name(ImatchingError, lambda: list(open_source(file)))

    run(count, damaged(data), check)
