"""Of what a fine-tuning is made, and what must not change when it is resumed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...core.config import Config
from ...core.errors import ConfigError
from ...core.types import to_json_value
from ..recordings.base import SourceOptions
from .windows import write_json

WINDOWS = "windows"  # the folder of what was collected


@dataclass(frozen=True)
class Plan:
    """Of what and for how long; how to learn is in the settings."""

    sources: list[Path]
    options: SourceOptions = SourceOptions()
    steps: int | None = None  # None: as many as `epochs` make
    epochs: float = 3.0  # passes over all training windows
    batch: int = 4  # windows of a step, over all processes
    hold_back: float = 0.3  # last part of every recording, for validation
    save_every_s: float = 30.0  # longest training that a kill can lose
    timeout_s: float = 300.0  # after which a silent process ends the run

    def check(self, processes: int) -> None:
        """Raises ConfigError for values out of bounds."""
        if (self.steps is not None and self.steps < 1) or not self.epochs > 0 or self.batch < 1:
            raise ConfigError(
                f"--steps {self.steps}, --epochs {self.epochs:g}, --batch {self.batch}: expected numbers above zero"
            )
        if not 0 <= self.hold_back <= 0.9:
            raise ConfigError(f"--hold-back {self.hold_back:g}: expected 0 to 0.9, the part of every recording")
        if not self.save_every_s >= 0 or not self.timeout_s > 0:
            raise ConfigError(f"--save-every {self.save_every_s:g}, --timeout {self.timeout_s:g}: expected seconds")
        if self.batch < processes:
            raise ConfigError(
                f"--batch is {self.batch} and there are {processes} processes; give at least one window to each"
            )

    def steps_on(self, windows: int) -> int:
        """Steps in all, on so many windows."""
        return self.steps if self.steps is not None else math.ceil(self.epochs * windows / self.batch)

    def steps_of_epoch(self, windows: int) -> int:
        """Steps of one pass over so many windows."""
        return math.ceil(windows / self.batch)

    def folders(self, out: Path, epoch: int = 0) -> list[Path]:
        """Where the windows of each source are kept, of the first epoch or of a later one."""
        windows = out / WINDOWS if epoch == 0 else epoch_folder(out, epoch)
        return [windows / f"{number:02d}_{path.resolve().stem}" for number, path in enumerate(self.sources)]


def epoch_folder(out: Path, epoch: int) -> Path:
    """The windows of a later epoch."""
    return out / WINDOWS / f"epoch{epoch}"


def describe(plan: Plan, origin: str, config: Config) -> dict[str, Any]:
    """What must not change between a run and one that resumes it."""
    # Settings of a process that runs beside odometry, or of this machine: they decide nothing here.
    beside = "mode guard budget queue replay_windows replay_share candidate_steps post_deployment_windows".split()
    settings = config.to_dict()
    for section, names in {"matcher": ("weights", "device", "threads"), "learning": beside}.items():
        for name in names:
            del settings[section][name]
    options = {k: v for k, v in asdict(plan.options).items() if v is not None and k != "groundtruth"}
    return to_json_value(
        {
            "sources": [path.resolve().name for path in plan.sources],
            "weights": origin,
            "batch": plan.batch,
            "hold_back": plan.hold_back,
            "recording": options,
            "settings": settings,
        }
    )


def compare_with_earlier(path: Path, description: dict[str, Any]) -> None:
    """Refuses to resume a run that was started with other values; the first run that got to a window writes its own."""
    if not path.is_file() or not (path.parent / WINDOWS).exists():
        write_json(path, description)
        return
    before, now = _flat(json.loads(path.read_text())), _flat(description)
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{path.parent} holds a run that was started with {key} = {before.get(key)}, now it is {now.get(key)}"
            f"{f' ({len(changed) - 1} more differ)' if len(changed) > 1 else ''}; give the same again, or another --out"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    parts = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
    return {key: item for part in parts for key, item in part.items()}
