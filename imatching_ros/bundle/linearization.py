"""One linearization of a window and its damped Schur-complement solve, batched over observations, landmarks and keyframes.

A step moves t by rho, R by Exp(phi) from the left and X by itself. With Y = X - t, in world axes, the camera-frame point is
R^T Y, and its derivative is R^T [-I, [Y]x] for the pose and R^T for the landmark. So one 3 x 4 matrix per observation,
[C | b] = J^T [J | r] with J the landmark's Jacobian, carries all blocks: landmark sum(C), coupling G^T C and pose sum(G^T C G)
with G = [-I, [Y]x], where G^T C G is linear in the products of C with 1, Y and Y Y^T: one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ..core.residuals import Residuals, RobustKernel, landmark_jacobian, project
from .problem import Problem, Workspace


@cache
def _pose_block_map(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(12 * 13, 42): from the sums of [C | b] times [1, Y, YY] to the 36 numbers of G^T C G and the 6 of G^T b."""
    generators = torch.zeros(4, 3, 6, dtype=torch.float64)  # G = generators[0] + sum_k Y_k generators[1 + k]
    generators[0, :, :3] = -torch.eye(3)
    for k, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):  # [Y]x holds Y_k at (j, i) and -Y_k at (i, j)
        generators[1 + k, j, 3 + i], generators[1 + k, i, 3 + j] = 1.0, -1.0
    row = torch.tensor([[0, 1, 2, 3], [1, 4, 5, 6], [2, 7, 8, 9], [3, 10, 11, 12]])  # of the products of 1, Y by 1, Y
    table = torch.zeros(3, 4, 13, 42, dtype=torch.float64)
    for i in range(3):
        for a in range(4):
            table[i, 3, row[0, a], 36:] += generators[a, i]
            for j in range(3):
                for b in range(4):
                    table[i, j, row[a, b], :36] += torch.outer(generators[a, i], generators[b, j]).flatten()
    return table.view(156, 42).to(device, dtype)


@dataclass
class State:
    """Poses and landmarks with their residuals."""

    R: Tensor  # (M, 3, 3)
    t: Tensor  # (M, 3)
    X: Tensor  # (3, P)
    Y: Tensor  # (M, 3, N) landmark minus camera, world axes
    residuals: Residuals
    cost: Tensor  # ()


def evaluate(problem: Problem, R: Tensor, t: Tensor, X: Tensor, kernel: RobustKernel) -> State:
    """Residuals and cost, that of the prior included; a used observation behind its camera costs as a pixel infinitely far away."""
    Y = X.view(-1).index_select(0, problem.coordinate).view(len(R), 3, -1).sub_(t[:, :, None])
    residuals = project(problem.observations, torch.bmm(R.mT, Y))
    cost = kernel.total(residuals.s)
    if problem.rotations is not None:
        cost = cost + problem.rotations.cost(R)
    return State(R, t, X, Y, residuals, cost)


@dataclass
class NormalEquations:
    """H = [[pose, coupling], [coupling^T, landmark]] at a State, all positive, and the right hand sides (descent).

    `pose`, `landmark` and, for the coupling, C of every keyframe and landmark lie in the problem's workspace: valid until the next ones are made.
    """

    pose: Tensor  # (6F, 6F) of the free keyframes
    pose_rhs: Tensor  # (6F,)
    landmark: Tensor  # (3, 4, P): each block with its right hand side as the fourth column
    diagonal: Tensor  # (3, P) of the landmark blocks
    least_damping: Tensor  # (P,) keeps directions without any observation invertible
    Y: Tensor  # (F, 3, P) landmark minus camera


def linearize(problem: Problem, state: State, kernel: RobustKernel, second_order: float = 0.0) -> NormalEquations:
    """Analytic Jacobians, IRLS weights, sums into blocks; of the observations alone, without a prior (`add_rotations`).

    `second_order` in 0..1 moves from reweighted least squares (0), which is safe far from the optimum but overstates the
    curvature of outliers and so takes many short steps at the end, to the second derivative of the kernel (1; Triggs 2000,
    section 4.3).
    """
    work, Y = problem.work, state.Y
    _sum_components(problem, state, kernel, second_order)
    work.dense_flat.zero_().scatter_add_(2, problem.cell, work.sums_flat)
    torch.sum(work.dense, 0, out=work.landmark)
    floor = 1e-12 if Y.dtype == torch.float64 else 1e-6  # relative to the best observed direction of the landmark
    least_damping = torch.add(work.tiny, work.landmark_diagonal.amax(0), alpha=floor)

    work.ones.fill_(1)
    work.Y.copy_(Y)
    torch.mul(Y.unsqueeze(2), Y.unsqueeze(1), out=work.YY)
    moments = torch.bmm(work.free_sums, work.free_products).flatten(1) @ _pose_block_map(Y.dtype, Y.device)
    work.pose_blocks.copy_(moments[:, :36].view(-1, 6, 6))
    return NormalEquations(
        work.pose,
        moments[:, 36:].flatten(),
        work.landmark,
        work.landmark_diagonal,
        least_damping,
        state.X - state.t[problem.num_fixed :].unsqueeze(2),
    )


def add_rotations(problem: Problem, state: State, lin: NormalEquations) -> NormalEquations:
    """The equations with those of the prior of the rotations; the same without one."""
    if problem.rotations is None:
        return lin
    H, rhs = problem.rotations.normal_equations(state.R, problem.num_fixed)
    return replace(lin, pose=lin.pose + H, pose_rhs=lin.pose_rhs + rhs)


def _sum_components(problem: Problem, state: State, kernel: RobustKernel, second_order: float) -> None:
    """Fills `Workspace.sums`: [C | b] = J^T [J | r] of every observation."""
    at, work = state.residuals, problem.work
    root = kernel.weight(at.s).sqrt()
    J = landmark_jacobian(problem.observations, at, state.R, root, out=work.J)
    torch.mul(at.whitened.transpose(0, 1), root.unsqueeze(1), out=work.r)
    torch.mul(work.J_of[0], work.rows_of[0], out=work.sums)
    for J_d, rows_d in zip(work.J_of[1:], work.rows_of[1:]):
        work.sums.addcmul_(J_d, rows_d)
    if second_order and kernel.name != "none":
        # Take back a part of the curvature along each residual: C -= (r . J)^T (r . J) part / s.
        part = kernel.curvature_loss(at.s).clamp_max(1) * second_order
        share = (part / at.s.clamp_min(1e-12)).sqrt() * at.whitened
        along = (J * share.transpose(0, 1).unsqueeze(1)).sum(2)
        work.C.addcmul_(along.unsqueeze(2), along.unsqueeze(1), value=-1)


@dataclass
class Reduced:
    """The pose system after the landmarks are eliminated, and what is needed to get them back."""

    S: Tensor  # (6F, 6F)
    rhs: Tensor  # (6F,)
    W: Tensor  # (6F, 3P) minus the coupling times L^-T, with L the Cholesky factors of the landmark blocks
    inverse: Tensor  # (3, 3, P) L^-1
    half: Tensor  # (3, P) L^-1 times the landmarks' right hand side
    pose_damping: Tensor  # (6F,)
    landmark_damping: Tensor  # (3, P)


def eliminate(problem: Problem, lin: NormalEquations, damping: float, landmark_factor: Tensor | None = None) -> Reduced:
    """Schur complement of H + damping * diag(H); `landmark_factor` (P,) multiplies the damping of single landmarks."""
    work = problem.work
    landmark_damping = torch.add(lin.least_damping, lin.diagonal, alpha=damping)
    if landmark_factor is not None:
        landmark_damping *= landmark_factor
    _factorize(work, landmark_damping)
    _divide_coupling(work, lin.Y)
    W, half = work.W, work.half
    pose_damping = torch.add(work.tiny, lin.pose.diagonal(), alpha=damping)
    S = torch.addmm(lin.pose, W, W.mT, alpha=-1)
    S.diagonal().add_(pose_damping)
    rhs = torch.addmv(lin.pose_rhs, W, half.reshape(-1))
    return Reduced(S, rhs, W, work.inverse, half, pose_damping, landmark_damping)


def _factorize(work: Workspace, damping: Tensor) -> None:
    """Cholesky factors L of the damped landmark blocks: fills `Workspace.factored` with L^-1 times [block | right hand side | identity].

    Row by row. A pivot is never below its damping (3, P), but for rounding errors, as the block without it has no negative eigenvalue.
    """
    work.augmented.copy_(work.blocks)
    work.augmented_diagonal.add_(damping)
    (a0, a1, a2), (first, second, third) = work.augmented_rows, work.factored_rows
    _, least1, least2 = damping.unbind(0)
    torch.div(a0, a0[0].sqrt(), out=first)
    torch.addcmul(a1, first[1], first, value=-1, out=second)
    second.div_(torch.maximum(second[1], least1).sqrt_())
    torch.addcmul(a2, first[2], first, value=-1, out=third).addcmul_(second[2], second, value=-1)
    third.div_(torch.maximum(third[2], least2).sqrt_())


def _divide_coupling(work: Workspace, Y: Tensor) -> None:
    """Fills `Workspace.W`: upper rows C L^-T, and lower rows Y x (C L^-T), with Y (F, 3, P)."""
    (C0, C1, C2), (l0, l1, l2), (from_first, from_second, third) = work.C_columns, work.inverse_columns, work.W_reached
    torch.mul(C0, l0, out=from_first)
    from_second.addcmul_(C1, l1)
    third.addcmul_(C2, l2)
    rows, axes = work.W_rows, Y.unsqueeze(2).unbind(1)
    for row, a, b in ((3, 1, 2), (4, 2, 0), (5, 0, 1)):
        torch.mul(axes[a], rows[b], out=rows[row]).addcmul_(axes[b], rows[a], value=-1)


def back_substitute(reduced: Reduced, pose_step: Tensor) -> Tensor:
    """Landmark steps (3, P) that belong to a pose step (6F,)."""
    y = torch.addmv(reduced.half.reshape(-1), reduced.W.mT, pose_step).view(3, 1, -1)
    return (reduced.inverse * y).sum(0)


def constrain(S: Tensor, rhs: Tensor, gauge: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keeps steps orthogonal to the unit vector `gauge`: that direction gets a stiffness of its own and no right hand side."""
    if gauge is None:
        return S, rhs
    Sg = S @ gauge
    # With P = I - g g^T and the stiffness g^T S g, P S P + stiffness g g^T is S - g h^T - h g^T.
    h = torch.addcmul(Sg, gauge, gauge @ Sg, value=-1)
    constrained = torch.addr(S, gauge, h, alpha=-1).addr_(h, gauge, alpha=-1)
    return constrained, torch.addcmul(rhs, gauge, gauge @ rhs, value=-1)


def move_landmarks(X: Tensor, centre: Tensor, step: Tensor) -> Tensor:
    """Landmarks (3, P) after a step: equal to X + step to first order, but linear in the inverse distance from `centre`.

    Pixels are nearly linear in the inverse distance and far from linear in the distance, so longer steps stay true; and a
    step towards the cameras only ever approaches them, it cannot carry a landmark behind them.
    """
    v = X - centre
    along = (v * step).sum(0).div_((v * v).sum(0).clamp_min_(1e-30))
    # The distance grows at most tenfold in one step; landmarks whose rays meet behind the cameras move away at this rate.
    return torch.addcdiv(X, step, torch.maximum(1 - along, along * (1 / 9)))
