"""Motion-only refinement of one frame."""

import dataclasses

import pytest
import torch

from imatching_ros import bundle
from imatching_ros.core import geometry, residuals
from imatching_ros.offline.experiments.ba_windows import make_window
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.types import BAStatus, ObservationKind
from imatching_ros.core.errors import BundleError

KINDS = list(ObservationKind)
AWAY = torch.tensor([0.1, 0.05, -0.05, 0.02, 0.03, 0.01], dtype=torch.float64)


def view(kind=ObservationKind.MONO, landmarks=300, keyframe=1, **options):
    made = make_window(3, landmarks, kind=kind, track=3, **options)
    w, mine = made.window, made.window.kf_idx == keyframe
    X = made.points_W[w.pt_idx[mine]]
    T = made.T_WC[keyframe]
    return made, (w.camera, geometry.retract(T, AWAY), X, w.obs[mine], w.kind[mine], w.sigma[mine]), T


@pytest.mark.parametrize("kind", KINDS)
def test_exact_observations_give_the_exact_pose(kind):
    _, arguments, T = view(kind, noise_px=1e-9)
    arguments = (*arguments[:-1], torch.ones_like(arguments[-1]))
    result = bundle.refine_pose(*arguments, BundleConfig(cost_tolerance=1e-12))
    assert result.status is BAStatus.CONVERGED and result.reason == ""
    assert geometry.local(T, result.T_WC).norm() < 1e-9


@pytest.mark.parametrize("kernel", ("huber", "cauchy", "none"))
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_vanishes_at_the_result(kind, kernel):
    made, (camera, T0, X, obs, k, sigma), _ = view(kind, outliers=0.1)
    i = torch.arange(len(X))
    window = dataclasses.replace(made.window, kf_idx=i * 0, pt_idx=i, obs=obs, kind=k, sigma=sigma)
    config = BundleConfig(kernel=kernel, cost_tolerance=1e-12, max_iterations=100)
    result = bundle.refine_pose(camera, T0, X, obs, k, sigma, config)

    def gradient(T):
        step = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        s = residuals.squared_norm(window, geometry.retract(T, step)[None], X)
        return torch.autograd.grad(residuals.RobustKernel(kernel, 2.0).cost(s).sum() / 2, step)[0]

    assert gradient(result.T_WC).norm() < 1e-5 * gradient(T0).norm()


def test_outliers_get_little_weight():
    _, arguments, T = view(outliers=0.3)
    result = bundle.refine_pose(*arguments, BundleConfig(kernel="cauchy"))
    error = result.residual_px.norm(dim=1)
    assert result.weight[error > 10].max() < 0.3 < 0.7 < result.weight[error < 3].median()
    assert 0.6 < (error < 3).double().mean() < 0.8
    assert geometry.local(T, result.T_WC).norm() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_covariance_is_consistent_even_with_wrong_sigmas(kind):
    """NEES: the mean of e^T C^-1 e over n trials is a chi-square of 6 n degrees of freedom over n."""
    n, total = 60, 0.0
    for seed in range(n):
        _, arguments, T = view(kind, seed=seed, outliers=0.05, landmarks=80)
        arguments = (*arguments[:-1], arguments[-1] * 0.4)
        result = bundle.refine_pose(*arguments, BundleConfig(kernel_width=5.0, shared_error=1.0))
        e = geometry.local(result.T_WC, T)
        total += float(e @ torch.linalg.solve(result.covariance, e))
    assert 5.0 < total / n < 7.2  # 99 % interval of chi2(360) / 60 is 4.9 to 7.2


def test_unusable_observations_are_excluded():
    _, (camera, T0, X, obs, k, sigma), T = view()
    obs, X = obs.clone(), X.clone()
    obs[3, 0], X[5] = float("nan"), -X[5]
    result = bundle.refine_pose(camera, T0, X, obs, k, sigma, BundleConfig())
    bad = torch.tensor([3, 5])
    assert result.status is BAStatus.CONVERGED and (result.weight[bad] == 0).all()
    assert result.residual_px[bad].isnan().all() and geometry.local(T, result.T_WC).norm() < 0.02


@pytest.mark.parametrize("count", (0, 2))
def test_too_few_observations_are_degenerate(count):
    _, (camera, T0, X, obs, k, sigma), _ = view()
    result = bundle.refine_pose(camera, T0, X[:count], obs[:count], k[:count], sigma[:count], BundleConfig())
    assert result.status is BAStatus.DEGENERATE and "at least 3" in result.reason
    assert torch.equal(result.T_WC, T0) and result.covariance is None


def test_one_landmark_seen_often_is_degenerate():
    _, (camera, T0, X, obs, k, sigma), _ = view(noise_px=0.5)
    same = torch.zeros(20, dtype=torch.int64)
    result = bundle.refine_pose(camera, T0, X[same], obs[same], k[same], sigma[same], BundleConfig())
    assert result.status is BAStatus.DEGENERATE and "singular" in result.reason and result.T_WC.isfinite().all()


def test_bad_input_is_named():
    _, (camera, T0, X, obs, k, sigma), _ = view()
    with pytest.raises(BundleError, match="expected"):
        bundle.refine_pose(camera, T0, X, obs[:, :2], k, sigma, BundleConfig())
    with pytest.raises(BundleError, match="finite"):
        bundle.refine_pose(camera, T0 * float("nan"), X, obs, k, sigma, BundleConfig())
