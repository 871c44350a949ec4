"""A steady share of the images for a slow computer: the decisions, on a computer that is simulated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from imatching_ros.core.config import Config
from imatching_ros.ros import params
from imatching_ros.ros.inbox import Inbox
from imatching_ros.ros.rate import Meter, RateControl, ordinal, remedies

pytestmark = pytest.mark.ros


class Computer:
    """Processes images one after the other, as `ros.processing` does."""

    def __init__(self, cost_s: Callable[[int], float]) -> None:
        """`cost_s`: of an image, from its distance to the one processed before, in images."""
        self.rate, self.inbox, self.cost_s = RateControl(), Inbox(), cost_s
        self.processed: list[int] = []  # numbers of images
        self.delays_s: list[float] = []  # from the arrival of an image to its pose
        self.behind: list[bool] = []  # what learning is told with each image
        self._busy_until_s: float | None = None  # None: idle
        self._sent = 0

    def play(self, images: int, interval_s: float, start_s: float = 0.0) -> list[int]:
        """Sends images; returns the distances of those that were processed."""
        first = len(self.processed)
        for k in range(images):
            now_s = start_s + k * interval_s
            self._work_until(now_s)
            if self.rate.admit(now_s):
                self.inbox.put((self._sent, now_s))
                if self._busy_until_s is None:
                    self._begin(now_s)
            self._sent += 1
        return np.diff(self.processed[first:]).tolist()

    def _work_until(self, now_s: float) -> None:
        while (done_s := self._busy_until_s) is not None and done_s <= now_s:
            if self.rate.finish(done_s, self._last_cost_s, self.inbox.waiting):
                self.inbox.catch_up()
            self._busy_until_s = None
            if self.inbox.waiting:
                self._begin(done_s)

    def _begin(self, now_s: float) -> None:
        image, arrived_s = self.inbox.take()
        self.behind.append(self.inbox.behind)
        self._last_cost_s = self.cost_s(image - self.processed[-1] if self.processed else 1)
        self.processed.append(image)
        self._busy_until_s = now_s + self._last_cost_s
        self.delays_s.append(self._busy_until_s - arrived_s)


def vicious(seed: int, base_s: float) -> Callable[[int], float]:
    """Costs that grow with the distance: wide searches, and keyframes, which take longer still. With noise and hiccups."""
    random = np.random.default_rng(seed)

    def cost_s(distance: int) -> float:
        keyframe = random.random() < min(0.25 * distance, 1.0)
        hiccup = 3.0 if random.random() < 0.01 else 1.0
        return base_s * (1 + 0.15 * min(distance - 1, 6)) * (1.3 if keyframe else 1.0) * random.normal(1, 0.05) * hiccup

    return cost_s


def test_a_burst_of_long_images_waits_and_drops_nothing():
    """Every third image is a keyframe that takes 1.8 intervals, and one takes 2.8; the mean is .9."""
    computer = Computer(
        lambda _: 0.28 if len(computer.processed) == 50 else 0.18 if len(computer.processed) % 3 == 0 else 0.04
    )
    assert set(computer.play(300, 0.1)) == {1}
    assert (computer.inbox.dropped, computer.rate.skipped) == (0, 0)
    assert np.median(computer.delays_s) < 0.13 and max(computer.delays_s) < 0.5
    assert np.mean(computer.behind) < 0.1


def test_keyframes_of_several_intervals_fit_at_30_hz():
    """Every 15th image takes four intervals, another one half of one; nothing is dropped."""
    computer = Computer(lambda _: 0.133 if len(computer.processed) % 15 == 0 else 0.018)
    assert set(computer.play(1800, 1 / 30)) == {1}
    assert (computer.inbox.dropped, computer.rate.skipped) == (0, 0)


@pytest.mark.parametrize(("hz", "usual_s", "long_s"), [(10, 0.094, 0.3), (30, 0.027, 0.2)])
def test_rare_long_images_that_overload_the_computer_lower_the_rate(hz, usual_s, long_s):
    """The mean is 1.04 and 1.07 intervals, although that of the others is .94 and .81."""
    computer = Computer(lambda _: long_s if len(computer.processed) % 20 == 19 else usual_s)
    computer.play(40 * hz, 1 / hz)
    before = computer.inbox.dropped, len(computer.processed)
    assert computer.rate.state().every_nth == 2
    assert f"{usual_s * 1e3:.0f} ms (90th percentile, {long_s * 1e3:.0f} ms at most)" in computer.rate.state().slow
    computer.play(80 * hz, 1 / hz, start_s=40.0)
    assert computer.inbox.dropped == before[0] and set(np.diff(computer.processed[before[1] :])) == {2}
    assert np.median(computer.delays_s[before[1] :]) <= usual_s + 1e-9
    assert np.mean(computer.behind[before[1] :]) < 0.1


@pytest.mark.parametrize("usual_s", [0.02, 0.027])
def test_one_hiccup_of_half_a_second_does_not_lower_the_rate(usual_s):
    """At 30 Hz, once in a minute; learning rests until the images that waited are done."""
    computer = Computer(lambda _: 0.5 if len(computer.processed) == 100 else usual_s)
    computer.play(1800, 1 / 30)
    assert computer.rate.skipped == 0 and computer.inbox.dropped == 10 and 2 < sum(computer.behind) < 30


@pytest.mark.parametrize("load", [1.1, 1.6, 2.4, 5.0])
def test_what_waits_does_not_delay_the_poses_of_a_computer_that_is_too_slow(load):
    """Before the rate is lower an image waits for those in the inbox at most, and afterwards for none."""
    computer = Computer(lambda _: load * 0.05)
    computer.play(400, 0.05)
    assert max(computer.delays_s) <= (Inbox.DEPTH + 1) * load * 0.05 + 1e-9
    assert max(computer.delays_s[-20:]) <= load * 0.05 + 1e-9
    dropped = computer.inbox.dropped
    steps = computer.play(400, 0.05, start_s=20.0)
    assert set(steps) == {computer.rate.state().every_nth} and computer.inbox.dropped == dropped


def test_a_rate_that_could_not_be_held_is_tried_less_and_less_often():
    """Images that are near to each other take longer here, against all expectation."""
    computer = Computer(lambda distance: 0.08 if distance > 1 else 0.11)
    changes, k = [], 0
    for k in range(1200):
        before = computer.rate.state().every_nth
        computer.play(1, 0.1, start_s=k * 0.1)
        if computer.rate.state().every_nth > before:
            changes.append(k)
    assert 3 <= len(changes) <= 8 and np.diff(changes)[-1] > 2 * np.diff(changes)[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("base_s", "most"), [(0.02, 1), (0.06, 3), (0.1, 5), (0.2, 13), (0.4, 24)])
def test_the_spacing_is_steady_and_the_computer_keeps_up(seed, base_s, most):
    """At 20 Hz."""
    computer = Computer(vicious(seed, base_s))
    computer.play(600, 0.05)
    dropped = computer.inbox.dropped
    distances = computer.play(600, 0.05, start_s=600 * 0.05)
    common = max(set(distances), key=distances.count)
    assert distances.count(common) >= 0.75 * len(distances) and common <= most
    assert sum(a != b for a, b in zip(distances, distances[1:], strict=False)) <= 2 + 0.08 * len(distances)
    assert computer.inbox.dropped - dropped <= 1 + 0.03 * len(distances)
    after = computer.rate.state()
    assert after.input_hz == pytest.approx(20.0) and after.processed_hz == pytest.approx(20 / after.every_nth, rel=0.2)


def test_it_decides_within_the_first_images():
    computer = Computer(lambda distance: 0.14)
    computer.play(20, 0.05)
    assert computer.rate.state().every_nth == 4
    assert set(computer.play(100, 0.05, start_s=1.0)[1:]) == {4}
    assert computer.rate.state().slow == (
        "every 4th image is processed, for one takes 140 ms (90th percentile) and one arrives every 50 ms"
    )


def test_the_rate_recovers_when_the_load_falls():
    """Learning, or another program, begins and ends."""
    computer = Computer(vicious(0, 0.02))
    computer.play(200, 0.05)
    assert computer.rate.state().every_nth == 1
    computer.cost_s = vicious(1, 0.09)
    computer.play(400, 0.05, start_s=10.0)
    assert computer.rate.state().every_nth >= 2
    computer.cost_s = vicious(2, 0.02)
    computer.play(200, 0.05, start_s=30.0)
    assert computer.rate.state().every_nth == 1 and computer.rate.state().slow == ""


def test_a_camera_that_slows_down_is_processed_whole_again():
    computer = Computer(lambda distance: 0.08)
    computer.play(100, 0.05)
    assert computer.rate.state().every_nth == 2
    assert set(computer.play(100, 0.2, start_s=5.0)) == {1}
    assert computer.rate.state().every_nth == 1


def test_after_a_burst_single_images_are_processed():
    computer = Computer(lambda distance: 0.08)
    computer.play(200, 0.002)
    assert computer.rate.state().every_nth > 20
    assert set(computer.play(10, 5.0, start_s=10.0)) == {1}


def test_one_slow_image_decides_nothing():
    """Neither at the start, when libraries are loaded, nor later."""
    costs = iter([2.0, 0.02, 0.9] + [0.02] * 30 + [1.0] + [0.02] * 300)
    computer = Computer(lambda distance: next(costs))
    computer.play(200, 0.05)
    assert computer.rate.skipped == 0


def test_a_sender_that_waits_for_each_pose_loses_nothing():
    """A simulator in lock-step: the next image comes with the pose, while keyframe work still goes on."""
    rate, now_s = RateControl(), 0.0
    for _ in range(100):
        assert rate.admit(now_s)
        now_s += 0.05
        rate.finish(now_s + 0.03, 0.08, waiting=1)
    assert rate.state().every_nth == 1


def test_a_pause_does_not_count_as_an_interval():
    meter = Meter()
    for now_s in [*np.arange(10) * 0.1, *(60 + np.arange(5) * 0.1)]:
        meter.add(now_s)
    assert meter.hz == pytest.approx(10.0)


@pytest.mark.parametrize(("interval_s", "silent_after_s"), [(0.1, 2.0), (2.0, 6.0)])
def test_silence_is_measured_in_intervals(interval_s, silent_after_s):
    """A camera below 1 Hz is not silent between two images."""
    rate = RateControl()
    assert rate.is_silent(0.0, 5.0) and math.isnan(rate.state().input_hz)
    for k in range(10):
        assert k == 0 or not rate.is_silent(k * interval_s - 1e-3, 5.0)
        rate.admit(k * interval_s)
    last_s = 9 * interval_s
    assert not rate.is_silent(last_s + silent_after_s - 0.1, 5.0) and rate.is_silent(last_s + silent_after_s + 0.1, 5.0)


@pytest.mark.parametrize(("n", "text"), [(2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st")])
def test_ordinals(n, text):
    assert ordinal(n) == text


def test_the_remedies_are_settings_that_help():
    text = remedies(Config(), 752)
    known = {name for name, _, _ in params.settings()}
    named = {name.removesuffix(" to") for name in re.findall(r"\w+\.\w+ to", text)}
    assert len(named) == 3 and named <= known
    assert "matcher.max_width to 376" in text and "matcher.name to expectation_fast" in text
    small = Config().with_values({"matcher.name": "klt", "odometry.landmarks_per_frame": 250})
    assert remedies(small, 320) == "lower the camera's rate (docs/tuning.md)"
