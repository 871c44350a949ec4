"""Weights files: safetensors with a small JSON header (matcher, version, hash, provenance), written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core.config import MatcherConfig
from ..core.errors import WeightsError
from .base import Matcher
from .precision import use_bfloat16

DEFAULT_DIR = Path(__file__).parent.parent / "weights"
FORMAT = "imatching-1"
ABANDONED_S = 60.0  # a file takes less than a second to write


@dataclass(frozen=True)
class WeightsHeader:
    """The header of a weights file."""

    matcher: str
    version: int
    hash: str
    provenance: dict[str, Any]


def choose_matcher(config: MatcherConfig) -> MatcherConfig:
    """The settings with the matcher that `auto` means: that of the weights file, else the more accurate network where it is fast.

    Raises:
        WeightsError: the weights file is missing, damaged or not ours.
    """
    if config.name != "auto":
        return config
    if config.weights != "default":
        return replace(config, name=read_header(Path(config.weights).expanduser()).matcher)
    return replace(config, name="expectation" if config.device != "cpu" or use_bfloat16(config) else "expectation_fast")


def resolve_weights(config: MatcherConfig) -> Path:
    """The file behind the setting `matcher.weights`."""
    if config.weights != "default":
        return Path(config.weights).expanduser()
    return DEFAULT_DIR / f"{choose_matcher(config).name}.safetensors"


def hash_state(state: dict[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 over names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_weights(
    path: Path, matcher: str, state: dict[str, Tensor], version: int, provenance: dict[str, Any]
) -> WeightsHeader:
    """Writes the file under another name and renames it, so that a crash never leaves half a file.

    Raises:
        WeightsError: the file cannot be written.
    """
    header = WeightsHeader(matcher, version, hash_state(state), provenance)
    metadata = {
        "format": FORMAT,
        "matcher": matcher,
        "version": str(version),
        "hash": header.hash,
        "provenance": json.dumps(provenance, sort_keys=True),
    }
    content = save({k: v.detach().cpu().contiguous() for k, v in state.items()}, metadata)
    # Promotions are written by a thread.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise WeightsError(
            f"{path} cannot be written ({error.strerror or error}); give a folder on a disk with space that this user may write to"
        ) from error
    return header


def remove_partial_files(directory: Path) -> None:
    """Removes what `write_weights` of processes that were killed has left. A file of this minute may be another node's, at work.

    By age and not by process: in containers every process has the same few numbers.
    """
    for file in directory.glob(".*.partial"):
        with contextlib.suppress(OSError):
            if abs(time.time() - file.stat().st_mtime) > ABANDONED_S:
                file.unlink()


def read_header(path: Path) -> WeightsHeader:
    """The header alone; WeightsError when the file is missing, damaged or not ours."""
    return _read(path, tensors=False)[0]


def read_weights(path: Path) -> tuple[WeightsHeader, dict[str, Tensor]]:
    """Header and tensors.

    Raises:
        WeightsError: missing, not ours, damaged (by its hash), or with numbers that are not finite.
    """
    header, state = _read(path, tensors=True)
    if hash_state(state) != header.hash:
        raise WeightsError(
            f"{path} is damaged: its contents do not match its hash {header.hash}; restore it from a copy"
        )
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise WeightsError(
            f"{path} holds numbers that are not finite in {bad[0]} ({len(bad)} tensors); use other weights"
        )
    return header, state


def load_weights(matcher: Matcher, path: Path) -> WeightsHeader:
    """Loads a file into the matcher; WeightsError when it was made for another one."""
    header, state = read_weights(path)
    if header.matcher != matcher.name:
        raise WeightsError(
            f"{path} was made for matcher '{header.matcher}', but the matcher is '{matcher.name}'; "
            f"set matcher.name={header.matcher} or give other weights"
        )
    own = matcher.state_dict()
    wrong = sorted(set(own) ^ set(state)) or [k for k in own if own[k].shape != state[k].shape]
    if wrong:
        raise WeightsError(
            f"{path} does not fit matcher '{matcher.name}' of this version: {wrong[0]} differs "
            f"({len(wrong)} tensors); train or fetch weights for this version"
        )
    matcher.load_state_dict(state)
    matcher.weights_version = header.version
    return header


def _read(path: Path, tensors: bool) -> tuple[WeightsHeader, dict[str, Tensor]]:
    if not Path(path).is_file():
        raise WeightsError(f"there is no weights file {path}; give an existing .safetensors file or 'default'")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated, use other weights"
        ) from None
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path} has no header of this project (format {metadata.get('format')!r}, expected {FORMAT!r})"
        )
    try:
        provenance = json.loads(metadata["provenance"])
        if not isinstance(provenance, dict):
            raise ValueError("provenance is no object")
        header = WeightsHeader(metadata["matcher"], int(metadata["version"]), metadata["hash"], provenance)
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"the header of {path} is damaged ({type(error).__name__} {error}); use other weights"
        ) from None
    return header, state
