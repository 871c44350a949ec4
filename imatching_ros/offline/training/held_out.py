"""Weights before and after fine-tuning, compared on windows that were held back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ...core.config import Config, LearningConfig
from ...learning.sample import hold_out
from ...learning.sequential_test import Look
from ...learning.validation import PairedTest, Score, Verdict, score
from ...matching.base import Matcher
from .windows import Recording, read_window, split_windows

MOST_WINDOWS = 60  # more would cost time and change no verdict


@dataclass(frozen=True)
class Validation:
    """Scores before and after on the windows held back, and what follows from them."""

    pairs: list[tuple[str, Score, Score]]  # recording, before, after
    verdict: Verdict
    looks: int

    def checks(self) -> dict[str, tuple[float, float]]:
        """Means before and after, by name."""
        names = [field.name for field in fields(Score)]
        return {name: _means([pair[1:] for pair in self.pairs], name) for name in names}

    def by_source(self) -> dict[str, tuple[float, float, int]]:
        """Held-out error before and after, px, and number of windows, by recording."""
        out = {}
        for source in dict.fromkeys(name for name, _, _ in self.pairs):
            own = [pair[1:] for pair in self.pairs if pair[0] == source]
            out[source] = (*_means(own, "held_out_px"), len(own))
        return out


def decide(scores: list[tuple[Score, Score]], settings: LearningConfig, looks: int) -> Verdict:
    """The paired test on a number of windows that is fixed beforehand. Pure.

    Look k gets the part 1 / k(k + 1) of the error rate: however many follow, together they get no more than all of it.
    """
    count, fewest = len(scores), settings.validation_windows
    if count < fewest:
        reason = f"{count} windows were held back, a verdict needs {fewest}: give more or longer recordings, or hold back more"
        return Verdict("undecided", reason, *_means(scores, "held_out_px"), count)
    test = PairedTest((Look(count, (1 - settings.confidence) / (looks * (looks + 1))),))
    return [test.add(before, after) for before, after in scores][-1]


def held_out_windows(recordings: list[Recording], hold_back: float) -> list[tuple[str, Path]]:
    """Recording and file of the windows that validate, spread evenly where there are more than enough."""
    windows = [(r.name, r.path(k)) for r in recordings for k in split_windows(r, hold_back)[1]]
    if len(windows) > MOST_WINDOWS:
        windows = [windows[k] for k in np.linspace(0, len(windows) - 1, MOST_WINDOWS).round().astype(int)]
    return windows


def score_windows(
    before: Matcher, after: Matcher, windows: Iterable[tuple[str, Path]], config: Config
) -> Iterator[tuple[str, Score, Score] | None]:
    """Scores of two matchers on each window; None where one of them has nothing that was held out."""
    for name, path in windows:
        sample = hold_out(read_window(path), config.seed)
        seed = config.seed + sample.stamp_ns % 1_000_003
        old, new = (score(m, sample, config.learning, config.bundle, seed) for m in (before, after))
        yield (name, old, new) if old.has_held_out and new.has_held_out else None


def _means(scores: list[tuple[Score, Score]], name: str) -> tuple[float, float]:
    if not scores:
        return float("nan"), float("nan")
    before, after = (float(np.mean([getattr(pair[k], name) for pair in scores])) for k in (0, 1))
    return before, after
