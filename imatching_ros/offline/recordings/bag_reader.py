"""Messages of rosbag2 and ROS 1 bags, also of those that were never closed properly."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from ...core.errors import SourceError
from .base import list_files
from .bag_recovery import scan_db3, scan_mcap

_SUFFIXES = (".mcap", ".db3", ".bag")


class BagReader:
    """One bag: its topics, and its messages in recorded order.

    Attributes:
        topics: {name: type as `package/msg/Type`}.
        counts: {name: number of messages}, empty where the bag holds no counts.
        files: where the messages are stored.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        """Args:
            warn: called with a description of damage that was survived.

        Raises:
            SourceError: nothing in the bag can be read.
        """
        self.path = path
        self._warn = warn
        self.files = _storage_files(path)
        self._recovered = False
        self.topics: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self._store = get_typestore(Stores.ROS2_JAZZY)
        try:
            with self._open() as reader:
                for connection in reader.connections:
                    self.topics[connection.topic] = _modern(connection.msgtype)
                    self.counts[connection.topic] = self.counts.get(connection.topic, 0) + (connection.msgcount or 0)
        except Exception as error:  # rosbags answers damage with whatever its parser stumbles over
            if path.suffix == ".bag" or any(f.suffix == ".bag" for f in self.files):
                raise SourceError(
                    f"cannot read {path}: {error}; a ROS 1 bag that was not closed is repaired by 'rosbag reindex'"
                ) from None
            self._recover(error)
        if not self.topics:
            raise SourceError(f"{path} holds no topics")

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        """Yields (topic, time of recording in ns, message). Damage ends the iteration with a warning."""
        if self._recovered:
            yield from self._recovered_messages(topics)
            return
        last = 0
        try:
            with self._open() as reader:
                connections = [c for c in reader.connections if c.topic in topics]
                if not connections:
                    return
                for connection, stamp, raw in reader.messages(connections):
                    last = stamp
                    try:
                        message = self._deserialize(reader, connection.msgtype, raw)
                    except Exception as error:
                        self._warn(
                            f"a message of {connection.topic} cannot be read ({type(error).__name__} {error}): skipped"
                        )
                        continue
                    yield connection.topic, stamp, message
        except GeneratorExit:
            raise
        except SourceError:
            raise
        except Exception as error:
            self._warn(f"{self.path} is damaged ({_short(error)}): everything up to {last / 1e9:.3f} s was used")

    def warn(self, text: str) -> None:
        """Reports damage that was survived."""
        self._warn(text)

    def _open(self) -> AnyReader:
        # A folder without metadata.yaml (recording was killed) is read file by file.
        if self.path.is_dir() and (self.path / "metadata.yaml").is_file():
            paths = [self.path]
        else:
            paths = self.files
        if len(paths) > 1 and paths[0].suffix != ".bag":
            raise AnyReaderError("a folder of several storage files without metadata.yaml")
        return AnyReader(paths, default_typestore=get_typestore(Stores.ROS2_JAZZY))

    def _deserialize(self, reader: AnyReader, msgtype: str, raw: bytes) -> Any:
        if not reader.is2:
            return reader.deserialize(raw, msgtype)
        if msgtype in reader.typestore.fielddefs:
            return reader.deserialize(raw, msgtype)
        return self._store.deserialize_cdr(raw, _modern(msgtype))  # the type spelling of Ardent to Crystal

    def _recover(self, error: Exception) -> None:
        """Lists the topics by reading what is there."""
        for topic, msgtype, definition, _, _ in self._scan():
            if topic not in self.topics:
                self._register(msgtype, definition)
                self.topics[topic] = _modern(msgtype)
        if not self.topics:
            advice = "; try 'sqlite3 FILE .recover'" if self.files and self.files[0].suffix == ".db3" else ""
            raise SourceError(f"cannot read {self.path}: {_short(error)}{advice}") from None
        self._recovered = True
        self._warn(f"{self.path} is not complete ({_short(error)}): what can be read is used")

    def _scan(self) -> Iterator[tuple[str, str, str, int, bytes]]:
        for file in self.files:
            yield from (scan_mcap if file.suffix == ".mcap" else scan_db3)(file)

    def _register(self, msgtype: str, definition: str) -> None:
        if definition and msgtype not in self._store.fielddefs:
            with suppress(Exception):
                self._store.register(get_types_from_msg(definition, msgtype))

    def _recovered_messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        for topic, msgtype, _, stamp, raw in self._scan():
            if topic in topics:
                with suppress(
                    SerdeError, ValueError, struct.error, IndexError
                ):  # the last row before the break may be half
                    yield topic, stamp, self._store.deserialize_cdr(raw, _modern(msgtype))


def _storage_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for suffix in _SUFFIXES:
        if files := list_files(path, (suffix,)):
            return files
    return []


def _modern(msgtype: str) -> str:
    """`sensor_msgs/Image` -> `sensor_msgs/msg/Image`."""
    package, _, name = msgtype.partition("/")
    return msgtype if "/" in name else f"{package}/msg/{name}"


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
