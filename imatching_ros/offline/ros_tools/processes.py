"""Programs of the package as processes of their own, on a ROS domain that nothing else uses."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import SourceError


@contextmanager
def process(module: str, *arguments: str, log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A Python module in a process of its own, ended with SIGINT."""
    with log.open("w") as file:
        running = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        try:
            yield running
        finally:
            running.send_signal(signal.SIGINT)
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def wait_for(running: subprocess.Popen, log: Path, text: str, timeout_s: float) -> None:
    """Waits until a process has printed a text to its log."""
    deadline = time.monotonic() + timeout_s
    while text not in log.read_text():
        if running.poll() is not None or time.monotonic() > deadline:
            raise SourceError(f"the node did not start:\n{log.read_text()}")
        time.sleep(0.1)


def free_domain() -> int:
    """A ROS_DOMAIN_ID whose discovery port is free on this machine; random, as another may be chosen at the same time."""
    for domain in random.sample(range(51, 101), 50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as test:
            try:
                test.bind(("", 7400 + 250 * domain))
                return domain
            except OSError:
                continue
    raise SourceError("no free ROS_DOMAIN_ID between 51 and 100")
