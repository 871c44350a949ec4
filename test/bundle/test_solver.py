"""The solver against autograd, PyPose's dense Levenberg-Marquardt, and itself under changes that must not matter."""

import dataclasses

import pypose as pp
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from imatching_ros import bundle
from imatching_ros.core import geometry, residuals
from imatching_ros.offline.experiments.ba_windows import make_window
from imatching_ros.bundle.problem import compile_window
from imatching_ros.bundle.solver import WindowProblem, solve_compiled
from imatching_ros.bundle.linearization import back_substitute, constrain, eliminate, evaluate, linearize
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.types import BAStatus, ObservationKind

KINDS = list(ObservationKind)
EXACT = dict(cost_tolerance=1e-12, max_iterations=200)


def cost_of(window, T_WC, points_W, kernel="huber", width=2.0):
    s = residuals.squared_norm(window, T_WC, points_W)
    return 0.5 * residuals.RobustKernel(kernel, width).cost(s).sum()


def move(T, step):
    """The solver's step in world axes: t + rho, Exp(phi) R."""
    return torch.cat([T[:, :3] + step[:, :3], geometry.quaternion_multiply(geometry.exp_so3(step[:, 3:]), T[:, 3:])], 1)


def mixed_window(**options):
    made = make_window(4, 25, kind=ObservationKind.STEREO, outliers=0.1, **options)
    w = made.window
    kind = torch.arange(len(w.kf_idx)) % 3
    obs, sigma = w.obs.clone(), w.sigma.clone()
    z = geometry.act(geometry.inverse(made.T_WC)[w.kf_idx], made.points_W[w.pt_idx])[:, 2]
    obs[kind == 2, 2] = 1 / z[kind == 2] + 0.003
    sigma[kind == 2, 2] = 0.01
    sigma[:, 0] *= 1.5
    return dataclasses.replace(w, kind=kind, obs=obs, sigma=sigma)


@pytest.mark.parametrize("name", ("huber", "cauchy", "geman_mcclure", "none"))
@pytest.mark.parametrize("second_order", (0.0, 0.5, 1.0))
def test_normal_equations_are_those_of_autograd(name, second_order):
    window = mixed_window()
    M, P = len(window.T_WC), len(window.points_W)
    T, X = window.T_WC, window.points_W

    def whitened(step):
        moved = move(T, torch.cat([step.new_zeros(1, 6), step[: 6 * (M - 1)].view(M - 1, 6)]))
        points = X + step[6 * (M - 1) :].view(P, 3)
        predicted = residuals.reproject(window, moved, points)
        return residuals.whiten(window.obs - predicted, window.sigma, window.kind)

    zero = torch.zeros(6 * (M - 1) + 3 * P, dtype=torch.float64)
    r, J = whitened(zero), torch.autograd.functional.jacobian(whitened, zero)
    s = (r * r).sum(1)
    kernel = residuals.RobustKernel(name, 2.0)
    w = kernel.weight(s)
    flatten = kernel.curvature_loss(s).clamp_max(1) * second_order / s
    middle = w[:, None, None] * (
        torch.eye(3, dtype=torch.float64) - flatten[:, None, None] * r[:, :, None] * r[:, None, :]
    )
    H = torch.einsum("oai,oab,obj->ij", J, middle, J)
    g = -torch.einsum("oai,o,oa->i", J, w, r)

    problem = compile_window(window, torch.float64)
    assert problem.gauge is None
    state = evaluate(problem, problem.R, problem.t, problem.X, kernel)
    lin = linearize(problem, state, kernel, second_order)
    F = 6 * (M - 1)
    scale = H.diagonal().sqrt()

    def close(a, b, rows, columns):
        return ((a - b) / scale[rows][:, None] / scale[columns][None]).abs().max() < 1e-9

    assert close(lin.pose, H[:F, :F], slice(0, F), slice(0, F))
    assert close(torch.block_diag(*lin.landmark[:, :3].permute(2, 0, 1)), H[F:, F:], slice(F, None), slice(F, None))
    assert ((torch.cat([lin.pose_rhs, lin.landmark[:, 3].T.flatten()]) - g) / scale).abs().max() < 1e-9
    assert abs(float(state.cost - 0.5 * kernel.cost(s).sum())) < 1e-8 * float(state.cost)
    step = zero.clone().requires_grad_()
    cost = 0.5 * kernel.cost((whitened(step) ** 2).sum(1)).sum()
    (gradient,) = torch.autograd.grad(cost, step)
    assert ((g + gradient) / scale).abs().max() < 1e-9  # the right hand side is minus the gradient of the cost

    # The eliminated, damped system gives the step of the full one.
    damping = 1e-3
    full = torch.linalg.solve(H + damping * torch.diag(H.diagonal()), g)
    reduced = eliminate(problem, lin, damping)
    pose_step = torch.linalg.solve(*constrain(reduced.S, reduced.rhs, None))
    step = torch.cat([pose_step, back_substitute(reduced, pose_step).T.flatten()])
    assert (step - full).abs().max() < 1e-8 * full.abs().max()


class Dense(nn.Module):
    """The same residual for PyPose; what is held is a buffer."""

    def __init__(self, window):
        super().__init__()
        self.window = window
        self.free = pp.Parameter(pp.SE3(window.T_WC[1:]))
        self.points = nn.Parameter(window.points_W.clone())

    def forward(self, *_):
        w, c = self.window, self.window.camera
        # PyPose differentiates its own operations only: the first pose is kept apart instead of being concatenated.
        first = (w.kf_idx == 0)[:, None]
        X = self.points[w.pt_idx]
        x, y, z = torch.where(
            first, pp.SE3(w.T_WC[:1]).Inv().Act(X), self.free[(w.kf_idx - 1).clamp_min(0)].Inv().Act(X)
        ).unbind(1)
        u, v = c.fx * x / z + c.cx, c.fy * y / z + c.cy
        third = {0: lambda: w.obs[:, 2], 1: lambda: u - c.fx * c.baseline_m / z, 2: lambda: 1 / z}[int(w.kind[0])]()
        return (w.obs - torch.stack([u, v, third], 1)) / w.sigma


@pytest.mark.parametrize("kernel", ("none", "huber"))
@pytest.mark.parametrize("kind", KINDS)
def test_same_optimum_as_pypose(kind, kernel):
    window = make_window(4, 25, kind=kind, outliers=0.05 if kernel == "huber" else 0.0).window
    model = Dense(window)
    robust = dict(
        kernel=pp.optim.kernel.Huber(2.0), corrector=pp.optim.corrector.FastTriggs(pp.optim.kernel.Huber(2.0))
    )
    optimizer = pp.optim.LM(
        model, strategy=pp.optim.strategy.Adaptive(damping=1e-4), **(robust if kernel == "huber" else {})
    )
    for _ in range(25):
        optimizer.step(input=())
    T = torch.cat([window.T_WC[:1], model.free.detach().tensor()])
    theirs = float(cost_of(window, T, model.points.detach(), kernel))
    ours = bundle.solve(window, BundleConfig(kernel=kernel, **EXACT))
    assert ours.status is BAStatus.CONVERGED
    assert ours.cost_after <= theirs * (1 + 1e-6)
    assert ours.cost_after >= theirs * (1 - 1e-3)
    if kind != ObservationKind.MONO:  # where the scale is known, the solution is too
        assert geometry.local(T, ours.T_WC).norm(dim=1).max() < 1e-3


@pytest.mark.parametrize("tolerance, limit", ((1e-4, 3e-2), (1e-12, 1e-5)))
@pytest.mark.parametrize("kernel", ("huber", "cauchy", "none"))
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_vanishes_where_it_says_converged(kind, kernel, tolerance, limit):
    """Measured as learning uses it: by autograd, through the shared residual. The unit is that of the start's gradient."""
    window = make_window(6, 150, kind=kind, outliers=0.05 if kernel != "none" else 0.0).window
    result = bundle.solve(window, BundleConfig(kernel=kernel, cost_tolerance=tolerance, max_iterations=200))
    assert result.status is BAStatus.CONVERGED

    def gradient(T, X):
        step = torch.zeros(len(T), 6, dtype=torch.float64, requires_grad=True)
        X = X.clone().requires_grad_()
        g_T, g_X = torch.autograd.grad(cost_of(window, move(T, step), X, kernel), (step, X))
        return torch.cat([g_T[1:].flatten(), g_X.flatten()])

    assert gradient(result.T_WC, result.points_W).norm() < limit * gradient(window.T_WC, window.points_W).norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("motion", ("sideways", "forward"))
def test_finds_the_truth_without_noise(kind, motion):
    made = make_window(6, 200, kind=kind, motion=motion, noise_px=1e-6, pose_noise=0.05, point_noise=0.1)
    window = dataclasses.replace(made.window, sigma=torch.full_like(made.window.sigma, 1.0))
    result = bundle.solve(window, BundleConfig(**EXACT))
    scale = 1.0
    if kind == ObservationKind.MONO:
        scale = made.T_WC[-1, :3].norm() / result.T_WC[-1, :3].norm()
    assert result.status is BAStatus.CONVERGED
    assert (result.T_WC[:, :3] * scale - made.T_WC[:, :3]).abs().max() < 1e-6
    assert (result.points_W * scale - made.points_W).abs().max() < 1e-4
    assert geometry.local(result.T_WC, made.T_WC)[:, 3:].abs().max() < 1e-7


@pytest.mark.parametrize("motion", ("sideways", "forward"))
def test_scale_gauge_does_not_change_the_mono_optimum(motion):
    """The start's scale is arbitrary: scaled starts end at the scaled solution with the same cost and the same residuals."""
    made = make_window(6, 200, motion=motion, outliers=0.05)
    w = made.window
    config = BundleConfig(**EXACT)
    plain = bundle.solve(w, config)
    for scale in (0.01, 30.0):
        T = w.T_WC.clone()
        T[:, :3] *= scale
        scaled = bundle.solve(dataclasses.replace(w, T_WC=T, points_W=w.points_W * scale), config)
        assert abs(scaled.cost_after / plain.cost_after - 1) < 1e-8
        assert (scaled.residual_px - plain.residual_px).abs().max() < 1e-3
        assert (scaled.T_WC[:, :3] / scale - plain.T_WC[:, :3]).abs().max() < 1e-4
        length = (w.T_WC[0, :3] - w.T_WC[:, :3]).norm(dim=1).max() * scale
        assert abs((scaled.T_WC[0, :3] - scaled.T_WC[:, :3]).norm(dim=1).max() / length - 1) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_moving_the_world_moves_the_solution(kind):
    made = make_window(5, 150, kind=kind, outliers=0.05)
    w = made.window
    G = geometry.exp(torch.tensor([3.0, -40.0, 7.0, 0.5, -1.2, 0.8], dtype=torch.float64))
    config = BundleConfig(**EXACT)
    plain = bundle.solve(w, config)
    T_WC, points_W = geometry.compose(G.expand(5, 7), w.T_WC), geometry.act(G, w.points_W)
    moved = bundle.solve(dataclasses.replace(w, T_WC=T_WC, points_W=points_W), config)
    assert abs(moved.cost_after / plain.cost_after - 1) < 1e-9
    assert geometry.local(geometry.compose(G.expand(5, 7), plain.T_WC), moved.T_WC).norm(dim=1).max() < 1e-5
    assert torch.allclose(moved.covariance_newest, plain.covariance_newest, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("precision, limit", (("float64", 1e-9), ("float32", 1e-3)))
def test_order_of_observations_landmarks_and_keyframes_does_not_matter(precision, limit):
    w = make_window(5, 150, kind=ObservationKind.STEREO, outliers=0.05).window
    g = torch.Generator().manual_seed(5)
    config = BundleConfig(
        precision=precision, cost_tolerance=1e-10 if precision == "float64" else 1e-5, max_iterations=100
    )
    plain = bundle.solve(w, config)
    o, p, k = (
        torch.randperm(len(w.kf_idx), generator=g),
        torch.randperm(150, generator=g),
        torch.tensor([2, 0, 3, 1, 4]),
    )
    shuffled = bundle.solve(
        dataclasses.replace(
            w,
            T_WC=w.T_WC[k],
            fixed=w.fixed[k],
            points_W=w.points_W[p],
            kf_idx=torch.argsort(k)[w.kf_idx[o]],
            pt_idx=torch.argsort(p)[w.pt_idx[o]],
            obs=w.obs[o],
            kind=w.kind[o],
            sigma=w.sigma[o],
        ),
        config,
    )
    assert abs(shuffled.cost_after / plain.cost_after - 1) < limit
    assert (shuffled.T_WC - plain.T_WC[k]).abs().max() < limit
    assert (shuffled.points_W - plain.points_W[p]).abs().max() < 1e3 * limit
    assert (shuffled.weight - plain.weight[o]).abs().max() < 1e2 * limit


def test_seeing_a_landmark_twice_in_one_image_counts_twice():
    w = make_window(4, 60, kind=ObservationKind.STEREO).window

    def twice(x):
        return torch.cat([x, x])

    doubled = dataclasses.replace(
        w, kf_idx=twice(w.kf_idx), pt_idx=twice(w.pt_idx), obs=twice(w.obs), kind=twice(w.kind), sigma=twice(w.sigma)
    )
    config = BundleConfig(**EXACT)
    one, two = bundle.solve(w, config), bundle.solve(doubled, config)
    assert abs(two.cost_after - 2 * one.cost_after) < 1e-6 * one.cost_after
    assert (one.T_WC - two.T_WC).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_float32_lands_where_float64_does(kind):
    made = make_window(8, 400, kind=kind, outliers=0.05)
    wide = bundle.solve(made.window, BundleConfig(cost_tolerance=1e-6, max_iterations=100))
    narrow = bundle.solve(made.window, BundleConfig(cost_tolerance=1e-6, max_iterations=100, precision="float32"))
    assert narrow.T_WC.dtype == narrow.points_W.dtype == torch.float64
    assert abs(narrow.cost_after / wide.cost_after - 1) < 1e-4
    assert geometry.local(wide.T_WC, narrow.T_WC).norm(dim=1).max() < 1e-3


class CountOperations(TorchDispatchMode):
    """Operations of torch but those that only make another view."""

    VIEWS = ("view", "slice", "select", "unbind", "transpose", "permute", "expand", "unsqueeze", "squeeze", "diagonal")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ not in self.VIEWS
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_an_iteration_takes_few_operations():
    """On small windows the time is that of starting operations; a count does not depend on the machine."""
    problem = compile_window(make_window(8, 300, outliers=0.05).window, torch.float64)
    counts = []
    for iterations in (4, 4, 5):
        config = BundleConfig(max_iterations=iterations, cost_tolerance=0.0)
        with CountOperations() as operations:
            assert solve_compiled(problem, config)[1].iterations == iterations
        counts.append(operations.count)
    assert counts[2] - counts[1] <= 121


@torch.inference_mode()
@pytest.mark.parametrize("motion", ("sideways", "forward"))
def test_the_linear_model_predicts_the_decrease_of_the_cost(motion):
    """Without a robust kernel and near the optimum it is nearly exact, whatever the damping and with a scale that is held."""
    problem = compile_window(
        make_window(6, 200, motion=motion, pose_noise=1e-4, point_noise=1e-4).window, torch.float64
    )
    window = WindowProblem(problem, residuals.RobustKernel("none", 2.0))
    for damping in (1.0, 0.1, 0.01):
        attempt = window.attempt(damping)
        assert abs(attempt.predicted_decrease / (attempt.cost - attempt.trial_cost) - 1) < 2e-3
        window.accept(near_optimum=False)


def test_fixed_poses_stay_and_the_result_shares_no_memory_with_the_window():
    made = make_window(6, 150)
    fixed = torch.tensor([True, False, True, False, False, False])
    w = dataclasses.replace(made.window, fixed=fixed)
    before = [t.clone() for t in (w.T_WC, w.points_W, w.obs)]
    result = bundle.solve(w, BundleConfig())
    assert torch.equal(result.T_WC[fixed], w.T_WC[fixed]) and (result.T_WC[~fixed] != w.T_WC[~fixed]).any(1).all()
    result.T_WC.zero_(), result.points_W.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, (w.T_WC, w.points_W, w.obs), strict=True))


def test_residuals_and_weights_are_those_of_the_shared_residual():
    w = make_window(5, 150, outliers=0.1).window
    result = bundle.solve(w, BundleConfig())
    predicted = residuals.reproject(w, result.T_WC, result.points_W)
    s = residuals.squared_norm(w, result.T_WC, result.points_W)
    assert torch.equal(result.residual_px, (w.obs - predicted)[:, :2])
    assert torch.equal(result.weight, residuals.RobustKernel("huber", 2.0).weight(s))
    assert abs(float(cost_of(w, result.T_WC, result.points_W)) - result.cost_after) < 1e-9 * result.cost_after


def test_outliers_get_little_weight_and_do_little_harm():
    made = make_window(6, 300, kind=ObservationKind.STEREO, outliers=0.1)
    robust = bundle.solve(made.window, BundleConfig(kernel="cauchy", max_iterations=50))
    plain = bundle.solve(made.window, BundleConfig(kernel="none", max_iterations=50))
    far = made.outlier & (robust.residual_px.norm(dim=1) > 10)
    assert robust.weight[far].max() < 0.3 < 0.7 < robust.weight[~made.outlier].median()

    def error(result):
        return geometry.local(made.T_WC, result.T_WC).norm(dim=1).max()

    assert error(robust) < 0.5 * error(plain)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ("float64", "float32"))
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_lands_where_the_cpu_does(kind, precision):
    window = make_window(8, 400, kind=kind, outliers=0.05).window
    moved = dataclasses.replace(
        window,
        **{
            f.name: getattr(window, f.name).cuda()
            for f in dataclasses.fields(window)
            if isinstance(getattr(window, f.name), torch.Tensor)
        },
    )
    config = BundleConfig(precision=precision, cost_tolerance=1e-6, max_iterations=100)
    cpu, gpu = bundle.solve(window, config), bundle.solve(moved, config)
    assert gpu.T_WC.is_cuda and gpu.status is cpu.status
    assert abs(gpu.cost_after / cpu.cost_after - 1) < 1e-4
    assert geometry.local(cpu.T_WC, gpu.T_WC.cpu()).norm(dim=1).max() < 1e-3
