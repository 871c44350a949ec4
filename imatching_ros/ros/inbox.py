"""The queue from the ROS thread to the thread that owns the odometry: every command in order, only the newest image."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Inbox:
    """Holds at most one image, the newest, and any number of commands. Commands go first.

    Attributes:
        received: images put in.
        dropped: images that were replaced by a newer one before they were taken.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._image: Any = None
        self._commands: deque[tuple[Callable[[], Any], Future]] = deque()
        self._closed = False
        self.received = 0
        self.dropped = 0

    def put(self, image: Any) -> None:
        """Adds an image; one that still waits is dropped."""
        with self._condition:
            self.received += 1
            self.dropped += self._image is not None
            self._image = image
            self._condition.notify()

    def call(self, command: Callable[[], Any]) -> Future:
        """Queues a function that the owner of the odometry runs between two images; the future holds its result."""
        future: Future = Future()
        with self._condition:
            if self._closed:
                future.set_exception(RuntimeError("the node is shutting down"))
            else:
                self._commands.append((command, future))
                self._condition.notify()
        return future

    def discard(self) -> None:
        """Removes the image that waits."""
        with self._condition:
            self._image = None

    def close(self) -> None:
        """Ends `take`; commands that still wait fail."""
        with self._condition:
            self._closed = True
            self._image = None
            while self._commands:
                self._commands.popleft()[1].set_exception(RuntimeError("the node is shutting down"))
            self._condition.notify_all()

    def take(self) -> Any:
        """Waits for an image, runs commands meanwhile; None once closed."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._commands or self._image is not None)
                if self._closed:
                    return None
                if not self._commands:
                    image, self._image = self._image, None
                    return image
                command, future = self._commands.popleft()
            try:
                future.set_result(command())
            except Exception as error:
                future.set_exception(error)
