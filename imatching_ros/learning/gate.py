"""Which windows are trained on: wrong or degenerate geometry gives wrong or empty gradients."""

from __future__ import annotations

import torch

from ..core import geometry
from ..core.config import LearningConfig
from ..core.types import BAStatus, LearningSample
from ..odometry.shutter import MAX_SKEW_PX
from ..odometry.turning import measure_motion, turned_in_place


def refuse(sample: LearningSample, config: LearningConfig) -> str | None:
    """The reason why a window is not trained on, or None. Pure."""
    window, result = sample.window, sample.result
    if not sample.tracking_healthy:
        return "tracking not healthy"
    if sample.skew_px > MAX_SKEW_PX:
        return "rolling shutter not known well"
    if result.status is not BAStatus.CONVERGED:
        return f"bundle adjustment {result.status.value}"
    trusted = result.weight > 0.5
    if trusted.float().mean() < config.min_inlier_share:
        return "too few inliers"
    views = torch.zeros(len(window.points_W), dtype=torch.long).index_add_(0, window.pt_idx, trusted.long())
    if int((views >= 3).sum()) < config.min_landmarks:
        return "too few landmarks"
    if float(result.residual_px[trusted].norm(dim=-1).median()) > config.max_residual_px:
        return "residual too large"
    if measure_motion(window, result)[1] < config.min_baseline:
        return "no translation"
    if turned_in_place(window, result):
        return "turned much, moved little"
    angles = geometry.parallax(result.T_WC, result.points_W, window.kf_idx, window.pt_idx)
    if float(torch.rad2deg(angles.nanmedian())) < config.min_parallax_deg:
        return "no parallax"
    return None
