"""The queue from the ROS thread to the thread that owns the odometry: every command in order, and the newest few images."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from ..core.errors import ImatchingError


class CommandExpired(ImatchingError):
    """A command waited too long and was not carried out."""


class InboxClosed(ImatchingError):
    """A command came, or still waited, when the node was paused or ended."""


class Inbox:
    """Holds a few images, oldest first, and any number of commands. Commands go first.

    A keyframe may take several intervals of the input. The images that arrive meanwhile wait, and none is dropped as long as the computer
    keeps up on average. `rate.RateControl` sees to that.

    Attributes:
        received: images put in.
        dropped: images that were removed before they were taken, except by `discard`.
        behind: when the newest image was taken, more than one still waited, or some had been dropped since the one before. (One may
            wait on a computer that keeps up: it has come while a keyframe was made.)
    """

    DEPTH = 4  # images that wait: at 30 Hz on two slow cores the start of a map lasts so many intervals

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._images: deque[Any] = deque()
        self._commands: deque[tuple[Callable[[], Any], Future]] = deque()
        self._closed = False
        self.received = 0
        self.dropped = 0
        self.behind = False
        self._dropped_before = 0  # when the newest image was taken

    def put(self, image: Any) -> None:
        """Adds an image; the oldest of those that wait is dropped when they are too many."""
        with self._condition:
            self.received += 1
            self._images.append(image)
            self._drop_all_but(self.DEPTH)
            self._condition.notify()

    @property
    def waiting(self) -> int:
        """Images that wait."""
        with self._condition:
            return len(self._images)

    def catch_up(self) -> None:
        """Drops the images that wait, except the newest."""
        with self._condition:
            self._drop_all_but(1)

    def _drop_all_but(self, count: int) -> None:
        while len(self._images) > count:
            self._images.popleft()
            self.dropped += 1

    def call(self, command: Callable[[], Any]) -> Future:
        """Queues a function that the owner of the odometry runs between two images; the future holds its result."""
        future: Future = Future()
        with self._condition:
            if self._closed:
                future.set_exception(InboxClosed("the node is being paused or ended"))
            else:
                self._commands.append((command, future))
                self._condition.notify()
        return future

    def run(self, command: Callable[[], Any], timeout_s: float) -> Any:
        """Queues a function, as `call` does, and returns its result.

        Raises:
            CommandExpired: it was not begun in time, and never will be: whoever asks again must not have it done twice.
        """
        future = self.call(command)
        if not wait([future], timeout_s).done and future.cancel():
            raise CommandExpired(f"not begun within {timeout_s:g} s, and given up")
        return future.result()

    def discard(self) -> None:
        """Removes the images that wait."""
        with self._condition:
            self._images.clear()

    def close(self) -> None:
        """Ends `take`; commands that still wait fail."""
        with self._condition:
            self._closed = True
            self._images.clear()
            while self._commands:
                _, future = self._commands.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_exception(InboxClosed("the node is being paused or ended"))
            self._condition.notify_all()

    def take(self) -> Any:
        """Waits for an image, runs commands meanwhile; None once closed."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._commands or self._images)
                if self._closed:
                    return None
                if not self._commands:
                    return self._take_image()
                command, future = self._commands.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(command())
            except Exception as error:
                future.set_exception(error)

    def _take_image(self) -> Any:
        image = self._images.popleft()
        self.behind = len(self._images) > 1 or self.dropped > self._dropped_before
        self._dropped_before = self.dropped
        return image
