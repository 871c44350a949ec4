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
    return bundle.View(w.camera, X, w.obs[mine], w.kind[mine], w.sigma[mine]), geometry.retract(T, AWAY), T


@pytest.mark.parametrize("kind", KINDS)
def test_exact_observations_give_the_exact_pose(kind):
    seen, start, T = view(kind, noise_px=1e-9)
    seen = dataclasses.replace(seen, sigma=torch.ones_like(seen.sigma))
    result = bundle.refine_pose(seen, start, BundleConfig(cost_tolerance=1e-12))
    assert result.status is BAStatus.CONVERGED and result.reason == ""
    assert geometry.local(T, result.T_WC).norm() < 1e-9


def as_window(seen):
    """A window of one keyframe."""
    w, i = make_window(2, 10).window, torch.arange(len(seen.points_W))
    return dataclasses.replace(
        w, camera=seen.camera, kf_idx=i * 0, pt_idx=i, obs=seen.obs, kind=seen.kind, sigma=seen.sigma
    )


@pytest.mark.parametrize("kernel", ("huber", "cauchy", "none"))
@pytest.mark.parametrize("kind", KINDS)
def test_it_minimises_the_residual_of_the_core(kind, kernel):
    """Costs and weights are those of `core.residuals`, and the gradient of its cost vanishes at the result."""
    seen, start, _ = view(kind, outliers=0.1)
    window, rho = as_window(seen), residuals.RobustKernel(kernel, 2.0)
    config = BundleConfig(kernel=kernel, cost_tolerance=1e-12, max_iterations=100)
    result = bundle.refine_pose(seen, start, config)

    def cost(T):
        return rho.cost(residuals.squared_norm(window, T[None], seen.points_W)).sum() / 2

    def gradient(T):
        step = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(cost(geometry.retract(T, step)), step)[0]

    assert result.cost_before == pytest.approx(float(cost(start)), rel=1e-9)
    assert result.cost_after == pytest.approx(float(cost(result.T_WC)), rel=1e-9)
    s = residuals.squared_norm(window, result.T_WC[None], seen.points_W)
    assert torch.allclose(result.weight, rho.weight(s), rtol=1e-9)
    assert gradient(result.T_WC).norm() < 1e-5 * gradient(start).norm()


def test_outliers_get_little_weight():
    seen, start, T = view(outliers=0.3)
    result = bundle.refine_pose(seen, start, BundleConfig(kernel="cauchy"))
    error = result.residual_px.norm(dim=1)
    assert result.weight[error > 10].max() < 0.3 < 0.7 < result.weight[error < 3].median()
    assert 0.6 < (error < 3).double().mean() < 0.8
    assert geometry.local(T, result.T_WC).norm() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_covariance_is_consistent_even_with_wrong_sigmas(kind):
    """NEES: the mean of e^T C^-1 e over n trials is a chi-square of 6 n degrees of freedom over n."""
    n, total = 60, 0.0
    for seed in range(n):
        seen, start, T = view(kind, seed=seed, outliers=0.05, landmarks=80)
        seen = dataclasses.replace(seen, sigma=seen.sigma * 0.4)
        result = bundle.refine_pose(seen, start, BundleConfig(kernel_width=5.0, shared_error=1.0))
        e = geometry.local(result.T_WC, T)
        total += float(e @ torch.linalg.solve(result.covariance, e))
    assert 5.0 < total / n < 7.2  # 99 % interval of chi2(360) / 60 is 4.9 to 7.2


def test_the_covariance_is_made_only_where_asked_for():
    seen, start, _ = view(noise_px=0.5)
    without = bundle.refine_pose(seen, start, BundleConfig(), covariance=False)
    assert without.covariance is None and without.status is BAStatus.CONVERGED
    assert torch.equal(without.T_WC, bundle.refine_pose(seen, start, BundleConfig()).T_WC)


@pytest.mark.parametrize("kind", KINDS)
def test_excluded_landmarks_are_as_good_as_absent(kind):
    seen, start, _ = view(kind, outliers=0.2)
    outlier = torch.rand(len(seen.obs), generator=torch.Generator().manual_seed(0)) < 0.3
    kept = bundle.View(seen.camera, *(values[~outlier] for values in (seen.points_W, seen.obs, seen.kind, seen.sigma)))
    result = bundle.refine_pose(seen.excluding(outlier), start, BundleConfig())
    expected = bundle.refine_pose(kept, start, BundleConfig())
    assert torch.allclose(result.T_WC, expected.T_WC, rtol=0, atol=1e-11)
    assert torch.allclose(result.covariance, expected.covariance, rtol=1e-8)
    assert torch.allclose(result.residual_px[~outlier], expected.residual_px, atol=1e-8)
    assert (result.weight[outlier] == 0).all() and result.residual_px[outlier].isfinite().all()


def test_unusable_observations_are_excluded():
    seen, start, T = view()
    seen.obs[3, 0], seen.points_W[5] = float("nan"), -seen.points_W[5]
    result = bundle.refine_pose(seen, start, BundleConfig())
    bad = torch.tensor([3, 5])
    assert result.status is BAStatus.CONVERGED and (result.weight[bad] == 0).all()
    assert result.residual_px[bad].isnan().any(1).all() and geometry.local(T, result.T_WC).norm() < 0.02


@pytest.mark.parametrize("count", (0, 2))
def test_too_few_observations_are_degenerate(count):
    seen, start, _ = view()
    result = bundle.refine_pose(seen.excluding(torch.arange(len(seen.obs)) >= count), start, BundleConfig())
    assert result.status is BAStatus.DEGENERATE and "at least 3" in result.reason
    assert torch.equal(result.T_WC, start) and result.covariance is None


def test_one_landmark_seen_often_is_degenerate():
    seen, start, _ = view(noise_px=0.5)
    same = torch.zeros(20, dtype=torch.int64)
    seen = bundle.View(seen.camera, *(values[same] for values in (seen.points_W, seen.obs, seen.kind, seen.sigma)))
    result = bundle.refine_pose(seen, start, BundleConfig())
    assert result.status is BAStatus.DEGENERATE and "singular" in result.reason and result.T_WC.isfinite().all()


def test_bad_input_is_named():
    seen, start, _ = view()
    with pytest.raises(BundleError, match="expected"):
        bundle.refine_pose(dataclasses.replace(seen, obs=seen.obs[:, :2]), start, BundleConfig())
    with pytest.raises(BundleError, match="finite"):
        bundle.refine_pose(seen, start * float("nan"), BundleConfig())


def prior_at(T, sigma, seed):
    """What a gyroscope would know of the rotation of a pose (7,), to sigma rad."""
    off = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * sigma
    q = geometry.quaternion_multiply(T[3:], geometry.exp_so3(off))
    return bundle.RotationPrior(q, torch.eye(3, dtype=torch.float64) * sigma**2)


def test_a_prior_of_the_rotation_is_weighed_by_its_covariance():
    """As a Kalman update of the pose without it, and the result is as good as its covariance."""
    n, total = 40, 0.0
    for seed in range(n):
        seen, start, T = view(seed=seed, landmarks=40)
        config = BundleConfig(kernel_width=5.0, shared_error=1.0, cost_tolerance=1e-12)
        prior, alone = prior_at(T, 5e-4, seed), bundle.refine_pose(seen, start, config)
        result = bundle.refine_pose(seen, start, config, prior=prior)
        gain = alone.covariance[:, 3:] @ torch.linalg.inv(alone.covariance[3:, 3:] + prior.covariance)
        q_alone = alone.T_WC[3:] * torch.tensor([-1.0, -1, -1, 1])
        innovation = geometry.log_so3(geometry.quaternion_multiply(q_alone, prior.q_WC))
        expected = geometry.retract(alone.T_WC, gain @ innovation)
        step = geometry.local(alone.T_WC, expected).norm()
        assert geometry.local(expected, result.T_WC).norm() < 0.1 * step + 1e-6
        e = geometry.local(result.T_WC, T)
        total += float(e @ torch.linalg.solve(result.covariance, e))
    assert 4.7 < total / n < 7.5  # chi2(240) / 40
    assert result.covariance[3:, 3:].trace() < alone.covariance[3:, 3:].trace()


def test_a_prior_determines_what_few_landmarks_do_not():
    """Landmarks in one corner leave rotation and translation open, which a rotation known from elsewhere closes."""
    errors = {True: torch.zeros(6), False: torch.zeros(6)}
    for seed in range(10):
        seen, start, T = view(seed=seed, landmarks=600, noise_px=1.0)
        corner = (seen.obs[:, :2] - seen.obs[0, :2]).norm(dim=1) < 60
        few = bundle.View(seen.camera, *(v[corner] for v in (seen.points_W, seen.obs, seen.kind, seen.sigma)))
        for used in errors:
            prior = prior_at(T, 2e-4, seed) if used else None
            errors[used] += geometry.local(bundle.refine_pose(few, start, BundleConfig(), prior=prior).T_WC, T).abs()
    assert errors[True][3:].norm() < 0.3 * errors[False][3:].norm()
    assert errors[True][:3].norm() < errors[False][:3].norm()
