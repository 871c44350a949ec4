"""The second pass: the learning step of the robot, on windows from disk, over one or several processes."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.config import Config
from ...core.types import LearningSample
from ...learning.step import WindowLoss, NOT_FINITE, NOT_SOLVED, Stepper, TOO_FEW, draw_gradient_keyframes
from ...matching import create_matcher
from ...matching.base import Matcher
from ...matching.weights import write_weights
from .ranks import Ranks
from .stored_windows import read_tensors, read_window, write_tensors

STATE = "state.safetensors"
CANDIDATE = "candidate.safetensors"
_REASONS = (*NOT_SOLVED.values(), TOO_FEW)


@dataclass(frozen=True)
class StoredWindow:
    path: Path
    keyframes: int


@dataclass(frozen=True)
class Batch:
    """The windows of one step and, for each, the keyframes whose matches carry the gradient."""

    windows: tuple[int, ...]
    gradient_keyframes: tuple[list[int], ...]


@dataclass(frozen=True)
class StepStatistics:
    """Sums and means of a step over all processes."""

    step: int
    accepted: int  # windows of the batch with a loss
    residual: float  # mean over them, in squared sigmas; NaN without any
    auxiliary: float
    gradient_norm: float
    stop: bool  # some process was asked to stop


class WindowLossModule(nn.Module):
    """The loss of a window as the forward pass of a module, which is what DistributedDataParallel takes part in.

    Windows may be refused, on one process and not on another, but all must go backward together and reach every weight: so zero
    times every weight is part of each loss, and of the loss of a refused window it is all.
    """

    def __init__(self, stepper: Stepper) -> None:
        super().__init__()
        self.matcher = stepper.matcher
        self._read = stepper.window_loss

    def forward(
        self, sample: LearningSample | None, gradient_keyframes: list[int]
    ) -> tuple[Tensor, WindowLoss | str | None]:
        """The loss () and what it came from: a window_loss, the reason for a refusal, or None without a window."""
        # A product for each, so that each gets a gradient in memory of its own: autograd would give single numbers one in common.
        zero = torch.stack([p.sum() * 0 for p in self.matcher.parameters()]).sum()
        window_loss = None if sample is None else self._read(sample, gradient_keyframes)
        return (zero + window_loss.loss.to(zero) if isinstance(window_loss, WindowLoss) else zero), window_loss


class Tuner:
    """Takes steps on batches of windows. Everything random follows from seed and step, so a run that goes on later, or on another
    number of processes, takes the same steps."""

    def __init__(self, config: Config, windows: list[StoredWindow], batch: int, ranks: Ranks) -> None:
        """`windows` are those that teach; `batch` of them make a step, whatever the number of processes."""
        self.config, self.windows, self.batch, self.ranks = config, windows, batch, ranks
        matcher = create_matcher(config.matcher)
        self.origin = copy.deepcopy(matcher).eval()  # what it begins with; the file may change meanwhile
        pretrained = {k: v.detach().clone() for k, v in matcher.state_dict().items()}
        self.stepper = Stepper(matcher, pretrained, config.learning, config.bundle)
        self.step = 0
        self.moving = False  # the weights are between two steps; an impatient interruption may leave them there
        self.refused: Counter[str] = Counter()
        self.lessons: Any = ranks.share(WindowLossModule(self.stepper))

    def run(self, until: int, stop: Callable[[], bool], on_step: Callable[[StepStatistics], None]) -> bool:
        """Steps until `until` were taken, or one of the processes is asked to stop; says whether it got there.

        Raises:
            RankError: another process failed.
        """
        self.lessons.eval()
        while self.step < until:
            told = self._take_step(stop())
            on_step(told)
            if told.stop:
                return self.step >= until
        return True

    def _take_step(self, stop: bool) -> StepStatistics:
        batch = self.draw(self.step)
        self.stepper.optimizer.zero_grad(set_to_none=True)
        mine = list(zip(batch.windows, batch.gradient_keyframes))[self.ranks.rank :: self.ranks.size]
        sums = [0.0] * (3 + len(_REASONS)) + [float(stop)]
        turns: list[tuple[int | None, list[int]]] = [*mine] or [(None, [])]
        for number, (window, gradient_keyframes) in enumerate(turns):
            sample = None if window is None else read_window(self.windows[window].path)
            last = number == len(turns) - 1
            # Gradients add up on each process, and meet once.
            alone = contextlib.nullcontext() if last or self.ranks.size == 1 else self.lessons.no_sync()
            with alone, self.ranks.meeting():
                loss, window_loss = self.lessons(sample, gradient_keyframes)
                if isinstance(window_loss, WindowLoss):
                    sums[:3] = [
                        sums[0] + 1,
                        sums[1] + float(window_loss.residual),
                        sums[2] + float(window_loss.auxiliary),
                    ]
                elif window_loss is not None:
                    sums[3 + _REASONS.index(window_loss)] += 1
                if last:
                    sums = self.ranks.total(sums)
                loss.backward()
        accepted, residual, auxiliary, *counts, stops = sums
        self.moving = True
        norm = self._move(int(accepted))
        self.step += 1
        self.moving = False
        self.refused.update({reason: int(n) for reason, n in zip(_REASONS, counts) if n})
        if accepted and norm is None:
            self.refused[NOT_FINITE] += 1
        share = 1 / accepted if accepted else float("nan")
        return StepStatistics(
            self.step,
            int(accepted),
            residual * share,
            auxiliary * share,
            float("nan") if norm is None else norm,
            stops > 0,
        )

    def _move(self, accepted: int) -> float | None:
        """Moves the weights along the mean gradient of the windows that taught, whichever process had them; without any, not at all,
        for Adam's momentum alone would move them too."""
        if not accepted:
            return None
        for parameter in self.stepper.parameters:
            assert parameter.grad is not None, "each loss reaches every weight"
            # DistributedDataParallel divided the sum over all windows by the number of processes.
            parameter.grad.mul_(self.ranks.size / accepted)
        return self.stepper.update()

    def draw(self, step: int) -> Batch:
        """The batch of a step: windows in an order drawn anew every time all had their turn."""
        count = len(self.windows)
        windows, gradient_keyframes = [], []
        for position in range(step * self.batch, (step + 1) * self.batch):
            epoch, place = divmod(position, count)
            window = int(torch.randperm(count, generator=self._generator(epoch, 1))[place])
            windows.append(window)
            gradient_keyframes.append(
                draw_gradient_keyframes(
                    self.windows[window].keyframes, self.config.learning, self._generator(position, 2)
                )
            )
        return Batch(tuple(windows), tuple(gradient_keyframes))

    def _generator(self, number: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.config.seed * 4 + stream) * 10_000_019 + number)

    def tuned(self) -> Matcher:
        """What the steps led to: the running mean of the weights."""
        return self.stepper.ema_matcher()

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """All that is needed to go on, and the weights as they are, for use."""
        matcher = self.tuned()
        write_weights(
            folder / CANDIDATE,
            matcher.name,
            matcher.state_dict(),
            matcher.weights_version + 1,
            provenance | {"steps": self.step},
        )
        write_tensors(folder / STATE, self.stepper.state(), {"step": self.step, "refused": dict(self.refused)})

    def resume(self, folder: Path) -> bool:
        """Goes back to what `save` left; says whether there was anything."""
        path = folder / STATE
        if not path.is_file():
            return False
        state, told = read_tensors(path)
        self.stepper.restore(state)
        self.step, self.refused = told["step"], Counter(told["refused"])
        return True
