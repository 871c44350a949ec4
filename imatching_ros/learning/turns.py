"""Between two pieces of its work the learner lets odometry go first; who runs it beside odometry says how."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

GIVE_WAY: ContextVar[Callable[[], None]] = ContextVar("give_way", default=lambda: None)  # a new thread starts with the default


def give_way() -> None:
    """Called where the learner can wait; in line with odometry it returns at once."""
    GIVE_WAY.get()()
