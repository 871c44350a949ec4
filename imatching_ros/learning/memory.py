"""How much memory the tensors of some objects hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn


def held_mb(*roots: Any) -> float:
    """MB (2**20 bytes) of all tensors in modules, dataclasses, mappings and sequences, on whatever device; each storage once."""
    sizes = {}
    for tensor in _tensors(roots):
        storage = tensor.untyped_storage()
        sizes[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values()) / 2**20


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach()
        if value.is_leaf and value.grad is not None:
            yield value.grad
    elif isinstance(value, nn.Module):
        yield from _tensors([*value.parameters(), *value.buffers()])
    elif isinstance(value, Mapping):
        yield from _tensors(value.values())
    elif is_dataclass(value):
        yield from _tensors([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from _tensors(item)
