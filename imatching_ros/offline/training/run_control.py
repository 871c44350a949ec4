"""How a long run is watched and stopped: progress, a clean interruption, one run to a folder."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Protocol

from ...core.errors import ConfigError


class Bar(Protocol):
    """What shows progress."""

    def update(self, done: int, note: str = "") -> None: ...


# Label, steps in all (None: unknown), unit, steps already done.
MakeBar = Callable[[str, "int | None", str, int], AbstractContextManager[Bar]]


class Interruption:
    """Set by Ctrl-C and by SIGTERM; work looks at it where it can stop cleanly. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Handles the signals, where Python allows it (in the main thread)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raises KeyboardInterrupt when a stop was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.check()
        self.asked = True


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps a second run out of the folder."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another run works in {out}; wait for it, or give another --out") from None
        yield
