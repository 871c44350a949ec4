"""Training of fine-tuning: the learning step of the robot, on windows from disk, over one or several processes."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...core.config import Config
from ...core.errors import ImatchingError
from ...learning.step import NOT_FINITE, NOT_SOLVED, TOO_FEW, Stepper
from ...matching import create_matcher
from ...matching.base import Matcher
from ...matching.weights import write_weights
from .windows import read_tensors, read_window, write_tensors

STATE = "state.safetensors"
CANDIDATE = "candidate.safetensors"
REFIT_WINDOWS = 8  # whose images sigma is refitted on


class ProcessError(ImatchingError):
    """Another process of the run ended, or does not answer."""


class Processes:
    """The processes of one run, as torchrun started them (RANK, WORLD_SIZE), or this one alone. Rank 0 alone writes and prints."""

    def __init__(self, device: str, timeout_s: float) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device, self.timeout_s = device, timeout_s

    @contextmanager
    def joined(self) -> Iterator[Processes]:
        """The others can be reached within. Raises ProcessError when they do not come in time."""
        if self.size == 1:
            yield self
            return
        if self.device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        with self._named_errors():
            dist.init_process_group(
                "nccl" if self.device == "cuda" else "gloo", timeout=timedelta(seconds=self.timeout_s)
            )
            # While rank 0 plays recordings alone, the others wait as long as it takes; a dead process is noticed all the same.
            self._patient = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        try:
            yield self
        finally:
            with contextlib.suppress(RuntimeError):  # the others may have gone
                dist.destroy_process_group()

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, any object, for which the others wait without a limit."""
        values = [value]
        if self.size > 1:
            with self._named_errors():
                dist.broadcast_object_list(values, group=self._patient)
        return values[0]

    def copy_from_rank_0(self, values: Tensor) -> None:
        """Overwrites a tensor with that of rank 0."""
        if self.size > 1:
            with self._named_errors():
                dist.broadcast(values, 0)

    def sum(self, values: Tensor) -> Tensor:
        """Sums a tensor over all processes, in place."""
        if self.size > 1:
            with self._named_errors():
                dist.all_reduce(values)
        return values

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ProcessError(
                f"another process ended or did not answer within {self.timeout_s:g} s ({reason}); "
                "what was done is kept, the same command resumes"
            ) from None


@dataclass(frozen=True)
class StoredWindow:
    path: Path
    keyframes: int


@dataclass(frozen=True)
class Batch:
    """The windows of one step and, for each, its position in the order of all batches, which seeds what is drawn from it."""

    windows: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class StepStatistics:
    """Sums and means of a step over all processes."""

    step: int
    accepted: int  # windows of the batch with a loss
    residual: float  # mean over those that took it, in squared sigmas; NaN without any
    pseudo_truth: float  # mean over those that took it
    gradient_norm: float
    stop: bool  # some process was asked to stop


class Tuner:
    """Takes steps on batches of windows. Everything random follows from seed and step, so a resumed run, or one on another
    number of processes, takes the same steps."""

    def __init__(self, config: Config, windows: list[StoredWindow], batch: int, processes: Processes) -> None:
        """`windows` are those for training; `batch` of them make a step, whatever the number of processes."""
        self.config, self.batch, self.processes = config, batch, processes
        self.train_on(windows, 0)
        self._refitted_on = windows[:: max(1, len(windows) // REFIT_WINDOWS)][:REFIT_WINDOWS]
        matcher = create_matcher(config.matcher)
        for value in matcher.state_dict().values():  # the file may differ by now
            processes.copy_from_rank_0(value)
        self.origin = copy.deepcopy(matcher).eval()
        pretrained = {k: v.detach().clone() for k, v in matcher.state_dict().items()}
        self.stepper = Stepper(matcher.eval(), pretrained, config.learning, config.bundle)
        self.step = 0
        self.moving = False  # the weights are between two steps; an impatient interruption may leave them there
        self.refused: Counter[str] = Counter()

    def train_on(self, windows: list[StoredWindow], first_step: int) -> None:
        """Takes the windows for all steps from `first_step` on."""
        self.windows, self._first_step = windows, first_step

    def run(self, until: int, stop: Callable[[], bool], on_step: Callable[[StepStatistics], None]) -> bool:
        """Steps until `until` were taken, or one of the processes is asked to stop; returns whether all were taken.

        Raises:
            ProcessError: another process failed.
        """
        while self.step < until:
            statistics = self.take_step(stop())
            on_step(statistics)
            if statistics.stop:
                break
        return self.step >= until

    def take_step(self, stop: bool) -> StepStatistics:
        """One step along the mean gradient of a batch. `stop`: this process was asked to stop after it."""
        reasons = (*NOT_SOLVED.values(), TOO_FEW)
        # Stops, accepted, residual and pseudo-truth with the number of windows that took them, refusals.
        sums = torch.zeros(6 + len(reasons), dtype=torch.float64)
        sums[0] = stop
        batch = self.draw(self.step)
        self.stepper.optimizer.zero_grad(set_to_none=True)
        mine = list(zip(batch.windows, batch.positions))[self.processes.rank :: self.processes.size]
        for window, position in mine:
            result = self.stepper.accumulate(read_window(self.windows[window].path), self.generator_at(position))
            if isinstance(result, str):
                sums[6 + reasons.index(result)] += 1
                continue
            sums[1] += 1
            for place, value in ((2, result.residual), (4, result.pseudo_truth)):
                if math.isfinite(value):
                    sums[place : place + 2] += torch.tensor([value, 1.0], dtype=torch.float64)
        stops, accepted, *terms = self.processes.sum(sums.to(self.processes.device)).tolist()
        counts = terms[4:]
        residual, pseudo_truth = (total / n if n else float("nan") for total, n in (terms[:2], terms[2:4]))
        self.moving = True
        norm = self._move(int(accepted))
        self.step += 1
        self.moving = False
        self.refused.update({reason: int(n) for reason, n in zip(reasons, counts) if n})
        if accepted and norm is None:
            self.refused[NOT_FINITE] += 1
        norm = float("nan") if norm is None else norm
        return StepStatistics(self.step, int(accepted), residual, pseudo_truth, norm, stops > 0)

    def _move(self, accepted: int) -> float | None:
        """Moves the weights along the mean gradient of the accepted windows of all processes; returns its norm.

        Without any, not at all, for Adam's momentum alone would move them too.
        """
        if not accepted:
            return None
        parameters = self.stepper.parameters
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total = self.processes.sum(torch.cat([gradient.flatten() for gradient in gradients])) * (1 / accepted)
        for parameter, part in zip(parameters, total.split([p.numel() for p in parameters])):
            parameter.grad = part.view_as(parameter)
        return self.stepper.update()

    def draw(self, step: int) -> Batch:
        """The batch of a step: windows in an order that is drawn anew for every pass over them."""
        count, first = len(self.windows), self._first_step * self.batch
        windows = []
        positions = range(step * self.batch, (step + 1) * self.batch)
        for position in positions:
            place = (position - first) % count
            order = torch.randperm(count, generator=self._generator(position - place, 1))
            windows.append(int(order[place]))
        return Batch(tuple(windows), tuple(positions))

    def generator_at(self, position: int) -> torch.Generator:
        """Of all that is drawn from a window, by its position in the order of all batches."""
        return self._generator(position, 2)

    def _generator(self, number: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.config.seed * 4 + stream) * 10_000_019 + number)

    def tuned(self) -> Matcher:
        """The EMA of the weights, with sigma refitted on warps of some of the first windows."""
        some = [read_window(window.path) for window in self._refitted_on]
        return self.stepper.candidate(some, self._generator(self.step, 3))

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """Writes the state from which `resume` continues, and the weights so far."""
        matcher = self.tuned()
        version = matcher.weights_version + 1
        write_weights(
            folder / CANDIDATE, matcher.name, matcher.state_dict(), version, provenance | {"steps": self.step}
        )
        write_tensors(folder / STATE, self.stepper.state(), {"step": self.step, "refused": dict(self.refused)})

    def resume(self, folder: Path) -> bool:
        """Goes back to what `save` left; returns whether there was anything."""
        path = folder / STATE
        if not path.is_file():
            return False
        state, header = read_tensors(path)
        self.stepper.restore(state)
        self.step, self.refused = header["step"], Counter(header["refused"])
        return True
