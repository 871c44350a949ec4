"""Learning samples made from synthetic windows, and a matcher whose coordinates are known."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from imatching_ros.offline.experiments.ba_windows import make_window
from imatching_ros.bundle import solve
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
        first,
        held_out,
        0,
    )


@pytest.fixture(scope="session")
def make_sample():
    return _make_sample
