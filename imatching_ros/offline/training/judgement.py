"""Whether fine-tuned weights are better: the trial of a live candidate, on windows that were held back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...core.config import Config, LearningConfig
from ...learning.validation import PairedTest, Score, Verdict, score
from ...matching.base import Matcher
from .stored_windows import read_window

MOST_WINDOWS = 60  # more would cost time and change no verdict
_CHECKS = ("held_out_px", "warp_px", "forward_backward_px", "matches", "coverage", "within_sigma")


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    checks: dict[str, tuple[float, float]]  # by name: means before and after
    by_source: dict[str, tuple[float, float, int]]  # held-out error before and after, px; windows

    @property
    def better(self) -> bool:
        return self.verdict.outcome == "better"


def judge_windows(
    before: Matcher,
    after: Matcher,
    windows: list[tuple[str, Path]],
    config: Config,
    looks: int,
    on_window: Callable[[int], None],
) -> Judgement:
    """Both weights match the same queries of the same windows, each with its own bundle adjustment.

    Args:
        windows: (recording, file); no keyframe in them has taught.
        looks: how often these windows have been looked at, this time included. Each look is a chance to be fooled.
        on_window: called with the number of windows done; what it raises ends the trial.
    """
    if len(windows) > MOST_WINDOWS:
        windows = [windows[k] for k in np.linspace(0, len(windows) - 1, MOST_WINDOWS).round().astype(int)]
    scores: list[tuple[Score, Score]] = []
    sources: list[str] = []
    for number, (name, path) in enumerate(windows):
        sample = read_window(path)
        seed = config.seed + sample.stamp_ns % 1_000_003
        old, new = (score(m, sample, config.learning, config.bundle, seed) for m in (before, after))
        if old.has_held_out and new.has_held_out:
            scores.append((old, new))
            sources.append(name)
        on_window(number + 1)
    by_source = {}
    for name in dict.fromkeys(sources):
        own = [pair for source, pair in zip(sources, scores) if source == name]
        by_source[name] = (*_means(own, "held_out_px"), len(own))
    return Judgement(
        decide(scores, config.learning, looks), {name: _means(scores, name) for name in _CHECKS}, by_source
    )


def decide(scores: list[tuple[Score, Score]], settings: LearningConfig, looks: int) -> Verdict:
    """The paired test on a number of windows that is fixed beforehand. Pure; what is not shown to be better is not called so.

    Look k gets the part 1 / k(k + 1) of what the confidence leaves: however many follow, together they get no more than all of it.
    """
    count, least = len(scores), settings.validation_windows
    if count < least:
        old, new = _means(scores, "held_out_px")
        return Verdict(
            "undecided",
            f"{count} windows were held back, a verdict needs {least}: give more or longer recordings, or hold back more",
            old,
            new,
            count,
        )
    test = PairedTest(settings.confidence, count, count, looks * (looks + 1))
    return [test.add(old, new) for old, new in scores][-1]


def _means(scores: list[tuple[Score, Score]], name: str) -> tuple[float, float]:
    if not scores:
        return float("nan"), float("nan")
    old, new = (float(np.mean([getattr(pair[k], name) for pair in scores])) for k in (0, 1))
    return old, new
