"""Motions of rigid bodies from points that an image shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.odometry.rigid_motions import (
    SUPPORT_PX,
    SeenPoints,
    back_project,
    may_show_two,
    residuals,
    two_motions,
)
from odometry_scenes import CAMERA

FIRST = torch.tensor([0.05, 0.0, 0.02, 0.0, 0.01, 0.0, 1.0], dtype=torch.float64)


def scene(body: int, seed: int = 0, step: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """200 points (N, 3) of a world and `body` of a thing 1 m away, and pixels (N, 2) where a camera at FIRST sees them after the thing has moved."""
    rng = np.random.default_rng(seed)
    uv = np.concatenate([rng.uniform((0, 0), (320, 240), (200, 2)), rng.uniform((110, 70), (230, 170), (body, 2))])
    points = back_project(CAMERA, uv, np.concatenate([rng.uniform(2, 5, 200), np.ones(body)]))
    moved = points + np.where(np.arange(len(points)) < 200, 0.0, step)[:, None] * (1.0, 0.3, 0.0)
    seen = -residuals(CAMERA, geometry.act(geometry.inverse(FIRST), torch.from_numpy(moved)).numpy(), np.zeros_like(uv))
    return points, seen + rng.normal(0, 0.2, seen.shape)


def view(points: np.ndarray, uv: np.ndarray, T: torch.Tensor = FIRST) -> SeenPoints:
    """As a pose T (7,) has them."""
    points_C = geometry.act(geometry.inverse(T), torch.from_numpy(points)).numpy()
    residual = residuals(CAMERA, points_C, uv)
    return SeenPoints(points_C, uv, residual, np.linalg.norm(residual, axis=1) > 2 * SUPPORT_PX)


def join(views: list[SeenPoints]) -> tuple[SeenPoints, list[slice]]:
    ends = np.cumsum([0] + [len(v.uv) for v in views]).tolist()
    whole = SeenPoints(*(np.concatenate(part) for part in zip(*(vars(v).values() for v in views))))
    return whole, [slice(*pair) for pair in zip(ends, ends[1:])]


def test_two_bodies_are_two_motions():
    motions = two_motions(CAMERA, *scene(80))
    assert motions is not None
    assert geometry.local(motions[0], FIRST).abs().max() < 0.01
    assert geometry.local(motions[1], FIRST).abs().max() > 0.05


def test_too_few_points_are_no_body():
    assert two_motions(CAMERA, *scene(8)) is None


@pytest.mark.parametrize("body", [15, 60, 180])
def test_a_body_is_worth_looking_for_motions(body):
    assert may_show_two(CAMERA, *join([view(*scene(body))])) == [True]


def test_a_pose_between_two_bodies_is_worth_it():
    between = geometry.compose(FIRST, torch.tensor([-0.05, -0.015, 0.0, 0.0, 0.0, 0.0, 1.0]).double())
    assert may_show_two(CAMERA, *join([view(*scene(150), between)])) == [True]


def test_noise_and_a_pose_that_is_a_little_off_are_not():
    rng = np.random.default_rng(1)
    points, uv = scene(60, step=0.0)
    wild = rng.random(len(uv)) < 0.3
    uv[wild] += rng.uniform(-16, 16, (wild.sum(), 2))
    off = geometry.compose(FIRST, torch.tensor([0.0, 0.0, 0.0, 0.0, 0.004, 0.0, 1.0]).double())
    assert may_show_two(CAMERA, *join([view(points, uv), view(points, uv, off)])) == [False, False]


def test_each_view_is_judged_by_itself():
    """Those behind the camera or without outliers do no harm to the others."""
    still, moves = view(*scene(60, step=0.0)), view(*scene(60))
    behind = view(-scene(60)[0], scene(60)[1])
    assert may_show_two(CAMERA, *join([still, moves, behind])) == [False, True, False]
    assert may_show_two(CAMERA, *join([still])) == [False]
