"""The paired test that promotes a candidate."""

import dataclasses

import numpy as np
import pytest

from imatching_ros.core.config import LearningConfig
from imatching_ros.learning.validation import LOOK_EVERY, Score, _noise_level, paired_test

CONFIG = LearningConfig()
FEW, MANY = CONFIG.validation_windows, CONFIG.validation_windows_max


def scores(held_out, **fields):
    base = Score(1.0, 0.5, 0.4, 1000, 0.6, 0.68)
    return [dataclasses.replace(base, held_out_px=float(e), **fields) for e in held_out]


def noisy(mean, n, seed=0):
    return mean + np.random.default_rng(seed).normal(0, 0.05, n)


def test_clear_gain_is_better_and_clear_loss_is_worse():
    assert paired_test(scores(noisy(1.0, FEW)), scores(noisy(0.6, FEW, 1)), CONFIG).outcome == "better"
    assert paired_test(scores(noisy(0.6, FEW)), scores(noisy(1.0, FEW, 1)), CONFIG).outcome == "worse"


def test_few_windows_are_never_enough():
    assert paired_test(scores(noisy(1.0, FEW - 1)), scores(noisy(0.1, FEW - 1)), CONFIG).outcome == "pending"


def test_an_undecided_test_continues_and_ends():
    gains = np.tile([0.1, -0.1], MANY)
    assert paired_test(scores(1 + gains[:FEW]), scores(np.ones(FEW)), CONFIG).outcome == "pending"
    assert paired_test(scores(1 + gains[:MANY]), scores(np.ones(MANY)), CONFIG).outcome == "no_better"


@pytest.mark.parametrize(
    "name, value",
    [("warp_px", 0.6), ("forward_backward_px", 0.5), ("matches", 900), ("coverage", 0.5), ("within_sigma", 0.5)],
)
def test_whatever_else_is_lost_outweighs_a_better_residual(name, value):
    verdict = paired_test(scores(noisy(1.0, FEW)), scores(noisy(0.6, FEW, 1), **{name: value}), CONFIG)
    assert verdict.outcome == "worse"
    assert name in verdict.reason or "calibration" in verdict.reason


def test_outcomes_change_only_at_looks():
    clear = scores(noisy(1.0, MANY)), scores(noisy(0.1, MANY, 1))
    looked = [n for n in range(1, MANY + 1) if paired_test(clear[0][:n], clear[1][:n], CONFIG).outcome != "pending"]
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
        outcome = next(
            v
            for n in range(FEW, MANY + 1)
            if (v := paired_test(scores(active[:n]), scores(candidate[:n]), CONFIG).outcome) != "pending"
        )
        promoted += outcome == "better"
    limit = 1 - CONFIG.confidence
    assert promoted / runs <= limit + 1.65 * np.sqrt(limit * (1 - limit) / runs)


@pytest.mark.parametrize("sigma", (2.0, 8.0))
def test_noise_of_an_image_is_measured_beside_its_edges(sigma):
    rows, columns = np.mgrid[:120, :160]
    image = 80 + 60 * ((rows // 24 + columns // 24) % 2) + 0.2 * columns
    noisy = image + np.random.default_rng(0).normal(0, sigma, image.shape)
    assert _noise_level(np.clip(noisy, 0, 255).astype(np.uint8)) == pytest.approx(sigma, rel=0.15)
