"""Windows on disk: what odometry solved once can be learned from at any time.

A folder holds one recording: `images/<frame>.png` (grey, lossless; neighbouring windows share most of them), one
`<frame of the newest keyframe>.safetensors` a window, and `recording.json`, which is written last and makes it complete.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...camera.model import Camera
from ...core.types import BAResult, BAStatus, LearningSample, WindowSnapshot
from ...core.errors import SourceError

FORMAT = "imatching-window-1"


def write_json(path: Path, value: Any) -> None:
    """Under another name first, so that a crash never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], told: dict[str, Any]) -> None:
    """A safetensors file with one JSON header, written under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, {"told": json.dumps(told)})
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
            told = json.loads((file.metadata() or {})["told"])
            return {name: file.get_tensor(name) for name in file.keys()}, told
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
    told: dict[str, Any] = {"format": FORMAT, "camera": dataclasses.asdict(sample.window.camera)}
    told["sample"] = _take_apart(sample, "sample", tensors, leave=("images", "window", "result"))
    told["window"] = _take_apart(sample.window, "window", tensors, leave=("camera",))
    told["result"] = _take_apart(sample.result, "result", tensors)
    path = folder / f"{sample.keyframe_ids[-1]:06d}.safetensors"
    write_tensors(path, tensors, told)
    return path


def read_window(path: Path) -> LearningSample:
    """The window as it was written, bit for bit.

    Raises:
        SourceError: damaged, or not a window.
    """
    tensors, told = read_tensors(path)
    if told.get("format") != FORMAT:
        raise SourceError(
            f"{path} is of format {told.get('format')!r}, expected {FORMAT!r}; remove the folder it lies in and run again"
        )
    camera = Camera(**{**told["camera"], "distortion": tuple(told["camera"]["distortion"])})
    window = _put_together(WindowSnapshot, "window", tensors, told["window"], camera=camera)
    told["result"]["status"] = BAStatus(told["result"]["status"])
    result = _put_together(BAResult, "result", tensors, told["result"])
    ids = tuple(told["sample"].pop("keyframe_ids"))
    images = tuple(_read_image(path.parent / "images" / f"{frame_id:06d}.png") for frame_id in ids)
    return _put_together(
        LearningSample, "sample", tensors, told["sample"], keyframe_ids=ids, images=images, window=window, result=result
    )


def _read_image(path: Path) -> Tensor:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise SourceError(f"{path} is missing or damaged; remove the folder that holds its recording and run again")
    return torch.from_numpy(image)[None]


def _take_apart(value: Any, prefix: str, tensors: dict[str, Tensor], leave: tuple[str, ...] = ()) -> dict[str, Any]:
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


def _put_together(kind: type, prefix: str, tensors: dict[str, Tensor], rest: dict[str, Any], **more: Any) -> Any:
    own = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
    return kind(**own, **rest, **more)
