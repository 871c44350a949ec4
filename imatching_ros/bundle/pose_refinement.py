"""Motion-only refinement: one camera pose against fixed landmarks, for every frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    view = _View(camera, points_W.double(), obs.double(), kind, sigma.double())
    start = T_WC.double()
    _check(view, start)
    problem, usable = _prepare(view, start, config)
    count, inverse = int(usable.sum()), None
    if count < 3:
        cost = float(problem.state.cost)
        outcome = Outcome(cost, cost, 0, False, f"{count} usable observations, a pose needs at least 3")
    else:
        outcome = minimize(problem, config, damping=1e-6, rounding=problem.rounding)
        inverse = problem.invert()
        if inverse is None:
            reason = "the observations do not determine the pose: the system is singular"
            outcome = replace(outcome, reason=reason)
    at = problem.state.residuals
    usable = usable & (at.depth[0] > MIN_DEPTH)
    weight = torch.where(usable, problem.kernel.weight(at.s[0]), 0.0)
    px = problem.residual()[:2].T * obs.new_tensor([camera.fx, camera.fy])
    status = BAStatus.CONVERGED if outcome.converged else BAStatus.MAX_ITER
    return PoseResult(
        T_WC=start if inverse is None else problem.pose(start),
        covariance=None if inverse is None else _scale(inverse, problem, view, usable, config),
        residual_px=torch.where(usable[:, None], px, torch.nan),
        weight=weight,
        cost_before=outcome.cost_before,
        cost_after=outcome.cost,
        iterations=outcome.iterations,
        status=BAStatus.DEGENERATE if inverse is None else status,
        reason=outcome.reason,
    )


@dataclass(frozen=True)
class _View:
    """The landmarks of one image and their observations, as in `WindowSnapshot`, float64."""

    camera: Camera
    points_W: Tensor  # (N, 3)
    obs: Tensor  # (N, 3)
    kind: Tensor  # (N,) int64
    sigma: Tensor  # (N, 3)


def _check(view: _View, start: Tensor) -> None:
    N = len(view.points_W)
    if not (view.obs.shape == view.sigma.shape == (N, 3) and view.kind.shape == (N,) and start.shape == (7,)):
        raise BundleError(
            f"refine_pose got T_WC {tuple(start.shape)}, points {tuple(view.points_W.shape)}, obs {tuple(view.obs.shape)}, "
            f"kind {tuple(view.kind.shape)}, sigma {tuple(view.sigma.shape)}, expected (7,), (N, 3), (N, 3), (N,), (N, 3)"
        )
    if not bool(start.isfinite().all()):
        raise BundleError(f"refine_pose needs a finite start pose, got {start.tolist()}")


def _prepare(view: _View, start: Tensor, config: BundleConfig) -> tuple[_Pose, Tensor]:
    """The problem at its start, and which observations (N,) are used in it."""
    X = view.points_W.T
    R, t = geometry.rotation_matrix(start[3:] / start[3:].norm()), start[:3, None]
    finite = view.obs.isfinite() & view.sigma.isfinite() & (view.sigma > 0)
    finite[:, 2] |= view.kind == ObservationKind.MONO  # which measures no depth
    usable = (R[:, 2] @ (X - t) > MIN_DEPTH) & finite.all(1)
    observations = unpack(normalize(view.camera, view.obs, view.sigma, view.kind, usable)[:, None])
    return _Pose(observations, torch.where(usable, X, 0.0), (R, t), config), usable


def _scale(inverse: Tensor, problem: _Pose, view: _View, usable: Tensor, config: BundleConfig) -> Tensor:
    """The covariance (6, 6): the inverse of the normal equations by the factors of `bundle.covariance`."""
    s = problem.state.residuals.s[0][usable]
    size = torch.where(view.kind == ObservationKind.MONO, 2.0, 3.0)[usable]
    covariance = inverse * residual_scale(s, problem.kernel.weight(s), size, 6, problem.kernel)
    influence = torch.where(usable, problem.influence(inverse), 0.0).T
    cells = image_cell(view.camera, view.obs[:, :2])
    return covariance * config.shared_error * design_effect(influence, cells, covariance)


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
        config: BundleConfig,
    ) -> None:
        """X: (3, N) landmarks. start: R (3, 3), t (3, 1)."""
        self._observations, self._X, self._config = observations, X, config
        self.kernel = RobustKernel(config.kernel, config.kernel_width)
        self.rounding = rounding_cost(observations)
        self.state = self._trial = self._evaluate(*start)
        self._linearize()

    def _evaluate(self, R: Tensor, t: Tensor) -> _State:
        points_C = (R.T @ (self._X - t))[None]
        residuals = project(self._observations, points_C)
        return _State(R, t, points_C, residuals, 0.5 * self.kernel.cost(residuals.s).sum())

    def _jacobian(self, scale: Tensor) -> Tensor:
        """(6, D, N) of the whitened residuals, times `scale` (1, N)."""
        state = self.state
        own_axes = torch.eye(3, dtype=scale.dtype, device=scale.device)[None]
        rows = landmark_jacobian(self._observations, state.residuals, own_axes, scale)
        return torch.stack([pose_jacobian(row, state.points_C)[0] for row in rows], 1)

    def _linearize(self) -> None:
        """The normal equations at the state, by iteratively reweighted least squares."""
        root = self.kernel.weight(self.state.residuals.s).sqrt()
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
        return inverse @ (self._jacobian(self.kernel.weight(at.s)) * at.whitened[:, 0]).sum(1)

    def residual(self) -> Tensor:
        """(D, N) observed minus predicted, on the plane z = 1."""
        return (self._observations.observed - self.state.residuals.predicted)[:, 0]

    def pose(self, like: Tensor) -> Tensor:
        """(7,) with the quaternion's sign of the pose `like`."""
        pose = geometry.from_matrix(torch.cat([self.state.R, self.state.t], 1))
        pose[3:] = torch.where((pose[3:] * like[3:]).sum() < 0, -pose[3:], pose[3:])
        return pose
