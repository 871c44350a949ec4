"""The learner yields often enough for odometry not to notice it, in the backward pass too."""

import pytest
import torch

from imatching_ros.core.config import Config
from imatching_ros.learning.learner import Learner
from imatching_ros.learning.step import match_window
from imatching_ros.learning.cooperative_yield import YIELD
from imatching_ros.matching.expectation import ExpectationMatcher

LAYERS = 30  # of the matcher's 45, those through which all images pass


class Stop(Exception):
    pass


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return Learner(ExpectationMatcher().eval(), Config(), lambda event: None)


@pytest.fixture
def yields():
    """Counts the yields; raises `Stop` at the `last` one."""
    counts = {"count": 0, "last": None}

    def cooperative_yield():
        counts["count"] += 1
        if counts["count"] == counts["last"]:
            raise Stop

    token = YIELD.set(cooperative_yield)
    yield counts
    YIELD.reset(token)


def test_every_layer_yields_forwards_and_backwards(learner, make_sample, yields):
    sample = make_sample()
    found = match_window(learner.stepper.matcher, sample, learner.settings, [0, 1, 2])
    forwards = yields["count"]
    assert forwards > LAYERS * len(sample.images)
    found.uv.sum().backward()
    assert yields["count"] - forwards > LAYERS * 3


def test_backward_pass_can_be_left_for_good(learner, make_sample, yields):
    found = match_window(learner.stepper.matcher, make_sample(), learner.settings, [0, 1, 2])
    yields["last"] = yields["count"] + 20
    with pytest.raises(Stop):
        found.uv.sum().backward()


def test_copies_of_copies_yield_once(learner, yields):
    counts = []
    for matcher in (learner.active, Learner._copy(Learner._copy(learner.active)), learner.stepper.ema_matcher()):
        yields["count"] = 0
        matcher.observe(torch.zeros(1, 48, 64, dtype=torch.uint8))
        counts.append(yields["count"])
    assert counts[0] > 0 and len(set(counts)) == 1


def test_the_matcher_of_odometry_never_yields(yields):
    matcher = ExpectationMatcher().eval()
    Learner(matcher, Config(), lambda event: None)
    matcher.observe(torch.zeros(1, 48, 64, dtype=torch.uint8))
    assert yields["count"] == 0
