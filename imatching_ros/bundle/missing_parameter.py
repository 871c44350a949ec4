"""A parameter that bundle adjustment leaves out, such as the readout time of a rolling shutter, by the residuals that it leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.config import BundleConfig
from ..core.residuals import RobustKernel, landmark_jacobian
from ..core.types import BAResult, ObservationKind, WindowSnapshot
from .linearization import State, add_rotations, back_substitute, constrain, eliminate, evaluate, linearize
from .problem import Problem, compile_window
from .relative_rotations import RelativeRotations


@dataclass(frozen=True)
class MissingParameter:
    """The step of one scalar parameter from zero, poses and landmarks solved beside it, to first order."""

    value: float
    sigma: float  # of independent residuals of the assumed size
    visible_px: (
        float  # mean square over mean of what one unit changes in the pixels, and other poses and landmarks could not
    )


@torch.inference_mode()
def estimate_missing(
    window: WindowSnapshot,
    result: BAResult,
    direction: Tensor,
    config: BundleConfig,
    rotations: RelativeRotations | None = None,
) -> MissingParameter | None:
    """Of the cost's first and second derivative along a parameter at the optimum (the score test, Rao 1948).

    The second derivative is the Schur complement over poses and landmarks: what they can imitate tells nothing of the parameter. A fit with
    poses or landmarks held would take their errors for it.

    Args:
        direction: (O, 2) float64 by how many ideal px one unit of the parameter would correct each observation.
        rotations: the prior that is part of the result.

    Returns:
        None where the window does not determine its poses, or the poses can imitate all of the parameter.
    """
    kernel = RobustKernel(config.kernel, config.kernel_width)
    solved = replace(window, T_WC=result.T_WC, points_W=result.points_W)
    problem = compile_window(solved, torch.float64, rotations)
    if problem.degenerate:
        return None
    state = evaluate(problem, problem.R, problem.t, problem.X, kernel)
    moved = _whiten(problem, window, direction)
    weight, residual = kernel.weight(state.residuals.s), state.residuals.whitened
    lin = linearize(problem, replace(state, residuals=replace(state.residuals, whitened=moved)), kernel)
    # The prior does not depend on the parameter: it has no right hand side here.
    lin = replace(add_rotations(problem, state, lin), pose_rhs=lin.pose_rhs)
    reduced = eliminate(problem, lin, 0.0)
    S, rhs = constrain(reduced.S, reduced.rhs, problem.gauge)
    factor, failed = torch.linalg.cholesky_ex(S)
    if int(failed):
        return None
    pose_step = torch.cholesky_solve(rhs[:, None], factor).squeeze(1)
    point_step = back_substitute(reduced, pose_step)
    information = float((weight * moved * moved).sum() - pose_step @ lin.pose_rhs)
    information -= float((point_step * lin.landmark[:, 3]).sum())
    if not information > 0:
        return None
    slope = float((weight * moved * residual).sum())
    left = (moved - _predict(problem, state, pose_step, point_step))[:2].pow(2).sum(0).sqrt()
    px = left[problem.used_slot] / problem.observations.inv_sigma[0][problem.used_slot] * window.camera.fx
    return MissingParameter(-slope / information, information**-0.5, float(px.square().mean() / px.mean()))


def _predict(problem: Problem, state: State, pose_step: Tensor, point_step: Tensor) -> Tensor:
    """(D, M, N): by how much a step of the free poses (6F,) and the landmarks (3, P) moves the whitened predictions."""
    M, fixed = len(state.R), problem.num_fixed
    pose = torch.cat([pose_step.new_zeros(fixed, 6), pose_step.view(M - fixed, 6)])
    # In world axes the landmark moves by X, seen from a camera that moves by rho and turns by phi.
    X = point_step.reshape(-1).index_select(0, problem.coordinate).view(M, 3, -1)
    relative = X - pose[:, :3, None] - torch.linalg.cross(pose[:, 3:, None].expand_as(X), state.Y, dim=1)
    J = landmark_jacobian(problem.observations, state.residuals, state.R, torch.ones_like(state.residuals.s))
    return (J * relative[:, :, None]).sum(1).transpose(0, 1)


def _whiten(problem: Problem, window: WindowSnapshot, direction: Tensor) -> Tensor:
    """(D, M, N) as `Residuals.whitened`, of px (O, 2); the right image of a stereo pair moves with the left one."""
    camera, observations = window.camera, problem.observations
    plane = direction / direction.new_tensor([camera.fx, camera.fy])
    rows = torch.cat([plane, torch.where(window.kind == int(ObservationKind.STEREO), plane[:, 0], 0.0)[:, None]], 1)
    moved = torch.zeros_like(observations.observed)
    moved.view(len(moved), -1)[:, problem.slot] = rows.T[: len(moved)]
    return moved * observations.inv_sigma
