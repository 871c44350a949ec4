"""Motion-only refinement: one camera pose against fixed landmarks, for every frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import geometry
from ..camera.model import Camera
from ..core.config import BundleConfig
from ..core.types import BAStatus, ObservationKind
from ..core.errors import BundleError
from ..core.residuals import MIN_DEPTH, kernel_cost, kernel_weight, third_number
from .covariance import design_effect, image_parts
from .linearization import rotate_small
from .covariance import measure_spread


@dataclass(frozen=True)
class PoseResult:
    """One refined pose and what its observations say of it."""

    T_WC: Tensor  # (7,) float64
    covariance: (
        Tensor | None
    )  # (6, 6) float64 of T_WC * Exp([rho, phi]), from the residuals as they are; None when degenerate
    residual_px: Tensor  # (N, 2) float64, observed minus reprojected, ideal px; NaN where the landmark is not in front
    weight: Tensor  # (N,) float64, the kernel's weight; 0 where the observation cannot be used
    cost_before: float
    cost_after: float
    iterations: int
    status: BAStatus
    reason: str  # why not CONVERGED; empty otherwise


@torch.no_grad()
def refine_pose(
    camera: Camera,
    T_WC: Tensor,
    points_W: Tensor,
    obs: Tensor,
    kind: Tensor,
    sigma: Tensor,
    config: BundleConfig,
) -> PoseResult:
    """The pose that minimises the robust reprojection cost of `bundle.solve` with the landmarks held.

    Args:
        T_WC: (7,) start. points_W: (N, 3). obs, sigma: (N, 3) as in WindowSnapshot, ideal px. kind: (N,) int64.

    Observations that are not finite or behind the camera at the start are set aside. Fewer than 3 usable ones,
    or a singular system, come back DEGENERATE with the start pose.

    Raises:
        BundleError: a start that is not finite, or arrays that disagree in length.
    """
    N = len(points_W)
    if not (obs.shape == sigma.shape == (N, 3) and kind.shape == (N,) and T_WC.shape == (7,)):
        raise BundleError(
            f"refine_pose got T_WC {tuple(T_WC.shape)}, points {tuple(points_W.shape)}, obs {tuple(obs.shape)}, "
            f"kind {tuple(kind.shape)}, sigma {tuple(sigma.shape)}, expected (7,), (N, 3), (N, 3), (N,), (N, 3)"
        )
    T = T_WC.double()
    X, obs, sigma = points_W.double().T, obs.double(), sigma.double()
    alpha, beta = third_number(camera, kind, torch.float64)
    mono = kind == ObservationKind.MONO
    all_mono = bool(mono.all())
    D = 2 if all_mono else 3
    observed = obs.T[:D].contiguous()
    inv_sigma = 1 / sigma.T[:D]
    if not all_mono:
        inv_sigma[2] = torch.where(mono, 0.0, inv_sigma[2])
        observed[2] = torch.where(mono, 0.0, observed[2])
    focal = T.new_tensor([[camera.fx], [camera.fy]])
    centre = T.new_tensor([[camera.cx], [camera.cy]])
    R, t = geometry.rotation_matrix(T[3:] / T[3:].norm()), T[:3, None]
    z = R[:, 2] @ (X - t)
    usable = (z > MIN_DEPTH) & (observed * inv_sigma).isfinite().all(0) & (inv_sigma[:2] > 0).all(0)
    numbers = torch.stack([usable.sum().double(), T.isfinite().all().double()]).tolist()
    if not numbers[1]:
        raise BundleError(f"refine_pose needs a finite start pose, got {T.tolist()}")
    num_usable = int(numbers[0])
    inv_sigma = torch.where(usable, inv_sigma, 0.0)
    observed = torch.where(usable, observed, 0.0)
    X = torch.where(usable, X, 0.0)
    kernel, width = config.kernel, config.kernel_width

    def evaluate(R: Tensor, t: Tensor):
        P = R.T @ (X - t)
        iz = P[2].clamp_min(MIN_DEPTH).reciprocal()
        h = P[:2] * iz
        predicted = torch.addcmul(centre, h, focal)
        if not all_mono:
            predicted = torch.cat([predicted, torch.addcmul(alpha * predicted[0], beta, iz)[None]])
        r = (observed - predicted) * inv_sigma
        s = (r * r).sum(0)
        cost = 0.5 * kernel_cost(kernel, s, width).sum()
        return P, iz, h, r, s, cost

    def jacobian(P: Tensor, iz: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(6, D, N) of the residuals, times the root (N,) of their weights."""
        root = kernel_weight(kernel, s, width).sqrt()
        gain = (inv_sigma[:2] * focal) * (root * iz)
        k = gain * h
        x, y, z = P
        # Row of a = gain * (e_d - h_d e_z): [-a, a x P].
        kx, ky, gz, less = k * x, k * y, gain * z, -gain
        nothing = torch.zeros_like(x)
        rows = [
            torch.stack([less[0], nothing, k[0], ky[0], -kx[0] - gz[0], gain[0] * y]),
            torch.stack([nothing, less[1], k[1], ky[1] + gz[1], -kx[1], less[1] * x]),
        ]
        if not all_mono:
            a0 = (inv_sigma[2] * root) * alpha * camera.fx * iz
            a2 = -(inv_sigma[2] * root) * torch.addcmul(alpha * camera.fx * h[0], beta, iz) * iz
            rows.append(torch.stack([-a0, nothing, -a2, -a2 * y, a2 * x - a0 * z, a0 * y]))
        return torch.stack(rows, 1), root

    def normal_equations(
        R: Tensor, t: Tensor, P: Tensor, iz: Tensor, h: Tensor, r: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        J, root = jacobian(P, iz, h, s)
        J = J.flatten(1)
        H, g = J @ J.T, J @ (r * root).flatten()
        return H, g

    current = evaluate(R, t)
    cost_before = cost = float(current[-1])
    status, reason, iteration = BAStatus.MAX_ITER, f"{config.max_iterations} iterations were not enough", 0
    covariance = None
    if num_usable < 3:
        status, reason = BAStatus.DEGENERATE, f"{num_usable} usable observations, a pose needs at least 3"
    else:
        damping = 1e-6
        H, g = normal_equations(R, t, *current[:-1])
        for iteration in range(1, config.max_iterations + 1):
            step = torch.linalg.solve_ex(H + torch.diag(H.diagonal() * damping + 1e-300), g)[0]
            gain, floor = 0.5 * float(step @ g), config.cost_tolerance * cost + 1e-14 * N
            if 0 <= gain <= floor and damping < 1e-2:
                status, reason = BAStatus.CONVERGED, ""
                break
            R_new, t_new = R @ rotate_small(step[None, 3:])[0], t + R @ step[:3, None]
            trial = evaluate(R_new, t_new)
            trial_cost = float(trial[-1])
            if math.isfinite(trial_cost) and trial_cost <= cost:
                decrease, cost = cost - trial_cost, trial_cost
                R, t, current = R_new, t_new, trial
                H, g = normal_equations(R, t, *current[:-1])
                damping = max(damping * 0.1, 1e-12)
                if decrease <= floor and gain <= 4 * floor:
                    status, reason = BAStatus.CONVERGED, ""
                    break
                continue
            damping = max(damping * 10, 1e-4)
            if damping > 1e6 or not math.isfinite(gain):
                reason = "no step lowers the cost any more"
                break
        scale = H.diagonal().clamp_min(1e-300).rsqrt()
        factor, info = torch.linalg.cholesky_ex(H * scale[:, None] * scale)
        inverse = torch.cholesky_inverse(factor)
        if int(info) or not float(inverse.diagonal().max()) < 1e12:
            status, reason = BAStatus.DEGENERATE, "the observations do not determine the pose: the system is singular"
        else:
            covariance = inverse_H = inverse * scale[:, None] * scale
    s = current[4]
    usable = usable & (current[0][2] > MIN_DEPTH)
    weight = torch.where(usable, kernel_weight(kernel, s, width), 0.0)
    if covariance is not None:
        size = torch.where(mono, 2.0, 3.0)[usable]
        covariance = covariance * measure_spread(s[usable], weight[usable], size, 6, config)
        P, iz, h, r = current[:4]
        J, root = jacobian(P, iz, h, s)
        influence = torch.where(usable, inverse_H @ (J * (r * root)).sum(1), 0.0).T
        parts = image_parts(camera, obs[:, :2])
        covariance = covariance * config.shared_error * design_effect(influence, parts, covariance)
    residual = torch.where(usable, current[3][:2] / inv_sigma[:2], torch.nan).T
    if status is BAStatus.DEGENERATE:
        pose = T
    else:
        pose = geometry.from_matrix(torch.cat([R, t], 1))
        pose[3:] = torch.where((pose[3:] * T[3:]).sum() < 0, -pose[3:], pose[3:])
    return PoseResult(pose, covariance, residual, weight, cost_before, cost, iteration, status, reason)
