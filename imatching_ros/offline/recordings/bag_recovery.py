"""Reading recordings that were cut off, front to back and as far as it goes, without the index at their end.

An mcap file is records: an opcode byte, a length of 8 bytes, and so many bytes (https://mcap.dev/spec); chunks hold records
too. A db3 file is read in the order of its rows.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 0x03, 0x04, 0x05, 0x06, 0x0F


def scan_mcap(path: Path) -> Iterator[tuple[str, str, str, int, bytes]]:
    """Yields (topic, type, message definition, log time in ns, data) of every message before the first damage."""
    schemas: dict[int, tuple[str, str]] = {}
    channels: dict[int, tuple[str, int]] = {}
    with path.open("rb") as file:
        if file.read(8) != _MAGIC:
            return
        for opcode, body in _flatten(_records(file)):
            try:
                if opcode == _SCHEMA:
                    number = struct.unpack_from("<H", body)[0]
                    name, at = _string(body, 2)
                    _, at = _string(body, at)
                    schemas[number] = name, _string(body, at)[0]
                elif opcode == _CHANNEL:
                    number, schema = struct.unpack_from("<HH", body)
                    channels[number] = _string(body, 4)[0], schema
                elif opcode == _MESSAGE:
                    number, _, log_time, _ = struct.unpack_from("<HIQQ", body)
                    if number in channels and channels[number][1] in schemas:
                        topic, schema = channels[number]
                        yield topic, *schemas[schema], log_time, body[22:]
            except (struct.error, UnicodeDecodeError):
                return


def scan_db3(path: Path) -> Iterator[tuple[str, str, str, int, bytes]]:
    """Yields (topic, type, message definition, time in ns, data) of every row before the first damage."""
    # A recorder that was killed leaves a write-ahead log, which `ro` reads and `immutable` does not; but `ro` fails in a folder
    # that cannot be written.
    for options in ("mode=ro", "immutable=1"):
        connection = sqlite3.connect(
            f"file:{path.resolve().as_posix().replace('?', '%3f').replace('#', '%23')}?{options}", uri=True
        )
        seen = False
        try:
            topics = {row[0]: (row[1], row[2]) for row in connection.execute("SELECT id, name, type FROM topics")}
            definitions = _definitions(connection)
            for topic_id, stamp, data in connection.execute(
                "SELECT topic_id, timestamp, data FROM messages ORDER BY rowid"
            ):
                if topic_id in topics:
                    seen = True
                    name, msgtype = topics[topic_id]
                    yield name, msgtype, definitions.get(msgtype, ""), stamp, data
            return
        except sqlite3.DatabaseError:
            if seen:
                return
        finally:
            connection.close()


def _definitions(connection: sqlite3.Connection) -> dict[str, str]:
    try:
        return dict(
            connection.execute(
                "SELECT topic_type, encoded_message_definition FROM message_definitions WHERE encoding = 'ros2msg'"
            )
        )
    except sqlite3.DatabaseError:  # before Iron bags held no definitions
        return {}


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    while len(head := file.read(9)) == 9:
        opcode, length = struct.unpack("<BQ", head)
        if opcode == _DATA_END:
            return
        body = file.read(length)
        yield opcode, body  # a chunk that is cut short may still hold whole records
        if len(body) < length:
            return


def _flatten(records: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Records with chunks replaced by what they hold."""
    for opcode, body in records:
        if opcode != _CHUNK:
            yield opcode, body
            continue
        try:
            compression, at = _string(body, 28)
            inner = _decompress(body[at + 8 :], compression)
        except (struct.error, UnicodeDecodeError):
            return
        at = 0
        while at + 9 <= len(inner):
            kind, length = struct.unpack_from("<BQ", inner, at)
            if at + 9 + length > len(inner):
                return
            yield kind, inner[at + 9 : at + 9 + length]
            at += 9 + length


def _string(data: bytes, at: int) -> tuple[str, int]:
    length = struct.unpack_from("<I", data, at)[0]
    if at + 4 + length > len(data):
        raise struct.error("string beyond the end")
    return data[at + 4 : at + 4 + length].decode(), at + 4 + length


def _decompress(data: bytes, compression: str) -> bytes:
    """As much as can be decompressed."""
    if compression == "lz4":
        import lz4.frame

        decompressor = lz4.frame.LZ4FrameDecompressor()
    elif compression == "zstd":
        decompressor = _zstd().ZstdDecompressor()
    elif compression == "":
        return data
    else:
        return b""
    parts = []
    try:
        for start in range(0, len(data), 65536):
            parts.append(decompressor.decompress(data[start : start + 65536]))
    except Exception:  # each library has its own error for a broken stream
        pass
    return b"".join(parts)


def _zstd():
    """The standard library's module from Python 3.14, its backport (which rosbags brings) before."""
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    return zstd
