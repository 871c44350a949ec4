"""The processes of one run: what torchrun started, or this process alone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...core.errors import ConfigError, ImatchingError

_POLL_S = 0.2
_BEAT_S = 1.0
_HEARD_S = 10.0


class RankError(ImatchingError):
    """Another process of the run failed, or does not answer."""


class Interruption:
    """Set by Ctrl-C and by SIGTERM; work looks at it where it can stop cleanly. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Takes the signals over, where Python allows it (in the main thread)."""
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
        """Raises KeyboardInterrupt when it was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Ranks:
    """One of the processes that share the work. Rank 0 alone writes files and speaks.

    Processes meet in `total` and in the backward pass of what `share` returns. Whoever fails says so in the common store, so that the
    others end with its reason; whoever falls silent is given up after the timeout.
    """

    def __init__(self, device: str, timeout_s: float) -> None:
        """Joins the processes that torchrun started (RANK, WORLD_SIZE); without them, it is alone.

        Raises:
            ConfigError: the environment is incomplete. RankError: the others did not come in time.
        """
        self.rank, self.size = _number("RANK", 0), process_count()
        self.timeout_s, self.device = timeout_s, device
        self.store: dist.Store | None = None
        self._beats, self._beaten = 0, 0.0
        if self.size == 1:
            return
        if device == "cuda":
            torch.cuda.set_device(_number("LOCAL_RANK", 0))
        limit = timedelta(seconds=timeout_s)
        try:
            store, _, _ = next(dist.rendezvous("env://", self.rank, self.size, timeout=limit))
            store.set_timeout(limit)
            dist.init_process_group(
                "nccl" if device == "cuda" else "gloo",
                store=dist.PrefixStore("group", store),
                rank=self.rank,
                world_size=self.size,
                timeout=limit,
            )
        except (ValueError, RuntimeError) as error:
            raise RankError(
                f"process {self.rank} of {self.size} did not find the others within {timeout_s:g} s "
                f"({_first_line(error)}); start them with torchrun"
            ) from None
        self.store = dist.PrefixStore("run", store)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def beat(self) -> None:
        """Rank 0, while it works alone: says that it is alive."""
        if self.store is not None and time.monotonic() - self._beaten > _BEAT_S:
            self._beats, self._beaten = self._beats + 1, time.monotonic()
            self.store.set("beats", str(self._beats))

    def announce(self, word: str) -> None:
        """Rank 0: ends the waiting of the others; returns when they have heard, for it may keep the store and end at once."""
        if self.store is None:
            return
        self.store.set("word", word)
        until = time.monotonic() + _HEARD_S
        while self.store.add("heard", 0) < self.size - 1 and time.monotonic() < until:
            time.sleep(_POLL_S)

    def follow(self, interruption: Interruption) -> str:
        """The others: wait for what rank 0 announces.

        Raises:
            RankError: rank 0 failed, or gave no sign for longer than the timeout. KeyboardInterrupt: asked to stop.
        """
        assert self.store is not None, "who is alone leads"
        beats, heard = "", time.monotonic()
        try:
            while not self.store.check(["word"]):
                interruption.check()
                self._look_for_failure()
                now = self.store.get("beats").decode() if self.store.check(["beats"]) else ""
                if now != beats:
                    beats, heard = now, time.monotonic()
                if time.monotonic() - heard > self.timeout_s:
                    raise RankError(f"process 0 has given no sign for {self.timeout_s:g} s; {_AGAIN}")
                time.sleep(_POLL_S)
            word = self.store.get("word").decode()
            self.store.add("heard", 1)
            return word
        except RuntimeError as error:
            raise RankError(f"process 0 is gone ({_first_line(error)}); {_AGAIN}") from None

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, float64; within a `meeting`."""
        if self.store is None:
            return [float(v) for v in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def share(self, module: nn.Module) -> nn.Module:
        """The module, with gradients that are means over all processes; weights become those of rank 0.

        Raises:
            ConfigError: a module with buffers.
        """
        if self.store is None:
            return module
        if any(True for _ in module.buffers()):
            # Buffers would be synchronised in forward passes, of which processes make different numbers.
            raise ConfigError(
                "this matcher keeps statistics in buffers, which several processes cannot share; run finetune on one"
            )
        with self.meeting():
            return DistributedDataParallel(module)

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Around what waits for the other processes: when one does not come, the reason is told.

        Raises:
            RankError: another process failed or does not answer.
        """
        try:
            yield
        except RuntimeError as error:
            if self.store is None or not _of_network(error):
                raise
            with contextlib.suppress(RuntimeError):  # rank 0 keeps the store, and may be the one that is gone
                self._look_for_failure()
            raise RankError(
                f"another process is gone or did not answer within {self.timeout_s:g} s ({_first_line(error)}); {_AGAIN}"
            ) from None

    @contextmanager
    def membership(self) -> Iterator[Ranks]:
        """Leaves the others at the end; tells them when it is an error."""
        try:
            yield self
        except BaseException as error:
            if self.store is not None and not isinstance(error, RankError):
                # The others need not be there any more.
                with contextlib.suppress(RuntimeError):
                    self.store.set(
                        "failed", f"process {self.rank} ended with {type(error).__name__}: {_first_line(error)}"
                    )
            raise
        finally:
            self.leave()

    def leave(self) -> None:
        """Ends the common work; what follows is done alone."""
        if self.store is not None:
            self.store = None
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    def _look_for_failure(self) -> None:
        if self.store is not None and self.store.check(["failed"]):
            raise RankError(f"{self.store.get('failed').decode()}; {_AGAIN}")


def process_count() -> int:
    """How many processes torchrun started; 1 without it. ConfigError: the environment holds no number."""
    return _number("WORLD_SIZE", 1)


_AGAIN = "what was done is kept, the same command goes on"


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        raise ConfigError(
            f"the environment variable {name} is {os.environ[name]!r}, expected a whole number; unset it or use torchrun"
        ) from None


def _of_network(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection", "timed out", "broken pipe")
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
