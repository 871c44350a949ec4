"""A progress bar on stderr: share, rate, time left; a plain line now and then where stderr is not a terminal."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts steps towards `total` (None: unknown). Used as a context manager; redraws at most ten times a second."""

    def __init__(
        self, label: str, total: int | None, unit: str = "frames", *, quiet: bool = False, first: int = 0
    ) -> None:
        """`quiet` draws nothing. `first`: steps that an earlier run had done, which do not count for the rate."""
        self.label, self.total, self.unit = label, total, unit
        self._quiet = quiet
        self._stream = sys.stderr
        self._live = self._stream.isatty()
        self._interval_s = 0.1 if self._live else 10.0
        self._start = self._drawn = time.monotonic()
        self.done = self._first = first

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._draw(" " if not self._live else "")
        if self._live and not self._quiet:
            self._stream.write("\n")
            self._stream.flush()

    def update(self, done: int, note: str = "") -> None:
        """Reports how many steps are done, with a short note."""
        self.done = done
        now = time.monotonic()
        if now - self._drawn >= self._interval_s:
            self._drawn = now
            self._draw(note)

    def _draw(self, note: str) -> None:
        if self._quiet:
            return
        elapsed = time.monotonic() - self._start
        rate = (self.done - self._first) / elapsed if elapsed > 0 else 0.0
        if self.total:
            width = 28  # characters
            share = min(self.done / self.total, 1.0)
            bar = "#" * round(share * width)
            left = (
                f", {_clock((self.total - self.done) / rate)} left"
                if rate > 0 and self.done < self.total
                else f", {_clock(elapsed)}"
            )
            text = f"{self.label} [{bar:<{width}}] {self.done}/{self.total} {self.unit}, {rate:.1f}/s{left}"
        else:
            text = f"{self.label} {self.done} {self.unit}, {rate:.1f}/s, {_clock(elapsed)}"
        text = f"{text}  {note}".rstrip()
        self._stream.write(f"\r\x1b[K{text}" if self._live else f"{text}\n")
        self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02d}"
