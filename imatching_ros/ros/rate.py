"""A steady share of the images, for a computer that cannot process them all: every n-th, chosen before anything is decoded.

Taking the newest image whenever the last one is done gives uneven gaps. After a wide one landmarks are searched in a wide window and the
image becomes a keyframe, which takes longer still. Even gaps are the smallest ones that the computer can hold.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.config import Config
from ..matching.weights import choose_matcher
from .inbox import Inbox


@dataclass(frozen=True)
class Rate:
    """The rates at one moment; NaN where not known yet."""

    every_nth: int = 1  # image is processed; 1: all
    input_hz: float = float("nan")
    processed_hz: float = float("nan")
    cost_s: float = float("nan")  # 90th percentile of the recent images, keyframe work included
    longest_s: float = float("nan")  # of somewhat more images

    @property
    def slow(self) -> str:
        """That not every image is processed, in one clause with the measured times; empty when every one is."""
        if self.every_nth == 1:
            return ""
        rare = f", {self.longest_s * 1e3:.0f} ms at most" if self.cost_s * self.input_hz < 1 else ""
        return (
            f"every {ordinal(self.every_nth)} image is processed, for one takes {self.cost_s * 1e3:.0f} ms (90th percentile{rare}) and "
            f"one arrives every {1e3 / self.input_hz:.0f} ms"
        )


class Meter:
    """Mean interval of the recent events; one long gap (a paused bag) starts the mean again.

    Attributes:
        last_s: time of the newest event; None before the first.
    """

    WINDOW = 30  # events
    FEWEST = 4  # events that give a mean
    GAP = 5.0  # mean intervals
    GAP_S = 1.0  # shorter ones are hiccups

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=self.WINDOW)

    def add(self, now_s: float) -> None:
        mean, last = self.interval_s, self.last_s
        if mean is not None and last is not None and now_s - last > max(self.GAP * mean, self.GAP_S):
            self._times.clear()
        self._times.append(now_s)

    @property
    def last_s(self) -> float | None:
        return self._times[-1] if self._times else None

    @property
    def interval_s(self) -> float | None:
        count = len(self._times)
        return None if count < self.FEWEST else (self._times[-1] - self._times[0]) / (count - 1)

    @property
    def hz(self) -> float:
        return 1 / self.interval_s if self.interval_s else math.nan


class RateControl:
    """Decides which images are processed, from what the recent ones took. `admit` and `finish` may be called by two threads.

    The load is the mean of the recent processing times, in intervals of the input; where that is more, their 90th percentile, in as
    many intervals as fill the inbox: so long may one image take while others wait. n rises at once when the load exceeds FULL * n and
    the inbox is full, to the least n of which the load is FILL. It falls to the least n of which the load is RELAXED, after some images
    at the present n: SETTLED, and twice as many each time that it had to rise again soon after.

    Single long images are hiccups, and means leave them out; where they keep coming, a mean over more images shows it.

    Attributes:
        skipped: images that were not admitted.
    """

    WINDOW = 20  # processed images
    LONG_WINDOW = 200
    MIDDLE_WINDOW = 40  # before n falls: holds another of the long images, and n recovers soon
    FEWEST = 3  # after a change of n, before the next rise
    SETTLED = 8  # after a change of n, before it falls: the first images after the start take longer than later ones
    SOON = 150  # images
    LONGEST = 128  # after a change of n, before it falls, at most
    FULL = 0.95
    FILL = 0.9
    RELAXED = 0.87  # of fewer intervals than now: images that are nearer to each other take less

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._input, self._processed = Meter(), Meter()
        self._costs: deque[float] = deque(maxlen=self.LONG_WINDOW)
        self._cost_s = self._longest_cost_s = math.nan  # 90th percentile of the newest, and the longest of all
        self._every_nth = 1
        self._since_admitted = 0  # images, the newest included
        self._admitted_s = -math.inf
        self._longest_s = 0.0  # between two that are admitted, for images that come more slowly than when n was chosen
        self._settled = self.SETTLED
        self._since_change = -1  # processed images; the very first one also loads libraries, and does not count
        self.skipped = 0

    def admit(self, now_s: float) -> bool:
        """Whether an image that arrives at this time (s, of a steady clock) is to be processed."""
        with self._lock:
            self._input.add(now_s)
            self._since_admitted += 1
            admitted = self._since_admitted >= self._every_nth or now_s - self._admitted_s > self._longest_s
            if admitted:
                self._since_admitted, self._admitted_s = 0, now_s
            self.skipped += not admitted
            return admitted

    def finish(self, now_s: float, cost_s: float, waiting: int) -> bool:
        """An image has been processed, keyframe work included, in `cost_s`, and `waiting` images wait now; whether n rises.

        Where whoever sends images waits for the poses, the inbox is never full.
        """
        with self._lock:
            self._processed.add(now_s)
            self._since_change += 1
            if self._since_change == 0:
                return False
            self._costs.append(cost_s)
            if self._since_change < self.FEWEST:
                return False
            costs = list(self._costs)
            self._cost_s, self._longest_cost_s = percentile_90(costs[-self.WINDOW :]), max(costs)
            if not self._input.interval_s:
                return False
            before = self._every_nth
            least_s = max(self._cost_s / (Inbox.DEPTH + 1), mean_without(1, costs[-self.WINDOW :]))
            load_s = max(least_s, mean_without(2, costs))
            lasting_s = max(least_s, mean_without(0, costs[-self.MIDDLE_WINDOW :]))
            interval_s = self._input.interval_s
            self._decide(load_s / interval_s, lasting_s / interval_s, waiting >= Inbox.DEPTH)
            return self._every_nth > before

    def state(self) -> Rate:
        with self._lock:
            return Rate(self._every_nth, self._input.hz, self._processed.hz, self._cost_s, self._longest_cost_s)

    def is_silent(self, now_s: float, patience_s: float) -> bool:
        """Whether images have stopped: none for three of their intervals, or for `patience_s` where their interval is unknown."""
        shortest_s = 2.0  # a hiccup of a driver or of the network is not the end
        with self._lock:
            last_s, interval_s = self._input.last_s, self._input.interval_s
            if last_s is None:
                return True
            return now_s - last_s > (patience_s if interval_s is None else max(3 * interval_s, shortest_s))

    def _decide(self, load: float, lasting: float, full: bool) -> None:
        """`load`: in intervals of the input. `lasting`: the same over a span that n waits for before it falls. `full`: the inbox."""
        n = self._every_nth
        relaxed = max(math.ceil(lasting / self.RELAXED), 1)
        if load > self.FULL * n and full:
            self._settled = min(2 * self._settled, self.LONGEST) if self._since_change < self.SOON else self.SETTLED
            self._change(max(math.ceil(load / self.FILL), n + 1))
        elif relaxed < n and self._since_change >= self._settled:
            self._change(relaxed)

    def _change(self, every_nth: int) -> None:
        self._every_nth, self._since_change = every_nth, 0
        self._longest_s = (every_nth + 0.5) * (self._input.interval_s or 0.0)
        self._costs.clear()  # images at other distances take other times


def percentile_90(values: Sequence[float]) -> float:
    """Of two or more values, without the largest one: a single hiccup decides nothing."""
    ascending = sorted(values)[:-1]
    rank = math.ceil(0.9 * (len(ascending) + 1)) - 1
    return ascending[min(rank, len(ascending) - 1)]


def mean_without(count: int, values: Sequence[float]) -> float:
    """Mean of the values without the `count` largest ones."""
    ascending = sorted(values)[: len(values) - count]
    return sum(ascending) / len(ascending)


def ordinal(n: int) -> str:
    """2 -> 2nd."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def remedies(config: Config, width: int) -> str:
    """The settings to change where the computer is too slow for images `width` px wide (0: unknown)."""
    matcher, ways = choose_matcher(config.matcher), []
    if width > 320:  # halves of smaller images show too little
        ways.append(f"matcher.max_width to {width // 2}")
    if matcher.name == "expectation":
        ways.append("matcher.name to expectation_fast")
    if config.odometry.landmarks_per_frame > 250:
        ways.append("odometry.landmarks_per_frame to 250")
    settings = f"set {' or '.join(ways)}, or " if ways else ""
    return f"{settings}lower the camera's rate (docs/tuning.md)"
