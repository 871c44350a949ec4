"""Learning samples made from synthetic windows, and a matcher whose coordinates are known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from imatching_ros.offline.experiments.ba_windows import make_window
from imatching_ros.bundle import solve
from imatching_ros.camera import rolling_shutter
from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.types import LearningSample


def _make_sample(
    keyframes: int = 6, landmarks: int = 120, seed: int = 0, first_id: int = 0, **options
) -> LearningSample:
    """A solved window whose landmarks were detected where they were seen first; images are noise."""
    window = make_window(keyframes, landmarks, seed=seed, **{"noise_px": 0.5, **options}).window
    result = solve(window, BundleConfig())
    first = torch.full((len(window.points_W),), len(window.obs)).scatter_reduce(
        0, window.pt_idx, torch.arange(len(window.obs)), "amin"
    )
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.rand(len(window.obs), generator=generator) < 0.1
    held_out[first] = False
    images = torch.randint(0, 256, (keyframes, 1, 64, 96), generator=generator, dtype=torch.uint8)
    return LearningSample(
        10**9 * (first_id + keyframes),
        tuple(range(first_id, first_id + keyframes)),
        tuple(images),
        window,
        dataclasses.replace(result),
        window.obs[:, :2].float(),
        torch.zeros(keyframes, 6, dtype=torch.float64),
        first,
        held_out,
        0,
    )


def roll_shutter(sample: LearningSample, readout_s: float = 0.02, seed: int = 0) -> LearningSample:
    """The window as a rolling shutter would have seen it: the same measurements in ideal px, from other raw px.

    The camera walks at 0.5 m/s and turns at 115 degrees/s, another way in every keyframe.
    """
    window, result, generator = sample.window, sample.result, torch.Generator().manual_seed(seed)
    twist = torch.randn(len(sample.images), 6, generator=generator, dtype=torch.float64)
    twist = torch.cat([0.5 * F.normalize(twist[:, :3]), 2 * F.normalize(twist[:, 3:])], 1)
    camera = dataclasses.replace(window.camera, readout_s=readout_s)
    kf, ideal = window.kf_idx, window.obs[:, :2]
    depth = geometry.act(geometry.inverse(result.T_WC)[kf], result.points_W[window.pt_idx])[:, 2]
    uv = ideal.clone()
    for _ in range(20):  # the fixed point: pixels that the correction takes to the measurements
        uv += ideal - rolling_shutter.undistort(camera, uv, twist[kf], depth)
    window = dataclasses.replace(window, camera=camera)
    return dataclasses.replace(sample, window=window, uv_px=uv.float(), twist=twist)


@pytest.fixture(scope="session")
def make_sample():
    return _make_sample
