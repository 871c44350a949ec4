"""Errors with a sign, to which residuals are blind: bundle adjustment moves poses and landmarks until they fit a shared error.

A bias along the flow shortens every motion, and an error that a whole image shares turns or shifts its pose. Both are measured
against truth that passes through no bundle adjustment: known warps of a live image, and measured depth where there is some.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from torch import Tensor

from ..bundle import View, refine_pose
from ..core import geometry
from ..core.config import BundleConfig, LearningConfig
from ..core.types import BAStatus, LearningSample, ObservationKind
from ..matching.base import Matcher
from .rematching import Rematch, as_ideal, observe
from .warps import CORNER_SHIFT, draw_homography, draw_pair

# A warp as between neighbouring keyframes, and a wide one as across a window: a bias along the flow grows with the flow.
CORNER_SHIFTS = (CORNER_SHIFT, 4 * CORNER_SHIFT)
MIN_FLOW_PX = 1.0  # shorter flow has no direction worth a sign
MIN_POINTS = 20  # of a mean, or of a pose


@dataclass(frozen=True)
class WarpErrors:
    """Errors of the matches between an image and known warps of it, px; NaN where there is nothing to measure."""

    distance_px: float  # mean capped length
    along_flow_px: float  # mean component along the flow; negative where matches fall short
    common_px: float  # length of the mean error of one image, mean over the warps


def warp_errors(matcher: Matcher, sample: LearningSample, uv: Tensor, config: LearningConfig, seed: int) -> WarpErrors:
    """Matches the pixels uv (n, 2) of the newest keyframe into known warps of it, drawn by `seed`."""
    rng = np.random.default_rng(seed)
    image = sample.images[-1][0].cpu().numpy()
    parts = [_one_warp(matcher, image, uv, shift, config, rng) for shift in CORNER_SHIFTS]
    known = [part for part in parts if part is not None]
    if not known:
        return WarpErrors(config.error_cap_px, nan, nan)
    capped, along, common = zip(*known)
    along_flow = np.concatenate(along)
    return WarpErrors(
        float(np.concatenate(capped).mean()),
        float(along_flow.mean()) if len(along_flow) >= MIN_POINTS else nan,
        float(np.mean(common)),
    )


def _one_warp(
    matcher: Matcher,
    image: np.ndarray,
    uv: Tensor,
    corner_shift: float,
    config: LearningConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Capped errors (n,), components along the flow (m,) and the length of the mean error; None where nothing stays inside.

    The signed ones are of matches within the cap: what is further off is a wrong match, not a bias.
    """
    pair = draw_pair(image, rng, draw_homography(image.shape, rng, corner_shift))
    truth, inside = pair.truth(uv.numpy())
    # Searched as odometry searches: around a place that is roughly known.
    radius = config.search_radius * image.shape[1]
    guess = torch.from_numpy(truth + rng.uniform(-0.5, 0.5, truth.shape) * radius).float()[None].to(matcher.device)
    if not inside.any():
        return None
    features_a, features_b = (observe(matcher, torch.from_numpy(view)[None]) for view in (pair.image_a, pair.image_b))
    found = matcher.estimate(matcher.describe(features_a, uv), [features_b], guess, radius)
    error = found.uv[0].cpu().double().numpy()[inside] - truth[inside]
    length = np.linalg.norm(error, axis=1)
    flow = truth[inside] - uv.numpy()[inside]
    flow_px = np.linalg.norm(flow, axis=1)
    near = length < config.error_cap_px
    moved = near & (flow_px >= MIN_FLOW_PX)
    along = (error[moved] * flow[moved]).sum(1) / flow_px[moved]
    common = float(np.linalg.norm(error[near].mean(0))) if near.sum() >= MIN_POINTS else config.error_cap_px
    return np.minimum(length, config.error_cap_px), along, common


def translation_ratio(sample: LearningSample, found: Rematch, config: LearningConfig, bundle: BundleConfig) -> float:
    """The motion to the newest keyframe by PnP on landmarks of measured depth, along that of the window's solution, over it.

    Mean over the host keyframes with landmarks enough; the depth is that of the host observation, so that no bundle adjustment
    can hide a match that falls short. NaN without stereo or depth.
    """
    window, newest = sample.window, len(sample.images) - 1
    seen = torch.nonzero((window.kf_idx == newest) & (found.score >= config.min_score))[:, 0]
    hosts = sample.host_obs[window.pt_idx[seen]]
    depth = _measured_depth(sample)[hosts]
    ratios = []
    for host in window.kf_idx[hosts].unique().tolist():
        own = (window.kf_idx[hosts] == host) & depth.isfinite()
        if host == newest or int(own.sum()) < MIN_POINTS:
            continue
        T_HN = geometry.relative(sample.result.T_WC[host], sample.result.T_WC[newest])
        points_H = geometry.back_project(window.camera, window.obs[hosts[own], :2], depth[own])
        uv = as_ideal(sample, found.uv[seen[own]], window.kf_idx[seen[own]], window.pt_idx[seen[own]])
        view = View.mono(window.camera, points_H, uv, torch.ones(len(uv), dtype=torch.float64))
        pose = refine_pose(view, T_HN, bundle, covariance=False)
        reference = T_HN[:3]
        if pose.status is BAStatus.CONVERGED and float(reference.norm() / depth[own].median()) > config.min_baseline:
            ratios.append(float(pose.T_WC[:3] @ reference / (reference @ reference)))
    return float(np.mean(ratios)) if ratios else nan


def _measured_depth(sample: LearningSample) -> Tensor:
    """(O,) the depth along the optical axis that each observation measured, m; NaN where it measured none."""
    window = sample.window
    none = torch.full((len(window.obs),), torch.nan, dtype=torch.float64)
    if window.expected_depth:
        return none
    baseline = window.camera.fx * (window.camera.baseline_m or 0.0)
    stereo = baseline / (window.obs[:, 0] - window.obs[:, 2])
    depth = torch.where(window.kind == ObservationKind.STEREO, stereo, 1 / window.obs[:, 2])
    return torch.where((window.kind != ObservationKind.MONO) & (depth > 0), depth, none)
