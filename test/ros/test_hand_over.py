"""Pairing by stamp, and the hand-over between threads."""

from __future__ import annotations

import threading

import pytest

from imatching_ros.ros.inbox import Inbox, InboxClosed
from imatching_ros.ros.synchronizer import Synchronizer

pytestmark = pytest.mark.ros


class Pairs:
    def __init__(self, slop_ns: int, names: tuple[str, ...] = ("left", "right"), depth: int = 10) -> None:
        self.found: list[tuple] = []
        self.synchronizer = Synchronizer(
            names, slop_ns, lambda m: self.found.append(tuple(m.get(n) for n in names)), depth
        )

    def add(self, *entries: tuple[str, int]) -> list[tuple]:
        for name, stamp in entries:
            self.synchronizer.add(name, stamp, stamp, 0.0)
        return self.found


@pytest.mark.parametrize("order", [(("left", 5), ("right", 5)), (("right", 5), ("left", 5))])
def test_exact(order):
    assert Pairs(0).add(*order) == [(5, 5)]


def test_exact_refuses_a_nanosecond():
    pairs = Pairs(0)
    assert pairs.add(("left", 5), ("right", 6), ("left", 7), ("right", 7)) == [(5, None), (7, 7)]
    assert (pairs.synchronizer.unpaired, pairs.synchronizer.gap_ns) == (1, 1)


def test_approximate_takes_the_nearest():
    assert Pairs(10).add(("right", 92), ("right", 101), ("left", 100)) == [(100, 101)]
    assert Pairs(10).add(("left", 100), ("right", 91), ("right", 99)) == [(100, 99)]


def test_beyond_the_slop_a_image_goes_on_alone():
    pairs = Pairs(10)
    assert pairs.add(("left", 100), ("right", 111), ("left", 112)) == [(100, None), (112, 111)]
    assert (pairs.synchronizer.unpaired, pairs.synchronizer.gap_ns) == (1, 11)


def test_cameras_that_are_always_a_little_apart():
    pairs = Pairs(10)
    assert pairs.add(
        *((name, 100 * k + (15 if name == "left" else 0)) for k in range(4) for name in ("right", "left"))
    ) == [(15, None), (115, None), (215, None)]
    assert (pairs.synchronizer.unpaired, pairs.synchronizer.gap_ns) == (3, 15)


def test_every_message_is_used_once():
    assert Pairs(10).add(("right", 100), ("left", 99), ("left", 101), ("right", 200), ("left", 200)) == [
        (99, 100),
        (101, None),
        (200, 200),
    ]


def test_three_topics():
    pairs = Pairs(5, ("a", "b", "c"))
    assert pairs.add(("a", 10), ("c", 11), ("b", 9)) == [(10, 9, 11)]


def test_of_three_topics_the_one_that_lacks_is_left_out():
    pairs = Pairs(5, ("a", "b", "c"))
    assert pairs.add(("a", 10), ("b", 10), ("c", 20), ("a", 20), ("b", 20)) == [(10, 10, None), (20, 20, 20)]
    assert (pairs.synchronizer.unpaired, pairs.synchronizer.gap_ns) == (1, 10)


def test_what_waits_too_long_takes_the_partners_that_are_there():
    pairs = Pairs(5, ("a", "b", "c"))
    pairs.add(("a", 1000), ("b", 1000), ("c", 1000), ("a", 2000), ("b", 2001))
    pairs.synchronizer.expire(100.0)
    assert pairs.found == [(1000, 1000, 1000), (2000, 2001, None)]


def test_time_that_goes_back_forgets_what_waits():
    pairs = Pairs(10)
    assert pairs.add(("left", 1000), ("left", 100), ("right", 100)) == [(100, 100)]


def test_a_gap_after_a_step_back_in_time_is_of_the_new_run():
    pairs = Pairs(0)
    pairs.add(("right", 89 * 10**8), ("left", 9 * 10**9), ("right", 9 * 10**9), ("right", 10**8), ("left", 0))
    assert pairs.found == [(9 * 10**9, 9 * 10**9), (0, None)] and pairs.synchronizer.gap_ns == 10**8


def test_partners_that_overtake_each_other_are_used():
    """As of a network with several workers."""
    entries = [("right", 200), ("right", 100), ("right", 300), *(("left", stamp) for stamp in (100, 200, 300))]
    assert Pairs(0).add(*entries) == [(100, 100), (200, 200), (300, 300)]


def test_queues_are_bounded():
    pairs = Pairs(0, depth=3)
    pairs.add(*(("left", stamp) for stamp in range(10)))
    assert (pairs.synchronizer.unpaired, pairs.synchronizer.gap_ns) == (7, None)
    assert pairs.add(("right", 9))[7:] == [(7, None), (8, None), (9, 9)]


def test_a_steady_pair_loses_nothing():
    pairs = Pairs(10)
    for k in range(100):
        pairs.add(("left", 1000 * k), ("right", 1000 * k + 3))
    assert len(pairs.found) == 100 and pairs.synchronizer.unpaired == 0


class LivePairs:
    """Images at 10 Hz whose stamps are milliseconds, and a timer that looks as often."""

    def __init__(self, right_lateness_ms: int = 3) -> None:
        self.found: list[tuple[int, int | None, int]] = []  # stamps of left and right, and the time of the callback
        self.synchronizer = Synchronizer(("left", "right"), 10_000_000, self._take)
        self._lateness_ms, self._now_ms = right_lateness_ms, 0

    def _take(self, messages: dict) -> None:
        self.found.append((messages["left"], messages.get("right"), self._now_ms))

    def play(self, until_ms: int, right: bool) -> None:
        """Plays both cameras, or the left one alone."""
        for self._now_ms in range(self._now_ms + 1, until_ms):
            self._arrive("left", self._now_ms)
            if right:
                self._arrive("right", self._now_ms - self._lateness_ms)
            self.synchronizer.expire(self._now_ms / 1e3)

    def _arrive(self, name: str, stamp_ms: int) -> None:
        if stamp_ms % 100 == 0:
            self.synchronizer.add(name, stamp_ms * 10**6, stamp_ms, self._now_ms / 1e3)


@pytest.mark.parametrize("lateness_ms", [3, 180])
def test_a_lone_leader_goes_on(lateness_ms):
    """The right camera stops for three seconds: poses go on soon, at last at the rate of the left; its return pairs again."""
    pairs = LivePairs(lateness_ms)
    pairs.play(3000, right=True)
    paired = len(pairs.found)
    assert paired >= 26 and all(right == left for left, right, _ in pairs.found[1 + lateness_ms // 100 :])
    pairs.play(6000, right=False)
    alone = pairs.found[paired:]
    delays = [now - left for left, _, now in alone]
    assert max(delays) <= max(100, 2 * lateness_ms) + 1 and max(delays[8:]) <= 11
    assert all(b - a == 100 for (a, _, _), (b, _, _) in zip(pairs.found, pairs.found[1:], strict=False))
    pairs.play(8000, right=True)
    assert all(right == left for left, right, _ in pairs.found[-10:])


def test_a_topic_where_nothing_ever_comes_costs_no_time_for_long():
    pairs = LivePairs()
    pairs.play(4000, right=False)
    delays = [now - left for left, _, now in pairs.found]
    assert max(delays) <= 1001 and max(delays[13:]) <= 11


@pytest.mark.parametrize("offset_ms", [-3_600_000, 3_600_000])
def test_partners_of_another_clock_are_not_waited_for(offset_ms):
    pairs = LivePairs(-offset_ms)
    for now_ms in range(1, 4000):
        pairs._now_ms = now_ms
        pairs._arrive("left", now_ms)
        pairs._arrive("right", now_ms + offset_ms)
        pairs.synchronizer.expire(now_ms / 1e3)
    assert all(right is None for _, right, _ in pairs.found)
    assert max(now - left for left, _, now in pairs.found[13:]) <= 11


def test_one_of_two_partners_that_has_stopped_is_not_waited_for():
    """Depth at the rate of the images, and a mask that never comes."""
    found, now_s = [], 0.0
    synchronizer = Synchronizer(("image", "depth", "mask"), 0, lambda m: found.append((m, now_s)))
    for k in range(40):
        for now_s in (k / 10, k / 10 + 0.01, k / 10 + 0.02):
            if now_s == k / 10:
                synchronizer.add("image", k, k, now_s)
            elif now_s == k / 10 + 0.01:
                synchronizer.add("depth", k, k, now_s)
            synchronizer.expire(now_s)
    assert all(messages["depth"] == messages["image"] for messages, _ in found)
    assert max(now_s - messages["image"] / 10 for messages, now_s in found[5:]) <= 0.02 + 1e-9


def test_a_partner_that_is_later_than_expected_is_waited_for():
    """400 ms of a slow depth camera: the first images go alone, then the delay is known."""
    pairs = LivePairs(400)
    pairs.play(5000, right=True)
    assert all(right == left for left, right, _ in pairs.found[10:])


def test_a_partner_of_half_the_rate_is_used():
    """Left every 100 ms, right every 200 ms: each second image has its partner, and no image waits for the next one."""
    pairs = LivePairs(0)
    for now_ms in range(100, 4000):
        pairs._now_ms = now_ms
        pairs._arrive("left", now_ms)
        if now_ms % 200 == 0:
            pairs._arrive("right", now_ms)
        pairs.synchronizer.expire(now_ms / 1e3)
    assert [right for _, right, _ in pairs.found[4:]] == [
        left if left % 200 == 0 else None for left, _, _ in pairs.found[4:]
    ]
    assert max(now - left for left, _, now in pairs.found[4:]) <= 100


def test_a_few_images_wait_and_older_ones_are_dropped_and_counted():
    inbox = Inbox()
    for image in range(Inbox.DEPTH + 2):
        inbox.put(image)
    assert (inbox.waiting, inbox.received, inbox.dropped) == (Inbox.DEPTH, Inbox.DEPTH + 2, 2)
    assert [inbox.take() for _ in range(Inbox.DEPTH)] == list(range(2, Inbox.DEPTH + 2))
    assert inbox.waiting == 0


def test_catching_up_leaves_the_newest_image():
    inbox = Inbox()
    inbox.catch_up()
    for image in (1, 2, 3):
        inbox.put(image)
    inbox.catch_up()
    assert inbox.take() == 3 and (inbox.received, inbox.dropped, inbox.waiting) == (3, 2, 0)


def test_commands_run_in_the_taking_thread_before_images():
    inbox, order = Inbox(), []
    inbox.put("image")
    future = inbox.call(lambda: order.append(threading.current_thread().name) or "done")
    taker = threading.Thread(target=lambda: order.append(inbox.take()), name="taker")
    taker.start()
    assert future.result(timeout=5) == "done"
    taker.join(5)
    assert order == ["taker", "image"]


def test_an_error_of_a_command_goes_to_the_caller():
    inbox = Inbox()

    def fail() -> None:
        raise ValueError("no")

    future = inbox.call(fail)
    inbox.put(1)
    assert inbox.take() == 1
    with pytest.raises(ValueError, match="no"):
        future.result(timeout=1)


def test_closing_ends_the_wait_and_refuses_commands():
    inbox = Inbox()
    waiting = inbox.call(lambda: None)
    inbox.close()
    assert inbox.take() is None
    for future in (waiting, inbox.call(lambda: None)):
        with pytest.raises(InboxClosed, match="paused or ended"):
            future.result(timeout=1)
