"""Integrated rates: their rotation, covariance and derivative, how they are put together, and the prior that follows from them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from imatching_ros.core.types import BAResult, BAStatus
from imatching_ros.odometry.preintegration import Bias, Preintegrated, WindowRotations, preintegrate
from odometry_scenes import swing

DENSITY, DT = 2.4e-4, 0.005
BIAS = np.array([0.01, -0.02, 0.03])


def vector(R: np.ndarray) -> np.ndarray:
    return Rotation.from_matrix(R).as_rotvec()


def rates_of(first: int, last: int) -> np.ndarray:
    return swing(np.arange(first, last) * DT)


def integrated(first: int, last: int, bias: np.ndarray = BIAS) -> Preintegrated:
    return preintegrate(rates_of(first, last), np.full(last - first, DT), bias, DENSITY)


def test_integration_follows_a_rotation_whose_axis_moves():
    fine = np.linspace(0, 0.5, 20_001)
    exact = np.eye(3)
    for rate in swing((fine[1:] + fine[:-1]) / 2):
        exact = exact @ Rotation.from_rotvec(rate * (fine[1] - fine[0])).as_matrix()
    t = np.linspace(0, 0.5, 101)
    rates = (swing(t)[1:] + swing(t)[:-1]) / 2
    assert np.linalg.norm(vector(exact.T @ preintegrate(rates, np.diff(t), np.zeros(3), DENSITY).R)) < 2e-5


def test_covariance_is_that_of_many_trials_and_the_derivative_that_of_differences():
    rng, dt, rates = np.random.default_rng(0), np.full(40, DT), rates_of(0, 40)
    step = integrated(0, 40)
    errors = []
    for _ in range(400):
        noisy = rates + rng.normal(0, DENSITY / math.sqrt(DT), rates.shape)
        errors.append(vector(step.R.T @ preintegrate(noisy, dt, BIAS, DENSITY).R))
    nees = np.einsum("ni,ij,nj->n", errors, np.linalg.inv(step.covariance), errors).mean()
    assert 2.7 < nees < 3.3  # chi2(1200) / 400
    for axis, change in enumerate(1e-4 * np.eye(3)):
        difference = vector(step.R.T @ integrated(0, 40, BIAS + change).R) / 1e-4
        assert np.allclose(difference, step.by_bias[:, axis], atol=1e-4)


def test_another_bias_needs_no_new_integration():
    other = BIAS + (0.004, -0.003, 0.002)
    moved, again = integrated(0, 60).with_bias(other), integrated(0, 60, other)
    assert np.abs(vector(moved.R.T @ again.R)).max() < 1e-5 < np.abs(vector(integrated(0, 60).R.T @ again.R)).max()
    assert np.array_equal(moved.bias, other)


def test_two_rotations_in_a_row_are_that_of_both_times():
    other = BIAS + (0.004, -0.003, 0.002)
    both, whole = integrated(0, 40).then(integrated(40, 100, other)), integrated(0, 100, other)
    assert np.abs(vector(both.R.T @ whole.R)).max() < 1e-5
    assert np.allclose(both.covariance, whole.covariance, rtol=0.01, atol=1e-12)
    assert np.allclose(both.by_bias, whole.by_bias, atol=2e-3) and both.seconds == pytest.approx(0.5)
    assert np.allclose(both.mean_rate, whole.mean_rate) and np.array_equal(both.bias, other)


def test_errors_of_the_first_of_two_rotations_are_seen_in_the_axes_at_the_end():
    first, later, error = integrated(0, 40), integrated(40, 300), np.array([1e-3, 2e-3, -1e-3])
    both = replace(first, covariance=np.outer(error, error)).then(later)
    moved = vector(both.R.T @ (first.R @ Rotation.from_rotvec(error).as_matrix() @ later.R))
    assert np.allclose(both.covariance - later.covariance, np.outer(moved, moved), atol=1e-9)


def test_the_prior_of_a_window_has_the_errors_that_noise_and_one_bias_make():
    """Of many trials in which the bias is drawn once, and noise for every rate."""
    sigma = np.array([2e-3, 1e-3, 3e-3])
    parts = [(0, 30), (30, 80), (80, 120)]
    prior = WindowRotations.of([None, *(integrated(*part) for part in parts)], Bias(BIAS, np.diag(sigma**2)), 5.0)
    assert prior is not None
    prior = prior.prior
    assert prior.weight == 5.0
    assert prior.first.tolist() == [0, 1, 2] and prior.second.tolist() == [1, 2, 3]
    rng, nees = np.random.default_rng(1), []
    for _ in range(400):
        off, e = rng.normal(0, sigma), []
        for (first, last), R in zip(parts, prior.R):
            noisy = rates_of(first, last) + off + rng.normal(0, DENSITY / math.sqrt(DT), (last - first, 3))
            e.append(vector(R.T @ preintegrate(noisy, np.full(last - first, DT), BIAS, DENSITY).R))
        e = np.concatenate(e)
        nees.append(e @ prior.information @ e)
    assert 8.4 < np.mean(nees) < 9.6  # chi2(3600) / 400


def test_what_was_not_measured_is_no_part_of_the_prior():
    bias = Bias(BIAS + 0.01, np.eye(3) * 1e-6)
    steps = [integrated(0, 10), None, integrated(10, 50), None]  # what the oldest turned before is of no keyframe
    prior = WindowRotations.of(steps, bias, 1.0)
    assert prior is not None
    prior = prior.prior
    assert prior.first.tolist() == [1] and prior.second.tolist() == [2]
    assert np.abs(vector(prior.R[0].T @ integrated(10, 50, BIAS + 0.01).R)).max() < 1e-4
    assert WindowRotations.of([integrated(0, 10), None], bias, 1.0) is None
    wide = WindowRotations.of(steps, replace(bias, covariance=np.eye(3)), 1.0)
    assert wide is not None and wide.prior.information.trace() < prior.information.trace()


@pytest.mark.parametrize("share", (1.0, 0.25))
def test_a_window_tells_of_the_bias_what_images_and_rates_tell_together(share):
    """Against Bayes' rule for the images' rotations alone, of which the solution with the prior is a mean."""
    rng, P = np.random.default_rng(2), np.diag([1e-4, 4e-4, 2e-4])
    window = WindowRotations.of([None, integrated(0, 30), integrated(30, 80)], Bias(BIAS, P), 3.0)
    A = 1e-3 * rng.normal(size=(6, 6))
    images, seen = A @ A.T + 1e-6 * np.eye(6), 5e-3 * rng.normal(size=6)
    W = window.prior.information
    e = np.linalg.solve(np.linalg.inv(images) + W, np.linalg.solve(images, seen))
    result = solved(torch.from_numpy(e.reshape(2, 3)), torch.from_numpy(images))
    noise, J = np.linalg.inv(W) - window.by_bias @ P @ window.by_bias.T + images, window.by_bias
    covariance = np.linalg.inv(np.linalg.inv(P) + share * J.T @ np.linalg.solve(noise, J))
    found = window.learn_bias(result, share)
    assert np.allclose(found.covariance, covariance, rtol=1e-6)
    assert np.allclose(found.mean, BIAS + share * covariance @ J.T @ np.linalg.solve(noise, seen), rtol=1e-6)
    assert window.learn_bias(solved(None, None), share) is None


def solved(errors: torch.Tensor | None, covariance: torch.Tensor | None) -> BAResult:
    none = torch.zeros(0)
    plain = BAResult(none, none, none, none, 0.0, 0.0, 0, BAStatus.CONVERGED, "", None)
    return replace(plain, rotation_errors=errors, rotation_covariance=covariance)
