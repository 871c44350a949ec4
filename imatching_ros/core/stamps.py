"""Stamps of images: what counts as the next one, as out of order, and as a clock that was set. One rule for node and recordings."""

from __future__ import annotations

from enum import Enum

SYNC_SLOP_S = 0.01  # largest difference of the stamps of two cameras' images of one moment
BACKWARD_JUMP_S = 0.5  # a stamp older by more is of a clock that was set back, or of a bag that loops; by less, of an image that is late
FORWARD_JUMP_S = 10.0  # a stamp ahead by more is doubted until the next image confirms it


class Order(Enum):
    """What a stamp is after the stamps before it."""

    NEXT = "next"
    LATE = "late"  # not after the last one: the image is dropped
    OUTLIER = "outlier"  # far from the last one, and nothing confirms it yet: the image is dropped
    JUMP = "jump"  # the clock was set back; time starts again here


class StampOrder:
    """Follows the stamps of one camera's images. A jump counts when the next image confirms it: one outlier moves nothing."""

    def __init__(self, backward_jump_s: float = BACKWARD_JUMP_S) -> None:
        self.backward_jump_s = backward_jump_s
        self.last_ns: int | None = None  # of the newest image that was used
        self._outlier_ns: int | None = None
        self._interval_ns = 0

    def add(self, stamp_ns: int) -> Order:
        """Takes the next stamp, and returns what it is."""
        if self.last_ns is None:
            return self._accept(stamp_ns, Order.NEXT)
        ahead_ns = stamp_ns - self.last_ns
        most_ns = max(FORWARD_JUMP_S * 1e9, 5 * self._interval_ns)  # slow cameras have long intervals
        if 0 < ahead_ns <= most_ns:
            return self._accept(stamp_ns, Order.NEXT)
        if -self.backward_jump_s * 1e9 <= ahead_ns <= 0:
            return Order.LATE
        if self._outlier_ns is not None and 0 < stamp_ns - self._outlier_ns <= max(most_ns, ahead_ns / 2):
            return self._accept(stamp_ns, Order.JUMP if ahead_ns < 0 else Order.NEXT)
        self._outlier_ns = stamp_ns
        return Order.OUTLIER

    def _accept(self, stamp_ns: int, order: Order) -> Order:
        before = self._outlier_ns if self._outlier_ns is not None and self._outlier_ns < stamp_ns else self.last_ns
        self._interval_ns = 0 if before is None else max(stamp_ns - before, 0)
        self.last_ns, self._outlier_ns = stamp_ns, None
        return order
