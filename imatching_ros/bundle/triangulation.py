"""Triangulation: landmarks from observations of known poses, by the residual of bundle adjustment.

In numpy, for the same reason as `pose_refinement`: many operations on a few hundred landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..camera.model import Camera
from ..core import geometry
from ..core.residuals import MIN_DEPTH, Observations, Residuals, normalize, project, unpack
from ..core.types import ObservationKind


@dataclass(frozen=True)
class Triangulation:
    """Landmarks and how well each is supported by its observations."""

    points_W: Tensor  # (P, 3); finite also where not valid
    valid: Tensor  # (P,) bool: finite, in front of all its cameras, two rays or a measured depth
    rms_px: Tensor  # (P,) root mean square distance between observed and reprojected px; inf where not valid
    views: Tensor  # (P,) int64 number of observations


@torch.no_grad()
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
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
        obs: (O, 2) ideal px, or (O, 3) as in WindowSnapshot with `kind` (O,). sigma: (O, 3) or None for 1 px. All on the CPU.
    """
    if obs.shape[1] == 2:
        obs = torch.cat([obs, torch.zeros_like(obs[:, :1])], 1)
    # By landmark: what belongs to one is then summed without an index.
    order = pt_idx.argsort(stable=True)
    kf, pt, px = kf_idx[order].numpy(), pt_idx[order].numpy(), obs[order].double().numpy()
    kinds = np.zeros_like(kf) if kind is None else kind[order].numpy()
    sigmas = np.ones_like(px) if sigma is None else sigma[order].double().numpy()
    R = geometry.rotation_matrix(T_WC[:, 3:].double()).numpy()[kf].transpose(1, 2, 0)
    t = T_WC[:, :3].double().numpy()[kf].T
    observations = unpack(normalize(camera, px, sigmas, kinds, np.ones(len(kf), bool))[:, None])
    problem = _Landmarks(observations, np.ascontiguousarray(R), t, pt, num_points)
    inv_depth = _measured_inverse_depth(camera, px, kinds)
    rays = np.stack([(px[:, 0] - camera.cx) / camera.fx, (px[:, 1] - camera.cy) / camera.fy, np.ones(len(px))])
    X, cost, at = _refine(problem, problem.nearest_to_rays(rays, inv_depth), iterations)

    views = np.bincount(pt, minlength=num_points)
    behind = np.bincount(pt[~(at.depth[0] > MIN_DEPTH)], minlength=num_points)
    depths = np.bincount(pt[inv_depth > 0], minlength=num_points)
    valid = np.isfinite(X).all(0) & np.isfinite(cost) & (behind == 0) & ((views >= 2) | (depths >= 1))
    error = (observations.observed - at.predicted)[:2, 0] * [[camera.fx], [camera.fy]]
    rms = np.sqrt(problem.add_up((error * error).sum(0)) / np.maximum(views, 1))
    found = np.ascontiguousarray(X.T), valid, np.where(valid, rms, np.inf), views
    return Triangulation(*(torch.from_numpy(values) for values in found))


def _measured_inverse_depth(camera: Camera, obs: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """(O,) the inverse depth that an observation measures; 0 where it measures none, or one too small to be used."""
    disparity = (obs[:, 0] - obs[:, 2]) / (camera.fx * (camera.baseline_m or 0.0) or 1.0)
    measured = np.where(kind == int(ObservationKind.STEREO), disparity, obs[:, 2])
    return np.where((kind != int(ObservationKind.MONO)) & (measured > 1e-6), measured, 0.0)


class _Landmarks:
    """Independent least-squares problems of three unknowns each, poses held. Observations are in order of their landmarks."""

    def __init__(
        self, observations: Observations[np.ndarray], R: np.ndarray, t: np.ndarray, point: np.ndarray, count: int
    ) -> None:
        """Observations (D, 1, O), the rotations (3, 3, O) and positions (3, O) of their cameras, their landmarks (O,), of `count`."""
        self.observations, self.point, self.count = observations, point, count
        self._R, self._t = R, t
        self._starts = np.flatnonzero(np.diff(point, prepend=-1))
        self._seen = point[self._starts]

    def add_up(self, values: np.ndarray) -> np.ndarray:
        """(..., O) -> (..., P), the sum of each landmark."""
        total = np.zeros((*values.shape[:-1], self.count))
        if len(self._starts):
            total[..., self._seen] = np.add.reduceat(values, self._starts, axis=-1)
        return total

    def nearest_to_rays(self, rays_C: np.ndarray, inv_depth: np.ndarray) -> np.ndarray:
        """The points (3, P) nearest to all rays (3, O): each fixes two directions with weight 1, a measured depth (O,) the third."""
        ray_W = (self._R * rays_C).sum(1)
        has_depth = inv_depth > 0
        centre = self._t + np.where(has_depth, ray_W / np.maximum(inv_depth, 1e-6), 0.0)
        along = np.where(has_depth, 0.0, ray_W / np.sqrt((ray_W * ray_W).sum(0)))
        A = np.eye(3)[:, :, None] - along[:, None] * along
        X = _solve(self.add_up(np.concatenate([A, (A * centre).sum(1)[:, None]], 1)), 0.0)
        return np.where(np.isfinite(X).all(0), X, 0.0)

    def evaluate(self, X: np.ndarray) -> tuple[Residuals[np.ndarray], np.ndarray]:
        """The residuals at X (3, P) and the cost (P,); inf where an observation is not finite."""
        points_C = (self._R * (X[:, self.point] - self._t)[:, None]).sum(0)
        at = project(self.observations, points_C[None])
        return at, self.add_up(np.where(np.isfinite(at.s[0]), at.s[0], np.inf))

    def linearize(self, at: Residuals[np.ndarray]) -> np.ndarray:
        """The normal equations (3, 4, P), each block with its right hand side as the fourth column.

        The rows are those of `residuals.landmark_jacobian`, for a camera to each observation.
        """
        R, alpha = self._R[:, :, None], self.observations.alpha
        lead = [R[:, 0], R[:, 1]] if alpha is None else [R[:, 0], R[:, 1], R[:, 0] * alpha]
        gain = (self.observations.inv_sigma * at.inv_depth)[:, 0]
        J = (np.concatenate(lead, 1) - R[:, 2] * at.predicted[:, 0]) * gain  # (3, D, O)
        rows = np.concatenate([J, at.whitened[None, :, 0]])
        return self.add_up(np.einsum("ado,bdo->abo", J, rows))


def _solve(equations: np.ndarray, damping: np.ndarray | float) -> np.ndarray:
    """Steps (3, P) of the normal equations (3, 4, P) with `damping` (P,) times their diagonal added, by Cramer's rule."""
    (a, b, c, x), (_, d, e, y), (_, _, f, z) = equations
    a, d, f = (diagonal * (1 + damping) + 1e-12 for diagonal in (a, d, f))
    A, B, C = d * f - e * e, c * e - b * f, b * e - c * d
    D, E, F = a * f - c * c, b * c - a * e, a * d - b * b
    return np.stack([A * x + B * y + C * z, B * x + D * y + E * z, C * x + E * y + F * z]) / (a * A + b * B + c * C)


def _refine(
    problem: _Landmarks, X: np.ndarray, iterations: int
) -> tuple[np.ndarray, np.ndarray, Residuals[np.ndarray]]:
    """Points (3, P), their cost (P,) and residuals after Levenberg-Marquardt steps, which each landmark accepts or rejects.

    `levenberg_marquardt.minimize` has one damping for the whole problem; here a landmark that diverges must not slow the others.
    """
    at, cost = problem.evaluate(X)
    damping = np.full_like(cost, 1e-4)
    for _ in range(iterations):
        trial = X + _solve(problem.linearize(at), damping)
        at_trial, cost_trial = problem.evaluate(trial)
        better = cost_trial < cost
        X, cost = np.where(better, trial, X), np.where(better, cost_trial, cost)
        damping = np.where(better, damping * 0.1, damping * 10)
        taken = better[problem.point]
        at = Residuals(*(np.where(taken, vars(at_trial)[name], old) for name, old in vars(at).items()))
    return X, cost, at
