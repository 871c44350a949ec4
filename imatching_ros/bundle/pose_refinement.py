"""Motion-only refinement: one camera pose against fixed landmarks, for every frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..camera.model import Camera
from ..core import geometry
from ..core.config import BundleConfig
from ..core.errors import BundleError
from ..core.residuals import (
    MIN_DEPTH,
    Observations,
    Residuals,
    RobustKernel,
    landmark_jacobian,
    normalize,
    pose_jacobian,
    project,
    unpack,
)
from ..core.types import BAStatus, ObservationKind
from .covariance import design_effect, image_cell, residual_scale
from .levenberg_marquardt import Attempt, Outcome, minimize, negligible_decrease
from .linearization import rotate_small
from .problem import rounding_cost


@dataclass(frozen=True)
class PoseResult:
    """One refined pose and its residuals."""

    T_WC: Tensor  # (7,) float64
    covariance: Tensor | None  # (6, 6) float64 of T_WC * Exp([rho, phi]), scaled by the residuals; None when degenerate
    residual_px: Tensor  # (N, 2) float64, observed minus reprojected, ideal px; NaN where the landmark is not in front
    weight: Tensor  # (N,) float64, the kernel's weight; 0 where the observation is excluded
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

    Observations that are not finite or behind the camera at the start are excluded. Fewer than 3 usable ones, or a singular system,
    give DEGENERATE with the start pose.

    Raises:
        BundleError: a start that is not finite, or arrays that disagree in length.
    """
    N = len(points_W)
    if not (obs.shape == sigma.shape == (N, 3) and kind.shape == (N,) and T_WC.shape == (7,)):
        raise BundleError(
            f"refine_pose got T_WC {tuple(T_WC.shape)}, points {tuple(points_W.shape)}, obs {tuple(obs.shape)}, "
            f"kind {tuple(kind.shape)}, sigma {tuple(sigma.shape)}, expected (7,), (N, 3), (N, 3), (N,), (N, 3)"
        )
    T, X, obs, sigma = T_WC.double(), points_W.double().T, obs.double(), sigma.double()
    if not bool(T.isfinite().all()):
        raise BundleError(f"refine_pose needs a finite start pose, got {T.tolist()}")
    R, t = geometry.rotation_matrix(T[3:] / T[3:].norm()), T[:3, None]
    finite = obs.isfinite() & sigma.isfinite() & (sigma > 0)
    finite[:, 2] |= kind == ObservationKind.MONO  # which measures no depth
    usable = (R[:, 2] @ (X - t) > MIN_DEPTH) & finite.all(1)
    observations = unpack(normalize(camera, obs, sigma, kind, usable)[:, None])
    kernel = RobustKernel(config.kernel, config.kernel_width)
    problem = _Pose(observations, torch.where(usable, X, 0.0), (R, t), kernel, config)
    count = int(usable.sum())
    if count < 3:
        cost = float(problem.state.cost)
        reason, covariance = f"{count} usable observations, a pose needs at least 3", None
        outcome = Outcome(cost, cost, 0, False, reason)
    else:
        outcome = minimize(problem, config, damping=1e-6, rounding=problem.rounding)
        covariance = problem.invert()
        reason = outcome.reason
        if covariance is None:
            reason = "the observations do not determine the pose: the system is singular"
    s, in_front = problem.state.residuals.s[0], problem.state.residuals.depth[0] > MIN_DEPTH
    usable = usable & in_front
    weight = torch.where(usable, kernel.weight(s), 0.0)
    if covariance is None:
        pose, status = T, BAStatus.DEGENERATE
    else:
        pose, status = problem.pose(T), BAStatus.CONVERGED if outcome.converged else BAStatus.MAX_ITER
        size = torch.where(kind == ObservationKind.MONO, 2.0, 3.0)[usable]
        influence = torch.where(usable, problem.influence(covariance), 0.0).T
        covariance = covariance * residual_scale(s[usable], weight[usable], size, 6, kernel)
        cells = image_cell(camera, obs[:, :2])
        covariance = covariance * config.shared_error * design_effect(influence, cells, covariance)
    focal = obs.new_tensor([camera.fx, camera.fy])
    px = problem.residual()[:2].T * focal
    return PoseResult(
        T_WC=pose,
        covariance=covariance,
        residual_px=torch.where(usable[:, None], px, torch.nan),
        weight=weight,
        cost_before=outcome.cost_before,
        cost_after=outcome.cost,
        iterations=outcome.iterations,
        status=status,
        reason=reason,
    )


@dataclass
class _State:
    R: Tensor  # (3, 3)
    t: Tensor  # (3, 1)
    points_C: Tensor  # (1, 3, N)
    residuals: Residuals
    cost: Tensor


class _Pose:
    """A single pose as a least-squares problem, stepping by T * Exp([rho, phi])."""

    def __init__(
        self,
        observations: Observations,
        X: Tensor,
        start: tuple[Tensor, Tensor],
        kernel: RobustKernel,
        config: BundleConfig,
    ) -> None:
        """X: (3, N) landmarks. start: R (3, 3), t (3, 1)."""
        self._observations, self._X, self._kernel, self._config = observations, X, kernel, config
        self.rounding = rounding_cost(observations)
        self.state = self._trial = self._evaluate(*start)
        self._linearize()

    def _evaluate(self, R: Tensor, t: Tensor) -> _State:
        points_C = (R.T @ (self._X - t))[None]
        residuals = project(self._observations, points_C)
        return _State(R, t, points_C, residuals, 0.5 * self._kernel.cost(residuals.s).sum())

    def _jacobian(self, scale: Tensor) -> Tensor:
        """(6, D, N) of the whitened residuals, times `scale` (1, N)."""
        state = self.state
        own_axes = torch.eye(3, dtype=scale.dtype, device=scale.device)[None]
        rows = landmark_jacobian(self._observations, state.residuals, own_axes, scale)
        return torch.stack([pose_jacobian(row, state.points_C)[0] for row in rows], 1)

    def _linearize(self) -> None:
        """The normal equations at the state, by iteratively reweighted least squares."""
        root = self._kernel.weight(self.state.residuals.s).sqrt()
        J = self._jacobian(root).flatten(1)
        self._H, self._g = J @ J.T, J @ (self.state.residuals.whitened * root).flatten()

    def attempt(self, damping: float) -> Attempt:
        extra = self._H.diagonal() * damping + 1e-300
        step = torch.linalg.solve_ex(self._H + torch.diag(extra), self._g)[0]
        predicted, cost = 0.5 * float(step @ (self._g + extra * step)), float(self.state.cost)
        if 0 <= predicted <= negligible_decrease(cost, self._config, self.rounding):
            return Attempt(cost, float("inf"), predicted)  # converged: the step is not worth its evaluation
        R, t = self.state.R, self.state.t
        self._trial = self._evaluate(R @ rotate_small(step[None, 3:])[0], t + R @ step[:3, None])
        return Attempt(cost, float(self._trial.cost), predicted)

    def accept(self, near_optimum: bool) -> None:
        self.state = self._trial
        self._linearize()

    def reject(self) -> None:
        pass

    def invert(self) -> Tensor | None:
        """(6, 6) inverse of the normal equations; None when they are singular."""
        scale = self._H.diagonal().clamp_min(1e-300).rsqrt()
        factor, info = torch.linalg.cholesky_ex(self._H * scale[:, None] * scale)
        inverse = torch.cholesky_inverse(factor)
        if int(info) or not float(inverse.diagonal().max()) < 1e12:
            return None
        return inverse * scale[:, None] * scale

    def influence(self, inverse: Tensor) -> Tensor:
        """(6, N): by how much each observation moves the pose."""
        at = self.state.residuals
        return inverse @ (self._jacobian(self._kernel.weight(at.s)) * at.whitened[:, 0]).sum(1)

    def residual(self) -> Tensor:
        """(D, N) observed minus predicted, on the plane z = 1."""
        return (self._observations.observed - self.state.residuals.predicted)[:, 0]

    def pose(self, like: Tensor) -> Tensor:
        """(7,) with the quaternion's sign of the pose `like`."""
        pose = geometry.from_matrix(torch.cat([self.state.R, self.state.t], 1))
        pose[3:] = torch.where((pose[3:] * like[3:]).sum() < 0, -pose[3:], pose[3:])
        return pose
