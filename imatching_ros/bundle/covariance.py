"""Covariances of estimated poses: the inverse of the normal equations, scaled by the residuals that were found.

Three factors multiply the inverse. The residual scale estimate stands in for the assumed sigmas. The design effect accounts for
correlated residuals: a matcher makes similar errors on neighbouring points and along a track, which neither the normal equations
nor the size of the residuals show. `BundleConfig.shared_error` stands for errors that a whole image shares: they look like motion
and leave no residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..camera.model import Camera
from ..core.arrays import Array, array_module
from ..core.config import BundleConfig
from ..core.residuals import RobustKernel, landmark_jacobian, pose_jacobian
from ..core.types import ObservationKind, WindowSnapshot
from .linearization import State, constrain, eliminate, evaluate, linearize
from .problem import Problem

GRID = (6, 4)  # cells of the image, across and down, within which errors count as correlated


def residual_scale(s: Array, weight: Array, size: Array, parameters: Array | int, kernel: RobustKernel) -> Array:
    """The factor () that turns (J^T W J)^-1 of unit sigmas into the covariance of the estimate.

    Huber's covariance of an M-estimate (Robust Statistics, 1981, section 7.6): (n / (n - p)) mean(psi^2) / mean(psi')^2
    (J^T J)^-1, with J^T W J taken as mean(w) J^T J.

    Args:
        s, weight: (O,) squared whitened norms and kernel weights of the used observations. size: (O,) their dimensions, 2 or 3.
        parameters: p, the number of scalars that were estimated from them.
    """
    n = size.sum()
    psi2 = (weight**2 * s).sum() / n
    # psi = w(s) r in `size` dimensions has the divergence size * w + 2 s w'(s).
    slope = (size * weight + 2 * s * kernel.weight_derivative(s)).sum() / n
    mean_weight = (size * weight).sum() / n
    # Below a mean slope of 0.05 nearly all observations are outliers; the bound keeps the factor finite.
    return psi2 * mean_weight / slope.clip(0.05) ** 2 * n / (n - parameters).clip(1.0)


def image_cell(camera: Camera, uv: Array) -> Array:
    """The cell of `GRID` (N,) int64 that ideal px (N, 2) lie in; px outside belong to the nearest."""
    xp, (across, down) = array_module(uv), GRID
    u = xp.nan_to_num(uv[:, 0] / camera.width * across).clip(0, across - 1)
    v = xp.nan_to_num(uv[:, 1] / camera.height * down).clip(0, down - 1)
    return xp.asarray(v, dtype=xp.int64) * across + xp.asarray(u, dtype=xp.int64)


def landmark_cell(camera: Camera, uv: Tensor, point: Tensor, used: Tensor, num_points: int) -> Tensor:
    """The cell (P,) that each landmark is seen in on average, by observations (O, 2) ideal px that are used (O,)."""
    uv = torch.where(used[:, None], uv, 0.0)
    total = uv.new_zeros(num_points, 2).index_add_(0, point, uv)
    views = uv.new_zeros(num_points).index_add_(0, point, used.to(uv.dtype))
    return image_cell(camera, total / views.clamp_min(1)[:, None])


def design_effect(influence: Array, cell: Array, covariance: Array) -> Array:
    """Variance for clustered residuals over variance for independent ones, the mean over all directions, (); at least 1, at most N.

    The design effect (Kish, Survey Sampling, 1965), with the variance from sums over clusters, within which residuals may be correlated
    in any way (Liang and Zeger 1986). A cluster is what lies in one cell of the image, in all keyframes.

    Args:
        influence: (N, D) by how much the residuals of each observation, or landmark, move the estimate. cell: (N,) of `image_cell`.
        covariance: (D, D) of the estimate for independent residuals.
    """
    xp, rounding = array_module(influence), 1e-9  # eigenvalues of a correlation matrix below `rounding` are noise
    filled = (xp.bincount(cell, minlength=GRID[0] * GRID[1]) > 0).sum()
    # In mono the gauge fixes one direction: it has no variance.
    scale = covariance.diagonal().clip(1e-300) ** -0.5
    values, vectors = xp.linalg.eigh(covariance * scale[:, None] * scale)
    along = (_sum_by_cell(influence, cell) * scale) @ vectors * (values > rounding)
    variance = (along * along).sum(0) / values.clip(rounding) * (filled / (filled - 1).clip(1))
    most = float(max(len(influence), 1))
    return xp.nan_to_num(variance.sum() / (values > rounding).sum().clip(1), nan=1.0).clip(1.0, most)


def _sum_by_cell(influence: Array, cell: Array) -> Array:
    """(cells, D)"""
    count = GRID[0] * GRID[1]
    if isinstance(influence, Tensor):
        return influence.new_zeros(count, influence.shape[1]).index_add_(0, cell, influence)
    return np.stack([np.bincount(cell, column, count) for column in influence.T], 1)


def pose_scores(problem: Problem, state: State, kernel: RobustKernel) -> Tensor:
    """Gradient (M, 6, N) that each observation adds to the pose it was made from, for the step [rho, phi] in world axes.

    At the optimum the gradient of a landmark itself is zero, so all of its observations together move the poses by these alone.
    """
    at = state.residuals
    J = landmark_jacobian(problem.observations, at, state.R, kernel.weight(at.s))
    return pose_jacobian((J * at.whitened.transpose(0, 1)[:, None]).sum(2), state.Y)


@dataclass(frozen=True)
class WindowResiduals:
    """Residuals of all observations of a window, by the one residual that learning shares."""

    px: Tensor  # (O, 2) observed minus reprojected, ideal px; NaN without a reprojection
    s: Tensor  # (O,) squared norm, whitened
    weight: Tensor  # (O,) of the kernel; 0 where excluded


@dataclass(frozen=True)
class NewestCovariance:
    """The covariance of a window's newest pose, or why it has none."""

    matrix: Tensor | None = None  # (6, 6) of T_WC * Exp([rho, phi])
    covariance_scale: float = 1.0  # of it, over that for independent residuals
    residual_scale: float = 1.0  # variance of the residuals over that of the assumed sigmas
    rotations: Tensor | None = None  # (3K, 3K) of the prior's rotations, by observations alone
    degenerate: str = ""  # the observations do not determine the poses, and why


def newest_covariance(
    window: WindowSnapshot, problem: Problem, state: State, residuals: WindowResiduals, config: BundleConfig
) -> NewestCovariance:
    """The covariance of the last pose at the optimum `state`, in float64."""
    kernel, fixed = RobustKernel(config.kernel, config.kernel_width), problem.num_fixed
    newest = int((problem.order == len(problem.R) - 1).nonzero()) - fixed
    if newest < 0:
        return NewestCovariance()
    if state.X.dtype != torch.float64:
        # Landmarks of little parallax have no inverse in float32.
        problem = problem.double()
        state = evaluate(problem, state.R.double(), state.t.double(), state.X.double(), kernel)
    lin = linearize(problem, state, kernel)
    S, stiffness = eliminate(problem, lin, 0.0).S, lin.pose.diagonal()
    inverse = _invert(problem, S, stiffness)
    if inverse is None:
        return NewestCovariance(
            degenerate="the observations do not determine all poses: the reduced system is singular"
        )
    scale, at = _window_scale(window, problem, residuals, kernel), slice(6 * newest, 6 * newest + 6)
    rows = inverse[at]
    effect = _window_design_effect(window, problem, state, (rows, rows[:, at] * scale), kernel)
    shared = config.shared_error * effect
    factor, independent, of_rotations = scale * shared, scale, None
    if problem.rotations is not None:
        J = inverse.new_tensor(problem.rotations.jacobian(state.R, fixed, problem.rotations.errors(state.R)))
        # Observations get their true weight against the prior, which is then part of the inverse with its own.
        H = J.mT @ inverse.new_tensor(problem.rotations.information) @ J
        of_rotations = J @ inverse @ J.mT * factor
        both = _invert(problem, S / factor + H, stiffness / factor + H.diagonal())
        if both is None:
            return NewestCovariance(degenerate="the rotations of the prior leave the poses too ill-conditioned")
        inverse, factor, independent = both, torch.ones_like(factor), 1 / shared
    why = _check_baseline(problem, state, inverse.diagonal() * independent, config) if problem.mono else ""
    if why:
        return NewestCovariance(degenerate=why)
    Rt = state.R[newest + fixed].T
    to_body = torch.block_diag(Rt, Rt)
    matrix = to_body @ inverse[at, at] @ to_body.T * factor
    return NewestCovariance(matrix, float(shared), float(scale), of_rotations)


def _invert(problem: Problem, S: Tensor, stiffness: Tensor) -> Tensor | None:
    """(6F, 6F) inverse of the undamped Schur complement S; None when it is singular. `stiffness`: (6F,) of poses with all else held."""
    S, _ = constrain(S, S.new_zeros(len(S)), problem.gauge)
    scale = S.diagonal().clamp_min(1e-300).rsqrt()
    factor, info = torch.linalg.cholesky_ex(S * scale[:, None] * scale[None, :])
    factor = torch.where(info == 0, factor, torch.eye(len(S), dtype=S.dtype, device=S.device))  # it may hold a zero
    inverse = torch.cholesky_inverse(factor) * scale[:, None] * scale[None, :]
    # By how much the elimination of landmarks and other poses inflates a pose's variance; float64 resolves 1e16.
    conditioning = inverse.diagonal() * stiffness
    if problem.gauge is not None:
        inverse = inverse - torch.outer(problem.gauge, problem.gauge) * (problem.gauge @ inverse @ problem.gauge)
    worst = torch.where(info == 0, conditioning.max(), torch.inf)
    return inverse if bool(worst < 1e14) else None


def _check_baseline(problem: Problem, state: State, variance: Tensor, config: BundleConfig) -> str:
    """Why a mono window has no parallax, empty if it has: positions as uncertain as the baseline is long.

    A rotation that is taken for a translation past far landmarks shows in this ratio.
    """
    error = variance.view(-1, 6)[:, :3].sum(1).clamp_min(0).sqrt().median()
    baseline = (state.t - state.t[0]).norm(dim=1).max()
    if bool(error < config.max_baseline_error * baseline):
        return ""
    return (
        f"no parallax: positions are known to {float(error / baseline):.2f} of the longest baseline (median), "
        f"{config.max_baseline_error:g} is the limit"
    )


def _window_design_effect(
    window: WindowSnapshot, problem: Problem, state: State, newest: tuple[Tensor, Tensor], kernel: RobustKernel
) -> Tensor:
    """`design_effect` () of the newest pose: its rows (6, 6F) of the inverse, and its covariance (6, 6) for independent residuals."""
    rows, covariance = newest
    fixed, M = problem.num_fixed, len(problem.R)
    scores = pose_scores(problem, state, kernel)[fixed:]
    moved = torch.einsum("afb,fbn->fna", rows.view(6, M - fixed, 6), scores)
    moved = torch.cat([moved.new_zeros(fixed, *moved.shape[1:]), moved]).flatten(0, 1)
    influence = moved.new_zeros(problem.num_points, 6).index_add_(0, window.pt_idx, moved[problem.slot])
    uv = window.obs[:, :2].double()
    cells = landmark_cell(window.camera, uv, window.pt_idx, problem.used, problem.num_points)
    return design_effect(influence, cells, covariance)


def _window_scale(window: WindowSnapshot, problem: Problem, residuals: WindowResiduals, kernel: RobustKernel) -> Tensor:
    """`residual_scale` () over the used observations, with the free poses and the landmarks as parameters."""
    s, weight = residuals.s, residuals.weight
    used = problem.used & s.isfinite()
    landmarks = torch.zeros(problem.num_points, dtype=torch.bool, device=s.device)
    landmarks[window.pt_idx[used]] = True
    poses = len(problem.R) - problem.num_fixed
    parameters = 6 * poses + 3 * landmarks.sum() - int(problem.gauge is not None)
    size = torch.where(window.kind[used] == ObservationKind.MONO, 2.0, 3.0)
    return residual_scale(s[used], weight[used], size, parameters, kernel)
