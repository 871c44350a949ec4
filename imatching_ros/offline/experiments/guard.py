"""How often does the guard promote what is not better, and how often what is? Measured on windows of recordings, with real noise.

The candidates are random perturbations of the weights. Their scores are shifted so that, over the drive, each is exactly as good
as the weights in use, or better by one standard deviation of the gain of a window; what remains is how gains really vary and
follow each other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...core.config import Config, LearningConfig
from ...core.types import LearningSample
from ...learning.sample import hold_out
from ...learning.sequential_test import AlphaSpending, enough_new
from ...learning.validation import Score, Verdict, candidate_test, score
from ...matching import create_matcher
from ...matching.base import Matcher
from ..recordings.base import Source
from ..training.windows import solved_windows

STRENGTH = 0.02  # of a perturbation: standard deviation of what is added to a weight, in that of its tensor
LAGS = 8


@dataclass(frozen=True)
class Drive:
    """The scores of one recording's windows, as the guard would choose them."""

    name: str
    before: list[Score]  # W, of the weights in use
    after: list[list[Score]]  # by candidate, W each

    @property
    def gains_px(self) -> np.ndarray:
        """(candidates, W): held-out error of the weights in use minus that of the candidate."""
        return np.array([[b.held_out_px - a.held_out_px for b, a in zip(self.before, after)] for after in self.after])

    def shifted(self, candidate: int, gain_in_sd: float) -> list[Score]:
        """The scores of a candidate, moved so that its mean gain is so many standard deviations of its own gain."""
        gains = self.gains_px[candidate]
        shift = gains.mean() - gain_in_sd * gains.std(ddof=1)
        return [replace(s, held_out_px=s.held_out_px + float(shift)) for s in self.after[candidate]]


def score_drive(
    config: Config, source: Source, candidates: int, on_frame: Callable[[int, str], None], seed: int = 0
) -> Drive:
    """Scores the weights in use and so many perturbations of them on every window that the guard would accept."""
    matcher = create_matcher(config.matcher)
    matchers = [matcher, *(perturbed(matcher, seed + k + 1) for k in range(candidates))]
    rows: list[list[Score]] = []
    last: frozenset[int] = frozenset()
    frames = solved_windows(config.with_values({"odometry.mode": source.mode}), source)
    for number, (_, sample, refusal) in enumerate(frames):
        on_frame(number, f"{len(rows)} windows")
        if sample is None or refusal is not None or not enough_new(sample.keyframe_ids, last):
            continue
        scores = _score_all(matchers, sample, config)
        if all(s.has_held_out for s in scores):
            rows.append(scores)
            last = frozenset(sample.keyframe_ids)
    columns = [list(column) for column in zip(*rows)]
    return Drive(source.name, columns[0] if columns else [], columns[1:])


def perturbed(matcher: Matcher, seed: int) -> Matcher:
    """A copy with noise on every weight that learns."""
    twin = copy.deepcopy(matcher)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if parameter.numel() > 1 and not name.startswith("confidence."):
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(STRENGTH * parameter.std() * noise)
    return twin.eval()


def _score_all(matchers: list[Matcher], sample: LearningSample, config: Config) -> list[Score]:
    seed = config.seed + sample.stamp_ns % 1_000_003
    sample = hold_out(sample, config.seed)
    return [score(matcher, sample, config.learning, config.bundle, seed) for matcher in matchers]


def judge(
    before: list[Score], after: list[Score], config: LearningConfig, spending: AlphaSpending, stamp_ns: int = 0
) -> Verdict:
    """The verdict on a candidate, on windows in a row; `pending` where they end before."""
    test = candidate_test(config, spending, stamp_ns)
    verdict = Verdict("pending", "no window", float("nan"), float("nan"), 0)
    for pair in zip(before, after):
        verdict = test.add(*pair)
        if verdict.outcome != "pending":
            break
    return verdict


def measure(
    drives: list[Drive], config: LearningConfig, sessions: int, candidates: int, seed: int = 0
) -> dict[str, Any]:
    """False promotions a session of so many candidates of equal quality, power at a gain of one standard deviation, correlation."""
    rng = np.random.default_rng(seed)
    equal = {(d, c): drive.shifted(c, 0.0) for d, drive in enumerate(drives) for c in range(len(drive.after))}
    better = {(d, c): drive.shifted(c, 1.0) for d, drive in enumerate(drives) for c in range(len(drive.after))}
    keys = list(equal)

    def trial(scores: dict[tuple[int, int], list[Score]], spending: AlphaSpending) -> Verdict:
        """A random candidate from a random place of its drive on; the drive is played round and round."""
        key = keys[int(rng.integers(len(keys)))]
        before, after = drives[key[0]].before, scores[key]
        start = int(rng.integers(len(before)))
        return judge(before[start:] + before, after[start:] + after, config, spending)

    fooled, outcomes = 0, {"better": 0, "worse": 0, "no_better": 0, "pending": 0}
    for _ in range(sessions):
        spending = AlphaSpending(1 - config.confidence)
        for _ in range(candidates):
            verdict = trial(equal, spending)
            outcomes[verdict.outcome] += 1
            if verdict.outcome == "better":
                fooled += 1
                break
    runs = max(10 * sessions, 200)
    first = [trial(better, AlphaSpending(1 - config.confidence)) for _ in range(runs)]
    promoted = [v for v in first if v.outcome == "better"]
    return {
        "false_promotion_per_session": fooled / sessions,
        "sessions": sessions,
        "candidates": candidates,
        "outcomes_of_equal_candidates": outcomes,
        "power": sum(v.windows <= config.validation_windows_max for v in promoted) / runs,
        "median_windows": float(np.median([v.windows for v in promoted])) if promoted else float("nan"),
        "vetoed_of_better": sum(v.outcome == "worse" for v in first) / runs,
        "correlation": {drive.name: autocorrelation(drive.gains_px) for drive in drives},
    }


def autocorrelation(gains: np.ndarray) -> list[float]:
    """Of gains (candidates, W) at lags 1 to LAGS, mean over the candidates."""
    centred = gains - gains.mean(1, keepdims=True)
    power = (centred**2).mean(1)
    lags = range(1, min(LAGS, gains.shape[1] - 2) + 1)
    return [float(((centred[:, lag:] * centred[:, :-lag]).mean(1) / power).mean()) for lag in lags]
