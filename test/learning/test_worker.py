"""The background thread: what it does with too much work, with no time, with errors, and at the end."""

import dataclasses
import threading
import time

import pytest
import torch

from imatching_ros.core.config import Config
from imatching_ros.learning import worker
from imatching_ros.learning.validation import Verdict
from imatching_ros.learning.cooperative_yield import cooperative_yield
from imatching_ros.learning.worker import InlineLearning, LearningWorker, WorkTime, start_learning
from imatching_ros.matching.expectation import ExpectationMatcher
from imatching_ros.matching.klt import KltMatcher
from imatching_ros.matching.weights import hash_state
from imatching_ros.odometry.local_map import Keyframe

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
    learning.begin_frame(behind=True)
    learning.submit(samples[0])
    assert not gate.entered.acquire(timeout=0.3)
    learning.begin_frame(behind=False)
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


def test_lost_tracking_is_handled_though_the_queue_is_full_and_odometry_behind(matcher, samples, monkeypatch):
    gate, heard = Gate(monkeypatch), threading.Event()
    monkeypatch.setattr(
        worker.Learner,
        "tracking_lost",
        lambda learner, version, stamp_ns: (version, stamp_ns) == (3, 7) and heard.set(),
    )
    learning = LearningWorker(matcher, CONFIG, lambda event: None)
    learning.submit(samples[0])
    gate.wait()
    learning.notify_tracking_lost(3, 7)
    for sample in samples[1:]:
        learning.submit(sample)
    learning.begin_frame(behind=True)
    gate.release()
    assert heard.wait(60)
    learning.close()
    assert gate.seen == [0]


def test_unconfirmed_weights_are_rolled_back_when_learning_fails(matcher, samples, monkeypatch):
    failed, home = threading.Event(), hash_state(matcher.state_dict())

    def fail(learner, sample):
        candidate = learner.stepper.ema_matcher()
        with torch.no_grad():
            next(candidate.parameters()).add_(0.01)
        learner.promote(candidate, sample.stamp_ns, Verdict("better", "for the test", 1.0, 0.9, 5))
        raise MemoryError("no memory left")

    monkeypatch.setattr(worker.Learner, "consume", fail)
    learning = LearningWorker(matcher, CONFIG, lambda event: event["event"] == "learning_failed" and failed.set())
    learning.submit(samples[0])
    assert failed.wait(60)
    learning.close()
    update = learning.poll()
    assert update.rollback and update.snapshot.hash == home
    assert learning.status().confirmed_version == update.snapshot.version


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def promoting(matcher, samples, monkeypatch):
    """A thread that has just promoted weights."""

    def promote(learner, sample):
        verdict = Verdict("better", "for the test", 1.0, 0.9, 5)
        return learner.promote(learner.stepper.ema_matcher(), sample.stamp_ns, verdict)

    monkeypatch.setattr(worker.Learner, "consume", promote)
    learning = LearningWorker(matcher, CONFIG, lambda event: None)
    learning.submit(samples[0])
    wait_until(lambda: learning.status().promotions)
    yield learning
    learning.close()


def window_of(matcher, *ids):
    images = torch.randint(
        0, 255, (len(ids), 1, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return [Keyframe(k, k, image, matcher.observe(image)) for k, image in zip(ids, images)]


def poll_until_taken(learning, keyframes):
    update, end = None, time.monotonic() + 60
    while update is None:
        update = learning.poll(keyframes)
        assert time.monotonic() < end
        time.sleep(0.01)
    return update


def test_weights_are_handed_over_with_the_features_of_the_window_as_it_is_by_then(matcher, promoting, monkeypatch):
    monkeypatch.setattr(worker, "MOST_POLLS", 10**9)
    first, then = window_of(matcher, 10, 20), window_of(matcher, 10, 20, 30)
    assert promoting.poll(first) is None
    update = poll_until_taken(promoting, then)
    assert set(update.features) >= {10, 20, 30}
    assert {f.weights_version for f in update.features.values()} == {update.snapshot.version}
    assert promoting.poll(then) is None, "once is enough"


def test_a_window_that_runs_ahead_keeps_no_weights_back_for_good(matcher, promoting, monkeypatch):
    go_on, observe = threading.Event(), worker.observe
    monkeypatch.setattr(worker, "observe", lambda *arguments: go_on.wait(60) and observe(*arguments))
    keyframes = window_of(matcher, 10)
    early = [promoting.poll(keyframes) for _ in range(worker.MOST_POLLS)]
    assert early == [None] * worker.MOST_POLLS and not promoting.poll(keyframes).features
    go_on.set()


def test_what_is_made_by_then_is_handed_over(matcher, promoting, monkeypatch):
    monkeypatch.setattr(worker, "MOST_POLLS", 1)
    begun, go_on, observe = threading.Semaphore(0), threading.Semaphore(1), worker.observe

    def observe_one(matcher, image):
        begun.release()
        assert go_on.acquire(timeout=60)
        return observe(matcher, image)

    monkeypatch.setattr(worker, "observe", observe_one)
    keyframes = window_of(matcher, 10, 20, 30)
    assert promoting.poll(keyframes) is None
    assert begun.acquire(timeout=60) and begun.acquire(timeout=60)  # with the second one: the first is done
    assert promoting.poll(keyframes).features.keys() == {30}
    go_on.release()


def test_weights_to_go_back_to_do_not_wait_for_odometry_that_is_behind(matcher, promoting):
    promoting.offer(promoting.learner.roll_back_unconfirmed(0, "for the test"))
    promoting.begin_frame(behind=True)
    assert promoting.poll(window_of(matcher, 10)).rollback


@pytest.mark.parametrize("guard", [True, False])
def test_weights_that_never_came_into_use_go_with_a_thread_that_fails(matcher, promoting, monkeypatch, guard):
    monkeypatch.setattr(worker, "observe", lambda matcher, image: 1 / 0)
    if not guard:
        promoting.learner.deployed = None
    assert promoting.poll(window_of(matcher, 10)) is None
    wait_until(lambda: promoting.status().state == "failed")
    promoting.close()
    assert promoting.poll(window_of(matcher, 10)) is None
    assert promoting.status().state == "failed" and promoting.status().busy_s > 0


def test_no_frame_takes_weights_over_while_odometry_is_behind(matcher, promoting):
    promoting.begin_frame(behind=True)
    keyframes = window_of(matcher, 10)
    assert all(promoting.poll(keyframes) is None for _ in range(3 * worker.MOST_POLLS))
    promoting.begin_frame(behind=False)
    assert poll_until_taken(promoting, keyframes).features.keys() == {10}


class Turns:
    """A learner that works for a moment, offers odometry a turn, and says when it goes on."""

    def __init__(self, monkeypatch):
        self.begun, self.offered, self.went_on = threading.Event(), threading.Event(), threading.Event()
        monkeypatch.setattr(worker.Learner, "consume", lambda learner, sample: self.consume())

    def consume(self):
        self.begun.set()
        time.sleep(0.1)
        self.offered.set()
        cooperative_yield()
        self.went_on.set()


def test_rest_is_taken_while_odometry_works_on_a_frame(matcher, samples, monkeypatch):
    turns = Turns(monkeypatch)
    # 0.1 s of work cost 5 s of rest.
    learning = LearningWorker(matcher, CONFIG.with_values({"learning.budget": 0.01}), lambda event: None)
    learning.begin_frame(behind=False)
    learning.submit(samples[0])
    assert turns.offered.wait(60)
    assert not turns.went_on.wait(0.3)
    learning.end_frame()
    assert turns.went_on.wait(2.0)
    learning.close()


def test_no_more_rest_is_taken_for_odometry_than_is_owed(matcher, samples, monkeypatch):
    turns = Turns(monkeypatch)
    learning = LearningWorker(matcher, CONFIG, lambda event: None)  # a budget of 1 owes none
    learning.begin_frame(behind=False)
    learning.submit(samples[0])
    assert turns.went_on.wait(60)
    learning.close()


def test_window_at_hand_waits_too_while_odometry_is_behind(matcher, samples, monkeypatch):
    turns = Turns(monkeypatch)
    learning = LearningWorker(matcher, CONFIG, lambda event: None)
    learning.submit(samples[0])
    assert turns.begun.wait(60)
    learning.begin_frame(behind=True)
    learning.end_frame()
    assert turns.offered.wait(60)
    assert not turns.went_on.wait(0.3)
    learning.begin_frame(behind=False)
    assert turns.went_on.wait(60)
    learning.close()


def test_time_that_odometry_was_given_is_not_counted_as_work(matcher, samples, monkeypatch):
    turns = Turns(monkeypatch)
    learning = LearningWorker(matcher, CONFIG.with_values({"learning.budget": 0.01}), lambda event: None)
    learning.begin_frame(behind=False)
    learning.submit(samples[0])
    assert turns.offered.wait(60)
    time.sleep(1.0)
    learning.end_frame()
    assert turns.went_on.wait(60)
    learning.close()
    assert 0.1 <= learning.status().busy_s < 0.5


def is_learning():
    """Whether a thread of any learner is alive."""
    return any(thread.name == "imatching-learning" for thread in threading.enumerate())


def test_close_ends_the_thread_within_a_window(matcher, samples, monkeypatch):
    turns, told = Turns(monkeypatch), []
    learning = LearningWorker(matcher, CONFIG, told.append)
    learning.submit(samples[0])
    assert turns.begun.wait(60)
    learning.begin_frame(behind=True)
    assert turns.offered.wait(60)
    learning.close()
    assert not is_learning() and not turns.went_on.is_set()
    assert not told and learning.status().state == "learning"


@pytest.fixture
def resting(matcher, samples, monkeypatch):
    """A thread that has worked for .2 s and rests for 20 s."""
    done = threading.Event()
    monkeypatch.setattr(worker.Learner, "consume", lambda learner, sample: (time.sleep(0.2), done.set())[0])
    learning = LearningWorker(matcher, CONFIG.with_values({"learning.budget": 0.01}), lambda event: None)
    learning.submit(samples[0])
    assert done.wait(60)
    yield learning
    learning.close()


def test_close_ends_a_resting_thread(resting):
    resting.close(timeout_s=5.0)
    assert not is_learning()


def test_lost_tracking_ends_a_rest(resting, monkeypatch):
    lost = threading.Event()
    monkeypatch.setattr(worker.Learner, "tracking_lost", lambda learner, version, stamp_ns: lost.set())
    resting.notify_tracking_lost(0, 7)
    assert lost.wait(5.0)


class Clock:
    """Stands still until it is set forward."""

    now_s = 0.0

    def __call__(self):
        return self.now_s


def spend(worked, rested):
    clock = Clock()
    spent = WorkTime(clock)
    clock.now_s += worked
    with spent.rest():
        clock.now_s += rested
    return spent


@pytest.mark.parametrize(
    "budget, worked, rested, rest",
    [
        (1.0, 2.0, 0.0, 0.0),
        (0.5, 2.0, 0.0, 2.0),
        (0.5, 2.0, 1.5, 0.5),
        (0.5, 2.0, 3.0, 0.0),
        (0.25, 1.0, 0.0, 3.0),
        (0.01, 1.0, 0.0, 99.0),
    ],
)
def test_rest_follows_from_the_budget(budget, worked, rested, rest):
    assert spend(worked, rested).owed_s(budget) == pytest.approx(rest)


@pytest.mark.parametrize("rested, left", [(0.0, 3.2), (3.0, 0.2), (4.0, 0.0)])
def test_rest_in_advance_is_owed_once(rested, left):
    assert spend(1.0, rested).owed_s(0.25, advance_s=0.2) == pytest.approx(left)


def test_work_adds_up_over_windows_without_the_rest():
    spent = spend(2.0, 5.0)
    spent.end()
    spent.begin()
    assert spent.busy_s == 2.0 and spent.worked_s == 0.0


def test_mode_and_matcher_decide_who_learns(matcher):
    assert start_learning(matcher, Config().with_values({"learning.mode": "'off'"}), print) is None
    assert start_learning(KltMatcher(Config().matcher), Config(), print) is None
    assert isinstance(start_learning(matcher, Config().with_values({"learning.mode": "sync"}), print), InlineLearning)
