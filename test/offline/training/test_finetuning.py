"""Which windows validate, and what it takes to be called better."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import lfilter

from imatching_ros.core.config import LearningConfig
from imatching_ros.learning.validation import Score
from imatching_ros.offline.training.finetuning import decide
from imatching_ros.offline.training.windows import (
    Recording,
    last_training_frame,
    split_windows,
    training_windows_again,
)

SETTINGS = LearningConfig()


def sliding(count, size=8):
    return Recording(Path("r"), "r", tuple(tuple(range(k, k + size)) for k in range(count)), 10 * count, {}, "")


def pairs(gain, count, seed=0, correlation=0.0, **after):
    """Scores before and after of windows in a row; `correlation` of the noise of neighbours."""
    drawn = np.random.default_rng(seed).normal(0, 0.05, (2, count + 20))
    noise = lfilter([(1 - correlation**2) ** 0.5], [1.0, -correlation], drawn)[:, 20:]
    base = Score(1.0, 0.5, 0.4, 1000, 0.6, 0.68, 0.0, 0.05, float("nan"))
    old = [dataclasses.replace(base, held_out_px=1 + float(e)) for e in noise[0]]
    return [
        (s, dataclasses.replace(s, held_out_px=s.held_out_px - gain + float(e), **after)) for s, e in zip(old, noise[1])
    ]


@pytest.mark.parametrize("share", (0.1, 0.3, 0.6))
def test_no_keyframe_is_in_training_and_validation(share):
    recording = sliding(80)
    training, validation = split_windows(recording, share)
    assert training == list(range(round(80 * (1 - share))))
    trained = {k for w in training for k in recording.windows[w]}
    assert validation[0] == training[-1] + 8 and not trained & {k for w in validation for k in recording.windows[w]}
    assert np.diff(validation).tolist() == [2] * (len(validation) - 1)


def test_short_recordings_have_no_validation_window():
    assert split_windows(sliding(10), 0.3) == (list(range(7)), [])
    assert split_windows(sliding(0), 0.3) == ([], [])


def test_all_windows_may_be_for_training():
    assert split_windows(sliding(10), 0.0) == (list(range(10)), [])


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


def test_windows_of_later_epochs_end_where_those_of_the_first_do():
    recording = sliding(20)
    last = last_training_frame(recording, 0.3)
    assert last == recording.windows[13][-1] == 20
    assert last_training_frame(sliding(0), 0.3) == -1


def test_windows_of_later_epochs_leave_out_what_validates():
    first = Recording(Path("r"), "r", ((0, 1, 2), (1, 2, 3), (3, 4, 5), (5, 6, 7)), 8, {}, "")
    again = dataclasses.replace(first, windows=((0, 2, 3), (2, 3, 6), (2, 3, 4)))
    assert split_windows(first, 0.5) == ([0, 1], [3])
    assert training_windows_again(first, again, 0.5) == [0, 2]
