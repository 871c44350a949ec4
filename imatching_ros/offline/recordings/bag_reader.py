"""Messages of rosbag2 and ROS 1 bags, also of those that were never closed properly."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from ...core.errors import SourceError
from .base import BAG_SUFFIXES, list_files
from .bag_scan import ZSTD_MAGIC, Channel, decompress, scan, zstd


class BagReader:
    """One bag: its topics, and its messages in recorded order.

    Attributes:
        topics: {name: type as `package/msg/Type`}; of two types of one name, that of most messages.
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
        self._unpacked: TemporaryDirectory | None = None
        self._stored = self._unpack() if self._without_metadata() else self.files
        self._scanned = False
        self.topics: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self._stores = {"cdr": get_typestore(Stores.ROS2_JAZZY), "ros1": get_typestore(Stores.ROS1_NOETIC)}
        found: dict[tuple[str, str], int] = {}
        try:
            with self._open() as reader:
                for connection in reader.connections:
                    key = connection.topic, _modern(connection.msgtype)
                    found[key] = found.get(key, 0) + (connection.msgcount or 0)
        except Exception as error:  # rosbags answers damage with whatever its parser stumbles over
            if any(f.suffix == ".bag" for f in self.files):
                raise SourceError(
                    f"cannot read {path}: {error}; a ROS 1 bag that was not closed is repaired by 'rosbag reindex'"
                ) from None
            found = self._scan_topics(error)
        self._choose_types(found)
        if not self.topics:
            raise SourceError(f"{path} holds no topics")

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        """Yields (topic, time of recording in ns, message). Damage ends the iteration with a warning."""
        if self._scanned:
            yield from self._scanned_messages(topics)
            return
        last = 0
        try:
            with self._open() as reader:
                connections = [
                    c for c in reader.connections if c.topic in topics and self.topics[c.topic] == _modern(c.msgtype)
                ]
                if not connections:
                    return
                for connection, stamp, raw in reader.messages(connections):
                    last = stamp
                    try:
                        message = self._deserialize(reader, connection.msgtype, raw)
                    except Exception as error:
                        self._warn_of_message(connection.topic, error)
                        continue
                    yield connection.topic, stamp, message
        except GeneratorExit:
            raise
        except SourceError:
            raise
        except Exception as error:
            self._warn(f"{self.path} is damaged ({_short(error)}): everything up to {last / 1e9:.3f} s was used")

    def first(self, topic: str) -> Any:
        """The first message of a topic; None where it holds none that can be read."""
        return next((message for _, _, message in self.messages([topic])), None)

    def warn(self, text: str) -> None:
        """Reports damage that was survived."""
        self._warn(text)

    # -- storage files ------------------------------------------------------------------------------------------------

    def _without_metadata(self) -> bool:
        """Whether the files are read by themselves: metadata.yaml says how they are compressed."""
        return not (self.path.is_dir() and (self.path / "metadata.yaml").is_file())

    def _unpack(self) -> list[Path]:
        """The files, those that end in .zstd decompressed into a temporary folder."""
        result = []
        for file in self.files:
            if file.suffix != ".zstd":
                result.append(file)
                continue
            self._unpacked = self._unpacked or TemporaryDirectory(prefix="imatching_ros_")
            result.append(Path(self._unpacked.name) / file.stem)
            try:
                with zstd().open(file, "rb") as packed, result[-1].open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
            except Exception as error:  # what came before the damage is there
                self._warn(f"{file} cannot be decompressed to its end ({_short(error)})")
        return result

    def _open(self) -> AnyReader:
        # A folder without metadata.yaml (recording was killed) is read file by file.
        paths = self._stored if self._without_metadata() else [self.path]
        if not paths:
            raise AnyReaderError("no storage files")
        if len(paths) > 1 and paths[0].suffix != ".bag":
            raise AnyReaderError("a folder of several storage files without metadata.yaml")
        if paths[0].suffix != ".bag" and any(f.suffix == ".db3" and set("?#%") & set(str(f)) for f in self._stored):
            raise AnyReaderError("the path is no URI")  # as which rosbags opens it
        return AnyReader(paths, default_typestore=get_typestore(Stores.ROS2_JAZZY))

    # -- types and messages -------------------------------------------------------------------------------------------

    def _choose_types(self, found: dict[tuple[str, str], int]) -> None:
        """Sets topics and counts by {(topic, type): messages}."""
        for (topic, msgtype), count in sorted(found.items(), key=lambda item: -item[1]):
            if topic not in self.topics:
                self.topics[topic], self.counts[topic] = msgtype, count
            else:
                self._warn(
                    f"{topic} in {self.path} has two types: {self.topics[topic]} ({self.counts[topic]} messages) is used, {msgtype} "
                    f"({count}) is not"
                )
        if not any(self.counts.values()):
            self.counts = {}

    def _deserialize(self, reader: AnyReader, msgtype: str, raw: bytes) -> Any:
        if not reader.is2:
            return reader.deserialize(raw, msgtype)
        raw, own, known = _unpack_message(raw), reader.typestore.fielddefs, self._stores["cdr"].fielddefs
        # Not with the bag's own definition where that is damaged, or spells the type as Ardent to Crystal did.
        if msgtype in own and (msgtype not in known or _field_names(known[msgtype]) <= _field_names(own[msgtype])):
            return reader.deserialize(raw, msgtype)
        return self._stores["cdr"].deserialize_cdr(raw, _modern(msgtype))

    def _warn_of_message(self, topic: str, error: Exception) -> None:
        self._warn(f"a message of {topic} cannot be read ({type(error).__name__} {error}): skipped")

    # -- scanning -----------------------------------------------------------------------------------------------------

    def _scan_topics(self, error: Exception) -> dict[tuple[str, str], int]:
        """{(topic, type): messages} by reading what is there; `error`: why rosbags does not."""
        found: dict[tuple[str, str], int] = {}
        whole = True
        if not self._without_metadata():
            self._stored = self._unpack()
        for file in self._stored:
            messages = scan(file)
            while True:
                try:
                    channel, _, _ = next(messages)
                except StopIteration as end:
                    whole = whole and bool(end.value)
                    break
                key = channel.topic, _modern(channel.msgtype)
                if key not in found:
                    self._register(channel)
                found[key] = found.get(key, 0) + 1
        if not found:
            advice = "; try 'sqlite3 FILE .recover'" if self.files and self.files[0].suffix == ".db3" else ""
            raise SourceError(f"cannot read {self.path}: {_short(error)}{advice}") from None
        self._scanned = True
        if not whole:
            self._warn(f"{self.path} is not complete ({_short(error)}): what can be read is used")
        return found

    def _register(self, channel: Channel) -> None:
        store = self._stores[channel.encoding]
        if channel.definition and _modern(channel.msgtype) not in store.fielddefs:
            with suppress(Exception):
                store.register(get_types_from_msg(channel.definition, _modern(channel.msgtype)))

    def _scanned_messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        for file in self._stored:
            for channel, stamp, raw in scan(file):
                msgtype = _modern(channel.msgtype)
                if channel.topic not in topics or self.topics.get(channel.topic) != msgtype:
                    continue
                store = self._stores[channel.encoding]
                try:
                    if channel.encoding == "ros1":
                        message = store.deserialize_ros1(raw, msgtype)
                    else:
                        message = store.deserialize_cdr(_unpack_message(raw), msgtype)
                except (SerdeError, ValueError, KeyError, struct.error, IndexError):
                    continue  # the last row before the break may be half
                yield channel.topic, stamp, message


def _unpack_message(raw: bytes) -> bytes:
    """A message that the recorder compressed by itself, which metadata.yaml would say. CDR begins with a zero."""
    return decompress(bytes(raw), "zstd") if raw[:4] == ZSTD_MAGIC else raw


def _storage_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for suffix in BAG_SUFFIXES:
        if files := list_files(path, (suffix,)):
            return files
    return []


def _field_names(definition: Any) -> set[str]:
    """Of a message definition as rosbags holds it: constants, then (name, type) of the fields."""
    return {name for name, _ in definition[1]}


def _modern(msgtype: str) -> str:
    """`sensor_msgs/Image` -> `sensor_msgs/msg/Image`."""
    package, _, name = msgtype.partition("/")
    return msgtype if "/" in name else f"{package}/msg/{name}"


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
