"""Matching a recorded window again with other weights, and the bundle adjustment problem that follows from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bundle import solve
from ..camera import rolling_shutter
from ..core import geometry
from ..core.config import BundleConfig, LearningConfig
from ..core.masks import is_masked
from ..core.types import BAResult, LearningSample, ObservationKind, WindowSnapshot
from ..matching.base import Features, Matcher, Queries
from .cooperative_yield import cooperative_yield, yield_in_backward


@dataclass(frozen=True)
class Rematch:
    """The matches of a set of weights for every observation of a window; host observations are not re-matched."""

    uv: Tensor  # (O, 2) float32 raw px; with gradients when asked for
    score: Tensor  # (O,)
    sigma_px: Tensor  # (O,)
    has_gradient: Tensor  # (O,) bool: of uv


@dataclass(frozen=True)
class Solution:
    """T*, p* of a window for one set of weights: the lower level's optimum, a constant of the upper level."""

    T_WC: Tensor  # (M, 7)
    points_W: Tensor  # (P, 3); rows of landmarks without a solution are NaN
    weight: Tensor  # (O,) the kernel's weight; 0 where the observation took no part
    result: BAResult


def expected_uv(sample: LearningSample) -> Tensor:
    """Where every keyframe sees every landmark of the sample's solution, (M, P, 2) float32 raw px; NaN behind the camera.

    Of a rolling shutter, in the row that is exposed then.
    """
    T_CW, camera = geometry.inverse(sample.result.T_WC), sample.window.camera
    points_C = geometry.act(T_CW[:, None], sample.result.points_W[None])
    uv, _ = rolling_shutter.see(camera, points_C, sample.twist[:, None])
    return torch.where(points_C[..., 2:] > 1e-6, uv, torch.nan).float()


def as_ideal(sample: LearningSample, uv: Tensor, kf: Tensor, pt: Tensor) -> Tensor:
    """Raw px (n, 2) of landmarks pt (n,) in keyframes kf (n,) -> ideal px (n, 2) float64, as the keyframes' poses see them.

    Differentiable in uv. The shift by a rolling shutter depends on the depth: that of the sample's solution, constant whatever the weights.
    """
    depth = geometry.act(geometry.inverse(sample.result.T_WC)[kf], sample.result.points_W[pt])[:, 2]
    return rolling_shutter.undistort(sample.window.camera, uv, sample.twist[kf], depth)


def extract(matcher: Matcher, sample: LearningSample) -> list[Features]:
    """Features of every keyframe, without gradients."""
    return [observe(matcher, image) for image in sample.images]


def observe(matcher: Matcher, image: Tensor) -> Features:
    """Features of one keyframe's image (1, H, W) uint8, without gradients."""
    cooperative_yield()
    return matcher.observe(image)


def rematch(
    matcher: Matcher,
    sample: LearningSample,
    features: list[Features],
    config: LearningConfig,
    gradient_keyframes: Collection[int] = (),
) -> Rematch:
    """Matches every landmark from its host keyframe into the keyframes that observed it, searching around its reprojection.

    Matches between two of the gradient keyframes keep gradients: from both images, as with gradients from one of them alone a network
    would chase itself.
    """
    window = sample.window
    queries, order = describe(matcher, sample, features)
    expected = expected_uv(sample)
    # In raw px again: `measurements` turns all of them into ideal px.
    uv, sigma = sample.uv_px.clone(), (window.sigma[:, 0] / window.camera.stretch(window.obs[:, :2])).float()
    score, has_gradient = torch.ones(len(uv)), torch.zeros(len(uv), dtype=torch.bool)
    for k, observations, differentiable in _matches_to_make(sample, gradient_keyframes):
        cooperative_yield()
        points = window.pt_idx[observations]
        with torch.set_grad_enabled(differentiable):
            prediction = matcher.match(
                queries.select(order[points].to(matcher.device)),
                [features[k]],
                expected[k, points][None].to(matcher.device),
                config.search_radius * window.camera.width,
                differentiable=differentiable,
            )
        if differentiable:
            yield_in_backward(prediction.uv)
            has_gradient[observations] = True
        uv = uv.index_put((observations,), prediction.uv[0].cpu())
        hidden = is_masked(sample.masks[k] if sample.masks else None, prediction.uv[0])
        score[observations] = prediction.score[0].detach().cpu().masked_fill(hidden, 0.0)
        sigma[observations] = prediction.sigma_px[0].detach().cpu()
    return Rematch(uv, score, sigma, has_gradient)


def _matches_to_make(sample: LearningSample, gradient_keyframes: Collection[int]) -> Iterator[tuple[int, Tensor, bool]]:
    """Yields (keyframe, observations, with gradients): for each keyframe the matches with gradients, then the others.

    Those with gradients are between two gradient keyframes.
    """
    window = sample.window
    is_host = torch.zeros(len(window.obs), dtype=torch.bool)
    is_host[sample.host_obs] = True
    chosen = torch.tensor(sorted(gradient_keyframes), dtype=torch.long)
    host_has_gradient = torch.isin(window.kf_idx[sample.host_obs], chosen)
    for k in range(len(sample.images)):
        inside = torch.nonzero((window.kf_idx == k) & ~is_host)[:, 0]
        has_gradient = host_has_gradient[window.pt_idx[inside]] & (k in gradient_keyframes)
        for observations, differentiable in ((inside[has_gradient], True), (inside[~has_gradient], False)):
            if len(observations):
                yield k, observations, differentiable


def unmatched_landmarks(sample: LearningSample, k: int, expected: Tensor) -> Tensor:
    """Landmarks (e,) int64 that keyframe k should show and in which they were not found: hard cases, which observations leave out.

    They lie within the image and were observed in a neighbouring keyframe, so that they are hardly hidden.

    Args:
        expected: (P, 2) raw px, where they reproject in keyframe k.
    """
    window = sample.window
    margin_px = 8.0  # nearer to the edge a landmark may lie outside
    seen = torch.zeros(len(window.points_W), dtype=torch.bool)
    seen[window.pt_idx[(window.kf_idx - k).abs() == 1]] = True
    seen[window.pt_idx[window.kf_idx == k]] = False
    inside = (
        (expected > margin_px)
        & (expected < expected.new_tensor([window.camera.width, window.camera.height]) - 1 - margin_px)
    ).all(-1)
    masked = is_masked(sample.masks[k] if sample.masks else None, expected)
    return torch.nonzero(seen & inside & ~masked)[:, 0]


def describe(matcher: Matcher, sample: LearningSample, features: list[Features]) -> tuple[Queries, Tensor]:
    """Queries of all P landmarks at their host observations, and for each landmark its row among them, (P,) int64.

    `features`: one entry a keyframe, made by the same matcher.
    """
    host_kf = sample.window.kf_idx[sample.host_obs]
    parts, points = [], []
    for k in host_kf.unique().tolist():
        mine = torch.nonzero(host_kf == k)[:, 0]
        parts.append(matcher.describe(features[k], sample.uv_px[sample.host_obs[mine]]))
        points.append(mine)
    order = torch.empty(len(host_kf), dtype=torch.long)
    order[torch.cat(points)] = torch.arange(len(host_kf))
    return Queries.cat(parts), order


def measurements(sample: LearningSample, found: Rematch, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
    """The measurements of a rematch, for both levels: the observations (O, 3) `rows`, differentiable in the matches, and their sigmas (O, 3).

    The disparity or inverse-depth measurement stays as measured. In stereo the disparity is held, so that u in the right image
    moves with u.
    """
    window = sample.window
    uv = as_ideal(sample, found.uv[rows], window.kf_idx[rows], window.pt_idx[rows])
    measured = window.obs[rows]
    depth = measured[:, 2] + torch.where(window.kind[rows] == ObservationKind.STEREO, uv[:, 0] - measured[:, 0], 0.0)
    sigma = window.sigma[rows].clone()
    sigma[:, :2] = (found.sigma_px[rows].double().clamp_min(1e-2) * window.camera.stretch(uv))[:, None]
    return torch.cat([uv, depth[:, None]], 1), sigma


def window_of(sample: LearningSample, found: Rematch, config: LearningConfig) -> tuple[WindowSnapshot, Tensor]:
    """The bundle adjustment problem of a rematch and which observations entered it (O,) bool.

    Held-out observations and weak matches stay outside, and so do landmarks left with a single view.
    """
    window = sample.window
    obs, sigma = (numbers.detach() for numbers in measurements(sample, found, slice(None)))
    keep = ~sample.held_out & (found.score >= config.min_score) & obs[:, :2].isfinite().all(-1)
    keep[sample.host_obs] = True
    views = torch.zeros(len(window.points_W), dtype=torch.long).index_add_(0, window.pt_idx, keep.long())
    keep &= views[window.pt_idx] >= 2
    return replace(
        window,
        T_WC=sample.result.T_WC,
        points_W=sample.result.points_W,
        kf_idx=window.kf_idx[keep],
        pt_idx=window.pt_idx[keep],
        obs=obs[keep],
        kind=window.kind[keep],
        sigma=sigma[keep],
    ), keep


def solve_again(sample: LearningSample, found: Rematch, config: LearningConfig, bundle: BundleConfig) -> Solution:
    """The lower level's optimum for a rematch."""
    cooperative_yield()
    window, keep = window_of(sample, found, config)
    used, index = window.pt_idx.unique(return_inverse=True)
    result = solve(replace(window, points_W=window.points_W[used], pt_idx=index), bundle)
    points = torch.full_like(sample.window.points_W, torch.nan)
    points[used] = result.points_W
    weight = torch.zeros(len(keep), dtype=result.weight.dtype)
    weight[keep] = result.weight
    return Solution(result.T_WC, points, weight, result)
