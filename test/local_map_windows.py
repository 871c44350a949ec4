"""Windows of exact geometry that the tests of the local map and of learning's samples share."""

from __future__ import annotations

from dataclasses import replace

import torch

from imatching_ros.core import geometry
from imatching_ros.core.types import ObservationKind
from imatching_ros.matching.klt import KltMatcher
from imatching_ros.odometry.local_map import Keyframe, Window
from imatching_ros.odometry.measurements import DepthMeasurements
from odometry_scenes import CAMERA, speckle

IMAGE = torch.from_numpy(speckle(0, (240, 320)))[None]
NEW = 400
DEPTH = 5.0


def depths(inverse: torch.Tensor, sigma: float) -> DepthMeasurements:
    """Measured inverse depths (N,)."""
    return DepthMeasurements(ObservationKind.DEPTH, inverse, torch.full_like(inverse, sigma), 1 / inverse)


def poses(count: int) -> torch.Tensor:
    """A sideways path that turns a little."""
    steps = torch.arange(count, dtype=torch.float64)
    zero = torch.zeros_like(steps)
    return geometry.exp(torch.stack([0.2 * steps, 0.02 * steps, 0.05 * steps, zero, 0.02 * steps, zero], 1))


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, generator=rng, dtype=torch.float64) * torch.tensor([4.0, 2.5, 4.0]) + torch.tensor(
        [-1.5, -1.25, 4.0]
    )


def build(
    matcher=None, keyframes: int = 5, landmarks: int = 60, noise_px: float = 0.0, depth: bool = False
) -> tuple[Window, torch.Tensor, torch.Tensor]:
    """A window with landmarks of the first keyframe seen in all; true poses and points. Rays that leave the image are kept."""
    matcher = matcher or KltMatcher()
    T, points = poses(keyframes), cloud(landmarks)
    window, rng = Window(), torch.Generator().manual_seed(1)
    for k in range(keyframes):
        window.add_keyframe(Keyframe(10 * k, 10 * k, IMAGE, matcher.observe(IMAGE)), T[k])
    seen = [geometry.act(geometry.inverse(pose), points) for pose in T]
    uv = [
        geometry.project(CAMERA, p) + noise_px * torch.randn(landmarks, 2, generator=rng, dtype=torch.float64)
        for p in seen
    ]
    queries = matcher.describe(window.keyframes[0].features, uv[0].float()) if matcher.wide_baseline else None
    rows = window.add_landmarks(0, uv[0].float(), queries)
    for k in range(keyframes):
        if depth:
            window.observe(
                CAMERA,
                k,
                rows,
                uv[k],
                torch.full((landmarks,), 0.5),
                depths(1 / seen[k][:, 2], 0.002),
            )
        else:
            window.observe(CAMERA, k, rows, uv[k], torch.full((landmarks,), 0.5))
    return window, T, points


def turning_window() -> Window:
    """Five keyframes that turn about one point, the first two held as once keyframes have left; all landmarks known, under a prior."""
    rng = torch.Generator().manual_seed(3)
    window = Window()
    uv0 = torch.rand(NEW, 2, generator=rng, dtype=torch.float64) * torch.tensor([220.0, 200.0]) + torch.tensor(
        [70.0, 20.0]
    )
    points = geometry.back_project(CAMERA, uv0, torch.full((NEW,), DEPTH, dtype=torch.float64))
    for k in range(5):
        turn = geometry.exp(torch.tensor([0.002 * k, 0, 0, 0, 0.02 * k, 0], dtype=torch.float64))
        window.add_keyframe(Keyframe(k, k, IMAGE, KltMatcher().observe(IMAGE)), turn)
    rows = window.add_landmarks(0, uv0.float(), None)
    for k, T in enumerate(window.T_WC):
        seen = geometry.project(CAMERA, geometry.act(geometry.inverse(T), points))
        window.observe(
            CAMERA,
            k,
            rows,
            seen + 0.3 * torch.randn(NEW, 2, generator=rng, dtype=torch.float64),
            torch.full((NEW,), 0.5),
        )
    window.set_positions(rows, points)
    window.landmarks = replace(window.landmarks, expected_inv_depth=torch.full((NEW,), 1 / DEPTH, dtype=torch.float64))
    window.keyframe_dropped = True
    return window
