"""Triangulation: landmarks from observations of known poses, by the residual of bundle adjustment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..camera.model import Camera
from ..core import geometry
from ..core.residuals import MIN_DEPTH, Observations, Residuals, landmark_jacobian, normalize, project, unpack
from ..core.types import ObservationKind


@dataclass(frozen=True)
class Triangulation:
    """Landmarks and how well each is supported by its observations."""

    points_W: Tensor  # (P, 3); finite also where not valid
    valid: Tensor  # (P,) bool: finite, in front of all its cameras, two rays or a measured depth
    rms_px: Tensor  # (P,) root mean square distance between observed and reprojected px; inf where not valid
    views: Tensor  # (P,) int64 number of observations


@torch.no_grad()
def triangulate(
    camera: Camera,
    T_WC: Tensor,
    kf_idx: Tensor,
    pt_idx: Tensor,
    obs: Tensor,
    num_points: int,
    kind: Tensor | None = None,
    sigma: Tensor | None = None,
    iterations: int = 5,
) -> Triangulation:
    """Landmarks from any number of observations each, all at once.

    The point nearest to all rays (and to measured depths, where there are), then Levenberg-Marquardt steps on the reprojection
    error with a damping of its own for each landmark.

    Args:
        T_WC: (M, 7) poses. kf_idx, pt_idx: (O,) int64. num_points: P.
        obs: (O, 2) ideal px, or (O, 3) as in WindowSnapshot with `kind` (O,). sigma: (O, 3) or None for 1 px.
    """
    T_WC, obs = T_WC.double(), obs.double()
    if obs.shape[1] == 2:
        obs = torch.cat([obs, torch.zeros_like(obs[:, :1])], 1)
    kind = torch.zeros_like(kf_idx) if kind is None else kind
    sigma = torch.ones_like(obs) if sigma is None else sigma.double()
    every = torch.ones_like(kf_idx, dtype=torch.bool)
    observations = unpack(normalize(camera, obs, sigma, kind, every)[..., None])
    R, t = geometry.rotation_matrix(T_WC[:, 3:])[kf_idx], T_WC[kf_idx, :3]
    inv_depth = _measured_inverse_depth(camera, obs, kind)
    start = _nearest_to_rays(geometry.rays(camera, obs[:, :2]), R, t, inv_depth, pt_idx, num_points)
    X, cost, at = _refine(_Landmarks(observations, R, t, pt_idx, num_points), start, iterations)

    views = torch.bincount(pt_idx, minlength=num_points)
    behind = torch.bincount(pt_idx[~(at.depth[:, 0] > MIN_DEPTH)], minlength=num_points)
    depths = torch.bincount(pt_idx[inv_depth > 0], minlength=num_points)
    valid = X.isfinite().all(1) & cost.isfinite() & (behind == 0) & ((views >= 2) | (depths >= 1))
    error = (observations.observed - at.predicted)[:2, :, 0].T * obs.new_tensor([camera.fx, camera.fy])
    rms = (obs.new_zeros(num_points).index_add_(0, pt_idx, (error**2).sum(1)) / views.clamp_min(1)).sqrt()
    return Triangulation(X, valid, torch.where(valid, rms, torch.inf), views)


def _measured_inverse_depth(camera: Camera, obs: Tensor, kind: Tensor) -> Tensor:
    """(O,) the inverse depth that an observation measures; 0 where it measures none, or one too small to be used."""
    disparity = (obs[:, 0] - obs[:, 2]) / (camera.fx * (camera.baseline_m or 0.0) or 1.0)
    measured = torch.where(kind == ObservationKind.STEREO, disparity, obs[:, 2])
    return torch.where((kind != ObservationKind.MONO) & (measured > 1e-6), measured, 0.0)


def _nearest_to_rays(ray_C: Tensor, R: Tensor, t: Tensor, inv_depth: Tensor, pt_idx: Tensor, num_points: int) -> Tensor:
    """The points (P, 3) nearest to all rays: each ray fixes two directions with weight 1, a measured depth the third."""
    ray_W = (R @ ray_C[..., None]).squeeze(-1)
    unit = ray_W / ray_W.norm(dim=1, keepdim=True)
    has_depth = inv_depth > 0
    centre = t + torch.where(has_depth[:, None], ray_W / inv_depth.clamp_min(1e-6)[:, None], 0.0)
    along = torch.where(has_depth, 0.0, 1.0)[:, None, None]
    eye = torch.eye(3, dtype=t.dtype, device=t.device)
    A = eye - along * unit[:, :, None] * unit[:, None, :]
    H = t.new_zeros(num_points, 3, 3).index_add_(0, pt_idx, A)
    b = t.new_zeros(num_points, 3).index_add_(0, pt_idx, (A @ centre[..., None]).squeeze(-1))
    X = torch.linalg.solve_ex(H + 1e-12 * eye, b)[0]
    return torch.where(X.isfinite().all(1, keepdim=True), X, 0.0)


@dataclass(frozen=True)
class _Landmarks:
    """Independent least-squares problems of three unknowns each, poses held; every observation is a camera of its own."""

    observations: Observations  # (D, O, 1)
    R: Tensor  # (O, 3, 3)
    t: Tensor  # (O, 3)
    point: Tensor  # (O,) int64
    count: int

    def evaluate(self, X: Tensor) -> tuple[Residuals, Tensor]:
        """The residuals at X (P, 3) and the cost (P,); inf where an observation is not finite."""
        at = project(self.observations, self.R.mT @ (X[self.point] - self.t)[..., None])
        cost = X.new_zeros(self.count).index_add_(0, self.point, at.s[:, 0].nan_to_num(torch.inf))
        return at, cost

    def linearize(self, at: Residuals) -> tuple[Tensor, Tensor]:
        """The normal equations (P, 3, 3) and (P, 3)."""
        J = landmark_jacobian(self.observations, at, self.R, torch.ones_like(at.depth))[..., 0]
        H = J.new_zeros(self.count, 3, 3).index_add_(0, self.point, J @ J.mT)
        g = (J @ at.whitened[:, :, 0].T[..., None]).squeeze(-1)
        return H, J.new_zeros(self.count, 3).index_add_(0, self.point, g)


def _refine(problem: _Landmarks, X: Tensor, iterations: int) -> tuple[Tensor, Tensor, Residuals]:
    """Points (P, 3), their cost (P,) and residuals after Levenberg-Marquardt steps, which each landmark accepts or rejects.

    `levenberg_marquardt.minimize` has one damping for the whole problem; here a landmark that diverges must not slow the others.
    """
    at, cost = problem.evaluate(X)
    damping = torch.full_like(cost, 1e-4)
    for _ in range(iterations):
        H, g = problem.linearize(at)
        D = torch.diag_embed(H.diagonal(dim1=1, dim2=2) * damping[:, None] + 1e-12)
        trial = X + torch.linalg.solve_ex(H + D, g)[0]
        at_trial, cost_trial = problem.evaluate(trial)
        better = cost_trial < cost
        X = torch.where(better[:, None], trial, X)
        cost = torch.where(better, cost_trial, cost)
        damping = torch.where(better, damping * 0.1, damping * 10)
        taken = better[problem.point, None]
        at = Residuals(*(torch.where(taken, vars(at_trial)[name], old) for name, old in vars(at).items()))
    return X, cost, at
