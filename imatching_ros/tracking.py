"""The pose of one frame from its matches with landmarks: a guess or RANSAC, then robust refinement, then its own inliers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from . import geometry
from .bundle import refine_pose
from .camera import Camera
from .config import BundleConfig, OdometryConfig
from .datatypes import BAStatus, ObservationKind

_TRUST_GUESS = 0.4  # share of inliers above which the pose refined from the guess is not questioned by RANSAC
_RANSAC_ITERATIONS = 300


@dataclass(frozen=True)
class Sighting:
    """Landmarks of the window found in one frame."""

    rows: Tensor  # (N,) int64, rows of the window
    uv: Tensor  # (N, 2) float32 raw px
    score: Tensor  # (N,)
    sigma_px: Tensor  # (N,)
    missed: Tensor  # (K,) int64, rows searched in vain


@dataclass(frozen=True)
class Located:
    T_WC: Tensor  # (7,) float64
    inlier: Tensor  # (N,) bool
    residual_px: Tensor  # (N,) float64
    covariance: Tensor  # (6, 6) float64 of T_WC * Exp([rho, phi]), landmarks taken as exact


def locate(camera: Camera, uv: Tensor, points_W: Tensor, sigma_px: Tensor, T_guess: Tensor | None, config: OdometryConfig,
           bundle: BundleConfig) -> Located | None:
    """Pose from N landmarks at ideal px `uv` (N, 2) float64; None when too few of them agree on one."""
    count = len(uv)
    if count < config.min_inliers:
        return None
    best = None
    if T_guess is not None:
        best = _refine(camera, uv, points_W, sigma_px, T_guess, config, bundle)
    if best is None or int(best.inlier.sum()) < _TRUST_GUESS * count:
        T = _ransac(camera, uv, points_W, config.inlier_px)
        other = None if T is None else _refine(camera, uv, points_W, sigma_px, T, config, bundle)
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


def _refine(camera: Camera, uv: Tensor, points_W: Tensor, sigma_px: Tensor, T_WC: Tensor, config: OdometryConfig,
            bundle: BundleConfig) -> Located | None:
    """Motion-only refinement on all matches, then on the inliers of that: the kernel bends outliers, it does not remove them."""
    obs = torch.cat([uv, torch.zeros_like(uv[:, :1])], 1)
    sigma = sigma_px.double()[:, None].expand(-1, 3)
    kind = torch.full((len(uv),), int(ObservationKind.MONO))
    used = torch.arange(len(uv))
    # The first round only has to tell who the inliers are.
    for settings in (replace(bundle, cost_tolerance=max(bundle.cost_tolerance, 1e-2)), bundle):
        refined = refine_pose(camera, T_WC, points_W[used], obs[used], kind[used], sigma[used], settings)
        if refined.status is BAStatus.DEGENERATE:
            return None
        T_WC = refined.T_WC
        points_C = geometry.act(geometry.inverse(T_WC), points_W)
        residual = (uv - geometry.project(camera, points_C)).norm(dim=1)
        inlier = (residual < config.inlier_px) & (points_C[:, 2] > 0)
        used = inlier.nonzero()[:, 0]
    assert refined.covariance is not None, "what is not degenerate has one"
    return Located(T_WC, inlier, residual, refined.covariance)
