"""The windows of all recordings of a fine-tuning, collected once and again for every further epoch."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...core.config import Config
from ...core.errors import ConfigError, SourceError
from ...matching.base import Matcher
from ..recordings import open_source
from ..recordings.base import Source, identify
from .plan import Plan, epoch_folder
from .run_control import Interruption, MakeBar
from .tuner import StoredWindow
from .windows import (
    Recording,
    Solved,
    collect,
    last_training_frame,
    read_recording,
    solved_windows,
    split_windows,
)


@dataclass(frozen=True)
class Collection:
    """Plays the recordings of a plan and keeps their windows below `out`."""

    plan: Plan
    out: Path
    config: Config
    bar: MakeBar
    interruption: Interruption

    def collect(self) -> list[Recording] | None:
        """The windows of every source; None when it was asked to stop."""
        folders = self.plan.folders(self.out)
        # All are opened before the first is played: an error in the last must not show after an hour.
        # One whose windows are there already may be away by now.
        opened = [
            None if read_recording(folder) and not path.exists() else open_source(path, self.plan.options)
            for path, folder in zip(self.plan.sources, folders)
        ]
        recordings = []
        for path, folder, source in zip(self.plan.sources, folders, opened):
            known = read_recording(folder)
            if known is None:
                assert source is not None, "sources without windows were opened"
                known = self._collect_one(path, source, folder)
            elif source is not None and known.identity != identify(source):
                raise ConfigError(
                    f"{folder} holds windows of another recording than {path}, which has the same name; give another --out"
                )
            if known is None:
                return None
            recordings.append(known)
        return recordings

    def collect_again(self, epoch: int, recordings: list[Recording], tuned: Callable[[], Matcher]) -> bool:
        """Plays the training part of every recording with the weights as they are by now; False when asked to stop."""
        folders = self.plan.folders(self.out, epoch)
        matcher = None
        for path, recording, folder in zip(self.plan.sources, recordings, folders):
            if read_recording(folder) is not None:
                continue
            source = open_source(path, self.plan.options)
            if identify(source) != recording.identity:
                raise ConfigError(f"{path} has changed since its windows were collected; give another --out")
            config = self.config.with_values({"odometry.mode": source.mode})
            last = last_training_frame(recording, self.plan.hold_back)
            frames = itertools.takewhile(lambda frame: frame.id <= last, source)
            label = f"epoch {epoch + 1}: collect {path.resolve().name}"
            matcher = matcher or tuned()
            if self._play(label, source, solved_windows(config, frames, matcher), folder) is None:
                return False
        if epoch > 1:
            shutil.rmtree(epoch_folder(self.out, epoch - 1), ignore_errors=True)
        return True

    def recordings(self, epoch: int = 0) -> list[Recording]:
        """What rank 0 has collected."""
        found = [read_recording(folder) for folder in self.plan.folders(self.out, epoch)]
        missing = [str(path) for path, recording in zip(self.plan.sources, found) if recording is None]
        if missing:
            raise SourceError(
                f"the windows of {', '.join(missing)} are not in {self.out}; all processes must see the same folder"
            )
        return [recording for recording in found if recording is not None]

    def training_windows(self, recordings: list[Recording]) -> list[StoredWindow]:
        windows = [
            StoredWindow(r.path(k), len(r.windows[k]))
            for r in recordings
            for k in split_windows(r, self.plan.hold_back)[0]
        ]
        if not windows:
            counts = sum((Counter(r.refused) for r in recordings), Counter())
            refused = ", ".join(f"{reason}: {n}" for reason, n in counts.items()) or "no window was solved"
            raise SourceError(
                f"no window of {', '.join(r.name for r in recordings)} can be trained on ({refused}); "
                "record a drive that moves sideways through a scene with texture"
            )
        return windows

    def _collect_one(self, path: Path, source: Source, folder: Path) -> Recording | None:
        solved = solved_windows(self.config.with_values({"odometry.mode": source.mode}), source)
        return self._play(f"collect {path.resolve().name}", source, solved, folder)

    def _play(self, label: str, source: Source, solved: Iterator[Solved], folder: Path) -> Recording | None:
        """The windows that odometry solves, written; None when asked to stop."""
        with self.bar(label, source.length, "frames", 0) as shown:

            def on_frame(frames: int, windows: int) -> None:
                shown.update(frames, f"{windows} windows")
                self.interruption.check()

            try:
                return collect(source, solved, folder, on_frame)
            except KeyboardInterrupt:
                return None
