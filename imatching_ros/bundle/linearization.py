"""One linearization of a window and its damped Schur-complement solve, batched over observations, landmarks and keyframes.

A step moves t by rho, R by Exp(phi) from the left and X by itself. With Y = X - t, in world axes, the camera-frame point is
R^T Y, and its derivative is R^T [-I, [Y]x] for the pose and R^T for the landmark. So one 3 x 4 matrix per observation,
[C | b] = J^T [J | r] with J the landmark's Jacobian, carries all blocks: landmark sum(C), coupling G^T C and pose sum(G^T C G)
with G = [-I, [Y]x], where G^T C G is linear in the products of C with 1, Y and Y Y^T: one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..core.residuals import Residuals, RobustKernel, landmark_jacobian, project
from .problem import Problem


@cache
def _pose_block_map(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(12 * 10, 42): from the sums of [C | b] times [1, Y, YY] to the 36 numbers of G^T C G and the 6 of G^T b."""
    generators = torch.zeros(4, 3, 6, dtype=torch.float64)  # G = generators[0] + sum_k Y_k generators[1 + k]
    generators[0, :, :3] = -torch.eye(3)
    for k, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):  # [Y]x holds Y_k at (j, i) and -Y_k at (i, j)
        generators[1 + k, j, 3 + i], generators[1 + k, i, 3 + j] = 1.0, -1.0
    # Rows of the products of Y: 1, Y, then the squares, then 01, 12 and 20.
    row = torch.tensor([[0, 1, 2, 3], [1, 4, 7, 9], [2, 7, 5, 8], [3, 9, 8, 6]])
    table = torch.zeros(3, 4, 10, 42, dtype=torch.float64)
    for i in range(3):
        for a in range(4):
            table[i, 3, row[0, a], 36:] += generators[a, i]
            for j in range(3):
                for b in range(4):
                    table[i, j, row[a, b], :36] += torch.outer(generators[a, i], generators[b, j]).flatten()
    return table.view(120, 42).to(device, dtype)


@cache
def _half_skew_map(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(3, 9): from a rotation vector phi to [phi / 2]x, row by row."""
    table = torch.zeros(3, 3, 3)
    for k, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        table[k, j, i], table[k, i, j] = 0.5, -0.5
    return table.view(3, 9).to(device, dtype)


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
    """Residuals and cost; a used observation behind its camera costs as a pixel infinitely far away."""
    Y = X.view(-1).index_select(0, problem.coordinate).view(len(R), 3, -1).sub_(t[:, :, None])
    residuals = project(problem.observations, torch.bmm(R.mT, Y))
    return State(R, t, X, Y, residuals, kernel.total(residuals.s))


@dataclass
class NormalEquations:
    """H = [[pose, coupling], [coupling^T, landmark]] at a State, all positive, and the right hand sides (descent)."""

    pose: Tensor  # (6F, 6F) of the free keyframes
    pose_rhs: Tensor  # (6F,)
    landmark: Tensor  # (3, 4, P): each block with its right hand side as the fourth column
    least_damping: Tensor  # (P,) keeps directions without any observation invertible
    C: Tensor  # (F, 3, 3, P)
    Y: Tensor  # (F, 3, P)


def linearize(problem: Problem, state: State, kernel: RobustKernel, second_order: float = 0.0) -> NormalEquations:
    """Analytic Jacobians, IRLS weights, sums into blocks.

    `second_order` in 0..1 moves from reweighted least squares (0), which is safe far from the optimum but overstates the
    curvature of outliers and so takes many short steps at the end, to the second derivative of the kernel (1; Triggs 2000,
    section 4.3).
    """
    M, fixed, Y = len(state.R), problem.num_fixed, state.Y
    sums = _sum_components(problem, state, kernel, second_order)
    dense = problem.work.dense.zero_()
    dense.view(-1).scatter_add_(0, problem.cell, sums.view(-1))
    landmark = dense.sum(0)
    floor = 1e-12 if Y.dtype == torch.float64 else 1e-6  # relative to the best observed direction of the landmark
    least_damping = landmark.view(12, -1)[::5].amax(0).mul_(floor).add_(_tiny(Y.dtype))

    products = problem.work.products  # its first row is 1
    products[:, 1:4] = Y
    torch.mul(Y, Y, out=products[:, 4:7])
    torch.mul(Y[:, 0:2], Y[:, 1:3], out=products[:, 7:9])
    torch.mul(Y[:, 2], Y[:, 0], out=products[:, 9])
    moments = torch.bmm(sums.view(M, 12, -1), products.mT).view(M, 120)[fixed:] @ _pose_block_map(Y.dtype, Y.device)
    pose = Y.new_zeros(M - fixed, 6, M - fixed, 6)
    pose.diagonal(dim1=0, dim2=2).copy_(moments[:, :36].view(-1, 6, 6).permute(1, 2, 0))
    return NormalEquations(
        pose.view(6 * (M - fixed), 6 * (M - fixed)),
        moments[:, 36:].flatten(),
        landmark,
        least_damping,
        dense[fixed:, :, :3],
        state.X - state.t[fixed:, :, None],
    )


def _tiny(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).tiny ** 0.5


def _sum_components(problem: Problem, state: State, kernel: RobustKernel, second_order: float) -> Tensor:
    """(M, 3, 4, N): [C | b] = J^T [J | r] of every observation."""
    at = state.residuals
    root = kernel.weight(at.s).sqrt()
    rows, sums = problem.work.rows, problem.work.sums
    J = landmark_jacobian(problem.observations, at, state.R, root, out=rows[:, :3])
    torch.mul(at.whitened.transpose(0, 1), root[:, None], out=rows[:, 3])
    torch.mul(J[:, :, None, 0], rows[:, None, :, 0], out=sums)
    for d in range(1, rows.shape[2]):
        sums.addcmul_(J[:, :, None, d], rows[:, None, :, d])
    if second_order and kernel.name != "none":
        # Take back a part of the curvature along each residual: C -= (r . J)^T (r . J) part / s.
        part = kernel.curvature_loss(at.s).clamp_max(1) * second_order
        share = (part / at.s.clamp_min(1e-12)).sqrt() * at.whitened
        along = (J * share.transpose(0, 1)[:, None]).sum(2)
        sums[:, :, :3].addcmul_(along[:, :, None], along[:, None], value=-1)
    return sums


@dataclass
class Reduced:
    """The pose system after the landmarks are eliminated, and what is needed to get them back."""

    S: Tensor  # (6F, 6F)
    rhs: Tensor  # (6F,)
    W: Tensor  # (6F, 3P) minus the coupling times the inverse transposed factor of the landmark blocks
    factor: tuple[Tensor, ...]  # l00, l10, l20, l11, l21, l22, each (P,)
    half: Tensor  # (3, P) forward-substituted landmark right hand side
    pose_damping: Tensor  # (6F,)
    landmark_damping: Tensor  # (3, P)


def eliminate(problem: Problem, lin: NormalEquations, damping: float, landmark_factor: Tensor | None = None) -> Reduced:
    """Schur complement of H + damping * diag(H); `landmark_factor` (P,) multiplies the damping of single landmarks."""
    landmark_damping = torch.add(lin.least_damping, lin.landmark.view(12, -1)[::5], alpha=damping)
    if landmark_factor is not None:
        landmark_damping *= landmark_factor
    factor, half = _factorize(lin.landmark, landmark_damping)
    W = _divide_coupling(problem.work.W, lin, factor)
    pose_damping = lin.pose.diagonal() * damping + _tiny(W.dtype)
    S = torch.addmm(lin.pose, W, W.mT, alpha=-1)
    S.diagonal().add_(pose_damping)
    rhs = torch.addmv(lin.pose_rhs, W, half.view(-1))
    return Reduced(S, rhs, W, factor, half, pose_damping, landmark_damping)


def _factorize(landmark: Tensor, damping: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Cholesky factors L of the damped landmark blocks (l00, l10, l20, l11, l21, l22), and L^-1 times their right hand sides (3, P).

    Row by row on [block | right hand side], of which only the upper triangle is read.
    """
    a = landmark.view(12, -1).clone()
    a[::5] += damping
    small = torch.finfo(a.dtype).eps
    l00 = a[0].sqrt()
    first = a[1:4] / l00  # l10, l20 and the right hand side
    rest = torch.addcmul(a[5:8], first[0], first, value=-1)
    l11 = torch.maximum(rest[0], small * a[5]).sqrt()
    second = rest[1:] / l11  # l21 and the right hand side
    last = torch.addcmul(a[10:], first[1], first[1:], value=-1).addcmul_(second[0], second, value=-1)
    l22 = torch.maximum(last[0], small * a[10]).sqrt()
    return (l00, first[0], first[1], l11, second[0], l22), torch.stack([first[2], second[1], last[1] / l22])


def _divide_coupling(W: Tensor, lin: NormalEquations, factor: tuple[Tensor, ...]) -> Tensor:
    """Fills W (F, 6, 3, P), upper rows C L^-T, lower rows Y x (C L^-T), made column by column; returned as (6F, 3P)."""
    l00, l10, l20, l11, l21, l22 = factor
    first, second, third = W[:, :3].unbind(2)
    torch.div(lin.C[:, :, 0], l00, out=first)
    torch.addcmul(lin.C[:, :, 1], first, l10, value=-1, out=second).div_(l11)
    torch.addcmul(lin.C[:, :, 2], first, l20, value=-1, out=third).addcmul_(second, l21, value=-1).div_(l22)
    rows, Y = W.unbind(1), lin.Y[:, :, None].unbind(1)
    for row, a, b in ((3, 1, 2), (4, 2, 0), (5, 0, 1)):
        torch.mul(Y[a], rows[b], out=rows[row]).addcmul_(Y[b], rows[a], value=-1)
    return W.flatten(2).flatten(0, 1)


def back_substitute(reduced: Reduced, pose_step: Tensor) -> Tensor:
    """Landmark steps (3, P) that belong to a pose step (6F,)."""
    l00, l10, l20, l11, l21, l22 = reduced.factor
    step = torch.addmv(reduced.half.view(-1), reduced.W.mT, pose_step).view(3, -1)
    x0, x1, x2 = step.unbind(0)
    x2.div_(l22)
    x1.addcmul_(l21, x2, value=-1).div_(l11)
    x0.addcmul_(l10, x1, value=-1).addcmul_(l20, x2, value=-1).div_(l00)
    return step


def constrain(S: Tensor, rhs: Tensor, gauge: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keeps steps orthogonal to the unit vector `gauge`: that direction gets a stiffness of its own and no right hand side."""
    if gauge is None:
        return S, rhs
    Sg = S @ gauge
    stiffness = S.diagonal().max()
    # P S P + stiffness g g^T with P = I - g g^T is S - g h^T - h g^T
    h = torch.addcmul(Sg, gauge, gauge @ Sg + stiffness, value=-0.5)
    constrained = torch.addr(S, gauge, h, alpha=-1).addr_(h, gauge, alpha=-1)
    return constrained, torch.addcmul(rhs, gauge, gauge @ rhs, value=-1)


def rotate_small(phi: Tensor) -> Tensor:
    """Rotation vectors (K, 3) -> rotations (K, 3, 3) by Cayley's formula: exactly orthonormal, Exp to second order."""
    K = (phi @ _half_skew_map(phi.dtype, phi.device)).view(-1, 3, 3)  # [phi / 2]x
    # (I - K)^-1 (I + K) = I + 2 (K + K^2) / (1 + |phi / 2|^2)
    R = torch.baddbmm(K, K, K) * (8 / (4 + (phi * phi).sum(1)))[:, None, None]
    R.diagonal(dim1=1, dim2=2).add_(1)
    return R


def move_landmarks(X: Tensor, centre: Tensor, step: Tensor) -> Tensor:
    """Landmarks (3, P) after a step: equal to X + step to first order, but linear in the inverse distance from `centre`.

    Pixels are nearly linear in the inverse distance and far from linear in the distance, so longer steps stay true; and a
    step towards the cameras only ever approaches them, it cannot carry a landmark behind them.
    """
    # The distance grows at most tenfold in one step; landmarks whose rays meet behind the cameras move away at this rate.
    v, most = X - centre, 0.9
    along = (v * step).sum(0) / (v * v).sum(0).clamp_min(1e-30)
    return torch.addcdiv(centre, (v + step).addcmul_(along, v, value=-1), 1 - along.clamp_max(most))
