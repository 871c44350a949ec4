"""The first pass: odometry plays a recording with frozen weights, and the windows that may teach are kept."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.config import Config
from ...core.types import Frame, LearningSample
from ...learning.gate import refuse
from ...matching import create_matcher
from ...odometry.odometry import Odometry
from ...learning.sample import next_sample
from ..recordings.base import Source
from ..recordings.base import identify
from .stored_windows import write_json, write_window

DONE = "recording.json"


@dataclass(frozen=True)
class Recording:
    """What was kept of one recording."""

    folder: Path
    name: str
    windows: tuple[tuple[int, ...], ...]  # frame ids of every window's keyframes, in order of time
    frames: int
    refused: dict[str, int]  # windows that the gate turned away, by reason
    identity: str  # of the recording that was played

    def path(self, window: int) -> Path:
        """The file of a window."""
        return self.folder / f"{self.windows[window][-1]:06d}.safetensors"


def solved_windows(
    config: Config, frames: Iterable[Frame]
) -> Iterator[tuple[Frame, LearningSample | None, str | None]]:
    """Odometry with the weights of the settings: per frame, the window that it solved, if any, and why the gate refuses it, if it does."""
    odometry = Odometry(config, create_matcher(config.matcher))
    for frame in frames:
        odometry.track(frame)
        odometry.extend()
        sample = next_sample(odometry)
        yield frame, sample, None if sample is None else refuse(sample, config.learning)


def collect(source: Source, config: Config, folder: Path, on_frame: Callable[[int, int], None]) -> Recording:
    """Plays a recording and writes its windows; one that was collected before is read instead. What an earlier try left half is
    removed: odometry cannot go on in the middle.

    Args:
        on_frame: called with the number of frames played and of windows kept; what it raises ends the collection.
    """
    known = read_recording(folder)
    if known is not None:
        return known
    shutil.rmtree(folder, ignore_errors=True)
    windows: list[tuple[int, ...]] = []
    refused: Counter[str] = Counter()
    frames = 0
    for frame, sample, reason in solved_windows(config.with_values({"odometry.mode": source.mode}), source):
        frames += 1
        if reason is not None:
            refused[reason] += 1
        elif sample is not None:
            write_window(folder, sample)
            windows.append(sample.keyframe_ids)
        on_frame(frames, len(windows))
    told: dict[str, Any] = {
        "name": Path(source.name).name,
        "frames": frames,
        "windows": windows,
        "refused": dict(refused),
        "identity": identify(source),
    }
    write_json(folder / DONE, told)
    return Recording(folder, told["name"], tuple(windows), frames, told["refused"], told["identity"])


def read_recording(folder: Path) -> Recording | None:
    """A recording that was collected to its end, or None."""
    path = folder / DONE
    if not path.is_file():
        return None
    told = json.loads(path.read_text())
    if "identity" not in told:  # of a version that did not say which recording it was; collected again
        return None
    return Recording(
        folder,
        told["name"],
        tuple(tuple(w) for w in told["windows"]),
        told["frames"],
        told["refused"],
        told["identity"],
    )


def hold_back(recording: Recording, share: float) -> tuple[list[int], list[int]]:
    """Parts the windows of a recording: (those that teach, those that judge), as indices.

    The last `share` is held back. No keyframe of it teaches, and each window brings half of its keyframes new, as in a trial online:
    windows in a row would look like independent witnesses without being so.
    """
    windows = recording.windows
    cut = round(len(windows) * (1 - share))
    taught = {k for window in windows[:cut] for k in window}
    judging: list[int] = []
    before: set[int] = set()
    for index in range(cut, len(windows)):
        own = set(windows[index])
        if not own & taught and 2 * len(own & before) <= len(own):
            judging.append(index)
            before = own
    return list(range(cut)), judging
