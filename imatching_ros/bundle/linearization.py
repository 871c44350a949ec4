"""One linearization of a window and its damped Schur-complement solve, batched over observations, landmarks and keyframes.

A step moves t by rho, R by Exp(phi) from the left and X by itself. With Y = X - t, in world axes, the camera-frame point is
R^T Y, and its derivative is R^T [-I, [Y]x] for the pose and R^T for the landmark. So one symmetric 3 x 3 matrix per
observation, C = J^T J with J the landmark's Jacobian, carries all blocks: landmark sum(C), coupling G^T C and pose
sum(G^T C G) with G = [-I, [Y]x], where G^T C G is linear in the products of C with 1, Y and Y Y^T: one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..core.residuals import Residuals, RobustKernel, landmark_jacobian, project
from .problem import Problem

# The order of the six numbers of C, and of the products of Y.
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0))


@cache
def _pose_block_map(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(9 * 10, 42): from the sums of [C, b] times [1, Y, YY] to the 36 numbers of G^T C G and the 6 of G^T b."""
    generators = torch.zeros(4, 3, 6, dtype=torch.float64)  # G = generators[0] + sum_k Y_k generators[1 + k]
    generators[0, :, :3] = -torch.eye(3)
    for k, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):  # [Y]x holds Y_k at (j, i) and -Y_k at (i, j)
        generators[1 + k, j, 3 + i], generators[1 + k, i, 3 + j] = 1.0, -1.0
    products: dict[tuple[int, ...], int] = {(0, 0): 0, (0, 1): 1, (0, 2): 2, (0, 3): 3}
    products |= {tuple(sorted((i + 1, j + 1))): 4 + n for n, (i, j) in enumerate(PAIRS)}
    table = torch.zeros(9, 10, 42, dtype=torch.float64)
    for n, (i, j) in enumerate(PAIRS):
        C = torch.zeros(3, 3, dtype=torch.float64)
        C[i, j] = C[j, i] = 1.0
        for a in range(4):
            for b in range(4):
                block = generators[a].T @ C @ generators[b]
                table[n, products[tuple(sorted((a, b)))], :36] += block.flatten()
    for i in range(3):
        for a in range(4):
            table[6 + i, products[(0, a)], 36:] += generators[a][i]
    return table.flatten(0, 1).to(device, dtype)


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
    Y = X.index_select(1, problem.point).view(3, len(R), -1).transpose(0, 1) - t[:, :, None]
    residuals = project(problem.observations, torch.bmm(R.mT, Y))
    return State(R, t, X, Y, residuals, 0.5 * kernel.cost(residuals.s).sum())


@dataclass
class NormalEquations:
    """H = [[pose, coupling], [coupling^T, landmark]] at a State, all positive, and the right hand sides (descent)."""

    pose: Tensor  # (F, 6, F, 6) of the free keyframes
    pose_rhs: Tensor  # (F, 6)
    landmark: Tensor  # (6, P) in the order of PAIRS
    landmark_rhs: Tensor  # (3, P)
    C: Tensor  # (F, 6, P)
    Y: Tensor  # (F, 3, P)


def linearize(problem: Problem, state: State, kernel: RobustKernel, second_order: float = 0.0) -> NormalEquations:
    """Analytic Jacobians, IRLS weights, sums into blocks.

    `second_order` in 0..1 moves from reweighted least squares (0), which is safe far from the optimum but overstates the
    curvature of outliers and so takes many short steps at the end, to the second derivative of the kernel (1; Triggs 2000,
    section 4.3).
    """
    M, free = len(state.R), slice(problem.num_fixed, None)
    sums = _sum_components(problem, state, kernel, second_order)
    dense = problem.work.dense.zero_()
    dense.view(-1).index_add_(0, problem.cell, sums.view(-1))
    landmark, landmark_rhs = dense.sum(0).split((6, 3))

    Y = state.Y
    products = problem.work.products
    products[:, 0] = 1
    products[:, 1:4] = Y
    torch.mul(Y, Y, out=products[:, 4:7])
    torch.mul(Y[:, 0:2], Y[:, 1:3], out=products[:, 7:9])
    torch.mul(Y[:, 2], Y[:, 0], out=products[:, 9])
    moments = torch.bmm(sums, products.mT).view(M, 90) @ _pose_block_map(Y.dtype, Y.device)
    pose = Y.new_zeros(M, 6, M, 6)
    pose.diagonal(dim1=0, dim2=2).copy_(moments[:, :36].view(M, 6, 6).permute(1, 2, 0))
    dense_Y = state.X[None] - state.t[free, :, None]
    return NormalEquations(
        pose[free, :, free], moments[free, 36:].clone(), landmark, landmark_rhs, dense[free, :6], dense_Y
    )


def _sum_components(problem: Problem, state: State, kernel: RobustKernel, second_order: float) -> Tensor:
    """(M, 9, N): of every observation the six numbers of C = J^T J in the order of PAIRS, then the three of J^T r."""
    at = state.residuals
    root = kernel.weight(at.s).sqrt()
    rows = landmark_jacobian(problem.observations, at, state.R, root)
    r = at.whitened * root
    sums = problem.work.sums
    for d, J in enumerate(rows):
        if d == 0:
            torch.mul(J, J, out=sums[:, 0:3])
            torch.mul(J[:, 0:2], J[:, 1:3], out=sums[:, 3:5])
            torch.mul(J[:, 2], J[:, 0], out=sums[:, 5])
            torch.mul(J, r[0][:, None], out=sums[:, 6:9])
        else:
            _add_products(sums, J, 1)
            sums[:, 6:9].addcmul_(J, r[d][:, None])
    if second_order and kernel.name != "none":
        # Take back a part of the curvature along each residual: C -= (r . J)^T (r . J) part / s.
        part = kernel.curvature_loss(at.s).clamp_max(1) * second_order
        share = (part / at.s.clamp_min(1e-12)).sqrt() * at.whitened
        along = torch.addcmul(share[0][:, None] * rows[0], share[1][:, None], rows[1])
        if len(rows) == 3:
            along.addcmul_(share[2][:, None], rows[2])
        _add_products(sums, along, -1)
    return sums


def _add_products(sums: Tensor, J: Tensor, sign: int) -> None:
    sums[:, 0:3].addcmul_(J, J, value=sign)
    sums[:, 3:5].addcmul_(J[:, 0:2], J[:, 1:3], value=sign)
    sums[:, 5].addcmul_(J[:, 2], J[:, 0], value=sign)


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


def eliminate(
    problem: Problem, lin: NormalEquations, damping: Tensor | float, landmark_factor: Tensor | float = 1.0
) -> Reduced:
    """Schur complement of H + damping * diag(H); `landmark_factor` (P,) multiplies the damping of single landmarks."""
    F, _, P = lin.Y.shape
    dtype = lin.Y.dtype
    tiny = torch.finfo(dtype).tiny ** 0.5
    diagonal = lin.landmark[:3]
    # Relative to the best observed direction of a landmark, so that directions without any observation stay invertible.
    floor = 1e-12 if dtype == torch.float64 else 1e-6
    landmark_damping = (diagonal * damping + floor * diagonal.amax(0)) * landmark_factor + tiny
    a00, a11, a22 = diagonal + landmark_damping
    a01, a12, a20 = lin.landmark[3:]
    small = torch.finfo(dtype).eps
    l00 = a00.sqrt()
    l10, l20 = a01 / l00, a20 / l00
    l11 = torch.maximum(a11 - l10 * l10, small * a11).sqrt()
    l21 = (a12 - l10 * l20) / l11
    l22 = torch.maximum(a22 - l20 * l20 - l21 * l21, small * a22).sqrt()
    h0 = lin.landmark_rhs[0] / l00
    h1 = (lin.landmark_rhs[1] - l10 * h0) / l11
    h2 = (lin.landmark_rhs[2] - l20 * h0 - l21 * h1) / l22
    half = torch.stack([h0, h1, h2])

    W = problem.work.W  # (F, row, column, P); upper rows C L^-T, lower rows Y x (C L^-T), made column by column
    c00, c11, c22, c01, c12, c20 = lin.C.unbind(1)
    i00, i11, i22 = 1 / l00, 1 / l11, 1 / l22
    for row, (c0, c1, c2) in enumerate(((c00, c01, c20), (c01, c11, c12), (c20, c12, c22))):
        first, second, third = W[:, row].unbind(1)
        torch.mul(c0, i00, out=first)
        torch.addcmul(c1, first, l10, value=-1, out=second).mul_(i11)
        torch.addcmul(c2, first, l20, value=-1, out=third).addcmul_(second, l21, value=-1).mul_(i22)
    y0, y1, y2 = lin.Y[:, :, None].unbind(1)
    for row, (ya, b, yb, a) in enumerate(((y1, 2, y2, 1), (y2, 0, y0, 2), (y0, 1, y1, 0))):
        torch.mul(ya, W[:, b], out=W[:, 3 + row]).addcmul_(yb, W[:, a], value=-1)
    W = W.view(6 * F, 3 * P)
    H = lin.pose.reshape(6 * F, 6 * F)
    pose_damping = H.diagonal() * damping + tiny
    S = torch.addmm(H, W, W.mT, alpha=-1)
    S.diagonal().add_(pose_damping)
    rhs = torch.addmv(lin.pose_rhs.flatten(), W, half.flatten())
    return Reduced(S, rhs, W, (l00, l10, l20, l11, l21, l22), half, pose_damping, landmark_damping)


def back_substitute(reduced: Reduced, pose_step: Tensor) -> Tensor:
    """Landmark steps (3, P) that belong to a pose step (6F,)."""
    l00, l10, l20, l11, l21, l22 = reduced.factor
    v0, v1, v2 = torch.addmv(reduced.half.flatten(), reduced.W.mT, pose_step).view(3, -1)
    x2 = v2 / l22
    x1 = (v1 - l21 * x2) / l11
    x0 = (v0 - l10 * x1 - l20 * x2) / l00
    return torch.stack([x0, x1, x2])


def constrain(S: Tensor, rhs: Tensor, gauge: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keeps steps orthogonal to the unit vector `gauge`: that direction gets a stiffness of its own and no right hand side."""
    if gauge is None:
        return S, rhs
    Sg = S @ gauge
    stiffness = S.diagonal().max()
    coupling = torch.outer(gauge, Sg)
    # P S P + stiffness g g^T with P = I - g g^T
    constrained = S - coupling - coupling.mT + (gauge @ Sg + stiffness) * torch.outer(gauge, gauge)
    return constrained, rhs - gauge * (gauge @ rhs)


def rotate_small(phi: Tensor) -> Tensor:
    """Rotation vectors (K, 3) -> rotations (K, 3, 3) by Cayley's formula: exactly orthonormal, Exp to second order."""
    x, y, z = (0.5 * phi).unbind(1)
    o = torch.ones_like(x)
    A = torch.stack([o, z, -y, -z, o, x, y, -x, o], 1).view(-1, 3, 3)  # I - [phi / 2]x
    return torch.linalg.solve_ex(A, A.mT)[0]


def move_landmarks(X: Tensor, centre: Tensor, step: Tensor) -> Tensor:
    """Landmarks (3, P) after a step: equal to X + step to first order, but linear in the inverse distance from `centre`.

    Pixels are nearly linear in the inverse distance and far from linear in the distance, so longer steps stay true; and a
    step towards the cameras only ever approaches them, it cannot carry a landmark behind them.
    """
    # The distance grows at most tenfold in one step; landmarks whose rays meet behind the cameras move away at this rate.
    v, most = X - centre, 0.9
    along = (v * step).sum(0) / (v * v).sum(0).clamp_min(1e-30)
    return centre + (v + step - along * v) / (1 - along.clamp_max(most))
