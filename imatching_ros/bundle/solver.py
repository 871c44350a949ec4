"""Levenberg-Marquardt on a window: the loop, its verdict, and the covariance of the newest pose."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import geometry
from ..core.config import BundleConfig
from ..core.types import BAResult, BAStatus, ObservationKind, WindowSnapshot
from ..core.residuals import MIN_DEPTH, kernel_weight, reproject, whiten
from .covariance import design_effect, landmark_parts, pose_scores
from .problem import Problem, compile_window
from .linearization import (
    State,
    Workspace,
    back_substitute,
    constrain,
    eliminate,
    evaluate,
    linearise,
    move_landmarks,
    rotate_small,
)
from .covariance import measure_spread

# Damping: where it starts, its range, and how it changes; with these a warm start needs as few steps as undamped Gauss-Newton.
_DAMPING_START, _DAMPING_LOW, _DAMPING_HIGH = 1e-4, 1e-9, 1e6


# Once a step lowers the cost by less than this part, half of the kernel's second derivative is used: fewer steps at the end.
_LATE, _LATE_BEND = 0.05, 0.5

# How much the elimination of landmarks and other poses may inflate a pose's variance before the system counts as singular.
_WORST_CONDITIONING = 1e14


@torch.no_grad()
def solve(window: WindowSnapshot, config: BundleConfig) -> BAResult:
    """Poses and landmarks that minimise sum(rho(|whitened residual|^2)) / 2.

    Levenberg-Marquardt with analytic Jacobians, iteratively reweighted least squares and the Schur complement over the
    landmarks. Same code on CPU and CUDA; one host synchronisation per iteration, where a step is accepted or not.

    Observations that are not finite, behind their camera at the start, or the only ray to their landmark are set aside: weight
    0, NaN residual where there is no reprojection, and a sentence in `reason`. A window that does not determine its poses comes
    back DEGENERATE with the reason, never with NaN poses.

    Raises:
        BundleError: arrays that contradict each other, poses that are not finite.
    """
    dtype = torch.float32 if config.precision == "float32" else torch.float64
    problem = compile_window(window, dtype)
    if problem.degenerate:
        return _unsolved(window, problem, config, problem.degenerate)
    run = minimise(problem, config)
    return _conclude(window, problem, run, config)


@dataclass
class _Run:
    state: State
    cost_before: float
    iterations: int
    converged: bool
    reason: str
    work: Workspace


def minimise(problem: Problem, config: BundleConfig) -> _Run:
    """Levenberg-Marquardt on a compiled window, without a verdict on what it found."""
    kernel, width = config.kernel, config.kernel_width
    F = len(problem.R) - problem.num_fixed
    free = slice(problem.num_fixed, None)
    state = evaluate(problem, problem.R, problem.t, problem.X, kernel, width)
    cost_before = cost = None
    damping, growth = _DAMPING_START, 4.0
    caution: Tensor | float = 1.0
    lin, bend, work = None, 0.0, Workspace(problem)
    for iteration in range(1, config.max_iterations + 1):
        if lin is None:
            lin = linearise(problem, state, kernel, width, work, bend)
        reduced = eliminate(lin, work, damping, caution)
        S, rhs = constrain(reduced.S, reduced.rhs, problem.gauge)
        factor, _ = torch.linalg.cholesky_ex(S)
        pose_step = torch.cholesky_solve(rhs[:, None], factor).squeeze(1)
        point_step = back_substitute(reduced, pose_step)
        moves = pose_step.view(F, 6)
        R, t = state.R, state.t
        if F:
            R = torch.cat([R[: problem.num_fixed], rotate_small(moves[:, 3:]) @ R[free]])
            t = torch.cat([t[: problem.num_fixed], t[free] + moves[:, :3]])
        trial = evaluate(problem, R, t, move_landmarks(state.X, problem.centre, point_step), kernel, width)
        # What the linear model promises: half of step times (gradient + damping * step).
        promised = 0.5 * (
            pose_step @ rhs
            + (point_step * lin.landmark_rhs).sum()
            + (pose_step**2) @ reduced.pose_damping
            + (point_step**2 * reduced.landmark_damping).sum()
        )
        flips = (trial.depth <= MIN_DEPTH) & (problem.inv_sigma[0] > 0)
        numbers = torch.stack([state.cost, trial.cost, promised, flips.sum().to(promised.dtype)])
        cost, trial_cost, gain, num_flips = numbers.tolist()  # the one synchronisation
        if cost_before is None:
            cost_before = cost
        if not math.isfinite(cost):
            return _Run(state, cost_before, iteration, False, "the cost of the start is not finite", work)
        floor = config.cost_tolerance * cost + problem.rounding
        if num_flips == 0 and trial_cost <= cost and math.isfinite(trial_cost):
            decrease = cost - trial_cost
            state, lin, caution = trial, None, 1.0
            good = decrease > 0.25 * gain
            damping = max(damping * (0.1 if good else 1.0), _DAMPING_LOW)
            bend = _LATE_BEND if good and decrease < _LATE * cost else 0.0
            growth = 4.0
            if decrease <= floor and gain <= 4 * floor and damping < 1e-2:
                return _Run(state, cost_before, iteration, True, "", work)
            continue
        if math.isfinite(gain) and 0 <= gain <= floor and damping < 1e-2:
            return _Run(state, cost_before, iteration, True, "", work)
        if num_flips:
            flipped = torch.zeros(problem.num_points, dtype=trial.cost.dtype, device=trial.cost.device)
            flipped.index_add_(0, problem.point, flips.flatten().to(flipped.dtype))
            caution = caution * torch.where(flipped > 0, 100.0, 1.0)
        if not num_flips or iteration % 2 == 0:
            damping, growth = damping * growth, growth * 2
        if bend:
            lin, bend = None, 0.0
        if damping > _DAMPING_HIGH:
            return _Run(state, cost_before, iteration, False, "no step lowers the cost any more", work)
    return _Run(
        state, cost_before, config.max_iterations, False, f"{config.max_iterations} iterations were not enough", work
    )


def _conclude(window: WindowSnapshot, problem: Problem, run: _Run, config: BundleConfig) -> BAResult:
    state = run.state
    T_WC, points_W = window.T_WC.double().clone(), state.X.T[: len(window.points_W)].double().contiguous()
    rows = problem.order[problem.num_fixed :]
    if len(rows):
        matrices = torch.cat([state.R, state.t[..., None]], 2)[problem.num_fixed :].double()
        moved = geometry.from_matrix(matrices)
        sign = torch.where((moved[:, 3:] * T_WC[rows, 3:]).sum(1, keepdim=True) < 0, -1.0, 1.0)
        T_WC[rows] = torch.cat([moved[:, :3], moved[:, 3:] * sign], 1)
    lost = ~window.points_W.isfinite().all(1)
    points_W = torch.where(lost[:, None], window.points_W.double(), points_W)
    residual, s, weight = _residuals(window, problem, T_WC, points_W, config)

    covariance, why, inflation = _covariance_newest(window, problem, run, s, weight, config)
    why = _find_degeneracy(window, problem, T_WC, points_W, s, config) or why
    if why:
        status, covariance = BAStatus.DEGENERATE, None
    else:
        status, why = (BAStatus.CONVERGED if run.converged else BAStatus.MAX_ITER), run.reason
    reason = "; ".join(part for part in (why, problem.set_aside) if part)
    return BAResult(
        T_WC,
        points_W,
        residual,
        weight,
        run.cost_before,
        float(state.cost),
        run.iterations,
        status,
        reason,
        covariance,
        inflation,
    )


def _unsolved(window: WindowSnapshot, problem: Problem, config: BundleConfig, why: str) -> BAResult:
    T_WC, points_W = window.T_WC.double().clone(), window.points_W.double().clone()
    residual, _, weight = _residuals(window, problem, T_WC, points_W, config)
    cost = float(evaluate(problem, problem.R, problem.t, problem.X, config.kernel, config.kernel_width).cost)
    reason = "; ".join(part for part in (why, problem.set_aside) if part)
    return BAResult(T_WC, points_W, residual, weight, cost, cost, 0, BAStatus.DEGENERATE, reason, None)


def _residuals(
    window: WindowSnapshot, problem: Problem, T_WC: Tensor, points_W: Tensor, config: BundleConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """residual_px (O, 2), s (O,), weight (O,) by the one residual that learning shares."""
    residual = window.obs.double() - reproject(window.camera, T_WC, points_W, window.kf_idx, window.pt_idx, window.kind)
    whitened = whiten(residual, window.sigma.double(), window.kind)
    s = (whitened * whitened).sum(1)
    usable = problem.used & s.isfinite()
    weight = torch.where(usable, kernel_weight(config.kernel, s.nan_to_num(0.0), config.kernel_width), 0.0)
    return residual[:, :2], s, weight


def _covariance_newest(
    window: WindowSnapshot, problem: Problem, run: _Run, s: Tensor, weight: Tensor, config: BundleConfig
) -> tuple[Tensor | None, str, float]:
    """(6, 6) of the last pose's perturbation T_WC * Exp([rho, phi]), why it does not exist, and its inflation.

    Inverse of the undamped Schur complement, times the spread of the residuals as measured and not as assumed, inflated for
    residuals that are correlated (`bundle.correlation`).
    """
    state, M, F = run.state, len(problem.R), len(problem.R) - problem.num_fixed
    newest = int((problem.order == M - 1).nonzero()) - problem.num_fixed
    if F == 0 or newest < 0:
        return None, "", 1.0
    work = run.work
    if state.X.dtype != torch.float64:
        # Landmarks of little parallax have no inverse in float32.
        problem = problem.double()
        state = evaluate(
            problem, state.R.double(), state.t.double(), state.X.double(), config.kernel, config.kernel_width
        )
        work = Workspace(problem)
    lin = linearise(problem, state, config.kernel, config.kernel_width, work)
    reduced = eliminate(lin, work, 0.0)
    S, _ = constrain(reduced.S, reduced.rhs, problem.gauge)
    scale = S.diagonal().clamp_min(1e-300).rsqrt()
    factor, info = torch.linalg.cholesky_ex(S * scale[:, None] * scale[None, :])
    inverse = torch.cholesky_inverse(factor) * scale[:, None] * scale[None, :]
    conditioning = inverse.diagonal() * lin.pose.reshape(6 * F, 6 * F).diagonal()
    if problem.gauge is not None:
        inverse = inverse - torch.outer(problem.gauge, problem.gauge) * (problem.gauge @ inverse @ problem.gauge)
    worst = torch.where(info == 0, conditioning.max(), torch.inf)
    if not bool(worst < _WORST_CONDITIONING):
        return None, "the observations do not determine all poses: the reduced system is singular", 1.0
    spread = _spread(window, problem, F, s, weight, config)
    if problem.mono:
        # A rotation that is taken for a translation past far landmarks leaves this mark: positions are loose against the baseline.
        loose = inverse.diagonal().view(F, 6)[:, :3].sum(1).clamp_min(0).sqrt().median() * spread.sqrt()
        baseline = (state.t - state.t[0]).norm(dim=1).max()
        if not bool(loose < config.max_baseline_error * baseline):
            return (
                None,
                (
                    f"no parallax: positions are known to {float(loose / baseline):.2f} of the longest baseline (median), "
                    f"{config.max_baseline_error:g} is the limit"
                ),
                1.0,
            )
    block = inverse[6 * newest : 6 * newest + 6, 6 * newest : 6 * newest + 6]
    Rt = state.R[newest + problem.num_fixed].T
    to_body = torch.block_diag(Rt, Rt)
    factor = config.shared_error * _correlation(
        window, problem, state, inverse[6 * newest : 6 * newest + 6], block * spread, config
    )
    return to_body @ block @ to_body.T * (spread * factor), "", float(factor)


def _correlation(
    window: WindowSnapshot, problem: Problem, state: State, rows: Tensor, assumed: Tensor, config: BundleConfig
) -> Tensor:
    """`design_effect` () on the pose whose `rows` (6, 6F) of the inverse these are and whose covariance (6, 6) is `assumed`."""
    fixed, M = problem.num_fixed, len(problem.R)
    scores = pose_scores(problem, state, config.kernel, config.kernel_width)[fixed:]
    moved = torch.einsum("afb,fbn->fna", rows.view(6, M - fixed, 6), scores)
    moved = torch.cat([moved.new_zeros(fixed, *moved.shape[1:]), moved]).flatten(0, 1)
    influence = moved.new_zeros(problem.num_points, 6).index_add_(0, window.pt_idx, moved[problem.slot])
    parts = landmark_parts(window.camera, window.obs[:, :2].double(), window.pt_idx, problem.used, problem.num_points)
    return design_effect(influence, parts, assumed)


def _spread(
    window: WindowSnapshot, problem: Problem, F: int, s: Tensor, weight: Tensor, config: BundleConfig
) -> Tensor:
    """`measure_spread` over the used observations, with the number of free poses and landmarks."""
    used = problem.used & s.isfinite()
    landmarks = torch.zeros(problem.num_points, dtype=torch.bool, device=s.device)
    landmarks[window.pt_idx[used]] = True
    parameters = 6 * F + 3 * landmarks.sum() - int(problem.gauge is not None)
    size = torch.where(window.kind[used] == ObservationKind.MONO, 2.0, 3.0)
    return measure_spread(s[used], weight[used], size, parameters, config)


def _find_degeneracy(
    window: WindowSnapshot, problem: Problem, T_WC: Tensor, points_W: Tensor, s: Tensor, config: BundleConfig
) -> str:
    """Why a finished solve must not be believed; empty if it may."""
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
