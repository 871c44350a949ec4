"""The covariance of the newest pose against errors: NEES on scenes with exact truth."""

import dataclasses

import pytest
import torch

from imatching_ros import bundle
from imatching_ros.core import geometry
from imatching_ros.offline.experiments.ba_windows import make_window
from imatching_ros.bundle.covariance import design_effect, landmark_cell
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.types import ObservationKind

TRIALS = 50


@pytest.mark.parametrize("kernel, outliers", (("huber", 0.0), ("huber", 0.05), ("cauchy", 0.05)))
@pytest.mark.parametrize("kind", list(ObservationKind))
def test_mean_nees_is_within_its_interval(kind, kernel, outliers):
    """6 degrees of freedom: the mean over 50 trials lies within 5.08..7.00 with 95 %, 4.81..7.35 with 99.5 %.

    The sigmas given are 1.5 times the true ones: the scale must come from the residuals. In mono two true poses are held,
    else errors would be measured in an arbitrary scale.
    """
    total = 0.0
    for seed in range(TRIALS):
        made = make_window(5, 150, kind=kind, outliers=outliers, seed=seed, noise_px=0.7)
        w = dataclasses.replace(made.window, sigma=made.window.sigma * 1.5)
        if kind == ObservationKind.MONO:
            w.fixed[1], w.T_WC[1] = True, made.T_WC[1]
        result = bundle.solve(w, BundleConfig(kernel=kernel, cost_tolerance=1e-6, max_iterations=50, shared_error=1.0))
        e = geometry.local(result.T_WC[-1], made.T_WC[-1])
        total += float(e @ torch.linalg.solve(result.covariance_newest, e))
    assert 4.81 < total / TRIALS < 7.35


def test_errors_that_neighbours_share_make_it_larger():
    """What is tracked in one part of an image errs alike: as many parts as there are, not landmarks, tell where the camera is."""
    nees, scales = [], []
    for seed in range(20):
        made = make_window(5, 300, kind=ObservationKind.STEREO, seed=seed, noise_px=0.2)
        w = made.window
        part = landmark_cell(
            w.camera, w.obs[:, :2], w.pt_idx, torch.ones(len(w.obs), dtype=torch.bool), len(w.points_W)
        )
        shared = torch.randn(5, 24, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[
            w.kf_idx, part[w.pt_idx]
        ]
        obs = w.obs + 0.7 * torch.cat([shared, shared[:, :1]], 1)
        result = bundle.solve(dataclasses.replace(w, obs=obs), BundleConfig(shared_error=1.0))
        e = geometry.local(result.T_WC[-1], made.T_WC[-1])
        nees.append(float(e @ torch.linalg.solve(result.covariance_newest, e)))
        scales.append(result.covariance_scale)
    mean, factor = (sum(values) / len(values) for values in (nees, scales))
    assert factor > 3 and mean < 25 and mean * factor > 40


def test_the_shared_error_is_a_factor():
    made = make_window(5, 150, kind=ObservationKind.STEREO)
    one, four = (bundle.solve(made.window, BundleConfig(shared_error=factor)) for factor in (1.0, 4.0))
    assert (
        torch.allclose(4 * one.covariance_newest, four.covariance_newest)
        and abs(four.covariance_scale / one.covariance_scale - 4) < 1e-9
    )


def test_covariance_is_symmetric_and_shrinks_with_more_landmarks():
    windows = (make_window(5, n, kind=ObservationKind.STEREO).window for n in (50, 800))
    few, many = (bundle.solve(w, BundleConfig()).covariance_newest for w in windows)
    for C in (few, many):
        assert torch.allclose(C, C.T, rtol=1e-6, atol=1e-15) and torch.linalg.eigvalsh(C).min() > 0
    assert 8 < few.trace() / many.trace() < 40  # 16 times the landmarks


def test_fixed_newest_pose_has_no_covariance():
    w = make_window(4, 100, kind=ObservationKind.STEREO).window
    w.fixed[3] = True
    assert bundle.solve(w, BundleConfig()).covariance_newest is None


def test_errors_are_at_most_as_correlated_as_all_of_them_being_one():
    """A direction in which the covariance nearly vanishes otherwise has any effect."""
    generator = torch.Generator().manual_seed(0)
    influence = torch.randn(100, 2, dtype=torch.float64, generator=generator)
    cell = torch.arange(100) % 20
    covariance = torch.tensor([[1.0, 1 - 1e-8], [1 - 1e-8, 1.0]], dtype=torch.float64)
    assert 1 <= float(design_effect(influence, cell, covariance)) <= 100
