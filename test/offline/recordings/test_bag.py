"""Bags, written small with rosbags."""

import struct

import cv2
import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation

from imatching_ros.camera.model import Camera
from imatching_ros.core.errors import CameraError, SourceError
from imatching_ros.offline.recordings.base import SourceOptions
from imatching_ros.offline.recordings.base import identify
from imatching_ros.offline.recordings import open_source

H, W, N = 48, 64, 6
STEP = 100_000_000
K = np.array([50.0, 0, 31.5, 0, 50, 23.5, 0, 0, 1])
CAMERA = Camera(W, H, 50, 50, 31.5, 23.5)


class Bag:
    """Writes a bag of either kind, message by message."""

    scale = 1.0  # of the quaternions; others than 1 are no rotations

    def __init__(self, path, ros=2, storage=StoragePlugin.MCAP, zstd=None):
        self.ros = ros
        self.store = get_typestore(Stores.ROS2_JAZZY if ros == 2 else Stores.ROS1_NOETIC)
        self.writer = Writer2(path, version=9, storage_plugin=storage) if ros == 2 else Writer1(path)
        if zstd is not None:
            self.writer.set_compression(zstd, CompressionFormat.ZSTD)
        self.connections = {}

    def __enter__(self):
        self.writer.open()
        return self

    def __exit__(self, *_):
        self.writer.close()

    def type(self, name):
        return self.store.types[name]

    def write(self, topic, stamp, message):
        name = message.__msgtype__
        serialize = self.store.serialize_cdr if self.ros == 2 else self.store.serialize_ros1
        self.writer.write(self.announce(topic, name), stamp, serialize(message, name))

    def announce(self, topic, name):
        """A topic, with or without messages."""
        if (topic, name) not in self.connections:
            self.connections[topic, name] = self.writer.add_connection(topic, name, typestore=self.store)
        return self.connections[topic, name]

    def header(self, stamp, frame="camera"):
        time = self.type("builtin_interfaces/msg/Time")(sec=stamp // 10**9, nanosec=stamp % 10**9)
        extra = {"seq": 0} if self.ros == 1 else {}
        return self.type("std_msgs/msg/Header")(stamp=time, frame_id=frame, **extra)

    def image(self, topic, stamp, array, encoding="mono8", recorded=None):
        array = np.ascontiguousarray(array)
        data = array.view(np.uint8).ravel()
        self.write(
            topic,
            stamp if recorded is None else recorded,
            self.type("sensor_msgs/msg/Image")(
                header=self.header(stamp),
                height=array.shape[0],
                width=array.shape[1],
                encoding=encoding,
                is_bigendian=0,
                step=len(data) // array.shape[0],
                data=data,
            ),
        )

    def compressed(self, topic, stamp, array):
        self.write(
            topic,
            stamp,
            self.type("sensor_msgs/msg/CompressedImage")(
                header=self.header(stamp), format="png", data=cv2.imencode(".png", array)[1].ravel()
            ),
        )

    def info(self, topic, stamp, k=K, p=None, d=(), size=(W, H), binning=0):
        p = np.array([50.0, 0, 31.5, 0, 0, 50, 23.5, 0, 0, 0, 1, 0]) if p is None else p
        roi = self.type("sensor_msgs/msg/RegionOfInterest")(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        names = ("d", "k", "r", "p") if self.ros == 2 else ("D", "K", "R", "P")
        matrices = dict(zip(names, (np.array(d, float), np.array(k, float), np.eye(3).ravel(), p)))
        self.write(
            topic,
            stamp,
            self.type("sensor_msgs/msg/CameraInfo")(
                header=self.header(stamp),
                height=size[1],
                width=size[0],
                distortion_model="plumb_bob",
                binning_x=binning,
                binning_y=binning,
                roi=roi,
                **matrices,
            ),
        )

    def pose(self, topic, stamp, x):
        point = self.type("geometry_msgs/msg/Point")(x=x, y=0.0, z=0.0)
        pose = self.type("geometry_msgs/msg/Pose")(position=point, orientation=self.quaternion())
        self.write(
            topic, stamp, self.type("geometry_msgs/msg/PoseStamped")(header=self.header(stamp, "map"), pose=pose)
        )

    def odometry(self, topic, stamp, child, x):
        kind, zero = self.type, np.zeros(36)
        vector = kind("geometry_msgs/msg/Vector3")(x=0.0, y=0.0, z=0.0)
        pose = kind("geometry_msgs/msg/Pose")(
            position=kind("geometry_msgs/msg/Point")(x=x, y=0.0, z=0.0), orientation=self.quaternion()
        )
        self.write(
            topic,
            stamp,
            kind("nav_msgs/msg/Odometry")(
                header=self.header(stamp, "odom"),
                child_frame_id=child,
                pose=kind("geometry_msgs/msg/PoseWithCovariance")(pose=pose, covariance=zero),
                twist=kind("geometry_msgs/msg/TwistWithCovariance")(
                    twist=kind("geometry_msgs/msg/Twist")(linear=vector, angular=vector), covariance=zero
                ),
            ),
        )

    def quaternion(self, z=0.0):
        w = self.scale * float(np.cos(z / 2))
        return self.type("geometry_msgs/msg/Quaternion")(x=0.0, y=0.0, z=self.scale * float(np.sin(z / 2)), w=w)

    def transform(self, topic, stamp, parent, child, x, turn=0.0):
        t = self.type("geometry_msgs/msg/Transform")(
            translation=self.type("geometry_msgs/msg/Vector3")(x=x, y=0.0, z=0.0), rotation=self.quaternion(turn)
        )
        stamped = self.type("geometry_msgs/msg/TransformStamped")(
            header=self.header(stamp, parent), child_frame_id=child, transform=t
        )
        self.write(topic, stamp, self.type("tf2_msgs/msg/TFMessage")(transforms=[stamped]))


def grey(value):
    return np.full((H, W), value, np.uint8)


def write_mono(path, **kind):
    with Bag(path, **kind) as bag:
        for k in range(N):
            stamp = (k + 1) * STEP
            bag.info("/camera/camera_info", stamp)
            bag.image("/camera/image_raw", stamp, grey(10 * k))
            bag.pose("/ground_truth/pose", stamp, 0.5 * k)
    return path


@pytest.mark.parametrize("kind", [dict(), dict(storage=StoragePlugin.SQLITE3), dict(ros=1)])
def test_every_kind_of_bag(tmp_path, kind):
    path = write_mono(tmp_path / ("bag.bag" if kind.get("ros") == 1 else "bag"), **kind)
    source = open_source(path)
    frames = list(source)
    assert source.mode == "mono" and source.length == N and source.warnings == []
    assert [f.stamp_ns for f in frames] == [(k + 1) * STEP for k in range(N)] and frames[3].image.unique().tolist() == [
        30
    ]
    assert source.camera == CAMERA
    assert source.groundtruth().path_length_m == pytest.approx(2.5)


def test_time_range(tmp_path):
    source = open_source(write_mono(tmp_path / "bag"), SourceOptions(start_s=0.2, duration_s=0.2))
    assert [f.stamp_ns // STEP for f in source] == [3, 4, 5] and [f.id for f in source] == [0, 1, 2]
    assert source.length is None and source.count_frames() == 3


def test_a_file_alone_is_enough(tmp_path):
    folder = write_mono(tmp_path / "bag")
    (folder / "metadata.yaml").unlink()
    assert len(list(open_source(folder))) == N and len(list(open_source(next(folder.glob("*.mcap"))))) == N


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_a_bag_cut_off_gives_what_is_there(tmp_path, storage):
    folder = write_mono(tmp_path / "bag", storage=storage)
    (folder / "metadata.yaml").unlink()
    if storage is StoragePlugin.MCAP:
        file = next(folder.glob("*.mcap"))
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.6)])
        source = open_source(folder)
        assert 1 <= len(list(source)) < N and "not complete" in source.warnings[0]
        assert list(source)[0].image.unique().tolist() == [0]
        assert source.length == source.count_frames() == len(list(source))
    else:
        file = next(folder.glob("*.db3"))
        file.write_bytes(file.read_bytes()[:3000])
        with pytest.raises(SourceError, match="cannot read"):
            open_source(folder)


def test_a_damaged_definition_of_a_known_type_is_not_used(tmp_path):
    write_mono(tmp_path / "bag")
    file = next((tmp_path / "bag").glob("*.mcap"))
    data = file.read_bytes()
    assert b"string encoding" in data
    file.write_bytes(data.replace(b"string encoding", b"string encodinx"))
    assert len(list(open_source(file))) == N


def test_euroc_truth_of_the_body_is_refused(tmp_path):
    truth = tmp_path / "data.csv"
    truth.write_text("".join(f"{1_403_636_579_763_555_584 + k},0,0,0,1,0,0,0,0.1\n" for k in range(3)))
    source = open_source(write_mono(tmp_path / "bag"), SourceOptions(groundtruth=truth))
    with pytest.raises(SourceError, match="poses of the body and not of the camera"):
        source.groundtruth()


def test_recordings_are_told_apart_by_what_they_hold(tmp_path):
    one = open_source(write_mono(tmp_path / "monday" / "run"))
    (tmp_path / "monday").rename(tmp_path / "moved")
    moved = open_source(tmp_path / "moved" / "run")
    with Bag(tmp_path / "tuesday" / "run") as bag:
        bag.info("/camera/camera_info", STEP)
        bag.image("/camera/image_raw", STEP, grey(99))
    other = open_source(tmp_path / "tuesday" / "run")
    assert one.name == moved.name == other.name
    found = identify(moved)
    assert found != identify(other) and found == identify(
        open_source(next((tmp_path / "moved" / "run").glob("*.mcap")))
    )


def test_an_empty_bag(tmp_path):
    (tmp_path / "empty.mcap").write_bytes(b"")
    with pytest.raises(SourceError, match="empty"):
        open_source(tmp_path / "empty.mcap")


def test_no_images_lists_the_topics(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        bag.pose("/pose", 1, 0.0)
    with pytest.raises(SourceError, match="no images.*/pose .geometry_msgs/msg/PoseStamped"):
        open_source(tmp_path / "bag")


def test_missing_camera_info_says_what_to_do(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        bag.image("/camera/image_raw", 1, grey(1))
    with pytest.raises(CameraError, match="--camera FILE"):
        open_source(tmp_path / "bag")
    assert len(list(open_source(tmp_path / "bag", SourceOptions(camera=CAMERA)))) == 1


def test_camera_info_of_zeros_or_another_size(tmp_path):
    with Bag(tmp_path / "zeros") as bag:
        bag.image("/image", 1, grey(1))
        bag.info("/camera_info", 1, k=np.zeros(9))
    with pytest.raises(CameraError, match="not calibrated"):
        open_source(tmp_path / "zeros")
    with Bag(tmp_path / "size") as bag:
        bag.image("/image", 1, grey(1))
        bag.info("/camera_info", 1, size=(640, 480))
    with pytest.raises(CameraError, match=f"{W} x {H}.*640 x 480"):
        list(open_source(tmp_path / "size"))


def test_several_cameras_must_be_chosen(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        for name in ("front", "rear"):
            bag.info(f"/{name}/camera_info", 1)
            bag.image(f"/{name}/image_raw", 1, grey(5 if name == "rear" else 1))
    with pytest.raises(SourceError, match="--image-topic: /front/image_raw, /rear/image_raw"):
        open_source(tmp_path / "bag")
    (frame,) = open_source(tmp_path / "bag", SourceOptions(image_topic="/rear/image_raw"))
    assert frame.image.unique().tolist() == [5]
    with pytest.raises(SourceError, match="/nope is not there.*/front/image_raw"):
        open_source(tmp_path / "bag", SourceOptions(image_topic="/nope"))


def test_raw_is_preferred_to_its_compressed_twin(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        bag.info("/camera/camera_info", 1)
        bag.compressed("/camera/image_raw/compressed", 1, grey(9))
        bag.image("/camera/image_raw", 1, grey(1))
    assert open_source(tmp_path / "bag").topics.image == "/camera/image_raw"
    with Bag(tmp_path / "compressed") as bag:
        bag.info("/camera/camera_info", 1)
        bag.compressed("/camera/image_raw/compressed", 1, grey(9))
    (frame,) = open_source(tmp_path / "compressed")
    assert frame.image.unique().tolist() == [9]


def test_depth_of_the_nearest_stamp(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        for k in range(N):
            stamp = (k + 1) * STEP
            bag.info("/camera/color/camera_info", stamp)
            # Depth arrives before the colour of the same moment; one is missing.
            if k != 2:
                bag.image(
                    "/camera/aligned_depth_to_color/image_raw",
                    stamp + 5_000_000,
                    np.full((H, W), 1000 + k, np.uint16),
                    "16UC1",
                    recorded=stamp,
                )
            bag.image("/camera/color/image_raw", stamp, grey(k), recorded=stamp + 20_000_000)
    source = open_source(tmp_path / "bag")
    frames = list(source)
    assert source.mode == "rgbd" and len(frames) == N
    assert [None if f.depth is None else round(float(f.depth[0, 0]) * 1000) for f in frames] == [
        1000,
        1001,
        None,
        1003,
        1004,
        1005,
    ]


def test_stereo_pairs_with_the_baseline_of_p(tmp_path):
    right_p = np.array([50.0, 0, 31.5, -10.0, 0, 50, 23.5, 0, 0, 0, 1, 0])
    with Bag(tmp_path / "bag") as bag:
        for k in range(N):
            stamp = (k + 1) * STEP
            bag.info("/stereo/left/camera_info", stamp)
            bag.info("/stereo/right/camera_info", stamp, p=right_p)
            bag.image("/stereo/left/image_rect", stamp, grey(k))
            if k not in (0, 4):
                bag.image("/stereo/right/image_rect", stamp, grey(100 + k))
    source = open_source(tmp_path / "bag")
    frames = list(source)
    assert source.mode == "stereo" and source.camera.baseline_m == pytest.approx(0.2)
    # A map cannot begin with the first, but the fifth can be tracked.
    assert [int(f.image[0, 0, 0]) for f in frames] == list(range(1, N)) and "no right image" in source.warnings[0]
    assert [None if f.right is None else int(f.right[0, 0, 0]) for f in frames] == [
        None if k == 4 else 100 + k for k in range(1, N)
    ]
    assert open_source(tmp_path / "bag", SourceOptions(mode="mono")).camera.baseline_m is None


def test_truth_from_tf_follows_the_tree(tmp_path):
    """map -> base moves, base -> camera is static; the camera's trajectory is the product."""
    with Bag(tmp_path / "bag") as bag:
        bag.transform("/tf_static", 1, "base", "camera", 0.3, turn=np.pi / 2)
        for k in range(N):
            stamp = (k + 1) * STEP
            bag.info("/camera_info", stamp)
            bag.image("/image", stamp, grey(k))
            bag.transform("/tf", stamp, "map", "base", 1.0 * k)
    truth = open_source(tmp_path / "bag", SourceOptions(truth_topic="/tf")).groundtruth()
    np.testing.assert_allclose(truth.T_WC[:, 0], 0.3 + np.arange(N))
    np.testing.assert_allclose(truth.matrices()[0, :2, :2], [[0, -1], [1, 0]], atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, float("nan"), 3.0])
@pytest.mark.parametrize("topic", ["/tf", "/truth"])
def test_truth_that_is_no_pose_is_skipped_and_counted(tmp_path, topic, scale):
    with Bag(tmp_path / "bag") as bag:
        for k in range(N):
            stamp = (k + 1) * STEP
            bag.info("/camera_info", stamp)
            bag.image("/image", stamp, grey(k))
            bag.scale = scale if k == 3 else 1.0
            if topic == "/tf":
                bag.transform("/tf", stamp, "map", "camera", 1.0 * k)
            else:
                bag.pose(topic, stamp, 1.0 * k)
    source = open_source(tmp_path / "bag", SourceOptions(truth_topic=topic))
    assert source.groundtruth().T_WC[:, 0].tolist() == [0, 1, 2, 4, 5]
    assert len(source.warnings) == 1 and f"1 poses on {topic}" in source.warnings[0]


def test_odometry_of_the_base_is_carried_to_the_camera(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        bag.transform("/tf_static", 1, "base", "camera", 0.3, turn=np.pi / 2)
        for k in range(N):
            stamp = (k + 1) * STEP
            bag.info("/camera_info", stamp)
            bag.image("/image", stamp, grey(k))
            bag.transform("/tf", stamp, "odom", "base", 1.0 * k)
            bag.pose("/fused", stamp, 2.0 * k)
    assert open_source(tmp_path / "bag").odometry() is None
    given = open_source(tmp_path / "bag", SourceOptions(external_odometry_topic="/tf")).odometry()
    np.testing.assert_allclose(given.T_WC[:, 0], 0.3 + np.arange(N))
    assert open_source(tmp_path / "bag", SourceOptions(external_odometry_topic="/fused")).odometry().T_WC[3, 0] == 6.0
    with pytest.raises(SourceError, match="/wheels is not there"):
        open_source(tmp_path / "bag", SourceOptions(external_odometry_topic="/wheels"))


def test_odometry_of_a_frame_without_a_transform_is_refused(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        for k in range(3):
            bag.info("/camera_info", (k + 1) * STEP)
            bag.image("/image", (k + 1) * STEP, grey(k))
            bag.odometry("/wheels", (k + 1) * STEP, "base", 1.0 * k)
    source = open_source(tmp_path / "bag", SourceOptions(external_odometry_topic="/wheels"))
    with pytest.raises(
        SourceError,
        match="poses of 'base', and no static transform of the bag connects it to the camera's frame 'camera'",
    ):
        source.odometry()


def test_undecodable_images_are_skipped(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        bag.info("/camera_info", 1)
        bag.image("/image", 1, grey(1))
        bag.image("/image", 2, grey(1), "strange8")
        bag.image("/image", 3, grey(1))
    source = open_source(tmp_path / "bag")
    assert [f.stamp_ns for f in source] == [1, 3] and "strange8" in source.warnings[0]


# -- what `ros2 bag record -a` writes ---------------------------------------------------------------------------------

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def test_topics_without_messages_are_not_chosen(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        bag.announce("/camera/image_raw", IMAGE)
        bag.announce("/camera/image_raw/compressedDepth", COMPRESSED)
        bag.announce("/other/image_raw", IMAGE)
        for k in range(N):
            bag.info("/camera/camera_info", (k + 1) * STEP)
            bag.compressed("/camera/image_raw/compressed", (k + 1) * STEP, grey(k))
    source = open_source(tmp_path / "bag")
    assert source.mode == "mono" and len(list(source)) == N and source.topics.image.endswith("/compressed")
    with pytest.raises(SourceError, match="/camera/image_raw in bag holds no messages"):
        open_source(tmp_path / "bag", SourceOptions(image_topic="/camera/image_raw"))


def test_an_empty_camera_is_named(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        bag.announce("/camera/image_raw", IMAGE)
        bag.info("/camera/camera_info", STEP)
    with pytest.raises(SourceError, match="its image topics hold no messages: /camera/image_raw"):
        open_source(tmp_path / "bag")


DEPTHS = np.full((H, W), 1000, np.uint16)


def write_rgbd(path, colour, depths):
    with Bag(path) as bag:
        for k in range(2):
            stamp = (k + 1) * STEP
            bag.info(colour.rsplit("/", 1)[0] + "/camera_info", stamp)
            bag.image(colour, stamp, grey(k))
            for depth in depths:
                bag.image(depth, stamp, DEPTHS, "16UC1")
    return path


@pytest.mark.parametrize(
    "colour, depths, chosen",
    [
        # RealSense, Gazebo, OpenNI, and an OAK-D, whose depth is called stereo
        ("/camera/color/image_raw", ["/camera/aligned_depth_to_color/image_raw", "/camera/depth/image_rect_raw"], 0),
        ("/depth_camera/image", ["/depth_camera/depth_image"], 0),
        ("/camera/rgb/image_raw", ["/camera/depth/image_raw", "/camera/depth_registered/image_raw"], 1),
        ("/oak/rgb/image_raw", ["/oak/stereo/image_raw"], 0),
        ("/front/image", ["/front/depth_image", "/rear/depth_image"], 0),
    ],
)
def test_the_aligned_depth_is_chosen(tmp_path, colour, depths, chosen):
    source = open_source(write_rgbd(tmp_path / "bag", colour, depths))
    assert (source.topics.image, source.topics.depth, source.mode) == (colour, depths[chosen], "rgbd")


def test_depth_that_cannot_be_chosen_is_listed(tmp_path):
    path = write_rgbd(tmp_path / "bag", "/rgb/image_raw", ["/tof/depth", "/lidar/depth"])
    with pytest.raises(SourceError, match="--depth-topic.*/lidar/depth, /tof/depth"):
        open_source(path)
    assert open_source(path, SourceOptions("mono")).mode == "mono"
    assert open_source(path, SourceOptions(depth_topic="/tof/depth")).topics.depth == "/tof/depth"


def test_of_two_types_of_one_name_the_more_frequent_is_used(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        bag.compressed("/camera/image_raw", 1, grey(7))
        for k in range(N):
            bag.info("/camera/camera_info", (k + 1) * STEP)
            bag.image("/camera/image_raw", (k + 1) * STEP, grey(k))
    source = open_source(tmp_path / "bag")
    assert len(list(source)) == N and "two types" in source.warnings[0]


@pytest.mark.parametrize(
    "storage, mode",
    [
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        (StoragePlugin.SQLITE3, CompressionMode.FILE),
        (StoragePlugin.MCAP, CompressionMode.FILE),
    ],
)
def test_zstd_without_metadata(tmp_path, storage, mode):
    path = write_mono(tmp_path / "bag", storage=storage, zstd=mode)
    assert len(list(open_source(path))) == N
    (path / "metadata.yaml").unlink()
    source = open_source(path)
    assert len(list(source)) == N and source.warnings == []
    (file,) = path.iterdir()
    assert len(list(open_source(file))) == N


def test_split_files_without_metadata_are_read_in_the_order_of_their_numbers(tmp_path):
    for k in range(12):
        with Bag(tmp_path / f"part{k}", storage=StoragePlugin.SQLITE3) as bag:
            bag.info("/camera/camera_info", (k + 1) * STEP)
            bag.image("/camera/image_raw", (k + 1) * STEP, grey(k))
        (tmp_path / "bag").mkdir(exist_ok=True)
        next((tmp_path / f"part{k}").glob("*.db3")).rename(tmp_path / "bag" / f"bag_{k}.db3")
    source = open_source(tmp_path / "bag")
    assert [int(f.image[0, 0, 0]) for f in source] == list(range(12)) and source.warnings == []


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("name", ["my%20bag", "bag#2", "bag?"])
def test_paths_that_are_no_uri(tmp_path, storage, name):
    path = write_mono(tmp_path / "bag", storage=storage)
    path = path.rename(tmp_path / name)
    source = open_source(path)
    assert len(list(source)) == source.length == N and source.warnings == []


def mcap_record(opcode, body):
    return struct.pack("<BQ", opcode, len(body)) + body


def mcap_string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<I", len(data)) + data


def write_mcap(path, profile, channels, messages):
    """An mcap file without chunks or index; channels: (topic, type, encoding of the schema, its text, encoding of the messages)."""
    parts = [b"\x89MCAP0\r\n", mcap_record(1, mcap_string(profile) + mcap_string("test"))]
    for k, (topic, kind, encoding, text, message_encoding) in enumerate(channels, 1):
        parts.append(
            mcap_record(3, struct.pack("<H", k) + mcap_string(kind) + mcap_string(encoding) + mcap_string(text))
        )
        names = mcap_string(topic) + mcap_string(message_encoding) + struct.pack("<I", 0)
        parts.append(mcap_record(4, struct.pack("<HH", k, k) + names))
    for channel, stamp, data in messages:
        parts.append(mcap_record(5, struct.pack("<HIQQ", channel, 0, stamp, stamp) + bytes(data)))
    parts += [mcap_record(15, struct.pack("<I", 0)), mcap_record(2, struct.pack("<QQI", 0, 0, 0)), b"\x89MCAP0\r\n"]
    path.write_bytes(b"".join(parts))
    return path


class Messages(Bag):
    """Serialized messages instead of a bag."""

    def __init__(self, ros):
        self.ros, self.store, self.written = (
            ros,
            get_typestore(Stores.ROS2_JAZZY if ros == 2 else Stores.ROS1_NOETIC),
            [],
        )

    def write(self, topic, stamp, message):
        serialize = self.store.serialize_cdr if self.ros == 2 else self.store.serialize_ros1
        self.written.append((topic, stamp, serialize(message, message.__msgtype__)))


@pytest.mark.parametrize("ros, encoding", [(2, "cdr"), (1, "ros1")])
def test_channels_of_other_encodings_and_ros1_in_mcap(tmp_path, ros, encoding):
    messages = Messages(ros)
    for k in range(N):
        messages.info("/camera/camera_info", (k + 1) * STEP)
        messages.image("/camera/image_raw", (k + 1) * STEP, grey(k))
    kinds = {"/camera/camera_info": "sensor_msgs/msg/CameraInfo", "/camera/image_raw": IMAGE}
    schema = f"ros{ros}msg"
    channels = [
        (t, kind, schema, messages.store.generate_msgdef(kind, ros_version=ros)[0], encoding)
        for t, kind in kinds.items()
    ]
    if ros == 1:
        channels = [(t, kind.replace("/msg", ""), *more) for t, kind, *more in channels]
    else:
        channels.append(("/proto", "foxglove.Log", "protobuf", b"\x0a\xff\xfe", "protobuf"))
        channels.append(("/json", "thing", "jsonschema", "{}", "json"))
    number = {topic: k for k, topic in enumerate(kinds, 1)}
    data = [(number[topic], stamp, raw) for topic, stamp, raw in messages.written]
    others = [(3, 1, b"\x00"), (4, 1, b"{}")] if ros == 2 else []
    source = open_source(write_mcap(tmp_path / "a.mcap", f"ros{ros}", channels, others + data))
    assert [int(f.image[0, 0, 0]) for f in source] == list(range(N)) and source.warnings == []
    assert source.length == N


# -- stamps, pairs, calibrations that change --------------------------------------------------------------------------


def test_images_without_stamps_take_the_time_of_recording(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        for k in range(N):
            bag.info("/camera_info", 0)
            bag.image("/image", 0, grey(k), recorded=(k + 1) * STEP)
    source = open_source(tmp_path / "bag")
    assert [f.stamp_ns for f in source] == [(k + 1) * STEP for k in range(N)] and "no stamp" in source.warnings[0]


def test_a_clock_that_jumps_back(tmp_path):
    stamps = [10, 11, 12, 1, 2, 3, 4]
    with Bag(tmp_path / "bag") as bag:
        for k, stamp in enumerate(stamps):
            bag.info("/camera_info", stamp * 10**9)
            bag.image("/image", stamp * 10**9, grey(k), recorded=k * 10**9)
    source = open_source(tmp_path / "bag")
    assert [f.stamp_ns // 10**9 for f in source] == [10, 11, 12]
    jumps = []
    source.on_jump = lambda: jumps.append(True)
    # The first image of the new time is not yet confirmed.
    assert [f.stamp_ns // 10**9 for f in source] == [10, 11, 12, 2, 3, 4]
    assert jumps == [True] and "jumped back" in " ".join(source.warnings)


def test_one_stamp_three_years_ahead_is_skipped(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        for k, stamp in enumerate([10, 11, 10**8, 12, 13]):
            bag.info("/camera_info", stamp * 10**9)
            bag.image("/image", stamp * 10**9, grey(k), recorded=(10 + k) * 10**9)
    source = open_source(tmp_path / "bag")
    source.on_jump = lambda: pytest.fail("no jump")
    assert [f.stamp_ns // 10**9 for f in source] == [10, 11, 12, 13]


def test_pairs_within_the_slop_and_the_gap_of_the_others(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        for k in range(N):
            stamp = (k + 1) * STEP
            bag.info("/color/camera_info", stamp)
            bag.image("/color/image_raw", stamp, grey(k))
            bag.image("/aligned_depth_to_color/image_raw", stamp + (14_000_000 if k else 0), DEPTHS, "16UC1")
    source = open_source(tmp_path / "bag")
    assert [f.depth is not None for f in source] == [True] + [False] * (N - 1)
    assert "5 images on /color/image_raw" in source.warnings[-1] and "14.000 ms away" in source.warnings[-1]
    wide = open_source(tmp_path / "bag", SourceOptions(sync_slop_s=0.02))
    assert all(f.depth is not None for f in wide) and wide.warnings == []


def test_camera_info_that_changes_is_followed(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        for k in range(N):
            stamp, big = (k + 1) * STEP, k >= 4
            focal = 50.0 + k * (k < 3)
            k9 = np.array([focal, 0, 31.5, 0, focal, 23.5, 0, 0, 1])
            bag.info("/camera_info", stamp, k=k9 if k != 3 else np.zeros(9), size=(2 * W, H) if big else (W, H))
            bag.image("/image", stamp, np.zeros((H, 2 * W if big else W), np.uint8))
    source = open_source(tmp_path / "bag")
    frames = list(source)
    assert [f.camera.fx for f in frames] == [50, 51, 52, 52, 50, 50] and frames[-1].camera.width == 2 * W
    assert len(source.warnings) == 2 and "cannot be used" in source.warnings[0] and "changes from" in source.warnings[1]


def test_one_image_of_another_size_is_skipped(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        for k in range(N):
            bag.info("/camera_info", (k + 1) * STEP)
            bag.image("/image", (k + 1) * STEP, grey(k) if k != 2 else np.zeros((2, 2), np.uint8))
    source = open_source(tmp_path / "bag")
    assert len(list(source)) == N - 1 and f"2 x 2, its camera calibration is for {W} x {H}" in source.warnings[0]


def test_binning_and_rectified_are_of_the_images(tmp_path):
    with Bag(tmp_path / "bag") as bag:
        bag.info("/image_rect/camera_info", 1, size=(W, H), binning=2, p=np.zeros(12))
        bag.image("/image_rect/image_rect", 1, grey(1))
    assert list(open_source(tmp_path / "bag"))[0].camera == CAMERA
    assert open_source(tmp_path / "bag", SourceOptions(rectified="no")).camera == CAMERA


@pytest.mark.data
def test_real_bags(data_folder):
    source = open_source(data_folder / "rosbag2" / "tum_fr1_rpy_mono_mcap")
    frames = list(source)
    assert len(frames) == 60 and source.camera.model == "plumb_bob" and len(source.groundtruth()) == 60
    sample = data_folder / "rosbag2" / "real_recorded_sample"
    with pytest.raises(CameraError, match="--camera FILE"):
        open_source(sample)
    (frame,) = open_source(sample / "sample.db3", SourceOptions(camera=Camera(640, 480, 500, 500, 320, 240)))
    assert frame.image.shape == (3, 480, 640) and frame.image.float().std() > 10


# -- gyroscopes -----------------------------------------------------------------------------------------------------------

R_CAMERA_IMU = Rotation.from_euler("z", 90, degrees=True).as_matrix()


def imu_message(bag, stamp, rate, measured=True):
    vector = bag.type("geometry_msgs/msg/Vector3")
    return bag.type("sensor_msgs/msg/Imu")(
        header=bag.header(stamp, "imu"),
        orientation=bag.type("geometry_msgs/msg/Quaternion")(x=0.0, y=0.0, z=0.0, w=1.0),
        orientation_covariance=np.zeros(9),
        angular_velocity=vector(*rate),
        angular_velocity_covariance=np.array([0.0 if measured else -1.0] + [0.0] * 8),
        linear_acceleration=vector(0.0, 0.0, 9.81),
        linear_acceleration_covariance=np.zeros(9),
    )


def write_bag(path, connected=True, measured=True):
    with Bag(path) as bag:
        if connected:
            types = bag.type
            x, y, z, w = Rotation.from_matrix(R_CAMERA_IMU).as_quat().tolist()
            mounting = types("geometry_msgs/msg/TransformStamped")(
                header=bag.header(0, "camera"),
                child_frame_id="imu",
                transform=types("geometry_msgs/msg/Transform")(
                    translation=types("geometry_msgs/msg/Vector3")(x=0.0, y=0.0, z=0.0),
                    rotation=types("geometry_msgs/msg/Quaternion")(x=x, y=y, z=z, w=w),
                ),
            )
            bag.write("/tf_static", 0, types("tf2_msgs/msg/TFMessage")(transforms=[mounting]))
        for k in range(N):
            bag.info("/camera/camera_info", k * STEP)
            bag.image("/camera/image_raw", k * STEP, grey(10 * k))
            bag.write("/imu", k * STEP, imu_message(bag, k * STEP, (float(k), 2.0, 3.0), measured))
    return path


def test_a_topic_of_a_bag_is_turned_by_its_static_transforms(tmp_path):
    path = write_bag(tmp_path / "bag")
    found = open_source(path, SourceOptions(imu_topic="/imu")).imu()
    assert len(found.stamps_ns) == N and np.allclose(found.rates[4], R_CAMERA_IMU @ [4, 2, 3])
    assert open_source(path).imu() is None
    with pytest.raises(SourceError, match="topic /camera/image_raw is a .* expected one of type sensor_msgs/msg/Imu"):
        open_source(path, SourceOptions(imu_topic="/camera/image_raw"))


@pytest.mark.parametrize(
    "options, complaint",
    [({"connected": False}, "no static transform"), ({"measured": False}, "no message with an angular velocity")],
)
def test_topics_that_cannot_be_used_are_named(tmp_path, options, complaint):
    source = open_source(write_bag(tmp_path / "bag", **options), SourceOptions(imu_topic="/imu"))
    with pytest.raises(SourceError, match=complaint):
        source.imu()
