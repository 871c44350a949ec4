"""Windows on disk: odometry plays a recording once, and the windows it solves can be trained on at any time.

A folder holds one recording: `images/<frame>.png` (grey, lossless; neighbouring windows share most of them), one
`<frame of the newest keyframe>.safetensors` a window, and `recording.json`, which is written last and makes it complete.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...camera.model import Camera
from ...core.config import Config
from ...core.errors import SourceError
from ...core.types import BAResult, BAStatus, Frame, LearningSample, WindowSnapshot
from ...learning.gate import refuse
from ...learning.sample import next_sample
from ...learning.sequential_test import enough_new
from ...matching import create_matcher
from ...matching.base import Matcher
from ...odometry.odometry import Odometry
from ..recordings.base import Source, identify

DONE = "recording.json"
FORMAT = "imatching-window-3"

# With the window solved after it, and why the gate refuses that.
Solved = tuple[Frame, "LearningSample | None", "str | None"]


@dataclass(frozen=True)
class Recording:
    """The windows kept of one recording."""

    folder: Path
    name: str
    windows: tuple[tuple[int, ...], ...]  # frame ids of every window's keyframes, in order of time
    frames: int
    refused: dict[str, int]  # windows that the gate refused, by reason
    identity: str  # of the recording that was played

    def path(self, window: int) -> Path:
        """The file of a window."""
        return self.folder / f"{self.windows[window][-1]:06d}.safetensors"


def solved_windows(config: Config, frames: Iterable[Frame], matcher: Matcher | None = None) -> Iterator[Solved]:
    """Odometry with a matcher, by default with that of the settings: for each frame its solved window, if any, and why the gate
    refuses it, if it does."""
    odometry = Odometry(config, matcher or create_matcher(config.matcher))
    for frame in frames:
        odometry.track(frame)
        odometry.extend()
        sample = next_sample(odometry)
        yield frame, sample, None if sample is None else refuse(sample, config.learning)


def collect(source: Source, solved: Iterator[Solved], folder: Path, on_frame: Callable[[int, int], None]) -> Recording:
    """Plays a recording and writes the windows that pass the gate; one that was collected before is read instead.

    What an earlier run left incomplete is removed, as odometry cannot resume in the middle.

    Args:
        solved: `solved_windows` of frames of the recording.
        on_frame: called with the number of frames played and of windows kept; what it raises ends the collection.
    """
    known = read_recording(folder)
    if known is not None:
        return known
    shutil.rmtree(folder, ignore_errors=True)
    windows: list[tuple[int, ...]] = []
    refused: Counter[str] = Counter()
    frames = 0
    for _, sample, reason in solved:
        frames += 1
        if reason is not None:
            refused[reason] += 1
        elif sample is not None:
            write_window(folder, sample)
            windows.append(sample.keyframe_ids)
        on_frame(frames, len(windows))
    recording = Recording(folder, Path(source.name).name, tuple(windows), frames, dict(refused), identify(source))
    write_json(folder / DONE, {k: v for k, v in vars(recording).items() if k != "folder"})
    return recording


def read_recording(folder: Path) -> Recording | None:
    """A recording that was collected to its end, or None."""
    path = folder / DONE
    if not path.is_file():
        return None
    values = json.loads(path.read_text())
    values["windows"] = tuple(tuple(ids) for ids in values["windows"])
    return Recording(folder, **values)


def split_windows(recording: Recording, share: float) -> tuple[list[int], list[int]]:
    """Indices of the windows for training and of those for validation, which come from the last `share` of the recording.

    No keyframe is in both, and enough keyframes of each validation window are new, as in validation on the robot: windows in a
    row share most keyframes.
    """
    windows = recording.windows
    cut = round(len(windows) * (1 - share))
    trained = {k for window in windows[:cut] for k in window}
    validation: list[int] = []
    before: tuple[int, ...] = ()
    for index in range(cut, len(windows)):
        own = windows[index]
        if not trained.intersection(own) and enough_new(own, before):
            validation.append(index)
            before = own
    return list(range(cut)), validation


def last_training_frame(recording: Recording, share: float) -> int:
    """Frame id of the newest keyframe that may be trained on."""
    training, _ = split_windows(recording, share)
    return recording.windows[training[-1]][-1] if training else -1


def training_windows_again(first: Recording, again: Recording, share: float) -> list[int]:
    """Indices of the windows for training among those collected again: without a keyframe that validates with those of the first time."""
    validating = {k for index in split_windows(first, share)[1] for k in first.windows[index]}
    return [index for index, ids in enumerate(again.windows) if not validating.intersection(ids)]


def write_json(path: Path, value: Any) -> None:
    """Under another name first, so that a crash never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """A safetensors file with one JSON header, written under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, {"header": json.dumps(header)})
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of `write_tensors`.

    Raises:
        SourceError: the file is missing, damaged, or something else.
    """
    try:
        with safe_open(str(path), "pt") as file:
            header = json.loads((file.metadata() or {})["header"])
            return {name: file.get_tensor(name) for name in file.keys()}, header
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read ({type(error).__name__}: {error}); remove the folder it lies in and run again"
        ) from None


def write_window(folder: Path, sample: LearningSample) -> Path:
    """Writes a window of odometry and those of its images that are not there yet."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for frame_id, image in zip(sample.keyframe_ids, sample.images):
        path = images / f"{frame_id:06d}.png"
        if not path.is_file():
            cv2.imwrite(str(path), image[0].cpu().numpy())
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {"format": FORMAT, "camera": dataclasses.asdict(sample.window.camera)}
    header["sample"] = _split(sample, "sample", tensors, leave=("images", "masks", "window", "result"))
    tensors |= {f"mask.{k}": mask for k, mask in enumerate(sample.masks) if mask is not None}
    header["window"] = _split(sample.window, "window", tensors, leave=("camera",))
    header["result"] = _split(sample.result, "result", tensors)
    path = folder / f"{sample.keyframe_ids[-1]:06d}.safetensors"
    write_tensors(path, tensors, header)
    return path


def read_window(path: Path) -> LearningSample:
    """The window as it was written, bit for bit.

    Raises:
        SourceError: damaged, or not a window.
    """
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT:
        raise SourceError(
            f"{path} is of format {header.get('format')!r}, expected {FORMAT!r}; remove the folder it lies in and run again"
        )
    camera = Camera(**{**header["camera"], "distortion": tuple(header["camera"]["distortion"])})
    window = _join(WindowSnapshot, "window", tensors, header["window"], camera=camera)
    header["result"]["status"] = BAStatus(header["result"]["status"])
    result = _join(BAResult, "result", tensors, header["result"])
    ids = tuple(header["sample"].pop("keyframe_ids"))
    images = tuple(_read_image(path.parent / "images" / f"{frame_id:06d}.png") for frame_id in ids)
    masks = tuple(tensors.get(f"mask.{k}") for k in range(len(ids)))
    return _join(
        LearningSample,
        "sample",
        tensors,
        header["sample"],
        keyframe_ids=ids,
        images=images,
        masks=masks if any(mask is not None for mask in masks) else (),
        window=window,
        result=result,
    )


def _read_image(path: Path) -> Tensor:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise SourceError(f"{path} is missing or damaged; remove the folder that holds its recording and run again")
    return torch.from_numpy(image)[None]


def _split(value: Any, prefix: str, tensors: dict[str, Tensor], leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """Puts the tensors of a dataclass into `tensors`, and returns what else it holds."""
    rest: dict[str, Any] = {}
    for f in fields(value):
        item = getattr(value, f.name)
        if f.name in leave:
            continue
        if isinstance(item, Tensor):
            tensors[f"{prefix}.{f.name}"] = item
        else:
            rest[f.name] = item.value if isinstance(item, BAStatus) else item
    return rest


def _join(kind: type, prefix: str, tensors: dict[str, Tensor], rest: dict[str, Any], **more: Any) -> Any:
    own = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
    return kind(**own, **rest, **more)
