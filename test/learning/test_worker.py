"""The background thread: what it does with too much work, with no time, with errors, and at the end. No clocks."""

import dataclasses
import threading

import pytest

from imatching_ros.config import Config
from imatching_ros.learning import worker
from imatching_ros.learning.worker import InlineLearning, LearningWorker, start_learning
from imatching_ros.matching.expectation import ExpectationMatcher
from imatching_ros.matching.klt import KltMatcher

CONFIG = Config().with_values({"learning.queue": 2, "learning.budget": 1.0})


@pytest.fixture(scope="module")
def matcher():
    return ExpectationMatcher().eval()


@pytest.fixture
def samples(make_sample):
    sample = make_sample(landmarks=20)
    return [dataclasses.replace(sample, stamp_ns=k) for k in range(6)]


class Gate:
    """Holds the thread inside `consume` until it is told to go on; remembers what came."""

    def __init__(self, monkeypatch):
        self.seen, self.entered, self.go_on = [], threading.Semaphore(0), threading.Semaphore(0)
        monkeypatch.setattr(worker.Learner, "consume", lambda learner, sample: self.consume(sample))

    def consume(self, sample):
        self.seen.append(sample.stamp_ns)
        self.entered.release()
        assert self.go_on.acquire(timeout=60)

    def wait(self):
        assert self.entered.acquire(timeout=60)

    def release(self, count=100):
        self.go_on.release(count)


def test_full_queue_drops_the_oldest_and_counts(matcher, samples, monkeypatch):
    gate = Gate(monkeypatch)
    learning = LearningWorker(matcher, CONFIG, lambda event: None)
    learning.submit(samples[0])
    gate.wait()
    for sample in samples[1:]:
        learning.submit(sample)
    assert learning.status().dropped == 3
    gate.release()
    gate.wait(), gate.wait()
    learning.close()
    assert gate.seen == [0, 4, 5]


def test_nothing_is_taken_while_odometry_is_behind(matcher, samples, monkeypatch):
    gate = Gate(monkeypatch)
    gate.release()
    learning = LearningWorker(matcher, CONFIG, lambda event: None)
    learning.pause(True)
    learning.submit(samples[0])
    assert not gate.entered.acquire(timeout=0.3)
    learning.pause(False)
    gate.wait()
    learning.close()
    assert gate.seen == [0]


def test_error_ends_learning_and_nothing_else(matcher, samples, monkeypatch):
    events, failed = [], threading.Event()

    def fail(learner, sample):
        raise MemoryError("no memory left")

    monkeypatch.setattr(worker.Learner, "consume", fail)
    learning = LearningWorker(matcher, CONFIG, lambda event: (events.append(event), failed.set()))
    learning.submit(samples[0])
    assert failed.wait(60)
    assert learning.status().state == "failed"
    assert events[0]["event"] == "learning_failed" and "no memory left" in events[0]["error"]
    learning.submit(samples[1])  # goes nowhere, harms nobody
    assert learning.poll() is None
    learning.close()


def test_close_ends_a_resting_thread(matcher, samples, monkeypatch):
    resting = threading.Event()
    monkeypatch.setattr(worker.Learner, "consume", lambda learner, sample: None)
    monkeypatch.setattr(worker, "LONGEST_REST_S", 1e6)
    original = LearningWorker._rest

    def rest(self, worked_s):
        resting.set()
        original(self, 1e6)

    monkeypatch.setattr(LearningWorker, "_rest", rest)
    learning = LearningWorker(matcher, CONFIG.with_values({"learning.budget": 0.01}), lambda event: None)
    learning.submit(samples[0])
    assert resting.wait(60)
    learning.close()
    assert not learning._thread.is_alive()


@pytest.mark.parametrize("budget, worked, rest", [(1.0, 2.0, 0.0), (0.5, 2.0, 2.0), (0.25, 1.0, 3.0), (0.1, 1.0, worker.LONGEST_REST_S)])
def test_rest_follows_from_the_budget(matcher, monkeypatch, budget, worked, rest):
    learning = LearningWorker(matcher, CONFIG.with_values({"learning.budget": budget}), lambda event: None)
    learning.close()
    rests = []
    monkeypatch.setattr(learning._changed, "wait_for", lambda predicate, timeout=None: rests.append(timeout))
    learning._rest(worked)
    assert rests == [pytest.approx(rest)]


def test_mode_and_matcher_decide_who_learns(matcher):
    assert start_learning(matcher, Config().with_values({"learning.mode": "'off'"}), print) is None
    assert start_learning(KltMatcher(Config().matcher), Config(), print) is None
    assert isinstance(start_learning(matcher, Config().with_values({"learning.mode": "sync"}), print), InlineLearning)
