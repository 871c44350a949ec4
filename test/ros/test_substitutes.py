"""Substitutes for packages that are not installed, compared with the originals where both exist."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from imatching_ros.ros import convert, transforms
from imatching_ros.ros.tf_tree import TransformTree
from imatching_ros.camera.decoding import decode_image

pytestmark = pytest.mark.ros


def test_cloud_holds_the_points():
    points = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    cloud = convert.pack_cloud(Header(frame_id="odom"), points)
    assert [(f.name, f.offset, f.datatype) for f in cloud.fields] == [("x", 0, 7), ("y", 4, 7), ("z", 8, 7)]
    assert (cloud.width, cloud.height, cloud.point_step, cloud.row_step) == (7, 1, 12, 84)
    assert struct.unpack_from("<3f", cloud.data, 24) == tuple(points[2])


def test_cloud_is_what_sensor_msgs_py_makes():
    point_cloud2 = pytest.importorskip(
        "sensor_msgs_py.point_cloud2", reason="sensor_msgs_py is not installed: nothing to compare with"
    )
    points = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    assert convert.pack_cloud(Header(frame_id="odom"), points) == point_cloud2.create_cloud_xyz32(
        Header(frame_id="odom"), points
    )


@pytest.mark.parametrize("encoding", ["mono8", "rgb8", "bgr8", "rgba8", "bgra8", "mono16", "bayer_rggb8", "yuv422"])
def test_images_are_what_cv_bridge_makes(encoding):
    cv_bridge = pytest.importorskip("cv_bridge", reason="cv_bridge is not installed: nothing to compare with")
    channels = {"mono8": 1, "mono16": 2, "bayer_rggb8": 1, "yuv422": 2}.get(encoding, 4 if "a8" in encoding else 3)
    data = np.random.default_rng(0).integers(0, 255, (8, 8 * channels), np.uint8)
    message = Image(height=8, width=8, encoding=encoding, step=8 * channels, data=data.tobytes())
    theirs = cv_bridge.CvBridge().imgmsg_to_cv2(message, "mono8" if encoding.startswith("mono") else "rgb8")
    ours = decode_image(message).permute(1, 2, 0).numpy().squeeze()
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def link(parent: str, child: str, pose: np.ndarray) -> TransformStamped:
    return convert.make_transform(0, transforms.from_pose(pose), parent, child)


def some_links() -> tuple[list[TransformStamped], dict[str, np.ndarray]]:
    """A tree: odom -> base -> (mast -> camera, wheel), and its transforms."""
    rng = np.random.default_rng(3)
    pose = {
        name: np.concatenate([rng.normal(size=3), Rotation.random(rng=rng).as_quat()])
        for name in ("base", "mast", "camera", "wheel")
    }
    parents = {"base": "odom", "mast": "base", "camera": "mast", "wheel": "base"}
    return [link(parents[name], name, pose[name]) for name in pose], {
        name: transforms.from_pose(p) for name, p in pose.items()
    }


def test_tree_finds_every_transform():
    links, T = some_links()
    tree = TransformTree(None)
    tree.add(TFMessage(transforms=links))
    np.testing.assert_allclose(tree.lookup("base", "camera"), T["mast"] @ T["camera"], atol=1e-12)
    np.testing.assert_allclose(
        tree.lookup("camera", "wheel"), transforms.inverse(T["mast"] @ T["camera"]) @ T["wheel"], atol=1e-12
    )
    np.testing.assert_allclose(tree.lookup("base", "base"), np.eye(4), atol=1e-12)
    assert tree.lookup("base", "moon") is None and tree.lookup("moon", "camera") is None


def test_tree_survives_a_loop():
    tree = TransformTree(None)
    identity = np.array([0, 0, 0, 0, 0, 0, 1.0])
    tree.add(TFMessage(transforms=[link("a", "b", identity), link("b", "a", identity)]))
    assert tree.lookup("c", "a") is None


def test_tree_agrees_with_tf2():
    tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros is not installed: nothing to compare with")
    from rclpy.time import Time

    links, _ = some_links()
    buffer, tree = tf2_ros.Buffer(), TransformTree(None)
    for transform in links:
        buffer.set_transform_static(transform, "test")
    tree.add(TFMessage(transforms=links))
    for target in ("odom", "base", "camera"):
        for source in ("camera", "wheel", "mast"):
            found = buffer.lookup_transform(target, source, Time()).transform
            t, q = found.translation, found.rotation
            np.testing.assert_allclose(
                tree.lookup(target, source),
                transforms.from_pose(np.array([t.x, t.y, t.z, q.x, q.y, q.z, q.w])),
                atol=1e-9,
            )
