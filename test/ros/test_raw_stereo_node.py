"""A stereo pair as it comes from the sensors: distorted, and each camera turned by itself. The node rectifies it by CameraInfo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from imatching_ros.msg import Matches, Status
from nav_msgs.msg import Odometry
from peers import Peer, image_message, info_message, send_until, wait_until
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from walls import CAMERA, look

pytestmark = [pytest.mark.ros, pytest.mark.slow]

BASELINE_M = 0.1
LEFT = replace(CAMERA, model="plumb_bob", distortion=(-0.25, 0.08, 0.001, -0.0005, 0.0))
RIGHT = replace(
    CAMERA, fx=258.0, fy=257.0, cx=161.0, cy=118.0, model="plumb_bob", distortion=(-0.22, 0.06, -0.001, 0.0005, 0.0)
)
TURN_DEG = {"left": (1.5, -2.0, 1.0), "right": (-1.0, 1.5, -0.5)}  # of the raw camera in the rectified one


def raw_info(stamp: int, side: str) -> CameraInfo:
    """K and D of the sensor, R to the rectified camera, P of that."""
    info = info_message(stamp, {"left": LEFT, "right": RIGHT}[side])
    info.r = Rotation.from_rotvec(TURN_DEG[side], degrees=True).as_matrix().ravel().tolist()
    shift = -CAMERA.fx * BASELINE_M if side == "right" else 0.0
    info.p = [CAMERA.fx, 0.0, CAMERA.cx, shift, 0.0, CAMERA.fy, CAMERA.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


class Robot:
    def __init__(self, peer: Peer, start_node) -> None:
        self.node = start_node({"mode": "stereo", "base_frame": "optical"})
        self.odom, self.status = peer.collect(Odometry, "/odom"), peer.collect(Status, "/imatching/status")
        self.matches = peer.collect(Matches, "/imatching/matches")
        self.images = {side: peer.publisher(Image, f"/{side}/image") for side in ("left", "right")}
        self.infos = {side: peer.publisher(CameraInfo, f"/{side}/camera_info") for side in ("left", "right")}
        self.stamp = 10**9
        self.places: dict[int, tuple[float, float, float]] = {}
        self.node.wait_for("active")

    def send(self, position: tuple[float, float, float]) -> None:
        self.stamp += 10**8
        self.places[self.stamp] = position
        for side, camera, shift in (("right", RIGHT, BASELINE_M), ("left", LEFT, 0.0)):
            self.infos[side].publish(raw_info(self.stamp, side))
            x, y, z = position
            self.images[side].publish(
                image_message(self.stamp, look((x + shift, y, z), TURN_DEG[side], camera)[0], "mono8")
            )

    def start_again(self) -> np.ndarray:
        """A jump back in time resets when the second image confirms it; returns the published position."""
        self.stamp -= 20 * 10**9
        count = len(self.status)
        send_until(lambda: self.send((0.0, 0.0, 0.0)), lambda: len(self.status) > count, "a status")
        return self.show((0.0, 0.0, 0.0))

    def show(self, position: tuple[float, float, float]) -> np.ndarray:
        """Images of the pair at a place, given in the axes of the rectified camera; returns the published position."""
        count = len(self.odom)

        send_until(lambda: self.send(position), lambda: len(self.odom) > count, f"odometry:\n{self.node.output}")
        p = self.odom[-1].pose.pose.position
        return np.array([p.x, p.y, p.z])


@pytest.fixture(scope="module")
def robot(peer: Peer, start_node) -> Robot:
    return Robot(peer, start_node)


@pytest.mark.parametrize("way", [(0.0, 0.0, 0.08), (0.08, 0.0, 0.0), (0.0, 0.08, 0.0)])
def test_a_raw_pair_is_rectified_and_metric(robot, way):
    start = robot.start_again()
    robot.show(tuple(v / 2 for v in way))
    moved = robot.show(way) - start
    # What is published is of the raw left camera, whose frame the images name.
    expected = Rotation.from_rotvec(TURN_DEG["left"], degrees=True).inv().apply(way)
    np.testing.assert_allclose(moved, expected, atol=0.004)
    last = robot.status[-1]
    assert last.state == Status.TRACKING and last.metric and last.scale == "stereo baseline" and last.inliers > 50


def wall(uv: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Points (N, 3) of the wall that pixels (N, 2) of the raw left image show, in the axes of the rectified camera."""
    ideal = LEFT.undistort(torch.from_numpy(uv)).numpy()
    rays = np.column_stack([(ideal - [LEFT.cx, LEFT.cy]) / [LEFT.fx, LEFT.fy], np.ones(len(uv))])
    rays = Rotation.from_rotvec(TURN_DEG["left"], degrees=True).apply(rays)
    return position + rays * ((2.0 - position[2]) / rays[:, 2])[:, None]


def test_matches_are_of_the_images_that_were_sent(robot):
    robot.start_again()
    count = len(robot.matches)
    for x in (0.0, 0.05, 0.1):
        robot.show((x, 0.0, 0.0))
    message = wait_until(lambda: robot.matches[count:] and robot.matches[-1], what="matches")
    from_i, from_j = (
        np.array(robot.places[t.sec * 10**9 + t.nanosec]) for t in (message.stamp_i, message.header.stamp)
    )
    good = np.array(message.inlier, bool)
    i, j = (
        np.stack(pixels, 1).astype(float)[good] for pixels in ((message.u_i, message.v_i), (message.u_j, message.v_j))
    )
    error_px = np.linalg.norm(wall(i, from_i) - wall(j, from_j), axis=1) * LEFT.fx / 2.0
    # 0.7 when pixels of the rectified images are taken for these.
    assert len(error_px) > 50 and np.median(error_px) < 0.1


def test_ends_cleanly(robot):
    assert robot.node.stop() == 0 and "internal error" not in robot.node.output
