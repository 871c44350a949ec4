"""The time that each part of a frame takes."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Collects the time that each part of a frame takes, ms."""

    read: Callable[[], float] = staticmethod(time.perf_counter)  # s; a benchmark may count processor time instead

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = Clock.read()

    def lap(self, name: str) -> None:
        """Ends a part."""
        now = Clock.read()
        self.laps[name] = self.laps.get(name, 0.0) + (now - self._since) * 1e3
        self._since = now
