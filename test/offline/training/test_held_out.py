"""What it takes for fine-tuned weights to be called better."""

import dataclasses

import numpy as np
import pytest
from scipy.signal import lfilter

from imatching_ros.core.config import LearningConfig
from imatching_ros.learning.validation import Score
from imatching_ros.offline.training.held_out import decide

SETTINGS = LearningConfig()


def pairs(gain, count, seed=0, correlation=0.0, **after):
    """Scores before and after of windows in a row; `correlation` of the noise of neighbours."""
    drawn = np.random.default_rng(seed).normal(0, 0.05, (2, count + 20))
    noise = lfilter([(1 - correlation**2) ** 0.5], [1.0, -correlation], drawn)[:, 20:]
    base = Score(1.0, 0.5, 0.4, 1000, 0.6, 0.68, 0.0, 0.05, float("nan"))
    old = [dataclasses.replace(base, held_out_px=1 + float(e)) for e in noise[0]]
    return [
        (s, dataclasses.replace(s, held_out_px=s.held_out_px - gain + float(e), **after)) for s, e in zip(old, noise[1])
    ]


def test_clear_gain_is_better_and_nothing_else_is():
    assert decide(pairs(0.4, 8), SETTINGS, 1).outcome == "better"
    assert decide(pairs(-0.4, 8), SETTINGS, 1).outcome == "worse"
    assert decide(pairs(0.0, 8, seed=1), SETTINGS, 1).outcome == "no_better"
    assert decide(pairs(0.4, 8, warp_px=0.7), SETTINGS, 1).outcome == "worse"


@pytest.mark.parametrize("count", (0, 1, SETTINGS.validation_windows - 1))
def test_few_windows_decide_nothing(count):
    verdict = decide(pairs(0.9, count), SETTINGS, 1)
    assert verdict.outcome == "undecided" and f"{count} windows were held back" in verdict.reason


def test_looking_often_raises_the_bar():
    scores = pairs(0.08, 8, seed=3)
    outcomes = [decide(scores, SETTINGS, looks).outcome for looks in (1, 2, 1000)]
    assert outcomes[0] == "better" and outcomes[-1] == "no_better"


@pytest.mark.parametrize("correlation", (0.0, 0.2))
def test_noise_is_called_better_no_more_often_than_the_confidence_says(correlation):
    runs, looks = 400, 5
    fooled = sum(
        any(
            decide(pairs(0.0, 8, 100 * k + look, correlation), SETTINGS, look + 1).outcome == "better"
            for look in range(looks)
        )
        for k in range(runs)
    )
    limit = 1 - SETTINGS.confidence
    assert fooled / runs <= limit + 1.65 * np.sqrt(limit * (1 - limit) / runs)
