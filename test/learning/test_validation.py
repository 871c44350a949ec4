"""The paired test that promotes a candidate."""

import dataclasses

import numpy as np
import pytest

from imatching_ros.core.config import LearningConfig
from imatching_ros.learning.validation import LOOK_EVERY, PairedTest, Score, post_deployment_test, validation_test

CONFIG = LearningConfig()
FEW, MANY = CONFIG.validation_windows, CONFIG.validation_windows_max


def scores(held_out, **fields):
    base = Score(1.0, 0.5, 0.4, 1000, 0.6, 0.68)
    return [dataclasses.replace(base, held_out_px=float(e), **fields) for e in held_out]


def verdicts(before, after):
    """The verdict after every window."""
    test = validation_test(CONFIG)
    return [test.add(b, a) for b, a in zip(before, after, strict=True)]


def outcome(before, after):
    return verdicts(before, after)[-1].outcome


def noisy(mean, n, seed=0):
    return mean + np.random.default_rng(seed).normal(0, 0.05, n)


def test_clear_gain_is_better_and_clear_loss_is_worse():
    assert outcome(scores(noisy(1.0, FEW)), scores(noisy(0.6, FEW, 1))) == "better"
    assert outcome(scores(noisy(0.6, FEW)), scores(noisy(1.0, FEW, 1))) == "worse"


def test_few_windows_are_never_enough():
    assert outcome(scores(noisy(1.0, FEW - 1)), scores(noisy(0.1, FEW - 1))) == "pending"


def test_an_undecided_test_continues_and_ends():
    gains = np.tile([0.1, -0.1], MANY)
    assert outcome(scores(1 + gains[:FEW]), scores(np.ones(FEW))) == "pending"
    assert outcome(scores(1 + gains[:MANY]), scores(np.ones(MANY))) == "no_better"


@pytest.mark.parametrize(
    "name, value",
    [("warp_px", 0.6), ("forward_backward_px", 0.5), ("matches", 900), ("coverage", 0.5), ("within_sigma", 0.5)],
)
def test_whatever_else_is_lost_outweighs_a_better_residual(name, value):
    verdict = verdicts(scores(noisy(1.0, FEW)), scores(noisy(0.6, FEW, 1), **{name: value}))[-1]
    assert verdict.outcome == "worse"
    assert name in verdict.reason or "calibration" in verdict.reason


def test_outcomes_change_only_at_looks():
    clear = verdicts(scores(noisy(1.0, MANY)), scores(noisy(0.1, MANY, 1)))
    looked = [verdict.windows for verdict in clear if verdict.outcome != "pending"]
    assert looked == sorted({*range(FEW, MANY + 1, LOOK_EVERY), MANY})


@pytest.mark.parametrize("shared", (False, True), ids=("apart", "sharing half"))
def test_noise_is_promoted_no_more_often_than_the_confidence_says(shared):
    """All looks together must keep the promise, also where each window shares half of its keyframes with the one before."""
    rng = np.random.default_rng(0)
    runs, promoted = 1000, 0
    for _ in range(runs):
        active, candidate = rng.normal(1, 0.1, (2, MANY + 1))
        if shared:
            active, candidate = (active[1:] + active[:-1]) / 2, (candidate[1:] + candidate[:-1]) / 2
        decided = [
            v.outcome for v in verdicts(scores(active[:MANY]), scores(candidate[:MANY])) if v.outcome != "pending"
        ]
        promoted += decided[0] == "better"
    limit = 1 - CONFIG.confidence
    assert promoted / runs <= limit + 1.65 * np.sqrt(limit * (1 - limit) / runs)


def test_post_deployment_validation_decides_within_its_windows():
    test = post_deployment_test(CONFIG)
    assert test.fewest < test.most == CONFIG.post_deployment_windows
    outcomes = [test.add(*pair).outcome for pair in zip(scores(noisy(1.0, 3)), scores(noisy(0.5, 3, 1)))]
    assert outcomes == ["pending"] * 3 and test.windows == 3


def test_more_looks_raise_the_limit():
    pairs = list(zip(scores(noisy(1.0, 8)), scores(noisy(0.93, 8, 1))))
    few, many = (PairedTest(0.95, 8, 8, looks) for looks in (1, 1000))
    assert [test.add(*pair).outcome for pair in pairs for test in (few, many)][-2:] == ["better", "no_better"]
