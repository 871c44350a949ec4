"""How right a matcher is on a recording, by true depth and poses where there are any, by itself where there are none."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core import geometry
from ...core.masks import is_masked
from ...core.config import OdometryConfig
from ...core.types import Frame
from ...matching.base import Matcher
from ..recordings.base import Source
from .baselines import PairMatches, PairMatcher
from .pairs import PairTruth, QUERIES, find_truth, sample_depth, sample_queries
from .relative_pose import (
    AUC_DEG,
    MIN_BASELINE_M,
    MIN_RELATIVE_BASELINE,
    auc,
    essential,
    pose_error_deg,
    translation_ratio,
)

MMA_PX = (1, 3, 5)
MIN_SCORE = OdometryConfig.min_score  # a match that odometry would use
MIN_VISIBLE = 10  # of fewer visible queries the share found would be noise


@dataclass(frozen=True)
class _Options:
    pose: bool  # also estimate relative poses
    seed: int


@dataclass
class _Tally:
    """What is collected of one matcher at one gap; one entry per pair unless stated otherwise."""

    mma: list[list[float]] = field(default_factory=list)
    correct: list[list[int]] = field(default_factory=list)
    precision: list[float] = field(default_factory=list)
    delivered: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)
    sampson: list[Tensor] = field(default_factory=list)
    held_out: list[Tensor] = field(default_factory=list)
    pose_deg: dict[str, list[float]] = field(default_factory=lambda: {"all": [], "better half": []})
    translation_scored: int = 0
    errors: list[Tensor] = field(default_factory=list)  # (N, 2) px of right matches, with
    sigmas: list[Tensor] = field(default_factory=list)  # (N,)
    common: list[float] = field(default_factory=list)  # px, length of the mean error of an image's right matches
    translation_ratio: list[float] = field(default_factory=list)
    match_ms: list[float] = field(default_factory=list)
    features_ms: float = 0.0


def evaluate_matcher(
    matcher: Matcher,
    source: Source,
    gaps: Sequence[int] = (1, 5, 10),
    max_pairs: int = 100,
    seed: int = 0,
    pose: bool = True,
) -> dict[str, Any]:
    """Scores one matcher, queried directly; the same pairs and queries for every matcher. See `evaluate`."""
    return evaluate([PairMatcher(matcher.name, matcher)], source, gaps, max_pairs, seed, pose)[0]


def evaluate(
    matchers: Sequence[PairMatcher],
    source: Source,
    gaps: Sequence[int],
    max_pairs: int = 100,
    seed: int = 0,
    pose: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Scores matchers over evenly spread pairs of a recording, all in one pass.

    Queries are the strongest Shi-Tomasi corners of the earlier image. Per gap (keys are the gap as text):
    `mma` {px: share of visible queries found within px; a query without a match is wrong}, `mma_interval` (95 %, bootstrap
    over pairs), `correct_per_pair`, `precision_3px` and `delivered` (of matches with a score that odometry would use),
    `coverage`, `sampson_px`, `pose_auc` with `pose_auc_interval` and `pose_from` (all delivered matches or those with the better half
    of the scores, whichever gives this matcher the larger AUC at 5 degrees), `sigma` (reliability), `common_px` (the error that all right
    matches of an image share), `translation_ratio` (the motion by PnP on true points over the true one), `features_ms`, `match_ms` (medians).
    Own keypoints have other queries; their `mma` is the count of right matches over the count of visible common queries.
    Without true poses only `self_consistency` remains. Entries without truth are None.

    Args:
        max_pairs: per gap. pose: also estimate relative poses, the slower part. on_progress: called with pairs done.
    """
    torch.manual_seed(seed)
    tallies = [{gap: _Tally() for gap in gaps} for _ in matchers]
    done = 0
    for frames, T_WC in iterate_pairs(source, gaps, max_pairs):
        gap = len(frames) - 1
        i, j = frames[0], frames[-1]
        uv = sample_queries(i.image, mask=i.mask)
        truth = find_truth(i, j, T_WC[0], T_WC[1], uv)
        for matcher, by_gap in zip(matchers, tallies):
            matcher.forget(i.id)
            matches = matcher.match(frames, uv)
            own = find_truth(i, j, T_WC[0], T_WC[1], matches.uv_i) if matcher.own_queries else truth
            _score(by_gap[gap], matches, own, int(truth.visible.sum()), (i, j), _Options(pose, seed))
        done += 1
        if on_progress is not None:
            on_progress(done)
    rng = np.random.default_rng(seed)
    return [
        {
            "matcher": c.name,
            "source": source.name,
            "queries": QUERIES,
            "min_score": MIN_SCORE,
            "seed": seed,
            "gaps": {str(gap): _summarise(t, c, rng) for gap, t in by_gap.items()},
        }
        for c, by_gap in zip(matchers, tallies)
    ]


def iterate_pairs(source: Source, gaps: Sequence[int], max_pairs: int) -> Iterator[tuple[list[Frame], tuple]]:
    """Yields (frames i..j, (T_WC_i, T_WC_j)) of evenly spread pairs; poses are (7,) float64 tensors or None.

    Only as many frames as the widest gap needs are held.
    """
    truth = source.groundtruth()
    length = source.count_frames()
    window: deque[tuple[Frame, Tensor | None]] = deque(maxlen=max(gaps) + 1)
    wanted = {gap: _spread(length - gap, max_pairs) for gap in gaps}
    for frame in source:
        pose = None
        if truth is not None:
            T, known = truth.at(np.array([frame.stamp_ns]))
            pose = geometry.from_matrix(torch.from_numpy(T[0])) if known[0] else None
        window.append((frame, pose))
        for gap in gaps:
            if len(window) > gap and frame.id - gap in wanted[gap]:
                part = list(window)[len(window) - gap - 1 :]
                yield [f for f, _ in part], (part[0][1], part[-1][1])


def count_pairs(source: Source, gaps: Sequence[int], max_pairs: int) -> int:
    """How many pairs `iterate_pairs` yields, if every frame can be read."""
    length = source.count_frames()
    return sum(len(_spread(length - gap, max_pairs)) for gap in gaps)


def _spread(count: int, most: int) -> set[int]:
    """At most `most` of 0 .. count-1, evenly."""
    return set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()) if count > 0 else set()


def _score(
    tally: _Tally,
    matches: PairMatches,
    truth: PairTruth,
    common_visible: int,
    pair: tuple[Frame, Frame],
    options: _Options,
) -> None:
    """Adds one pair to a tally. `common_visible`: the visible ones of the queries that all matchers have."""
    i, j = pair
    tally.match_ms.append(matches.match_ms)
    used = (matches.score >= MIN_SCORE) & ~is_masked(j.mask, matches.uv_j) & ~is_masked(i.mask, matches.uv_i)
    tally.delivered.append(float(used.float().mean()) if len(used) else 0.0)
    placed = common_visible >= MIN_VISIBLE
    if placed:
        _score_places(tally, matches, used, truth, common_visible, i)
    if truth.T_ij is None:
        tally.held_out.append(_held_out_sampson(matches, used, i, j, options.seed))
        return
    ideal_i, ideal_j = i.camera.undistort(matches.uv_i.double()), j.camera.undistort(matches.uv_j.double())
    seen = truth.baseline >= (MIN_RELATIVE_BASELINE if truth.baseline_is_relative else MIN_BASELINE_M)
    if seen:
        sampson = geometry.sampson(i.camera, j.camera, truth.T_ij, ideal_i[used], ideal_j[used])
        tally.sampson.append(sampson)
        if not placed:
            near = torch.zeros(len(used), dtype=torch.bool)
            near[used] = sampson <= 3
            tally.coverage.append(_coverage(matches.uv_i, near, torch.ones_like(near), i))
    if options.pose:
        _score_poses(tally, matches, used, truth, pair, options.seed)


def _score_places(
    tally: _Tally, matches: PairMatches, used: Tensor, truth: PairTruth, common_visible: int, i: Frame
) -> None:
    """Matches against the true places of the queries."""
    right_px = 5.0  # the stated sigma is that of right matches; a mismatch is not a large error of one
    error = (matches.uv_j.double() - truth.uv_j).norm(dim=1)
    error = torch.where(truth.visible & (matches.score > 0), error, torch.inf).nan_to_num(torch.inf)
    counts = [int((error <= px).sum()) for px in MMA_PX]
    tally.correct.append(counts)
    tally.mma.append([count / common_visible for count in counts])
    judged = used & truth.visible
    if judged.any():
        tally.precision.append(float((error[judged] <= 3).float().mean()))
    sure = judged & (error <= right_px)
    tally.errors.append((matches.uv_j.double() - truth.uv_j)[sure])
    tally.sigmas.append(matches.sigma_px[sure])
    if sure.sum() >= MIN_VISIBLE:
        tally.common.append(float(tally.errors[-1].mean(0).norm()))
    tally.coverage.append(_coverage(matches.uv_i, error <= 3, truth.visible, i))


def _score_poses(
    tally: _Tally, matches: PairMatches, used: Tensor, truth: PairTruth, pair: tuple[Frame, Frame], seed: int
) -> None:
    """The relative pose that the matches give, and the translation by PnP where there is depth."""
    i, j = pair
    assert truth.T_ij is not None, "poses are scored where the true one is known"
    seen = truth.baseline >= (MIN_RELATIVE_BASELINE if truth.baseline_is_relative else MIN_BASELINE_M)
    tally.translation_scored += seen
    if seen and i.depth is not None:
        depth, smooth = sample_depth(i.depth, matches.uv_i.double())
        chosen = used & smooth
        points_i = geometry.back_project(i.camera, i.camera.undistort(matches.uv_i.double())[chosen], depth[chosen])
        ratio = translation_ratio(points_i, j.camera, matches.uv_j[chosen], truth.T_ij, seed)
        tally.translation_ratio += [] if ratio is None else [ratio]
    better = used & (matches.score >= matches.score[used].median()) if used.any() else used
    for name, chosen in (("all", used), ("better half", better)):
        error_deg = pose_error_deg(
            i.camera, j.camera, matches.uv_i[chosen], matches.uv_j[chosen], truth.T_ij, seen, seed
        )
        tally.pose_deg[name].append(error_deg)


def _coverage(uv: Tensor, right: Tensor, possible: Tensor, frame: Frame) -> float:
    """Of the cells of an 8 x 6 grid that hold a query, the share that holds a right match."""
    columns, rows = 8, 6
    cell = (uv / uv.new_tensor([frame.camera.width / columns, frame.camera.height / rows])).long()
    cell = cell[:, 0].clamp(0, columns - 1) * rows + cell[:, 1].clamp(0, rows - 1)
    queried = cell[possible].unique()
    return len(cell[right & possible].unique()) / len(queried) if len(queried) else 0.0


def _held_out_sampson(matches: PairMatches, used: Tensor, i: Frame, j: Frame, seed: int) -> Tensor:
    """Sampson distance of every second match from the geometry that the others agree on; (K,) px."""
    rows = used.nonzero()[:, 0]
    fit, rest = rows[::2], rows[1::2]
    model = essential(i.camera, j.camera, matches.uv_i[fit], matches.uv_j[fit], seed)
    if model is None or not len(rest):
        return torch.full((len(rest),), torch.inf)
    a = geometry.rays(i.camera, i.camera.undistort(matches.uv_i[rest].double()))
    b = geometry.rays(j.camera, j.camera.undistort(matches.uv_j[rest].double()))
    E = torch.from_numpy(model[0])
    Ea, Eb = a @ E.mT, b @ E
    gradient = ((Ea[:, :2] / Ea.new_tensor([j.camera.fx, j.camera.fy])) ** 2).sum(1)
    gradient = gradient + ((Eb[:, :2] / Eb.new_tensor([i.camera.fx, i.camera.fy])) ** 2).sum(1)
    return (b * Ea).sum(1).abs() / gradient.sqrt()


def _summarise(tally: _Tally, matcher: PairMatcher, rng: np.random.Generator) -> dict[str, Any]:
    result: dict[str, Any] = {
        "pairs": len(tally.match_ms),
        "delivered": _mean(tally.delivered),
        "coverage": _mean(tally.coverage),
    }
    keys = [str(px) for px in MMA_PX]
    result["mma"] = result["mma_interval"] = result["correct_per_pair"] = result["precision_3px"] = result["sigma"] = (
        None
    )
    if tally.mma:
        mma = np.array(tally.mma)
        low, high = _bootstrap(mma, lambda rows: rows.mean(0), rng)
        result["mma"] = dict(zip(keys, mma.mean(0).tolist()))
        result["mma_interval"] = {k: [float(a), float(b)] for k, a, b in zip(keys, low, high)}
        result["correct_per_pair"] = dict(zip(keys, np.array(tally.correct).mean(0).tolist()))
        result["precision_3px"] = _mean(tally.precision)
        result["sigma"] = reliability(torch.cat(tally.errors), torch.cat(tally.sigmas))
    result["common_px"], result["translation_ratio"] = _mean(tally.common), _mean(tally.translation_ratio)
    result["sampson_px"] = _distances(tally.sampson)
    result["self_consistency"] = {"held_out_sampson_px": _distances(tally.held_out)} if tally.held_out else None
    result["pose_auc"] = result["pose_auc_interval"] = None
    if tally.pose_deg["all"]:
        # Everyone at its best: some matchers grade their matches well enough that half of them make a better pose.
        result["pose_from"], degrees = max(tally.pose_deg.items(), key=lambda item: auc(item[1])[str(AUC_DEG[0])])
        result["pose_auc"] = auc(degrees)
        low, high = _bootstrap(np.array(degrees), lambda rows: np.array(list(auc(rows).values())), rng)
        result["pose_auc_interval"] = {str(k): [float(a), float(b)] for k, a, b in zip(AUC_DEG, low, high)}
        result["pose_translation_scored"] = tally.translation_scored
    result["features_ms"] = float(np.median(matcher.features_ms)) if matcher.features_ms else None
    result["match_ms"] = float(np.median(tally.match_ms)) if tally.match_ms else None
    return result


def reliability(errors: Tensor, sigmas: Tensor, bins: int = 5) -> dict[str, Any] | None:
    """Whether stated standard deviations are true: per coordinate, the share of errors within 1 and 2 sigma.

    A calibrated sigma has .683 and .954. `table` has the same per fifth of the matches, from the surest to the least sure.

    Args:
        errors: (N, 2) px. sigmas: (N,) px.
    """
    if len(errors) < 10 * bins:
        return None
    order = sigmas.argsort()

    def row(index: Tensor) -> dict[str, float]:
        ratio = errors[index].abs() / sigmas[index, None]
        return {
            "matches": len(index),
            "sigma_px": float(sigmas[index].mean()),
            "rms_px": float(errors[index].square().mean().sqrt()),
            "within_1": float((ratio <= 1).double().mean()),
            "within_2": float((ratio <= 2).double().mean()),
        }

    return {**row(order), "table": [row(part) for part in order.chunk(bins)]}


def _distances(parts: list[Tensor]) -> dict[str, float] | None:
    values = torch.cat(parts) if parts else torch.empty(0)
    values = torch.where(values.isnan(), torch.inf, values)
    if not len(values):
        return None
    return {
        "median": float(values.median()),
        "within_1": float((values <= 1).double().mean()),
        "within_3": float((values <= 3).double().mean()),
        "matches": len(values),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator, rounds: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a statistic under resampling of pairs."""
    samples = np.array([statistic(rows[rng.integers(0, len(rows), len(rows))]) for _ in range(rounds)])
    return np.percentile(samples, 2.5, 0), np.percentile(samples, 97.5, 0)
