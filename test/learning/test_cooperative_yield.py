"""The learner gives way often enough for odometry not to notice it, in the backward pass too."""

import pytest
import torch

from imatching_ros.core.config import Config
from imatching_ros.learning.learner import Learner
from imatching_ros.learning.step import match_window
from imatching_ros.learning.cooperative_yield import GIVE_WAY
from imatching_ros.matching.expectation import ExpectationMatcher

LAYERS = 30  # of the matcher's 45, those through which all images pass


class Stop(Exception):
    pass


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return Learner(ExpectationMatcher().eval(), Config(), lambda event: None)


@pytest.fixture
def offered():
    """How often a turn was offered; raises `Stop` at the `last` one."""
    offers = {"count": 0, "last": None}

    def give_way():
        offers["count"] += 1
        if offers["count"] == offers["last"]:
            raise Stop

    token = GIVE_WAY.set(give_way)
    yield offers
    GIVE_WAY.reset(token)


def test_every_layer_gives_way_forwards_and_backwards(learner, make_sample, offered):
    sample = make_sample()
    found = match_window(learner.stepper.matcher, sample, learner.settings, [0, 1, 2])
    forwards = offered["count"]
    assert forwards > LAYERS * len(sample.images)
    found.uv.sum().backward()
    assert offered["count"] - forwards > LAYERS * 3


def test_backward_pass_can_be_left_for_good(learner, make_sample, offered):
    found = match_window(learner.stepper.matcher, make_sample(), learner.settings, [0, 1, 2])
    offered["last"] = offered["count"] + 20
    with pytest.raises(Stop):
        found.uv.sum().backward()


def test_copies_of_copies_give_way_once(learner, offered):
    counts = []
    for matcher in (learner.active, Learner._copy(Learner._copy(learner.active)), learner.stepper.averaged()):
        offered["count"] = 0
        matcher.observe(torch.zeros(1, 48, 64, dtype=torch.uint8))
        counts.append(offered["count"])
    assert counts[0] > 0 and len(set(counts)) == 1


def test_the_matcher_of_odometry_never_waits(offered):
    matcher = ExpectationMatcher().eval()
    Learner(matcher, Config(), lambda event: None)
    matcher.observe(torch.zeros(1, 48, 64, dtype=torch.uint8))
    assert offered["count"] == 0
