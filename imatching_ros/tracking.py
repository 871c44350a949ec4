"""The pose of one frame from its matches with landmarks: a guess or RANSAC, then robust refinement, then its own inliers."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from . import geometry
from .camera import Camera
from .config import BundleConfig, OdometryConfig

_TRUST_GUESS = 0.6  # share of inliers above which the pose refined from the guess is not questioned by RANSAC
_RANSAC_ITERATIONS = 300


@dataclass(frozen=True)
class Located:
    T_WC: Tensor  # (7,) float64
    inlier: Tensor  # (N,) bool
    residual_px: Tensor  # (N,) float64
    covariance: Tensor  # (6, 6) float64 of T_WC * Exp([rho, phi]), landmarks taken as exact


def locate(camera: Camera, uv: Tensor, points_W: Tensor, sigma_px: Tensor, T_guess: Tensor | None, config: OdometryConfig,
           bundle: BundleConfig | None = None) -> Located | None:
    """Pose from N landmarks at ideal px `uv` (N, 2) float64; None when too few of them agree on one."""
    count = len(uv)
    if count < config.min_inliers:
        return None
    best = None
    if T_guess is not None:
        best = _refine(camera, uv, points_W, sigma_px, T_guess, config)
    if best is None or int(best.inlier.sum()) < _TRUST_GUESS * count:
        T = _ransac(camera, uv, points_W, config.inlier_px)
        other = None if T is None else _refine(camera, uv, points_W, sigma_px, T, config)
        if best is None or (other is not None and int(other.inlier.sum()) > int(best.inlier.sum())):
            best = other
    if best is None or int(best.inlier.sum()) < max(config.min_inliers, config.min_inlier_share * count):
        return None
    return best


def _ransac(camera: Camera, uv: Tensor, points_W: Tensor, threshold_px: float) -> Tensor | None:
    K = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    ok, rvec, tvec, inliers = cv2.solvePnPRansac(points_W.numpy(), uv.numpy(), K, None, iterationsCount=_RANSAC_ITERATIONS,
                                                 reprojectionError=threshold_px, confidence=0.999, flags=cv2.SOLVEPNP_AP3P)
    if not ok or inliers is None or not np.isfinite(tvec).all():
        return None
    R = torch.from_numpy(cv2.Rodrigues(rvec)[0])
    return geometry.inverse(geometry.from_matrix(torch.cat([R, torch.from_numpy(tvec)], 1)))


def _refine(camera: Camera, uv: Tensor, points_W: Tensor, sigma_px: Tensor, T_WC: Tensor, config: OdometryConfig) -> Located | None:
    """Gauss-Newton with Huber weights on all matches, then once more on the inliers of that."""
    weight = torch.ones(len(uv), dtype=torch.float64)
    w = 1 / sigma_px.double() ** 2
    focal = uv.new_tensor([camera.fx, camera.fy])
    for it in range(8):
        Tcw = geometry.inverse(T_WC)
        X = geometry.act(Tcw, points_W)
        z = X[:, 2].clamp_min(1e-6)
        r = uv - geometry.project(camera, torch.cat([X[:, :2], z[:, None]], 1))
        n = r.norm(dim=1)
        ok = (X[:, 2] > 1e-6)
        k = 2.0 * sigma_px.double() if it >= 4 else torch.full_like(n, 8.0)
        rob = torch.where(n < k, 1.0, k / n) * ok
        if it >= 4:
            rob = rob * (n < 3 * config.inlier_px)
        ww = w * rob
        Jp = torch.zeros(len(uv), 2, 3, dtype=torch.float64)
        Jp[:, 0, 0] = focal[0] / z; Jp[:, 1, 1] = focal[1] / z
        Jp[:, 0, 2] = -focal[0] * X[:, 0] / z**2; Jp[:, 1, 2] = -focal[1] * X[:, 1] / z**2
        # X_C = Exp(-d) X: dX = -rho + X x phi... = [-I, skew(X)]
        D = torch.cat([-torch.eye(3, dtype=torch.float64).expand(len(uv), 3, 3), geometry.skew(X)], 2)
        J = Jp @ D
        H = torch.einsum("nij,n,nik->jk", J, ww, J)
        g = torch.einsum("nij,n,ni->j", J, ww, r)
        step = torch.linalg.solve(H + 1e-9 * torch.eye(6, dtype=torch.float64) * H.diagonal().max(), g)
        T_WC = geometry.retract(T_WC, step)
        if it >= 4 and step.norm() < 1e-8:
            break
    X = geometry.act(geometry.inverse(T_WC), points_W)
    residual = (uv - geometry.project(camera, X)).norm(dim=1)
    inlier = (residual < config.inlier_px) & (X[:, 2] > 1e-6)
    if not torch.isfinite(T_WC).all():
        return None
    return Located(T_WC, inlier, residual, torch.linalg.inv(H + 1e-12 * torch.eye(6, dtype=torch.float64)))
