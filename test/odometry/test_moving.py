"""Two bodies that move otherwise than each other, told apart by landmarks of known motion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.odometry.moving import QUIET_FRAMES, MotionSegmentation, SeenFrame
from imatching_ros.odometry.rigid_motions import back_project, to_camera
from odometry_scenes import CAMERA

WORLD, THING = 150, 100


def pose(x: float, yaw: float = 0.0) -> torch.Tensor:
    return torch.cat([torch.tensor([x, 0.0, 0.0]), geometry.exp_so3(torch.tensor([0.0, yaw, 0.0]))]).double()


def points(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of the world all around, 2 to 5 m away, and of a thing of a third of the image at 1 m."""
    rng = np.random.default_rng(seed)
    uv = rng.uniform((0, 0), (CAMERA.width, CAMERA.height), (2000, 2))
    inside = (np.abs(uv - (160, 120)) < (90, 70)).all(1)
    chosen = [uv[~inside][:WORLD], uv[inside][:THING]]
    depths = rng.uniform(2, 5, WORLD), np.ones(THING)
    world, thing = (
        np.column_stack([(px - (CAMERA.cx, CAMERA.cy)) / (CAMERA.fx, CAMERA.fy), np.ones(len(px))]) * z[:, None]
        for px, z in zip(chosen, depths)
    )
    return world, thing


def see(T_WC: torch.Tensor, points_W: np.ndarray, seed: int = 0, T_claimed: torch.Tensor | None = None) -> SeenFrame:
    """What a camera at T_WC sees with an error of .2 px, with the pose that odometry claims."""
    points_C = to_camera(T_WC, points_W)
    uv = points_C[:, :2] / points_C[:, 2:] * (CAMERA.fx, CAMERA.fy) + (CAMERA.cx, CAMERA.cy)
    uv += np.random.default_rng(seed).normal(0, 0.2, uv.shape)
    ids = np.arange(len(points_W))
    points_C = back_project(CAMERA, uv, points_C[:, 2])
    return SeenFrame(ids, uv, points_C, np.zeros(len(ids), bool), T_WC if T_claimed is None else T_claimed)


def follow(segmentation: MotionSegmentation, frames: list[SeenFrame]) -> list:
    found = []
    for frame in frames:
        found.append(segmentation.compare(CAMERA, frame))
        segmentation.keep(frame)
    return found


def walk(step: float, first: int = 0, count: int = 10, speed: float = 0.02) -> list[SeenFrame]:
    """A camera that moves forward by turning and walking, and a thing that moves sideways by `step` m a frame."""
    world, thing = points()
    return [
        see(pose(speed * k, 0.002 * k), np.concatenate([world, thing + (step * k, 0, 0)]), k)
        for k in range(first, first + count)
    ]


def test_one_body_is_one_motion():
    segmentation = MotionSegmentation()
    assert follow(segmentation, walk(0.0)) == [None] * 10 and segmentation.last is None and not segmentation.disputed


def test_a_thing_that_moves_is_told_from_the_world_around_it():
    segmentation = MotionSegmentation()
    frames = walk(0.03)
    two = follow(segmentation, frames)[-1]
    assert two is not None and segmentation.disputed
    assert len(two.first) > 0.9 * WORLD and two.first.max() < WORLD
    assert len(two.second) > 0.9 * THING and two.second.min() >= WORLD
    true = geometry.relative(frames[-1 - two.frames].T_WC, frames[-1].T_WC)
    assert geometry.local(two.T_first, true).abs().max() < 0.02
    assert geometry.local(two.T_WC, frames[-1].T_WC).abs().max() < 0.02


def test_swapped_motions_give_the_pose_by_the_other_body():
    frames = walk(0.03)
    two = follow(MotionSegmentation(), frames)[-1]
    other = two.swapped()
    assert torch.equal(other.first, two.second) and torch.equal(other.T_first, two.T_second)
    before = frames[-1 - two.frames].T_WC
    assert geometry.local(geometry.compose(before, two.T_second), other.T_WC).abs().max() < 1e-9
    assert geometry.local(other.swapped().T_WC, two.T_WC).abs().max() < 1e-9


def test_a_pose_that_follows_the_thing_is_found_out():
    """Odometry has taken the thing for the world from the start."""
    world, thing = points()
    frames = [
        see(pose(0.02 * k), np.concatenate([world, thing + (0.03 * k, 0, 0)]), k, T_claimed=pose(-0.01 * k))
        for k in range(10)
    ]
    two = next(two for two in follow(MotionSegmentation(), frames) if two is not None)
    assert two.first.max() < WORLD and two.second.min() >= WORLD


def test_noise_without_a_motion_of_its_own_is_no_body():
    rng, frames = np.random.default_rng(1), walk(0.0)
    for frame in frames:
        wild = rng.random(len(frame.id)) < 0.4
        frame.uv[wild] += rng.uniform(-16, 16, (wild.sum(), 2))
    assert follow(MotionSegmentation(), frames) == [None] * 10


def test_what_clings_to_the_lens_is_not_in_dispute():
    world, _ = points()
    rng = np.random.default_rng(2)
    lens = np.column_stack([rng.uniform(-0.1, 0.3, 60), rng.uniform(-0.2, 0.2, 60), np.ones(60)])
    segmentation = MotionSegmentation()
    found = follow(
        segmentation,
        [
            see(pose(0.1 * k), np.concatenate([world, geometry.act(pose(0.1 * k), torch.tensor(lens)).numpy()]), k)
            for k in range(6)
        ],
    )
    assert found[-1] is not None and found[-1].attached and found[-1].second.min() >= WORLD
    assert segmentation.last is not None and not segmentation.disputed


@pytest.mark.parametrize("leaves", [True, False])
def test_a_dispute_ends_when_one_motion_explains_the_image(leaves):
    segmentation = MotionSegmentation()
    world, thing = points()
    if leaves:  # the world is seen where the thing was
        thing = thing * 3
    follow(segmentation, walk(0.03))
    segmentation.forget_frames()
    found = follow(
        segmentation,
        [
            see(pose(0.02 * k), np.concatenate([world, thing])[: None if leaves else WORLD // 3], k)
            for k in range(QUIET_FRAMES + 2)
        ],
    )
    assert found == [None] * len(found)
    assert (segmentation.last is None) is leaves, "where most of the image is not seen, nothing is known"


def test_a_map_that_is_moved_or_scaled_shows_no_second_motion():
    segmentation = MotionSegmentation()
    frames = walk(0.0)
    follow(segmentation, frames[:9])
    T = pose(0.5, 0.3)
    segmentation.move(T)
    moved = frames[9]
    assert segmentation.compare(CAMERA, replace(moved, T_WC=geometry.compose(T, moved.T_WC))) is None
