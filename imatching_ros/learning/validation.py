"""Validation of weights: two sets match the same queries of windows that neither was trained on, and a paired test compares them.

Held-out observations are compared with landmarks that come from the other views, each set of weights with its own bundle
adjustment. Since wrong geometry improves its own held-out points, two checks do not pass through bundle adjustment: known
synthetic warps of the newest image, and forward-backward consistency.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite, sqrt

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
    observe,
    rematch,
    solve_again,
    unmatched_landmarks,
)
from .sample import HELD_OUT_ONE_IN, MIN_VIEWS
from .warps import draw_pair

LOOK_EVERY = 2  # windows; fewer looks leave more of the confidence to each


@dataclass(frozen=True)
class Score:
    """One set of weights on one window. Errors are capped means in px; lower is better; NaN where nothing is held out."""

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
    before_px: float  # mean held-out error of the weights in use
    after_px: float  # of those that they are compared with
    windows: int


class PairedTest:
    """A sequential test of whether one set of weights is better than another, on the same windows in a row.

    Better means: a one-sided paired t-test on the held-out error, and no other check lost. The confidence holds for the whole
    sequence of looks, after every second window from the fewest to the most (Bonferroni).
    """

    def __init__(self, confidence: float, fewest: int, most: int, looks: int | None = None) -> None:
        """`looks` shares the error rate over so many looks instead of those from `fewest` to `most`."""
        self.fewest, self.most = fewest, most
        self._error_rate = (1 - confidence) / (looks or 1 + ceil((most - fewest) / LOOK_EVERY))
        self._before: list[Score] = []
        self._after: list[Score] = []

    def add(self, before: Score, after: Score) -> Verdict:
        """The verdict with the scores of one more window, of the weights in use and of the others."""
        self._before.append(before)
        self._after.append(after)
        n = len(self._before)
        if n < self.fewest or (n < self.most and (n - self.fewest) % LOOK_EVERY):
            return self._verdict("pending", "too few windows")
        limit = float(stats.t.ppf(1 - self._error_rate, n - 1))
        lost = self._lost_check(limit)
        if lost is not None:
            return self._verdict("worse", lost)
        t = _paired_t(self._values(self._before, "held_out_px") - self._values(self._after, "held_out_px"))
        if t > limit:
            return self._verdict("better", f"t = {t:.2f} > {limit:.2f}")
        if t < -limit:
            return self._verdict("worse", f"t = {t:.2f} < {-limit:.2f}")
        if n < self.most:
            return self._verdict("pending", f"t = {t:.2f} is undecided")
        return self._verdict("no_better", f"t = {t:.2f} after {n} windows")

    @property
    def windows(self) -> int:
        """Windows added so far."""
        return len(self._before)

    def _lost_check(self, limit: float) -> str | None:
        """The check besides the held-out error that the other weights lose, or None.

        An error may not rise by more than 1 % where the test shows the rise, and by 5 % at all; matches and coverage may fall by 2 %.
        """
        for name in ("warp_px", "forward_backward_px"):
            before, after = self._means(name)
            rise = self._values(self._after, name) - self._values(self._before, name)
            shown = after > 1.01 * before and _paired_t(rise) > limit
            if shown or after > 1.05 * before + 0.005:
                return f"{name} rose from {before:.3f} to {after:.3f}"
        for name in ("matches", "coverage"):
            before, after = self._means(name)
            if after < 0.98 * before:
                return f"{name} fell from {before:.3g} to {after:.3g}"
        before, after = self._means("within_sigma")
        off = abs(after - 0.683) - abs(before - 0.683)
        return f"calibration is off by {off:.2f} more" if off > 0.05 else None

    def _verdict(self, outcome: str, reason: str) -> Verdict:
        return Verdict(outcome, reason, *self._means("held_out_px"), self.windows)

    def _means(self, name: str) -> tuple[float, float]:
        return float(np.mean(self._values(self._before, name))), float(np.mean(self._values(self._after, name)))

    @staticmethod
    def _values(scores: list[Score], name: str) -> np.ndarray:
        return np.array([getattr(score, name) for score in scores])


def validation_test(config: LearningConfig) -> PairedTest:
    """The test of a candidate before deployment."""
    return PairedTest(config.confidence, config.validation_windows, config.validation_windows_max)


def post_deployment_test(config: LearningConfig) -> PairedTest:
    """The test of whether the previous weights are better than the deployed ones."""
    most = config.post_deployment_windows
    return PairedTest(config.confidence, min(config.validation_windows, max(most - LOOK_EVERY, 2)), most)


def _paired_t(values: np.ndarray) -> float:
    """Student's t of the mean against zero, for windows in a row of which each may share half of its keyframes with the one before.

    With a correlation r of neighbours the mean of n values varies by 1 + 2r (n - 1) / n more than that of independent ones, while
    the variance among them is 1 - 2r / n of theirs.
    """
    n = len(values)
    r = 0.5  # greatest correlation of neighbours: they share at most half of their keyframes
    excess = (1 + 2 * r * (n - 1) / n) / (1 - 2 * r / n)
    return float(values.mean()) / max(float(values.std(ddof=1)) * sqrt(excess / n), 1e-9)


def score(matcher: Matcher, sample: LearningSample, config: LearningConfig, bundle: BundleConfig, seed: int) -> Score:
    """Scores one set of weights on one window. The seed draws the synthetic warp: give both sets of weights the same."""
    features = extract(matcher, sample)
    found = rematch(matcher, sample, features, config)
    solution = solve_again(sample, found, config, bundle)
    distance, within_sigma = _held_out_errors(sample, found, solution, config)
    distance = torch.cat([distance, _unmatched_errors(matcher, sample, features, solution, config)])
    return Score(
        float(distance.mean()),
        _warp_error(matcher, sample, config, seed),
        _forward_backward_error(matcher, sample, features, config),
        int((found.score >= config.min_score).sum()),
        _coverage(sample, found, config),
        within_sigma,
    )


def _held_out_errors(
    sample: LearningSample, found: Rematch, solution: Solution, config: LearningConfig
) -> tuple[Tensor, float]:
    """Capped errors (n,) px of the held-out observations, and the share of their coordinate errors below one sigma."""
    window, cap = sample.window, config.error_cap_px
    held = torch.nonzero(sample.held_out)[:, 0]
    reprojected = _reproject(sample, solution, window.kf_idx[held], window.pt_idx[held])
    seen = window.camera.undistort(found.uv[held].double())
    error = seen - reprojected
    matched = (found.score[held] >= config.min_score) & error.isfinite().all(-1)
    sigma = found.sigma_px[held] * window.camera.stretch(seen)
    within_sigma = (error[matched].abs() < sigma[matched, None]).double().mean()
    return torch.where(matched, error.norm(dim=-1).clamp_max(cap), cap), float(within_sigma.nan_to_num())


def _unmatched_errors(
    matcher: Matcher, sample: LearningSample, features: list[Features], solution: Solution, config: LearningConfig
) -> Tensor:
    """Capped errors (n,) px at landmarks that a keyframe should show and in which odometry did not find them.

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
        reprojected = _reproject(sample, solution, torch.full((len(points),), k), points)
        error = (window.camera.undistort(found.uv[0].cpu().double()) - reprojected).norm(dim=-1)
        matched = (found.score[0].cpu() >= config.min_score) & error.isfinite()
        parts.append(torch.where(matched, error.clamp_max(cap), cap))
    return torch.cat(parts)


def _reproject(sample: LearningSample, solution: Solution, kf: Tensor, pt: Tensor) -> Tensor:
    """Ideal px (n, 2) of landmarks pt (n,) in keyframes kf (n,); NaN behind the camera."""
    points_C = geometry.act(geometry.inverse(solution.T_WC)[kf], solution.points_W[pt])
    return torch.where(points_C[:, 2:] > 1e-6, geometry.project(sample.window.camera, points_C), torch.nan)


def _warp_error(matcher: Matcher, sample: LearningSample, config: LearningConfig, seed: int) -> float:
    """Mean capped error, px, between the newest image and a known homography and change of light of it."""
    rng = np.random.default_rng(seed)
    pair = draw_pair(sample.images[-1][0].cpu().numpy(), rng)
    uv = _newest_points(sample)
    truth, inside = pair.truth(uv.numpy())
    if not inside.any():
        return config.error_cap_px
    # Searched as odometry searches: around a place that is roughly known.
    radius = config.search_radius * pair.image_a.shape[1]
    guess = torch.from_numpy(truth + rng.uniform(-0.5, 0.5, truth.shape) * radius).float()[None].to(matcher.device)
    features_a, features_b = (observe(matcher, torch.from_numpy(image)[None]) for image in (pair.image_a, pair.image_b))
    found = matcher.estimate(matcher.describe(features_a, uv), [features_b], guess, radius)
    error = (found.uv[0].cpu() - torch.from_numpy(truth)).norm(dim=-1).clamp_max(config.error_cap_px)
    return float(error[torch.from_numpy(inside)].mean())


def _forward_backward_error(
    matcher: Matcher, sample: LearningSample, features: list[Features], config: LearningConfig
) -> float:
    """Mean capped distance after matching from the newest keyframe to the one before, and back."""
    uv = _newest_points(sample)
    there = matcher.estimate(matcher.describe(features[-1], uv), [features[-2]]).uv[0]
    back = matcher.estimate(matcher.describe(features[-2], there), [features[-1]]).uv[0]
    return float((back.cpu() - uv).norm(dim=-1).clamp_max(config.error_cap_px).mean())


def _newest_points(sample: LearningSample) -> Tensor:
    """Pixels (n, 2) of the newest keyframe at which landmarks were observed; a few hundred are enough for a mean."""
    newest = sample.uv_px[sample.window.kf_idx == len(sample.images) - 1]
    return newest[:: max(1, len(newest) // 200)]


def _coverage(sample: LearningSample, found: Rematch, config: LearningConfig) -> float:
    camera = sample.window.camera
    rows, columns = 6, 8  # square cells, at 4:3
    good = found.score >= config.min_score
    cell = (found.uv / torch.tensor([camera.width, camera.height]) * torch.tensor([columns, rows])).long()
    cell = cell.clamp(min=torch.tensor([0, 0]), max=torch.tensor([columns - 1, rows - 1]))
    key = (sample.window.kf_idx * rows + cell[:, 1]) * columns + cell[:, 0]
    return len(key[good].unique()) / (len(sample.images) * rows * columns)
