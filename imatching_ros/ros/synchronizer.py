"""Pairs the messages of several topics by their stamps. (message_filters is not on PyPI, drops without counting, and waits for ever.)"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any


class Synchronizer:
    """Calls back with one message of every topic, oldest first, each at most once.

    The first topic leads: each of its messages waits for the nearest message of every other topic within the slop. One that can
    have no partner any more is delivered without it, and so is one that has waited too long: twice as long as partners have been late
    so far, a second before the first partner, and only the slop for a topic that has stopped or never began.

    Attributes:
        unpaired: messages of the first topic that found no partners.
        gap_ns: how far the nearest partner of the newest unpaired message was; None when there was none.
    """

    # Hiccups of a busy computer; the longest delay that a pose may have from it.
    LEAST_PATIENCE_S, MOST_PATIENCE_S = 0.1, 1.0
    LATENESSES = 20  # remembered
    STOPPED_AFTER = 3  # messages that waited in vain for a topic, with no partner from there between
    # A partner older than the one before by less has overtaken it; by more, time began again.
    DISORDER_NS = 1_000_000_000

    def __init__(
        self, names: tuple[str, ...], slop_ns: int, callback: Callable[[dict[str, Any]], None], depth: int = 10
    ) -> None:
        self._queues: dict[str, deque[tuple[int, Any]]] = {name: deque() for name in names}
        self._leader = names[0]
        self._slop_ns = slop_ns
        self._callback = callback
        self._depth = depth
        self._newest_ns: dict[str, int] = {}
        self._passed_ns: dict[str, int] = {}  # newest stamps that were too old for every leading message
        self._arrived_s: dict[
            int, float
        ] = {}  # when leading messages came, by stamp: those that wait, and some that went
        self._lateness_s: deque[float] = deque(maxlen=self.LATENESSES)  # of partners
        self._in_vain = dict.fromkeys(names[1:], 0)  # leading messages that waited in vain since the newest partner
        self.unpaired = 0
        self.gap_ns: int | None = None

    @property
    def deadline_s(self) -> float | None:
        """When `expire` has something to do; None when nothing waits."""
        leaders = self._queues[self._leader]
        if not leaders:
            return None
        stamp_ns = leaders[0][0]
        return self._arrived_s.get(stamp_ns, 0.0) + self._patience_s(stamp_ns)

    def add(self, name: str, stamp_ns: int, message: Any, now_s: float) -> None:
        """Takes a message that arrives at `now_s` (of a steady clock); calls back for every set that is complete now."""
        self._insert(name, stamp_ns, message)
        queue = self._queues[name]
        if name == self._leader:
            self._arrived_s[stamp_ns] = now_s
            if len(self._arrived_s) > 4 * self._depth:
                del self._arrived_s[next(iter(self._arrived_s))]
        elif self._measure_lateness(stamp_ns, now_s) or stamp_ns >= max(self._arrived_s, default=0):
            self._in_vain[name] = 0
        if len(queue) > self._depth:
            if name == self._leader:
                self._give_up()
            else:
                queue.popleft()
        self._match()

    def _insert(self, name: str, stamp_ns: int, message: Any) -> None:
        """In the order of stamps; after a step back in time, what waits belongs to another run."""
        queue = self._queues[name]
        back_ns = self._newest_ns.get(name, stamp_ns) - stamp_ns
        if back_ns > self.DISORDER_NS or (name == self._leader and queue and stamp_ns < queue[-1][0]):
            self.clear()
        self._newest_ns[name] = max(stamp_ns, self._newest_ns.get(name, stamp_ns))
        later = []
        while queue and queue[-1][0] > stamp_ns:
            later.append(queue.pop())
        queue.append((stamp_ns, message))
        queue.extend(reversed(later))

    def expire(self, now_s: float) -> None:
        """Delivers what has waited too long for a partner."""
        while (deadline_s := self.deadline_s) is not None and now_s >= deadline_s:
            self._give_up()
            self._match()

    def _give_up(self) -> None:
        """Delivers the oldest leading message with the partners that are there."""
        stamp_ns, message = self._queues[self._leader].popleft()
        present = self._take_present(stamp_ns)
        for name in self._in_vain.keys() - present.keys():
            self._in_vain[name] += 1
        self._deliver_unpaired({self._leader: message} | present, None)

    def _patience_s(self, stamp_ns: int) -> float:
        """How long a leading message waits for the partners that it lacks."""
        lacking = [count for name, count in self._in_vain.items() if self._find_nearest(name, stamp_ns) is None]
        if lacking and min(lacking) >= self.STOPPED_AFTER:
            return self._slop_ns / 1e9
        if not self._lateness_s:
            return self.MOST_PATIENCE_S
        return min(max(2 * max(self._lateness_s), self.LEAST_PATIENCE_S), self.MOST_PATIENCE_S)

    def _find_nearest(self, name: str, stamp_ns: int) -> tuple[int, Any] | None:
        """The partner of a stamp among those that wait."""
        nearest = min(self._queues[name], key=lambda entry: abs(entry[0] - stamp_ns), default=None)
        return None if nearest is None or abs(nearest[0] - stamp_ns) > self._slop_ns else nearest

    def _measure_lateness(self, stamp_ns: int, now_s: float) -> bool:
        """Of a partner, also of one that comes after its leading message has gone; whether there is such a message."""
        nearest = min(self._arrived_s, key=lambda stamp: abs(stamp - stamp_ns), default=None)
        found = nearest is not None and abs(nearest - stamp_ns) <= self._slop_ns
        if nearest is not None and found:
            self._lateness_s.append(now_s - self._arrived_s[nearest])
        return found

    def clear(self) -> None:
        self._newest_ns.clear()
        self._passed_ns.clear()
        self._arrived_s.clear()
        for queue in self._queues.values():
            queue.clear()

    def _match(self) -> None:
        leaders = self._queues[self._leader]
        while leaders:
            stamp_ns, message = leaders[0]
            missed_ns = 0
            chosen = {self._leader: message}
            for name, queue in self._queues.items():
                if name == self._leader:
                    continue
                while queue and queue[0][0] < stamp_ns - self._slop_ns:
                    self._passed_ns[name] = queue.popleft()[0]
                if not queue:
                    return
                nearest = min(queue, key=lambda entry: abs(entry[0] - stamp_ns))
                if abs(nearest[0] - stamp_ns) > self._slop_ns:  # every message there is newer
                    missed_ns = min(nearest[0] - stamp_ns, stamp_ns - self._passed_ns.get(name, -1 << 63))
                    continue
                if (
                    nearest is queue[-1]
                    and nearest[0] < stamp_ns
                    and self._slop_ns > stamp_ns - nearest[0] > self._slop_ns // 2
                ):
                    return  # the next message may be nearer
                chosen[name] = nearest[1]
            leaders.popleft()
            for name in chosen.keys() - {self._leader}:
                while self._queues[name].popleft()[1] is not chosen[name]:
                    pass
            if len(chosen) == len(self._queues):
                self._callback(chosen)
            else:
                self._deliver_unpaired(chosen, missed_ns)

    def _take_present(self, stamp_ns: int) -> dict[str, Any]:
        """The partners of a leading message that are there, while another one lacks."""
        taken = {}
        for name in self._in_vain:
            nearest = self._find_nearest(name, stamp_ns)
            if nearest is not None:
                while (entry := self._queues[name].popleft()) is not nearest:
                    pass
                taken[name] = entry[1]
        return taken

    def _deliver_unpaired(self, messages: dict[str, Any], gap_ns: int | None) -> None:
        self.unpaired += 1
        self.gap_ns = gap_ns
        self._callback(messages)
