"""Validation of a candidate: both sets of weights match the same queries of windows that neither was trained on.

Held-out observations are compared with landmarks that come from the other views, each set of weights with its own bundle
adjustment. Since wrong geometry improves its own held-out points, two checks do not pass through bundle adjustment: known
synthetic warps of the live image, and forward-backward consistency.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite, sqrt

import cv2
import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..core import geometry
from ..core.config import BundleConfig, LearningConfig
from ..core.types import LearningSample
from ..matching.base import Features, Matcher
from .rematching import (
    Rematch,
    Solution,
    describe,
    expected_uv,
    extract,
    unmatched_landmarks,
    observe,
    rematch,
    solve_again,
)

CHECK_QUERIES = 200
HELD_OUT_ONE_IN = 5  # the share that `samples` holds out of the observations
MIN_VIEWS = 4  # as there: a landmark must be well determined without the view that is held out
COVERAGE_GRID = (6, 8)
SMOOTHING_PX = 1.0
LOOK_EVERY = 2  # windows; fewer looks leave more of the confidence to each
NEIGHBOURS = 0.5  # greatest correlation of two validation windows in a row, which share at most half of their keyframes
WARP = 0.02  # of the image's size; corners move by about as much between neighbouring keyframes


@dataclass(frozen=True)
class Score:
    """How one set of weights did on one window. Errors are means in px, capped; lower is better; NaN where nothing is held out."""

    held_out_px: float
    warp_px: float
    forward_backward_px: float
    matches: int
    coverage: float  # share of the image's cells that hold a match, mean over keyframes
    within_sigma: float  # share of held-out coordinate errors below one sigma; 0.683 is calibrated

    @property
    def has_held_out(self) -> bool:
        """Whether anything was held out: a short window may have no landmark with views enough."""
        return isfinite(self.held_out_px)


@dataclass(frozen=True)
class Verdict:
    """The outcome of a paired test; `pending` needs more windows."""

    outcome: str  # better, worse, no_better, pending
    reason: str
    before_px: float  # mean held-out error of the active weights
    after_px: float  # of the candidate
    windows: int


def score(matcher: Matcher, sample: LearningSample, config: LearningConfig, bundle: BundleConfig, seed: int) -> Score:
    """Scores one set of weights on one window. The seed chooses the synthetic warp: give both sets of weights the same."""
    features = extract(matcher, sample)
    found = rematch(matcher, sample, features, config)
    solution = solve_again(sample, found, config, bundle)
    window, cap = sample.window, config.error_cap_px

    held = torch.nonzero(sample.held_out)[:, 0]
    kf, pt = window.kf_idx[held], window.pt_idx[held]
    points_C = geometry.act(geometry.inverse(solution.T_WC)[kf], solution.points_W[pt])
    reprojected = torch.where(points_C[:, 2:] > 1e-6, geometry.project(window.camera, points_C), torch.nan)
    seen = window.camera.undistort(found.uv[held].double())
    error = seen - reprojected
    matched = (found.score[held] >= config.min_score) & error.isfinite().all(-1)
    distance = torch.where(matched, error.norm(dim=-1).clamp_max(cap), cap)
    distance = torch.cat([distance, _unmatched_errors(matcher, sample, features, solution, config)])
    sigma = found.sigma_px[held] * window.camera.stretch(seen)
    calibrated = (error[matched].abs() < sigma[matched, None]).double().mean()
    return Score(
        float(distance.mean()),
        _warp_error(matcher, sample, config, seed),
        _forward_backward_error(matcher, sample, features, config),
        int((found.score >= config.min_score).sum()),
        _coverage(sample, found, config),
        float(calibrated.nan_to_num()),
    )


def paired_test(
    active: list[Score], candidate: list[Score], config: LearningConfig, looks: int | None = None
) -> Verdict:
    """Paired comparison over windows in a row: better by a one-sided t-test, and nothing else lost. Pure.

    The confidence holds for the whole sequence of looks: after every second window from the fewest to the most, or `looks` in all.
    """
    n = len(active)
    gain = np.array([a.held_out_px - c.held_out_px for a, c in zip(active, candidate)])
    before, after = float(np.mean([a.held_out_px for a in active])), float(np.mean([c.held_out_px for c in candidate]))

    def verdict(outcome: str, reason: str) -> Verdict:
        return Verdict(outcome, reason, before, after, n)

    least, most = config.validation_windows, config.validation_windows_max
    if n < least or (n < most and (n - least) % LOOK_EVERY):
        return verdict("pending", "too few windows")

    def mean(scores: list[Score], name: str) -> float:
        return float(np.mean([getattr(s, name) for s in scores]))

    # Every look at the growing sample may give a false positive; together they share the error rate (Bonferroni).
    looks = looks or 1 + ceil((most - least) / LOOK_EVERY)
    limit = float(stats.t.ppf(1 - (1 - config.confidence) / looks, n - 1))
    for name in ("warp_px", "forward_backward_px"):
        before_check, after_check = mean(active, name), mean(candidate, name)
        rise = np.array([getattr(c, name) - getattr(a, name) for a, c in zip(active, candidate)])
        clear = after_check > 1.01 * before_check and _t(rise) > limit
        if clear or after_check > 1.05 * before_check + 0.005:
            return verdict("worse", f"{name} rose from {before_check:.3f} to {after_check:.3f}")
    for name in ("matches", "coverage"):
        if mean(candidate, name) < 0.98 * mean(active, name):
            return verdict("worse", f"{name} fell from {mean(active, name):.3g} to {mean(candidate, name):.3g}")
    off = abs(mean(candidate, "within_sigma") - 0.683) - abs(mean(active, "within_sigma") - 0.683)
    if off > 0.05:
        return verdict("worse", f"calibration is off by {off:.2f} more")
    t = _t(gain)
    if t > limit:
        return verdict("better", f"t = {t:.2f} > {limit:.2f}")
    if t < -limit:
        return verdict("worse", f"t = {t:.2f} < {-limit:.2f}")
    if n < most:
        return verdict("pending", f"t = {t:.2f} is undecided")
    return verdict("no_better", f"t = {t:.2f} after {n} windows")


def _t(values: np.ndarray) -> float:
    """Student's t of the mean against zero, for windows in a row of which each may share half of its keyframes with the one before.

    With a correlation r of neighbours the mean of n values varies by 1 + 2r (n - 1) / n more than that of independent ones, while
    the variance among them is 1 - 2r / n of theirs.
    """
    n = len(values)
    excess = (1 + 2 * NEIGHBOURS * (n - 1) / n) / (1 - 2 * NEIGHBOURS / n)
    return float(values.mean()) / max(float(values.std(ddof=1)) * sqrt(excess / n), 1e-9)


def _unmatched_errors(
    matcher: Matcher, sample: LearningSample, features: list[Features], solution: Solution, config: LearningConfig
) -> Tensor:
    """Capped errors (n,) at landmarks that a keyframe should show and in which odometry did not find them.

    All observations of a window are successes of the active weights; on these alone, other weights could only lose. One
    in five counts, as many as are held out of the observations.
    """
    window, cap = sample.window, config.error_cap_px
    expected = expected_uv(sample, sample.result.T_WC, sample.result.points_W)
    known = (
        torch.bincount(window.pt_idx, minlength=len(window.points_W)) >= MIN_VIEWS
    ) & solution.points_W.isfinite().all(-1)
    queries, order = describe(matcher, sample, features)
    parts = [torch.zeros(0, dtype=torch.float64)]
    for k, target in enumerate(features):
        points = unmatched_landmarks(sample, k, expected[k])
        points = points[known[points] & ((points + k) % HELD_OUT_ONE_IN == 0)]
        if len(points) == 0:
            continue
        found = matcher.estimate(
            queries.select(order[points].to(matcher.device)),
            [target],
            expected[k, points][None].to(matcher.device),
            config.search_radius * window.camera.width,
        )
        points_C = geometry.act(geometry.inverse(solution.T_WC[k])[None], solution.points_W[points])
        reprojected = torch.where(points_C[:, 2:] > 1e-6, geometry.project(window.camera, points_C), torch.nan)
        error = (window.camera.undistort(found.uv[0].cpu().double()) - reprojected).norm(dim=-1)
        right = (found.score[0].cpu() >= config.min_score) & error.isfinite()
        parts.append(torch.where(right, error.clamp_max(cap), cap))
    return torch.cat(parts)


def _warp_error(matcher: Matcher, sample: LearningSample, config: LearningConfig, seed: int) -> float:
    """Mean capped error between the newest image and a known homography and change of light of it.

    The image's own noise must not be what is found again, or a matcher that learned to look past noise would seem to have become
    worse: both images are made from the smoothed one, each with new noise of the image's strength.
    """
    image = sample.images[-1][0].cpu().numpy()
    height, width = image.shape
    rng = np.random.default_rng(seed)
    noise, smooth = _noise_level(image), cv2.GaussianBlur(image.astype(np.float32), (0, 0), SMOOTHING_PX)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    moved = corners + rng.uniform(-WARP, WARP, (4, 2)).astype(np.float32) * [width, height]
    H = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    warped = cv2.warpPerspective(smooth, H, (width, height), borderMode=cv2.BORDER_REFLECT) * rng.uniform(
        0.8, 1.2
    ) + rng.uniform(-15, 15)
    here, there = (
        torch.from_numpy(np.clip(view + rng.normal(0, noise, view.shape), 0, 255).astype(np.uint8))[None]
        for view in (smooth, warped)
    )
    uv = _newest_points(sample)
    truth = cv2.perspectiveTransform(uv[None].numpy().astype(np.float64), H)[0]
    inside = ((truth >= 0) & (truth <= [width - 1, height - 1])).all(-1)
    if not inside.any():
        return config.error_cap_px
    # Searched as odometry searches: around a place that is roughly known.
    radius = config.search_radius * width
    guess = torch.from_numpy(truth + rng.uniform(-0.5, 0.5, truth.shape) * radius).float()[None].to(matcher.device)
    found = matcher.estimate(matcher.describe(observe(matcher, here), uv), [observe(matcher, there)], guess, radius)
    error = (found.uv[0].cpu() - torch.from_numpy(truth)).norm(dim=-1).clamp_max(config.error_cap_px)
    return float(error[torch.from_numpy(inside)].mean())


def _noise_level(image: np.ndarray) -> float:
    """Standard deviation of an image's noise (H, W), grey levels; the median makes Immerkaer's estimate (1996) blind to edges."""
    response = cv2.filter2D(image.astype(np.float32), -1, np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32))
    return float(np.median(np.abs(response))) / 0.6745 / 6


def _forward_backward_error(
    matcher: Matcher, sample: LearningSample, features: list[Features], config: LearningConfig
) -> float:
    """Mean capped distance after matching from the newest keyframe to the one before, and back."""
    uv = _newest_points(sample)
    there = matcher.estimate(matcher.describe(features[-1], uv), [features[-2]]).uv[0]
    back = matcher.estimate(matcher.describe(features[-2], there), [features[-1]]).uv[0]
    return float((back.cpu() - uv).norm(dim=-1).clamp_max(config.error_cap_px).mean())


def _newest_points(sample: LearningSample) -> Tensor:
    """Up to CHECK_QUERIES pixels of the newest keyframe at which landmarks were observed."""
    newest = sample.uv_px[sample.window.kf_idx == len(sample.images) - 1]
    return newest[:: max(1, len(newest) // CHECK_QUERIES)]


def _coverage(sample: LearningSample, found: Rematch, config: LearningConfig) -> float:
    camera = sample.window.camera
    rows, columns = COVERAGE_GRID
    good = found.score >= config.min_score
    cell = (found.uv / torch.tensor([camera.width, camera.height]) * torch.tensor([columns, rows])).long()
    cell = cell.clamp(min=torch.tensor([0, 0]), max=torch.tensor([columns - 1, rows - 1]))
    key = (sample.window.kf_idx * rows + cell[:, 1]) * columns + cell[:, 0]
    return len(key[good].unique()) / (len(sample.images) * rows * columns)
