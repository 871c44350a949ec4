"""The prior of the rotations between keyframes against autograd, an independent dense solver, and what must not matter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from imatching_ros import bundle
from imatching_ros.bundle import RelativeRotations
from imatching_ros.bundle.linearization import add_rotations, evaluate, linearize
from imatching_ros.bundle.problem import compile_window
from imatching_ros.core import geometry, residuals
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.errors import BundleError
from imatching_ros.core.residuals import RobustKernel
from imatching_ros.core.types import BAStatus, ObservationKind
from imatching_ros.offline.experiments.ba_windows import make_window

KINDS = list(ObservationKind)
PLAIN = BundleConfig(kernel="none", cost_tolerance=1e-13, max_iterations=200)


def measured(T_WC, pairs, sigma=1e-3, off=0.0, seed=0, weight=1.0):
    """Rotations between pairs of true poses (M, 7), known to `sigma` and off by about `off` rad, with correlated errors."""
    rng = np.random.default_rng(seed)
    first, second = np.array(pairs).T
    R = geometry.rotation_matrix(geometry.relative(T_WC[first], T_WC[second])[:, 3:]).numpy()
    A = np.eye(3 * len(pairs)) + 0.3 * rng.normal(size=(3 * len(pairs),) * 2)
    errors = Rotation.from_rotvec((off * A @ rng.normal(size=3 * len(pairs))).reshape(-1, 3)).as_matrix()
    return RelativeRotations(first, second, R @ errors, np.linalg.inv(sigma**2 * A @ A.T), weight)


def logarithm(R):
    angle = torch.arccos(((R.diagonal().sum() - 1) / 2).clamp(-1, 1))
    return torch.stack([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]) * angle / (2 * torch.sin(angle))


def rotations_of(T_WC):
    return geometry.rotation_matrix(T_WC[:, 3:])


def test_normal_equations_are_those_of_autograd():
    made = make_window(5, 30, kind=ObservationKind.STEREO)
    fixed = torch.tensor([False, False, True, False, False])  # the solver puts it first
    rotations = measured(made.T_WC, [(0, 1), (2, 3), (3, 4)], off=0.3, weight=7.0)
    problem = compile_window(replace(made.window, fixed=fixed), torch.float64, rotations)
    state = evaluate(problem, problem.R, problem.t, problem.X, RobustKernel("none", 1.0))
    alone = replace(problem, rotations=None)
    before = linearize(alone, state, RobustKernel("none", 1.0))
    pose, rhs = before.pose.clone(), before.pose_rhs.clone()
    lin = add_rotations(problem, state, linearize(problem, state, RobustKernel("none", 1.0)))

    def errors(step):
        R = torch.linalg.matrix_exp(geometry.skew(step.view(5, 3))) @ rotations_of(made.window.T_WC)
        between = torch.from_numpy(rotations.R).mT @ R[rotations.first].mT @ R[rotations.second]
        return torch.cat([logarithm(matrix) for matrix in between])

    J = torch.autograd.functional.jacobian(errors, torch.zeros(15, dtype=torch.float64))
    free = [0, 1, 3, 4]
    J = J.view(9, 5, 3)[:, free].reshape(9, 12)
    information, e = 7.0 * torch.from_numpy(rotations.information), errors(torch.zeros(15, dtype=torch.float64))
    at = torch.arange(24).view(4, 6)[:, 3:].flatten()
    H = torch.zeros(24, 24, dtype=torch.float64)
    H[at[:, None], at] = J.mT @ information @ J
    g = torch.zeros(24, dtype=torch.float64).index_put((at,), -J.mT @ information @ e)
    for found, wanted in ((lin.pose - pose, H), (lin.pose_rhs - rhs, g)):
        assert torch.allclose(found, wanted, atol=1e-3 * float(wanted.abs().max()))
    assert float(state.cost) - float(
        evaluate(alone, problem.R, problem.t, problem.X, RobustKernel("none", 1.0)).cost
    ) == (pytest.approx(0.5 * float(e @ information @ e)))


@pytest.mark.parametrize("kind", KINDS)
def test_same_optimum_as_scipy(kind):
    made = make_window(4, 20, kind=kind, noise_px=1.0)
    w = made.window
    if kind == ObservationKind.MONO:
        w.fixed[1], w.T_WC[1] = True, made.T_WC[1]
    rotations = measured(made.T_WC, [(0, 1), (1, 2), (2, 3)], sigma=3e-3, off=3e-3, weight=4.0)
    root = np.linalg.cholesky(4.0 * rotations.information).T
    free = (~w.fixed).nonzero()[:, 0]

    def unpack(x):
        step = torch.zeros(4, 6, dtype=torch.float64)
        step[free] = torch.from_numpy(x[: 6 * len(free)]).view(-1, 6)
        return geometry.retract(w.T_WC, step), w.points_W + torch.from_numpy(x[6 * len(free) :]).view(-1, 3)

    def whole(x):
        T, X = unpack(x)
        of_images = residuals.whiten(w.obs - residuals.reproject(w, T, X), w.sigma, w.kind).flatten().numpy()
        q = Rotation.from_quat(T[:, 3:].numpy())
        between = [q[i].inv() * q[j] for i, j in zip(rotations.first, rotations.second)]
        e = [(Rotation.from_matrix(R).inv() * b).as_rotvec() for R, b in zip(rotations.R, between)]
        return np.concatenate([of_images, root @ np.concatenate(e)])

    found = least_squares(whole, np.zeros(6 * len(free) + 60), x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-12)
    result = bundle.solve(w, PLAIN, rotations)
    T, X = unpack(found.x)
    assert result.rotations_used and result.status is BAStatus.CONVERGED
    assert result.cost_after == pytest.approx(found.cost, rel=1e-9)
    assert geometry.local(T, result.T_WC).abs().max() < 1e-5
    without = bundle.solve(w, PLAIN)
    assert geometry.local(without.T_WC, result.T_WC).abs().max() > 1e-4  # it matters


@pytest.mark.parametrize("kind", KINDS)
def test_turning_the_world_turns_the_solution(kind):
    made = make_window(5, 60, kind=kind, noise_px=0.5)
    rotations = measured(made.T_WC, [(0, 1), (1, 2), (3, 4)], off=1e-3)
    T = geometry.exp(torch.tensor([1.0, -2, 3, 0.5, -1.0, 0.7], dtype=torch.float64))
    w = made.window
    moved = replace(w, T_WC=geometry.compose(T.expand(5, 7), w.T_WC), points_W=geometry.act(T, w.points_W))
    here, there = (bundle.solve(window, PLAIN, rotations) for window in (w, moved))
    assert here.rotations_used and here.cost_after == pytest.approx(there.cost_after, rel=1e-8)
    assert geometry.local(geometry.compose(T.expand(5, 7), here.T_WC), there.T_WC).abs().max() < 1e-5


@pytest.mark.parametrize("weight", (1.0, 100.0))  # of which the latter draws the optimum to the prior
def test_a_prior_that_the_images_contradict_is_left_out(weight):
    made = make_window(5, 100, noise_px=0.5)
    wrong = measured(made.T_WC, [(0, 1), (1, 2), (2, 3), (3, 4)], sigma=1e-3, off=0.1, weight=weight)
    result, without = bundle.solve(made.window, PLAIN, wrong), bundle.solve(made.window, PLAIN)
    assert not result.rotations_used and not without.rotations_used
    assert torch.equal(result.T_WC, without.T_WC) and torch.equal(result.covariance_newest, without.covariance_newest)


def test_true_errors_are_hardly_ever_a_contradiction():
    """Of the prior itself: R is drawn from its own covariance."""
    made, used = make_window(4, 60, noise_px=0.5), 0
    for seed in range(40):
        exact = measured(made.T_WC, [(0, 1), (1, 2), (2, 3)], sigma=3e-3, seed=seed)
        drawn = np.linalg.cholesky(np.linalg.inv(exact.information)) @ np.random.default_rng(seed).normal(size=9)
        R = exact.R @ Rotation.from_rotvec(drawn.reshape(3, 3)).as_matrix()
        used += bundle.solve(made.window, BundleConfig(), replace(exact, R=R)).rotations_used
    assert used >= 39


@pytest.mark.parametrize("weight", (1.0, 8.0))
def test_the_covariance_holds_the_prior_once_whatever_its_weight(weight):
    """One free pose: the information is a sum."""
    made = make_window(2, 150, kind=ObservationKind.DEPTH, noise_px=0.5)
    rotations = measured(made.T_WC, [(0, 1)], sigma=3e-4)
    without = bundle.solve(made.window, BundleConfig())
    both = bundle.solve(made.window, BundleConfig(), replace(rotations, weight=weight))
    added = torch.linalg.inv(both.covariance_newest) - torch.linalg.inv(without.covariance_newest)
    wanted = torch.zeros(6, 6, dtype=torch.float64)
    wanted[3:, 3:] = torch.from_numpy(rotations.information)
    assert torch.allclose(added, wanted, atol=0.05 * float(wanted.abs().max()))
    of_images = without.covariance_newest[3:, 3:]
    assert torch.allclose(both.rotation_covariance, of_images, atol=0.05 * float(of_images.abs().max()))
    assert np.allclose(both.rotation_errors, rotations.errors(rotations_of(both.T_WC)), atol=1e-9)


def test_errors_of_the_newest_pose_are_those_of_its_covariance():
    """Mean of 40 trials of 6 degrees of freedom: 4.6 to 7.5 with 99.5 %."""
    total = 0.0
    for seed in range(40):
        made = make_window(4, 80, kind=ObservationKind.STEREO, noise_px=0.7, seed=seed)
        exact = measured(made.T_WC, [(0, 1), (1, 2), (2, 3)], sigma=3e-4, seed=seed)
        drawn = np.linalg.cholesky(np.linalg.inv(exact.information)) @ np.random.default_rng(seed).normal(size=9)
        R = exact.R @ Rotation.from_rotvec(drawn.reshape(3, 3)).as_matrix()
        config = BundleConfig(kernel="none", shared_error=1.0, cost_tolerance=1e-8)
        scale = bundle.solve(made.window, config)
        rotations = replace(exact, R=R, weight=scale.residual_scale * scale.covariance_scale)
        result = bundle.solve(made.window, config, rotations)
        e = geometry.local(result.T_WC[-1], made.T_WC[-1])
        total += float(e @ torch.linalg.solve(result.covariance_newest, e))
    assert 3.5 < total / 40 < 7.5  # the design effect, at least 1, is on the safe side


def test_the_residual_scale_is_that_of_the_sigmas():
    made = make_window(5, 200, kind=ObservationKind.STEREO, noise_px=0.7)
    one, half = (
        bundle.solve(replace(made.window, sigma=made.window.sigma * f), BundleConfig(kernel="none")) for f in (1.0, 2.0)
    )
    assert one.residual_scale == pytest.approx(4 * half.residual_scale, rel=0.02)


def test_a_missing_parameter_is_found_beside_the_prior():
    made = make_window(6, 300, noise_px=0.3)
    w, rotations = made.window, measured(made.T_WC, [(k, k + 1) for k in range(5)], sigma=1e-2)
    row = (w.obs[:, 1] - 240) / 240
    direction = torch.stack([row * w.kf_idx.double() ** 2, 0.3 * row], 1)
    obs = w.obs.clone()
    obs[:, :2] -= 0.2 * direction
    bent = replace(w, obs=obs)
    result, alone = bundle.solve(bent, PLAIN, rotations), bundle.solve(bent, PLAIN)
    found = bundle.estimate_missing(bent, result, direction, PLAIN, rotations)
    assert result.rotations_used and found.value == pytest.approx(0.2, abs=5 * found.sigma)
    assert found.sigma < bundle.estimate_missing(bent, alone, direction, PLAIN).sigma


def test_float32_lands_where_float64_does():
    made = make_window(5, 100, noise_px=0.5)
    rotations = measured(made.T_WC, [(0, 1), (1, 2), (3, 4)], off=1e-3)
    wide, narrow = (bundle.solve(made.window, BundleConfig(precision=p), rotations) for p in ("float64", "float32"))
    assert narrow.rotations_used and geometry.local(wide.T_WC, narrow.T_WC).abs().max() < 2e-3


def test_what_does_not_fit_the_window_is_an_error():
    made = make_window(3, 20)
    rotations = measured(made.T_WC, [(0, 1), (1, 2)])
    for wrong, why in (
        (replace(rotations, second=np.array([1, 3])), "expected 0..2"),
        (replace(rotations, first=np.array([0])), "have shapes"),
        (replace(rotations, R=rotations.R * np.nan), "not finite"),
    ):
        with pytest.raises(BundleError, match=why):
            bundle.solve(made.window, BundleConfig(), wrong)
