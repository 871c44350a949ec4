"""Relative pose from matches, its error, and the area under the recall curve."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from ...core import geometry
from ...camera.model import Camera

AUC_DEG = (5, 10, 20)
MIN_MATCHES = 8
FAILED_DEG = 180.0
# Below these, the direction of translation is not scored: it cannot be seen, or the truth does not know it.
MIN_RELATIVE_BASELINE = 0.01
MIN_BASELINE_M = 0.05


def essential(
    camera_i: Camera, camera_j: Camera, uv_i: Tensor, uv_j: Tensor, seed: int = 0
) -> tuple[np.ndarray, np.ndarray] | None:
    """Essential matrix by USAC MAGSAC++ (Barath 2020).

    Args:
        uv_i, uv_j: (N, 2) raw px.

    Returns:
        (3, 3) matrix and (N,) bool inliers; None when there are fewer than 8 matches or no model is found.
    """
    if len(uv_i) < MIN_MATCHES:
        return None
    xy_i = geometry.rays(camera_i, camera_i.undistort(uv_i.double()))[:, :2].numpy()
    xy_j = geometry.rays(camera_j, camera_j.undistort(uv_j.double()))[:, :2].numpy()
    known = np.isfinite(xy_i).all(1) & np.isfinite(xy_j).all(1)
    if known.sum() < MIN_MATCHES:
        return None
    threshold_px = 1.0  # an upper bound of the noise to MAGSAC++, which weights what is below it
    focal = (camera_i.fx + camera_i.fy + camera_j.fx + camera_j.fy) / 4
    cv2.setRNGSeed(seed)
    try:
        E, mask = cv2.findEssentialMat(
            xy_i[known], xy_j[known], np.eye(3), cv2.USAC_MAGSAC, 0.9999, threshold_px / focal
        )
    except cv2.error:  # OpenCV raises on degenerate sets instead of returning nothing
        return None
    if E is None or E.shape != (3, 3):
        return None
    inliers = np.zeros(len(uv_i), bool)
    inliers[known] = mask[:, 0] > 0
    return E, inliers


def pose_error_deg(
    camera_i: Camera, camera_j: Camera, uv_i: Tensor, uv_j: Tensor, T_ij: Tensor, score_translation: bool, seed: int = 0
) -> float:
    """The larger of the angle of rotation error and the angle between translations, degrees; 180 when there is no pose.

    Args:
        uv_i, uv_j: (N, 2) raw px. T_ij: (7,) true pose of camera j seen from i.
        score_translation: False leaves the direction of translation out.
    """
    model = essential(camera_i, camera_j, uv_i, uv_j, seed)
    if model is None:
        return FAILED_DEG
    E, inliers = model
    xy_i = geometry.rays(camera_i, camera_i.undistort(uv_i.double()))[inliers, :2].numpy()
    xy_j = geometry.rays(camera_j, camera_j.undistort(uv_j.double()))[inliers, :2].numpy()
    if len(xy_i) < 5:
        return FAILED_DEG
    _, R, t, _ = cv2.recoverPose(E, xy_i, xy_j, np.eye(3))
    T_ji = geometry.to_matrix(geometry.inverse(T_ij)).numpy()
    relative = R @ T_ji[:3, :3].T
    rotation = np.degrees(
        np.arctan2(np.linalg.norm(relative - relative.T) / (2 * np.sqrt(2)), (np.trace(relative) - 1) / 2)
    )
    if not score_translation:
        return float(rotation)
    translation = float(torch.rad2deg(geometry.angle(torch.from_numpy(t[:, 0]), torch.from_numpy(T_ji[:3, 3]))))
    return float(max(rotation, translation))


def translation_ratio(points_i: Tensor, camera_j: Camera, uv_j: Tensor, T_ij: Tensor, seed: int = 0) -> float | None:
    """The motion by PnP on true points, along the true one, over it: below 1 where matches fall short together. None without a pose.

    Args:
        points_i: (N, 3) m in camera i. uv_j: (N, 2) raw px. T_ij: (7,) true pose of camera j seen from i.
    """
    rays = geometry.rays(camera_j, camera_j.undistort(uv_j.double()))
    known = (points_i.isfinite().all(1) & rays.isfinite().all(1)).numpy()
    if known.sum() < MIN_MATCHES:
        return None
    threshold_px = 3.0
    cv2.setRNGSeed(seed)
    found, rotation, t_ji, _ = cv2.solvePnPRansac(
        points_i.numpy()[known],
        rays[:, :2].numpy()[known],
        np.eye(3),
        None,
        iterationsCount=200,
        reprojectionError=threshold_px / camera_j.fx,
        confidence=0.999,
    )
    if not found:
        return None
    t_ij = -cv2.Rodrigues(rotation)[0].T @ t_ji[:, 0]
    truth = T_ij[:3].numpy()
    return float(t_ij @ truth / (truth @ truth))


def auc(errors_deg: Sequence[float] | np.ndarray, thresholds: Sequence[float] = AUC_DEG) -> dict[str, float]:
    """Area under the recall curve up to each threshold, 0..1 (as Sarlin 2020 and LoFTR report it)."""
    errors = np.sort(np.asarray(errors_deg, float))
    recall = np.arange(1, len(errors) + 1) / max(len(errors), 1)
    result = {}
    for threshold in thresholds:
        last = np.searchsorted(errors, threshold)
        x = np.concatenate([[0.0], errors[:last], [threshold]])
        y = np.concatenate([[0.0], recall[:last], [recall[last - 1] if last else 0.0]])
        result[str(threshold)] = float(np.sum((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2) / threshold)
    return result
