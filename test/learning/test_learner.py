"""The life of a candidate, with scores that the test decides."""

import dataclasses
from math import nan

import pytest
import torch

from imatching_ros.core.config import Config
from imatching_ros.learning import learner as module
from imatching_ros.learning.learner import Learner, held_mb
from imatching_ros.learning.step import StepResult, Stepper
from imatching_ros.learning.validation import Score
from imatching_ros.matching.expectation import ExpectationMatcher
from imatching_ros.matching.weights import hash_state

CONFIG = Config().with_values(
    {
        "learning.candidate_steps": 2,
        "learning.validation_windows": 3,
        "learning.validation_windows_max": 4,
        "learning.replay_share": 0.0,
        "learning.post_deployment_windows": 3,
    }
)


def score_of(held_out_px):
    """A score that differs from others in nothing but the held-out error."""
    return Score(held_out_px, 0.5, 0.5, 100, 0.5, 0.68, 0.0, 0.05, nan)


class Story:
    """A learner whose steps only shake a weight, and whose scores come from `better`: the error of every version of the weights."""

    def __init__(self, monkeypatch, sample, better: float):
        self.sample, self.now, self.events, self.scored = sample, 0, [], []
        torch.manual_seed(0)

        def step(stepper: Stepper, window, generator):
            with torch.no_grad():
                stepper.parameters[0].add_(0.01)
                stepper.ema[0].copy_(stepper.parameters[0])
            return StepResult(1.0, 1.0, 1.0, 100, 1.0)

        def score(matcher, window, settings, bundle, seed):
            value = hash_state(matcher.state_dict())
            self.scored.append((window.keyframe_ids, value))
            noise = self.noise(window)
            return score_of((1.0 if value == self.home else better) + noise)

        monkeypatch.setattr(Stepper, "step", step)
        monkeypatch.setattr(module, "score", score)
        matcher = ExpectationMatcher().eval()
        self.home = hash_state(matcher.state_dict())
        self.learner = Learner(matcher, CONFIG, self.events.append)

    @staticmethod
    def noise(window):
        return 0.01 * (window.keyframe_ids[0] % 3)

    def feed(self, fresh=6):
        """A window that brings `fresh` new keyframes."""
        self.now += fresh
        ids = tuple(range(self.now, self.now + 6))
        return self.learner.consume(
            dataclasses.replace(self.sample, keyframe_ids=ids, stamp_ns=self.now, weights_version=self.learner.version)
        )

    def feed_until_validated(self):
        """The outcome of the next validation."""
        for _ in range(10):
            self.feed()
            outcomes = [event["outcome"] for event in self.events if event["event"] == "validation"]
            if outcomes:
                return outcomes[0]
        raise AssertionError("no validation ended")


@pytest.fixture
def story_of(monkeypatch, make_sample):
    return lambda better: Story(monkeypatch, make_sample(), better)


def test_better_weights_are_promoted_on_windows_that_they_were_not_trained_on(story_of):
    story = story_of(better=0.5)
    updates = [u for _ in range(5) if (u := story.feed()) is not None]
    assert len(updates) == 1 and story.learner.status.promotions == 1
    validated = [ids for ids, value in story.scored if value != story.home]
    # Trained on two windows, validated on the next three.
    assert validated[:3] == [tuple(range(k, k + 6)) for k in (18, 24, 30)]


def test_a_window_that_validates_trains_only_after_the_verdict(story_of):
    story = story_of(better=1.0)
    for _ in range(2):
        story.feed()
    steps, taught = story.learner.status.step, set(story.learner.training_ids)
    for _ in range(CONFIG.learning.validation_windows_max - 1):
        story.feed()
        assert story.learner.status.step == steps and set(story.learner.training_ids) == taught
    assert story.feed_until_validated() == "no_better" and story.learner.status.step == steps + 1
    assert {k for ids, _ in story.scored for k in ids} <= set(story.learner.training_ids), "they are trained on then"


def test_training_windows_hold_nothing_out_and_validating_ones_do(story_of, monkeypatch):
    story, trained, judged = story_of(better=0.5), [], []
    nothing = torch.zeros_like(story.sample.held_out)  # as odometry's windows come
    story.sample = dataclasses.replace(story.sample, held_out=nothing)
    step, score = Stepper.step, module.score
    monkeypatch.setattr(Stepper, "step", lambda s, window, g: (trained.append(window), step(s, window, g))[1])
    monkeypatch.setattr(module, "score", lambda m, window, *rest: (judged.append(window), score(m, window, *rest))[1])
    for _ in range(5):
        story.feed()
    assert len(trained) == 2 and not any(window.held_out.any() for window in trained)
    assert len(judged) == 6 and all(window.held_out.any() for window in judged)


def test_a_candidate_that_was_not_better_keeps_its_progress(story_of):
    story = story_of(better=1.0)
    for _ in range(2):
        story.feed()
    progress, stepper = hash_state(story.learner.stepper.matcher.state_dict()), story.learner.stepper
    assert story.feed_until_validated() == "no_better"
    assert story.learner.stepper is stepper and stepper.taken >= 0
    assert progress != story.home and hash_state(story.learner.active.state_dict()) == story.home
    assert story.learner.steps == 1, "the next candidate is the same weights after as many more steps"


def test_promotions_cost_nothing_of_the_error_rate_and_other_validations_do(story_of):
    story = story_of(better=0.5)
    while story.learner.status.promotions == 0:
        story.feed()
    assert story.learner.spending.take(story.now)[0] == 1
    story = story_of(better=1.5)
    assert story.feed_until_validated() == "worse"
    assert story.learner.spending.take(story.now)[0] == 2


def test_worse_weights_are_dropped_and_learning_starts_again(story_of):
    story = story_of(better=1.5)
    assert all(story.feed() is None for _ in range(5))
    assert [e["outcome"] for e in story.events if e["event"] == "validation"] == ["worse"]
    assert hash_state(story.learner.active.state_dict()) == story.home
    assert story.learner.candidate is None and story.learner.steps == 1


def test_windows_that_share_most_keyframes_do_not_validate_again(story_of):
    story = story_of(better=0.5)
    for _ in range(3):
        story.feed()
    count = len(story.scored)
    story.feed(fresh=1)
    assert len(story.scored) == count
    story.feed(fresh=1)
    assert len(story.scored) == count + 2


def test_weights_that_turn_out_worse_come_back(story_of, monkeypatch):
    story = story_of(better=0.5)
    while story.learner.status.promotions == 0:
        story.feed()
    promoted = hash_state(story.learner.active.state_dict())
    monkeypatch.setattr(
        module,
        "score",
        lambda matcher, window, *rest: score_of(
            (2.0 if hash_state(matcher.state_dict()) == promoted else 1.0) + story.noise(window)
        ),
    )
    update = next(u for _ in range(4) if (u := story.feed()) is not None)
    assert update.rollback and update.snapshot.hash == story.home


def test_promoted_weights_are_confirmed_by_post_deployment_validation(story_of):
    story = story_of(better=0.5)
    while story.learner.status.promotions == 0:
        story.feed()
    status, home = story.learner.status, story.learner.status.confirmed_version
    assert home == 0 and status.weights_version == 1
    for _ in range(CONFIG.learning.post_deployment_windows):
        assert status.confirmed_version == home
        story.feed()
    assert status.confirmed_version == 1
    passed = [e for e in story.events if e["event"] == "promotion_confirmed"]
    assert [(e["version"], e["hash"], e["windows"]) for e in passed] == [(1, status.weights_hash, 3)]


def test_an_update_is_handed_over_before_more_is_learned(story_of):
    """Its features are of the window as it is; while learning went on, the window would move on."""
    story = story_of(better=0.5)
    for _ in range(20):
        steps = story.learner.status.step
        if story.feed() is not None:
            break
    assert story.learner.status.promotions == 1 and story.learner.status.step == steps


def test_windows_from_before_the_promotion_do_not_count_after_deployment(story_of):
    story = story_of(better=0.5)
    while story.learner.status.promotions == 0:
        story.feed()
    for k in range(CONFIG.learning.post_deployment_windows + 2):
        ids = tuple(range(100 + 6 * k, 106 + 6 * k))
        story.learner.consume(dataclasses.replace(story.sample, keyframe_ids=ids, weights_version=0))
    assert story.learner.deployed.test.windows == 0 and story.learner.status.confirmed_version == 0


def test_windows_from_before_a_promotion_bring_no_second_one(story_of):
    story = story_of(better=0.5)
    while story.learner.status.promotions == 0:
        story.feed()
    story.home = hash_state(story.learner.active.state_dict())  # what is learned from here on is better still
    for k in range(20):
        ids = tuple(range(1000 + 6 * k, 1006 + 6 * k))
        story.learner.consume(dataclasses.replace(story.sample, keyframe_ids=ids, weights_version=0))
    assert story.learner.status.promotions == 1 and story.learner.status.confirmed_version == 0
    assert story.learner.status.state == "validating", "the promotion waits for windows by the promoted weights"


def test_versions_of_earlier_runs_are_not_given_again(monkeypatch, make_sample):
    story = Story(monkeypatch, make_sample(), better=0.5)
    story.learner = Learner(story.learner.active, CONFIG, story.events.append, newest_version=7)
    assert story.learner.status.weights_version == 0
    update = next(u for _ in range(6) if (u := story.feed()) is not None)
    assert update.snapshot.version == 8


def test_weights_rolled_back_to_are_confirmed(story_of, monkeypatch):
    story = story_of(better=0.5)
    while story.learner.status.promotions == 0:
        story.feed()
    story.learner.tracking_lost(1, story.now)
    assert story.learner.status.rollbacks == 1
    assert story.learner.status.confirmed_version == story.learner.status.weights_version == 2


def test_windows_that_share_keyframes_with_training_do_not_validate(story_of):
    story = story_of(better=0.5)
    for _ in range(2):
        story.feed(fresh=6)  # the candidate is trained on these
    for _ in range(5):
        story.feed(fresh=1)
    assert not story.scored
    story.feed(fresh=1)
    assert len(story.scored) == 2


def test_a_window_without_held_out_observations_is_counted_and_left_out(story_of):
    story = story_of(better=0.5)
    noise = story.noise
    story.noise = lambda window: float("nan") if window.keyframe_ids[0] == 24 else noise(window)
    updates = [u for _ in range(6) if (u := story.feed()) is not None]
    assert len(updates) == 1 and story.learner.rejected == {"nothing held out to validate with": 1}


def test_post_deployment_validation_shorter_than_validation_still_rolls_back(story_of, monkeypatch):
    story = story_of(better=0.5)
    story.learner.configure(
        CONFIG.with_values({"learning.validation_windows": 6, "learning.validation_windows_max": 6})
    )
    while story.learner.status.promotions == 0:
        story.feed()
    promoted = hash_state(story.learner.active.state_dict())
    monkeypatch.setattr(
        module,
        "score",
        lambda matcher, window, *rest: score_of(
            (2.0 if hash_state(matcher.state_dict()) == promoted else 1.0) + story.noise(window)
        ),
    )
    updates = [u for _ in range(4) if (u := story.feed()) is not None]
    assert [u.rollback for u in updates][:1] == [True]


def test_refused_windows_are_counted_and_not_trained_on(story_of):
    story = story_of(better=0.5)
    story.learner.consume(dataclasses.replace(story.sample, tracking_healthy=False))
    assert story.learner.status.rejected == {"tracking not healthy": 1}
    assert story.learner.status.step == 0


def test_memory_held_is_counted_and_bounded(story_of):
    story = story_of(better=1.0)
    weights = sum(p.numel() * 4 for p in story.learner.active.state_dict().values()) / 2**20
    begun = story.learner.status.memory_mb
    assert 3 * weights < begun < 6 * weights  # pretrained, active, the candidate, its mean
    window = sum(image.numel() for image in story.sample.images) / 2**20
    story.feed()
    grown = story.learner.status.memory_mb - begun
    assert window <= grown < 3 * window + weights
    # The same images in every window are the same memory.
    story.feed()
    assert story.learner.status.memory_mb - begun < 3 * window + 4 * weights


def test_memory_is_that_of_distinct_storages():
    whole = torch.zeros(2**20, dtype=torch.float32)
    assert held_mb(whole) == held_mb([whole, {"again": whole[:10]}]) == 4.0
    leaf = torch.zeros(2**18, requires_grad=True)
    leaf.sum().backward()
    assert held_mb(leaf, None, "text", 3) == 2.0
