"""How long to fine-tune, and on what."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """The run; the learning itself is in the settings."""

    steps: int | None = None  # None: as many as `epochs` make
    epochs: float = 3.0  # times that every window teaches
    batch: int = 4  # windows of a step, over all processes
    hold_back: float = 0.3  # last part of every recording, which judges and never teaches
    save_every_s: float = 30.0  # what a kill may cost
    timeout_s: float = 300.0  # after which a silent process is given up

    def check(self) -> None:
        """Raises ConfigError for what cannot be."""
        if (self.steps is not None and self.steps < 1) or not self.epochs > 0 or self.batch < 1:
            raise ConfigError(f"--steps {self.steps}, --epochs {self.epochs:g}, --batch {self.batch}: expected numbers above zero")
        if not 0 <= self.hold_back <= 0.9:
            raise ConfigError(f"--hold-back {self.hold_back:g}: expected 0 to 0.9, the part of every recording that judges")
        if not self.save_every_s >= 0 or not self.timeout_s > 0:
            raise ConfigError(f"--save-every {self.save_every_s:g}, --timeout {self.timeout_s:g}: expected seconds")

    def steps_on(self, windows: int) -> int:
        """Steps in all, on so many windows."""
        return self.steps if self.steps is not None else math.ceil(self.epochs * windows / self.batch)
