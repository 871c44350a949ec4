"""The time that each part of a frame takes, and the order of stamps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


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


SYNC_SLOP_S = 0.01  # largest difference of the stamps of two cameras' images of one moment
# A stamp older by more is of a clock that was set back, or of a bag that loops; by less, of a late image.
BACKWARD_JUMP_S = 0.5


@dataclass(frozen=True)
class Verdict:
    """What becomes of an image by its stamp: dropped, used, or used after odometry has begun again."""

    reason: str = ""  # why it is dropped, or why odometry begins again
    dropped: bool = False
    restarts: bool = False
    repeated: bool = False  # the stamp is that of the image before


class StampOrder:
    """Checks that stamps ascend. One that lies far from the last, before or after it, counts only when the next confirms it.

    So one wrong stamp costs one image, and time that starts again, as in a bag that loops, costs one as well.
    """

    # A stamp farther ahead than so many of the last intervals, or so many times the time that has passed since, is a jump.
    INTERVALS = 5.0

    def __init__(self, read: Callable[[], float] = time.monotonic) -> None:
        """`read` returns seconds."""
        self._read = read
        self._last_ns: int | None = None
        self._interval_ns = 0  # between the last two
        self._used_s = 0.0
        self._pending_ns: int | None = None  # far from the last: wrong, unless the next one follows it

    def check(self, stamp_ns: int, tolerance_s: float) -> Verdict:
        """Whether the image with this stamp is used.

        `tolerance_s`: a stamp older than the last by no more than this is late, and not a jump.
        """
        if self._last_ns is None:
            return self._use(stamp_ns, 0)
        ahead_ns = stamp_ns - self._last_ns
        reach_ns = self._reach_ns(tolerance_s)
        if 0 < ahead_ns <= reach_ns:
            return self._use(stamp_ns, ahead_ns)
        apart = f"its stamp is {abs(ahead_ns) / 1e9:.6f} s {'before' if ahead_ns <= 0 else 'after'} the last one"
        if -tolerance_s * 1e9 <= ahead_ns <= 0:
            return Verdict(f"{apart}; expected ascending stamps", dropped=True, repeated=ahead_ns == 0)
        # Nearer to the one before than to the last: time goes on from there, be it fast or slow.
        if self._pending_ns is not None and 0 < stamp_ns - self._pending_ns <= max(reach_ns, abs(ahead_ns) / 2):
            jump_s = (self._pending_ns - self._last_ns) / 1e9
            verdict = self._use(stamp_ns, stamp_ns - self._pending_ns)
            return verdict if jump_s > 0 else Verdict(f"stamps jumped back by {-jump_s:.3f} s", restarts=True)
        self._pending_ns = stamp_ns
        return Verdict(f"{apart}; it counts when the next image confirms it", dropped=True)

    def _reach_ns(self, tolerance_s: float) -> float:
        """How far a stamp may lie after another: cameras pause, and bags are played slower and faster than they were recorded."""
        waited_ns = (self._read() - self._used_s) * 1e9
        return tolerance_s * 1e9 + self.INTERVALS * max(self._interval_ns, waited_ns)

    def _use(self, stamp_ns: int, interval_ns: int) -> Verdict:
        self._last_ns, self._interval_ns, self._used_s = stamp_ns, interval_ns, self._read()
        self._pending_ns = None
        return Verdict()
