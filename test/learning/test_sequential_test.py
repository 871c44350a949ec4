"""The error rates that the sequential test promises, by simulation with the correlation of real windows."""

import numpy as np
import pytest
from scipy.signal import lfilter

from imatching_ros.core.config import LearningConfig
from imatching_ros.learning.sequential_test import (
    HOUR_NS,
    AlphaSpending,
    SequentialTest,
    candidate_looks,
    enough_new,
    plan_looks,
)

CONFIG = LearningConfig()
FEW, MANY = CONFIG.validation_windows, CONFIG.validation_windows_max
RATE = 1 - CONFIG.confidence
CORRELATIONS = (0.0, 0.11, 0.2)  # of neighbouring windows: none, as measured, as assumed


def noise(rng, count, correlation):
    """Gains of unit deviation of windows in a row; autoregressive of first order."""
    warm_up = 20
    drawn = rng.normal(0, np.sqrt(1 - correlation**2), count + warm_up)
    return lfilter([1.0], [1.0, -correlation], drawn)[warm_up:]


def decide(test, gains):
    """Outcome, and windows until then."""
    for gain in gains:
        outcome, _ = test.add(float(gain))
        if outcome != "pending":
            break
    return outcome, test.windows


def candidate(spending, stamp_ns=0):
    return SequentialTest(candidate_looks(FEW, MANY, *spending.take(stamp_ns)))


def upper(rate, runs):
    """What a count over so many runs may reach where the rate is true (95 %)."""
    return rate + 1.65 * np.sqrt(rate * (1 - rate) / runs)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_an_hour_of_candidates_of_equal_quality_promotes_one_in_twenty_hours_at_most(correlation):
    rng, sessions, candidates = np.random.default_rng(0), 250, 40
    fooled = 0
    for _ in range(sessions):
        spending = AlphaSpending(RATE)
        outcomes = (decide(candidate(spending), noise(rng, 3 * MANY, correlation))[0] for _ in range(candidates))
        fooled += "better" in outcomes
    assert fooled / sessions <= upper(RATE, sessions)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_a_gain_of_one_standard_deviation_is_promoted_within_fifteen_windows_four_times_in_five(correlation):
    rng, runs = np.random.default_rng(1), 2000
    found = [decide(candidate(AlphaSpending(RATE)), 1 + noise(rng, MANY, correlation)) for _ in range(runs)]
    assert MANY == 15 and np.mean([outcome == "better" for outcome, _ in found]) >= 0.8


def test_the_tenth_candidate_has_the_same_power_in_more_windows():
    rng, runs = np.random.default_rng(2), 500
    promoted = []
    for _ in range(runs):
        spending = AlphaSpending(RATE)
        for _ in range(9):
            spending.take(0)
        promoted.append(decide(candidate(spending), 1 + noise(rng, 3 * MANY, 0.11)))
    assert np.mean([outcome == "better" for outcome, _ in promoted]) >= 0.8
    assert MANY < max(windows for _, windows in promoted) <= 2.2 * MANY


def test_the_shares_of_an_hour_are_no_more_than_its_rate_and_come_back_with_a_promotion():
    spending = AlphaSpending(RATE)
    shares = [spending.take(0) for _ in range(1000)]
    assert shares[0] == (1, RATE / 2) and sum(share for _, share in shares) < RATE
    assert spending.take(HOUR_NS) == (1, RATE / 2), "the next hour has its own"
    spending.give_back()
    assert spending.take(HOUR_NS + 1) == (1, RATE / 2)
    assert spending.take(HOUR_NS + 2)[0] == 2


def test_no_hour_spends_more_than_the_rate_wherever_it_begins():
    spending, minute = AlphaSpending(RATE), HOUR_NS // 60
    begins = [0, *range(30, 90)]  # minutes: few tests, then many across the end of the first test's hour
    shares = [spending.take(begin * minute)[1] for begin in begins]
    hours = [sum(s for s, at in zip(shares, begins, strict=True) if 0 <= at - begin < 60) for begin in begins]
    assert max(hours) < RATE
    assert spending.take(89 * minute + HOUR_NS) == (1, RATE / 2), "what was spent before the last hour comes back"


def test_a_clock_that_is_set_back_by_a_day_does_not_stop_the_spending():
    spending = AlphaSpending(RATE)
    spending.take(24 * HOUR_NS)
    assert [spending.take(stamp)[0] for stamp in (0, HOUR_NS, 2 * HOUR_NS)] == [1, 1, 1]


def test_looks_share_the_rate():
    looks = plan_looks(FEW, MANY, 0.02)
    assert [look.windows for look in looks] == [6, 10, 15]
    assert sum(look.error_rate for look in looks) == pytest.approx(0.02)


def test_outcomes_come_at_looks_only():
    test = SequentialTest(plan_looks(FEW, MANY, 0.02))
    outcomes = [test.add(1 + 0.1 * (-1) ** k)[0] for k in range(MANY)]
    assert [k + 1 for k, outcome in enumerate(outcomes) if outcome != "pending"] == [6, 10, 15]


def test_a_test_without_prospects_ends_early_and_is_not_called_worse():
    gains = [0.1, -0.11] * MANY
    assert decide(SequentialTest(plan_looks(FEW, MANY, 0.02)), gains) == ("no_better", FEW)


def test_a_quarter_of_the_keyframes_must_be_new():
    assert enough_new(range(2, 10), range(8)) and not enough_new(range(1, 9), range(8))
    assert enough_new(range(8), ())
