"""The real node with the learned matcher, learning in the background, on a sequence it has never seen, over DDS."""

from __future__ import annotations

import numpy as np
import pytest
from imatching_ros.msg import LearningStatus, Matches, Status
from nav_msgs.msg import Odometry
from peers import image_message, info_message, send_until, wait_until
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image

from imatching_ros.offline.recordings.base import SourceOptions
from imatching_ros.offline.recordings import open_source

pytestmark = [pytest.mark.ros, pytest.mark.data, pytest.mark.slow]

FRAMES = 24


def test_tartanair(peer, start_node, data_folder):
    source = open_source(data_folder / "tartanair_hospital", SourceOptions(mode="rgbd"))
    truth = source.groundtruth()
    frames = [frame for frame, _ in zip(source, range(FRAMES), strict=False)]
    poses = dict(zip(truth.stamps_ns.tolist(), truth.T_WC, strict=True))
    node = start_node({"matcher.name": "expectation", "learning.mode": "thread", "base_frame": "optical"})
    odometry, matches, status = (
        peer.collect(kind, topic)
        for kind, topic in ((Odometry, "/odom"), (Matches, "/imatching/matches"), (Status, "/imatching/status"))
    )
    learning = peer.collect(LearningStatus, "/imatching/learning/status")
    infos, images = peer.publisher(CameraInfo, "/camera_info"), peer.publisher(Image, "/image")
    peer.meet()
    for count, frame in enumerate(frames, 1):
        image = frame.image.permute(1, 2, 0).numpy()

        def send(frame=frame, image=image) -> None:
            infos.publish(info_message(frame.stamp_ns, frame.camera))
            images.publish(image_message(frame.stamp_ns, image, "rgb8" if image.shape[2] == 3 else "mono8"))

        send_until(send, lambda count=count: len(status) >= count, f"image {count}:\n{node.output}", patience_s=15.0)
    wait_until(lambda: len(learning) >= FRAMES, what="learning status")
    assert node.stop() == 0, node.output
    started = next(k for k, m in enumerate(status) if m.state == Status.TRACKING)
    assert started <= 15 and len(odometry) >= 0.95 * (FRAMES - started)
    assert all(
        np.isfinite([m.pose.pose.position.x, m.pose.pose.position.y, m.pose.pose.position.z]).all() for m in odometry
    )
    assert learning[-1].mode == "thread" and learning[-1].state != "failed" and learning[-1].weights_hash
    by_stamp = {frame.stamp_ns: frame for frame in frames}
    errors = [error_px(m, by_stamp, poses) for m in matches]
    assert len(errors) >= 5 and np.median(np.concatenate(errors)) < 1.5


def error_px(message: Matches, frames: dict, poses: dict) -> np.ndarray:
    """Distance of every inlier to where true depth and poses put it, px."""
    first, second = (s.sec * 10**9 + s.nanosec for s in (message.stamp_i, message.header.stamp))
    inlier = np.array(message.inlier, bool)
    uv_i, uv_j = (np.stack([u, v], 1)[inlier] for u, v in ((message.u_i, message.v_i), (message.u_j, message.v_j)))
    c, depth = frames[first].camera, frames[first].depth.numpy()
    u, v = np.rint(uv_i).astype(int).T
    z = depth[v.clip(0, c.height - 1), u.clip(0, c.width - 1)]
    points = np.stack([(uv_i[:, 0] - c.cx) / c.fx * z, (uv_i[:, 1] - c.cy) / c.fy * z, z], 1)
    world = Rotation.from_quat(poses[first][3:]).apply(points) + poses[first][:3]
    x, y, z = Rotation.from_quat(poses[second][3:]).inv().apply(world - poses[second][:3]).T
    return np.linalg.norm(np.stack([c.fx * x / z + c.cx, c.fy * y / z + c.cy], 1) - uv_j, axis=1)
