"""Pairs the messages of several topics by their stamps. (message_filters is not on PyPI, drops without counting, and waits for ever.)"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any


class Synchronizer:
    """Calls back with one message of every topic, oldest first, each at most once.

    The first topic leads: each of its messages waits for the nearest message of every other topic within the slop. One that can
    have no partner any more is delivered without it, and so is one that has waited too long: twice as long as partners have been late
    so far, or the slop where they have stopped. Before the first partner at all, messages wait until the queue is full.

    Attributes:
        unpaired: messages of the first topic that found no partners.
        gap_ns: how far the nearest partner of the newest unpaired message was; None when there was none.
    """

    LEAST_PATIENCE_S, MOST_PATIENCE_S = (
        0.1,
        1.0,
    )  # hiccups of a busy computer; the longest delay that a pose may have from it
    LATENESSES = 20  # remembered
    STOPPED_AFTER = 3  # messages that waited in vain, with none of another topic between

    def __init__(
        self, names: tuple[str, ...], slop_ns: int, callback: Callable[[dict[str, Any]], None], depth: int = 10
    ) -> None:
        self._queues: dict[str, deque[tuple[int, Any]]] = {name: deque() for name in names}
        self._leader = names[0]
        self._slop_ns = slop_ns
        self._callback = callback
        self._depth = depth
        self._passed_ns: dict[str, int] = {}  # newest stamps that were too old for every leading message
        self._arrived_s: dict[
            int, float
        ] = {}  # when leading messages came, by stamp: those that wait, and some that went
        self._lateness_s: deque[float] = deque(maxlen=self.LATENESSES)  # of partners
        self._in_vain: int | None = (
            None  # messages that waited in vain since one of another topic; None before the first one
        )
        self.unpaired = 0
        self.gap_ns: int | None = None

    @property
    def deadline_s(self) -> float | None:
        """When `expire` has something to do; None when nothing waits, or nothing is known of partners."""
        leaders = self._queues[self._leader]
        if not leaders or self._in_vain is None:
            return None
        return self._arrived_s.get(leaders[0][0], 0.0) + self._patience_s()

    def add(self, name: str, stamp_ns: int, message: Any, now_s: float) -> None:
        """Takes a message that arrives at `now_s` (of a steady clock); calls back for every set that is complete now."""
        queue = self._queues[name]
        if queue and stamp_ns < queue[-1][0]:  # time went back: the waiting messages belong to another run
            self.clear()
        queue.append((stamp_ns, message))
        if name == self._leader:
            self._arrived_s[stamp_ns] = now_s
            if len(self._arrived_s) > 4 * self._depth:
                del self._arrived_s[next(iter(self._arrived_s))]
        else:
            self._in_vain = 0
            self._measure_lateness(stamp_ns, now_s)
        if len(queue) > self._depth:
            _, oldest = queue.popleft()
            if name == self._leader:
                self._deliver_unpaired({name: oldest}, None)
        self._match()

    def expire(self, now_s: float) -> None:
        """Delivers what has waited too long for a partner."""
        while (deadline_s := self.deadline_s) is not None and now_s >= deadline_s:
            stamp_ns, message = self._queues[self._leader].popleft()
            self._in_vain = (self._in_vain or 0) + 1
            self._deliver_unpaired({self._leader: message} | self._take_present(stamp_ns), None)
            self._match()

    def _patience_s(self) -> float:
        if self._in_vain is not None and self._in_vain >= self.STOPPED_AFTER:
            return self._slop_ns / 1e9
        return min(max(2 * max(self._lateness_s, default=0.0), self.LEAST_PATIENCE_S), self.MOST_PATIENCE_S)

    def _measure_lateness(self, stamp_ns: int, now_s: float) -> None:
        """Of a partner, also of one that comes after its leading message has gone."""
        nearest = min(self._arrived_s, key=lambda stamp: abs(stamp - stamp_ns), default=None)
        if nearest is not None and abs(nearest - stamp_ns) <= self._slop_ns:
            self._lateness_s.append(now_s - self._arrived_s[nearest])

    def clear(self) -> None:
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
        for name, queue in self._queues.items():
            near = [entry for entry in queue if abs(entry[0] - stamp_ns) <= self._slop_ns]
            if near and name != self._leader:
                nearest = min(near, key=lambda entry: abs(entry[0] - stamp_ns))
                while (entry := queue.popleft()) is not nearest:
                    pass
                taken[name] = entry[1]
        return taken

    def _deliver_unpaired(self, messages: dict[str, Any], gap_ns: int | None) -> None:
        self.unpaired += 1
        self.gap_ns = gap_ns
        self._callback(messages)
