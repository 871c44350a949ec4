"""Reading storage files of rosbag2 front to back and as far as it goes, without the index at their end.

For recordings that were cut off, and for those that rosbags does not take: split ones without metadata.yaml, channels of other
encodings beside ROS's, ROS 1 messages in an mcap file, paths that are no URI.

An mcap file is records: an opcode byte, a length of 8 bytes, and so many bytes (https://mcap.dev/spec); chunks hold records
too. A db3 file is read in the order of its rows.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

_MAGIC = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 0x03, 0x04, 0x05, 0x06, 0x0F
_ROS = ("cdr", "ros1")
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MOST_BYTES = 1 << 30  # of a chunk or a message; a few bytes could state any size


@dataclass(frozen=True)
class Channel:
    """A topic as a storage file describes it."""

    topic: str
    msgtype: str
    definition: str  # of the message; empty where the file holds none
    encoding: str  # of the messages: cdr or ros1


# (channel, log time in ns, data); returns whether the file is whole.
Scan = Generator[tuple[Channel, int, bytes], None, bool]


def scan(path: Path) -> Scan:
    """Every message of ROS in a .mcap or .db3 before the first damage."""
    return _scan_mcap(path) if path.suffix == ".mcap" else _scan_db3(path)


def _scan_mcap(path: Path) -> Scan:
    schemas: dict[int, tuple[str, str]] = {}
    channels: dict[int, Channel] = {}
    with path.open("rb") as file:
        if file.read(8) != _MAGIC:
            return False
        records = _flatten(_records(file))
        while True:
            try:
                opcode, body = next(records)
            except StopIteration as end:
                return bool(end.value)
            try:
                if opcode == _SCHEMA:
                    number = struct.unpack_from("<H", body)[0]
                    name, at = _string(body, 2)
                    _, at = _string(body, at)
                    schemas[number] = name, _string(body, at, errors="replace")[0]  # of protobuf it is binary
                elif opcode == _CHANNEL:
                    number, schema = struct.unpack_from("<HH", body)
                    topic, at = _string(body, 4)
                    encoding = _string(body, at)[0]
                    if encoding in _ROS and schema in schemas:
                        channels[number] = Channel(topic, *schemas[schema], encoding)
                elif opcode == _MESSAGE:
                    number, _, log_time, _ = struct.unpack_from("<HIQQ", body)
                    if number in channels:
                        yield channels[number], log_time, body[22:]
            except (struct.error, UnicodeDecodeError):
                return False


def _scan_db3(path: Path) -> Scan:
    # A recorder that was killed leaves a write-ahead log, which `ro` reads and `immutable` does not; but `ro` fails in a folder
    # that cannot be written.
    for options in ("mode=ro", "immutable=1"):
        connection = sqlite3.connect(f"file:{quote(path.resolve().as_posix())}?{options}", uri=True)
        connection.text_factory = lambda data: data.decode(errors="replace")
        seen = False
        try:
            definitions = _definitions(connection)
            channels = {
                row[0]: Channel(row[1], row[2], definitions.get(row[2], ""), row[3])
                for row in connection.execute("SELECT id, name, type, serialization_format FROM topics")
                if row[3] in _ROS and isinstance(row[1], str) and isinstance(row[2], str)
            }
            for topic_id, stamp, data in connection.execute(
                "SELECT topic_id, timestamp, data FROM messages ORDER BY rowid"
            ):
                if topic_id in channels and isinstance(stamp, int) and isinstance(data, bytes):
                    seen = True
                    yield channels[topic_id], stamp, data
            return True
        except (sqlite3.Error, UnicodeDecodeError):  # the latter where SQLite quotes a damaged name
            if seen:
                return False
        finally:
            connection.close()
    return False


def _definitions(connection: sqlite3.Connection) -> dict[str, str]:
    try:
        return dict(
            connection.execute(
                "SELECT topic_type, encoded_message_definition FROM message_definitions WHERE encoding = 'ros2msg'"
            )
        )
    except (sqlite3.DatabaseError, UnicodeDecodeError):  # before Iron bags held no definitions
        return {}


def _records(file: BinaryIO) -> Generator[tuple[int, bytes], None, bool]:
    """Opcodes and bodies; returns whether the section of data has come to its end."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(9)) == 9:
        opcode, length = struct.unpack("<BQ", head)
        if opcode == _DATA_END:
            return True
        body = file.read(min(length, size))
        yield opcode, body  # a chunk that is cut short may still hold whole records
        if len(body) < length:
            break
    return False


def _flatten(records: Generator[tuple[int, bytes], None, bool]) -> Generator[tuple[int, bytes], None, bool]:
    """Records with chunks replaced by what they hold; returns whether all were whole."""
    while True:
        try:
            opcode, body = next(records)
        except StopIteration as end:
            return bool(end.value)
        if opcode != _CHUNK:
            yield opcode, body
            continue
        try:
            compression, at = _string(body, 28)
            inner = decompress(body[at + 8 :], compression)
        except (struct.error, UnicodeDecodeError):
            return False
        if not (yield from _split(inner)):
            return False


def _split(chunk: bytes) -> Generator[tuple[int, bytes], None, bool]:
    at = 0
    while at + 9 <= len(chunk):
        opcode, length = struct.unpack_from("<BQ", chunk, at)
        if at + 9 + length > len(chunk):
            return False
        yield opcode, chunk[at + 9 : at + 9 + length]
        at += 9 + length
    return at == len(chunk) > 0


def _string(data: bytes, at: int, errors: str = "strict") -> tuple[str, int]:
    length = struct.unpack_from("<I", data, at)[0]
    if at + 4 + length > len(data):
        raise struct.error("string beyond the end")
    return data[at + 4 : at + 4 + length].decode(errors=errors), at + 4 + length


def decompress(data: bytes, compression: str) -> bytes:
    """As much as can be decompressed of lz4 or zstd, up to 1 GiB; the data itself where it is not compressed."""
    if compression == "lz4":
        import lz4.frame

        decompressor = lz4.frame.LZ4FrameDecompressor()
    elif compression == "zstd":
        decompressor = zstd().ZstdDecompressor()
    else:
        return data if compression == "" else b""
    parts: list[bytes] = []
    left = _MOST_BYTES
    try:
        for start in range(0, len(data), 65536):
            parts.append(decompressor.decompress(data[start : start + 65536], left))
            left -= len(parts[-1])
            if left <= 0:
                break
    except Exception:  # each library has its own error for a broken stream
        pass
    return b"".join(parts)


def zstd():
    """The standard library's module from Python 3.14, its backport (which rosbags brings) before."""
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    return zstd
