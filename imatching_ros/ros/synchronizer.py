"""Pairs the messages of several topics by their stamps. (message_filters is not on PyPI, and drops without counting.)"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any


class Synchronizer:
    """Calls back with one message of every topic, oldest first, each at most once.

    The first topic leads: each of its messages waits for the nearest message of every other topic within the slop. One that can
    have no partner any more is delivered unpaired.

    Attributes:
        unpaired: messages of the first topic that found no partners.
        gap_ns: how far the nearest partner of the newest unpaired message was; None when there was none.
    """

    def __init__(
        self, names: tuple[str, ...], slop_ns: int, callback: Callable[[dict[str, Any]], None], depth: int = 10
    ) -> None:
        self._queues: dict[str, deque[tuple[int, Any]]] = {name: deque() for name in names}
        self._leader = names[0]
        self._slop_ns = slop_ns
        self._callback = callback
        self._depth = depth
        self._passed_ns: dict[str, int] = {}  # newest stamps that were too old for every leading message
        self.unpaired = 0
        self.gap_ns: int | None = None

    def add(self, name: str, stamp_ns: int, message: Any) -> None:
        """Takes a message; calls back for every set that is complete now."""
        queue = self._queues[name]
        if queue and stamp_ns < queue[-1][0]:  # time went back: the waiting messages belong to another run
            self.clear()
        queue.append((stamp_ns, message))
        if len(queue) > self._depth:
            _, oldest = queue.popleft()
            if name == self._leader:
                self._deliver_unpaired(oldest, None)
        self._match()

    def clear(self) -> None:
        self._passed_ns.clear()
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
                    break
                if (
                    nearest is queue[-1]
                    and nearest[0] < stamp_ns
                    and self._slop_ns > stamp_ns - nearest[0] > self._slop_ns // 2
                ):
                    return  # the next message may be nearer
                chosen[name] = nearest[1]
            leaders.popleft()
            if len(chosen) == len(self._queues):
                for name, queue in self._queues.items():
                    while queue and queue[0][1] is not chosen[name] and name != self._leader:
                        queue.popleft()
                    if name != self._leader:
                        queue.popleft()
                self._callback(chosen)
            else:
                self._deliver_unpaired(message, missed_ns)

    def _deliver_unpaired(self, message: Any, gap_ns: int | None) -> None:
        self.unpaired += 1
        self.gap_ns = gap_ns
        self._callback({self._leader: message})
