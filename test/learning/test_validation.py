"""The paired test that promotes a candidate: what it takes, and what outweighs a better residual."""

import dataclasses
from math import nan

import numpy as np
import pytest

from imatching_ros.core.config import LearningConfig
from imatching_ros.learning.sequential_test import AlphaSpending
from imatching_ros.learning.validation import Score, candidate_test, post_deployment_test

CONFIG = LearningConfig()
FEW, MANY = CONFIG.validation_windows, CONFIG.validation_windows_max
BASE = Score(1.0, 0.5, 0.4, 1000, 0.6, 0.68, 0.0, 0.05, nan)


def scores(held_out, **fields):
    return [dataclasses.replace(BASE, held_out_px=float(e), **fields) for e in held_out]


def verdicts(before, after):
    """The verdict of the first candidate of an hour after every window."""
    test = candidate_test(CONFIG, AlphaSpending(1 - CONFIG.confidence), 0)
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
    gains = np.tile([0.11, -0.1], MANY)
    assert outcome(scores(1 + gains[:FEW]), scores(np.ones(FEW))) == "pending"
    assert outcome(scores(1 + gains[:MANY]), scores(np.ones(MANY))) == "no_better"


@pytest.mark.parametrize(
    "name, value",
    [
        ("warp_px", 0.6),
        ("forward_backward_px", 0.5),
        ("matches", 900),
        ("coverage", 0.5),
        ("within_sigma", 0.5),
        ("along_flow_px", -0.22),
        ("along_flow_px", 0.22),
        ("common_px", 0.2),
    ],
)
def test_whatever_else_is_lost_outweighs_a_better_residual(name, value):
    verdict = verdicts(scores(noisy(1.0, FEW)), scores(noisy(0.6, FEW, 1), **{name: value}))[-1]
    assert verdict.outcome == "worse"
    assert name in verdict.reason or "calibration" in verdict.reason


@pytest.mark.parametrize("ratio, expected", ((0.96, "worse"), (0.99, "better"), (1.04, "worse")))
def test_a_translation_that_comes_out_wrong_outweighs_a_better_residual(ratio, expected):
    before, after = scores(noisy(1.0, FEW), translation_ratio=1.0), scores(noisy(0.6, FEW, 1), translation_ratio=ratio)
    assert outcome(before, after) == expected


def test_a_smaller_bias_is_no_loss():
    before = scores(noisy(1.0, FEW), along_flow_px=-0.4, common_px=0.3)
    assert outcome(before, scores(noisy(0.6, FEW, 1), along_flow_px=0.3, common_px=0.2)) == "better"


def test_post_deployment_validation_decides_within_its_windows():
    test = post_deployment_test(CONFIG)
    assert test.most == CONFIG.post_deployment_windows
    outcomes = [test.add(*pair).outcome for pair in zip(scores(noisy(1.0, 3)), scores(noisy(0.5, 3, 1)))]
    assert outcomes == ["pending", "pending", "better"] and test.windows == 3
