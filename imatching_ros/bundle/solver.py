"""Bundle adjustment of a window: the least-squares problem for Levenberg-Marquardt, and the checks of what it found."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core import geometry
from ..core.config import BundleConfig
from ..core.residuals import MIN_DEPTH, RobustKernel, reproject, whiten
from ..core.types import BAResult, BAStatus, WindowSnapshot
from .covariance import NewestCovariance, WindowResiduals, newest_covariance
from .levenberg_marquardt import Attempt, Outcome, minimize
from .linearization import (
    NormalEquations,
    State,
    add_rotations,
    back_substitute,
    constrain,
    eliminate,
    evaluate,
    linearize,
    move_landmarks,
)
from .problem import Problem, compile_window
from .relative_rotations import RelativeRotations


def solve(window: WindowSnapshot, config: BundleConfig, rotations: RelativeRotations | None = None) -> BAResult:
    """Poses and landmarks that minimise sum(rho(|whitened residual|^2)) / 2, plus the cost of `rotations` if there are any.

    Levenberg-Marquardt with analytic Jacobians, iteratively reweighted least squares and the Schur complement over the
    landmarks. Same code on CPU and CUDA; one host synchronisation per iteration, where a step is accepted or not.

    Observations that are not finite, behind their camera at the start, or the only ray to their landmark are excluded: weight
    0, NaN residual where there is no reprojection, and a sentence in `reason`. A window that does not determine its poses is
    returned as DEGENERATE with the reason, never with NaN poses.

    Args:
        rotations: a prior of the rotations between keyframes; left out where the observations contradict it (`rotations_used`).

    Raises:
        BundleError: arrays that contradict each other, poses that are not finite.
    """
    # Inference mode takes a sixth off the time of small operations. What it makes is of no use to autograd, its copies are.
    with torch.inference_mode():
        result = _solve(window, config, rotations)
    copies: dict[str, Any] = {name: v.clone() for name, v in vars(result).items() if isinstance(v, Tensor)}
    return replace(result, **copies)


def _solve(window: WindowSnapshot, config: BundleConfig, rotations: RelativeRotations | None) -> BAResult:
    problem = compile_window(window, torch.float32 if config.precision == "float32" else torch.float64, rotations)
    if problem.degenerate:
        return _start_as_result(window, problem, config)
    state, outcome = solve_compiled(problem, config)
    T_WC, points_W = _unpack(window, problem, state)
    residuals = _residuals(window, problem, T_WC, points_W, config)
    covariance = newest_covariance(window, problem, state, residuals, config)
    if problem.rotations is not None and problem.rotations.contradict(state.R, covariance.rotations):
        return _solve(window, config, None)
    reason = _find_degeneracy(window, problem, (T_WC, points_W), residuals.s, config) or covariance.degenerate
    status = BAStatus.CONVERGED if outcome.converged else BAStatus.MAX_ITER
    if reason:
        status, covariance = BAStatus.DEGENERATE, NewestCovariance()
    return BAResult(
        T_WC=T_WC,
        points_W=points_W,
        residual_px=residuals.px,
        weight=residuals.weight,
        cost_before=outcome.cost_before,
        cost_after=outcome.cost,
        iterations=outcome.iterations,
        status=status,
        reason="; ".join(part for part in (reason or outcome.reason, problem.excluded) if part),
        covariance_newest=covariance.matrix,
        covariance_scale=covariance.covariance_scale,
        residual_scale=covariance.residual_scale,
        rotation_errors=None if problem.rotations is None else torch.from_numpy(problem.rotations.errors(state.R)),
        rotation_covariance=covariance.rotations,
    )


def solve_compiled(problem: Problem, config: BundleConfig) -> tuple[State, Outcome]:
    """The optimum of a compiled window and how it was reached, without a verdict on it."""
    window = WindowProblem(problem, RobustKernel(config.kernel, config.kernel_width))
    # From this start a window of which only the newest pose is off needs as few steps as by undamped Gauss-Newton.
    outcome = minimize(window, config, damping=1e-4, rounding=problem.rounding)
    return window.state, outcome


class WindowProblem:
    """A compiled window as a least-squares problem."""

    def __init__(self, problem: Problem, kernel: RobustKernel) -> None:
        self._problem, self._kernel = problem, kernel
        self.state = evaluate(problem, problem.R, problem.t, problem.X, kernel)
        self._trial = self.state
        self._equations: NormalEquations | None = None
        self._second_order = 0.0
        self._landmark_factor: Tensor | None = None  # on the damping of landmarks that would go behind a camera
        self._feasible = True  # the last attempt put no landmark behind a camera

    def attempt(self, damping: float) -> Attempt:
        problem, state = self._problem, self.state
        if self._equations is None:
            self._equations = add_rotations(problem, state, linearize(problem, state, self._kernel, self._second_order))
        lin = self._equations
        reduced = eliminate(problem, lin, damping, self._landmark_factor)
        S, rhs = constrain(reduced.S, reduced.rhs, problem.gauge)
        factor, _ = torch.linalg.cholesky_ex(S)
        pose_step = torch.cholesky_solve(rhs[:, None], factor).squeeze(1)
        point_step = back_substitute(reduced, pose_step)
        self._trial = self._move(pose_step.view(-1, 6), point_step)
        decrease = (
            pose_step @ torch.addcmul(lin.pose_rhs, reduced.pose_damping, pose_step),
            torch.addcmul(lin.landmark[:, 3], reduced.landmark_damping, point_step).mul_(point_step).sum(),
        )
        nearest = (self._trial.residuals.depth + problem.work.unused).amin()
        numbers = torch.stack([state.cost, self._trial.cost, *decrease, nearest])
        cost, trial_cost, by_poses, by_landmarks, depth = numbers.tolist()  # the one synchronisation
        self._feasible = not depth <= MIN_DEPTH
        return Attempt(cost, trial_cost, 0.5 * (by_poses + by_landmarks), self._feasible)

    def _move(self, pose_step: Tensor, point_step: Tensor) -> State:
        """The state after steps (F, 6) of the free poses and (3, P) of the landmarks."""
        problem, work, (R, t) = self._problem, self._problem.work, (self.state.R, self.state.t)
        work.free_step.copy_(pose_step)
        R, t = torch.bmm(geometry.rotation_matrix_of_any_norm(work.quaternion), R), t + work.rho
        return evaluate(problem, R, t, move_landmarks(self.state.X, problem.centre, point_step), self._kernel)

    def accept(self, near_optimum: bool) -> None:
        self.state, self._equations, self._landmark_factor = self._trial, None, None
        # Half of the kernel's second derivative saves steps at the end; all of it would make rejections more frequent.
        self._second_order = 0.5 if near_optimum else 0.0

    def reject(self) -> None:
        if not self._feasible:
            behind = self._problem.used_slot & (self._trial.residuals.depth <= MIN_DEPTH)
            flipped = torch.zeros(self._problem.num_points, dtype=self.state.X.dtype, device=self.state.X.device)
            flipped.index_add_(0, self._problem.point, behind.flatten().to(flipped.dtype))
            more = torch.where(flipped > 0, 100.0, 1.0)
            self._landmark_factor = more if self._landmark_factor is None else self._landmark_factor * more
        if self._second_order:
            self._equations, self._second_order = None, 0.0


def _unpack(window: WindowSnapshot, problem: Problem, state: State) -> tuple[Tensor, Tensor]:
    """T_WC (M, 7) and points_W (P, 3) in the window's order; quaternions keep the signs that they had."""
    T_WC, points_W = window.T_WC.double().clone(), state.X.T[: len(window.points_W)].double().contiguous()
    rows = problem.order[problem.num_fixed :]
    if len(rows):
        moved = geometry.from_matrix(torch.cat([state.R, state.t[..., None]], 2)[problem.num_fixed :].double())
        sign = torch.where((moved[:, 3:] * T_WC[rows, 3:]).sum(1, keepdim=True) < 0, -1.0, 1.0)
        T_WC[rows] = torch.cat([moved[:, :3], moved[:, 3:] * sign], 1)
    not_finite = ~window.points_W.isfinite().all(1)
    return T_WC, torch.where(not_finite[:, None], window.points_W.double(), points_W)


def _start_as_result(window: WindowSnapshot, problem: Problem, config: BundleConfig) -> BAResult:
    T_WC, points_W = window.T_WC.double().clone(), window.points_W.double().clone()
    residuals = _residuals(window, problem, T_WC, points_W, config)
    kernel = RobustKernel(config.kernel, config.kernel_width)
    cost = float(evaluate(problem, problem.R, problem.t, problem.X, kernel).cost)
    reason = "; ".join(part for part in (problem.degenerate, problem.excluded) if part)
    return BAResult(
        T_WC,
        points_W,
        residuals.px,
        residuals.weight,
        cost,
        cost,
        0,
        BAStatus.DEGENERATE,
        reason,
        covariance_newest=None,
    )


def _residuals(
    window: WindowSnapshot, problem: Problem, T_WC: Tensor, points_W: Tensor, config: BundleConfig
) -> WindowResiduals:
    residual = window.obs.double() - reproject(window, T_WC, points_W)
    whitened = whiten(residual, window.sigma.double(), window.kind)
    s = (whitened * whitened).sum(1)
    usable = problem.used & s.isfinite()
    weight = RobustKernel(config.kernel, config.kernel_width).weight(s.nan_to_num(0.0))
    return WindowResiduals(residual[:, :2], s, torch.where(usable, weight, 0.0))


def _find_degeneracy(
    window: WindowSnapshot, problem: Problem, poses: tuple[Tensor, Tensor], s: Tensor, config: BundleConfig
) -> str:
    """Why the result cannot be trusted, by poses T_WC and points_W and squared norms s (O,); empty if it can."""
    T_WC, points_W = poses
    if not bool(T_WC.isfinite().all()):
        return "the poses are not finite"
    used = problem.used
    kf, pt = window.kf_idx[used], window.pt_idx[used]
    support = float((s[used] <= (2 * config.kernel_width) ** 2).double().mean()) if len(kf) else 1.0
    if support < config.min_support:
        return f"only {100 * support:.0f} % of the observations agree with the solution: nearly all are outliers"
    if problem.mono and len(kf):
        angles = geometry.parallax(T_WC, points_W, kf, pt)
        seen = torch.zeros(len(points_W), dtype=torch.bool, device=pt.device)
        seen[pt] = True
        median = math.degrees(float(angles[seen].median()))
        # An angle, not pixels or sigmas: whether parallax outweighs the noise is judged by the covariance of the positions.
        if median < config.min_parallax_deg:
            return f"no parallax: landmarks are seen under {median:.3f} deg (median), {config.min_parallax_deg:g} deg is the limit"
    return ""
