"""What learning sees of a recording, and what it is judged on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...core.errors import ConfigError
from ...core.types import Frame
from ..recordings.base import Source, SourceOptions
from ..recordings.truth import Trajectory

GAP_FRAMES = 10  # between the part of a recording that learning sees and the unseen part
OVERLAP_M = 0.5  # a frame nearer to a learned one than this and OVERLAP_DEG shows a learned place
OVERLAP_DEG = 20.0


class Part(Source):
    """Frames `start` to `stop` of those that another source yields, of its own ids, without the depth that is only there for scoring when `mono`."""

    def __init__(self, whole: Source, start: int, stop: int, mono: bool = False) -> None:
        super().__init__()
        if stop <= start:
            raise ConfigError(
                f"{whole.name}: frames {start} to {stop} are no part; the recording is too short to be divided"
            )
        self._whole, self._start, self._stop, self._mono = whole, start, stop, mono
        self.name, self.camera, self.options = whole.name, whole.camera, SourceOptions()
        self.mode = "mono" if mono else whole.mode

    @classmethod
    def whole(cls, source: Source, mono: bool) -> Part:
        """All frames."""
        return cls(source, 0, source.count_frames(), mono)

    def read(self) -> Iterator[Frame]:
        for k, frame in enumerate(self._whole):
            if k >= self._stop:
                return
            if k >= self._start:
                yield Frame(frame.id, frame.stamp_ns, frame.image, frame.camera) if self._mono else frame

    def groundtruth(self) -> Trajectory | None:
        return self._whole.groundtruth()

    @property
    def length(self) -> int:
        return self._stop - self._start


@dataclass(frozen=True)
class Division:
    """What is learned from, and what is scored, by column."""

    learning: Part  # what learning sees
    learning_truth: Source  # the same with depth, for the oracle
    scored: dict[str, Source]  # with depth, for matches
    mono: bool  # odometry is scored without depth

    def for_odometry(self, column: str) -> Part:
        """A scored column as odometry sees it."""
        return Part.whole(self.scored[column], self.mono)


def divide(whole: Source, mono: bool) -> Division:
    """A recording in two, the first 60 % to learn from and the rest unseen, with a gap between that nobody uses.

    Raises:
        ConfigError: too short.
    """
    count = whole.count_frames()
    first = round(0.6 * (count - GAP_FRAMES))
    unseen = Part(whole, first + GAP_FRAMES, count)
    return Division(Part(whole, 0, first, mono), Part(whole, 0, first), {"unseen": unseen}, mono)


def shows_new_place(poses: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """(N,) bool: poses (N, 7) that overlap with none of `learned` (M, 7)."""
    distance = (poses[:, None, :3] - learned[None, :, :3]).norm(dim=-1)
    turn = (poses[:, None, 3:] * learned[None, :, 3:]).sum(-1).abs().clamp(max=1).acos() * 2
    return ~((distance < OVERLAP_M) & (torch.rad2deg(turn) < OVERLAP_DEG)).any(1)
