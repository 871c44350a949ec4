"""The time that each part of a frame takes."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Collects the time that each part of a frame takes.

    Attributes:
        laps: ms by the name of the part.
    """

    def __init__(self, read: Callable[[], float] = time.perf_counter) -> None:
        """`read` returns seconds; `time.process_time` counts processor time instead."""
        self.laps: dict[str, float] = {}
        self._read = read
        self._since = read()

    def lap(self, name: str) -> None:
        """Ends a part; parts of the same name add up."""
        now = self._read()
        self.laps[name] = self.laps.get(name, 0.0) + (now - self._since) * 1e3
        self._since = now
