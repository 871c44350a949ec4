"""Messages as they travel: types found by name, stamps read and moved without unpacking the rest."""

from __future__ import annotations

import struct
from importlib import import_module
from typing import Any

from ...core.errors import SourceError

_PREFIX = {0: ">", 1: "<"}  # byte order, by the second byte of the CDR encapsulation


def find_type(name: str) -> type:
    """'sensor_msgs/msg/Image' -> its class.

    Raises:
        SourceError: the package is not installed.
    """
    package, _, message = name.split("/")
    try:
        return getattr(import_module(f"{package}.msg"), message)
    except (ImportError, AttributeError):
        raise SourceError(
            f"messages of type {name} are not installed; source the workspace that builds {package}"
        ) from None


def starts_with_header(kind: Any) -> bool:
    """Whether the first field is a std_msgs/Header, so that a stamp stands right behind the encapsulation."""
    return next(iter(kind.get_fields_and_field_types().values()), "") == "std_msgs/Header"


def read_stamp_ns(data: bytes) -> int:
    """The header's stamp of a serialized message that starts with a header."""
    seconds, nanoseconds = struct.unpack_from(_PREFIX[data[1] & 1] + "iI", data, 4)
    return seconds * 10**9 + nanoseconds


def move_stamp(data: bytes, shift_ns: int) -> bytes:
    """The same message with its header's stamp moved."""
    moved = bytearray(data)
    stamp = read_stamp_ns(data) + shift_ns
    struct.pack_into(_PREFIX[data[1] & 1] + "iI", moved, 4, stamp // 10**9, stamp % 10**9)
    return bytes(moved)
