"""Recordings in two parts: what learning sees, and after a gap what it is judged on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...core.errors import ConfigError
from ...core.types import Frame
from ..recordings.base import Source, SourceOptions
from ..recordings.truth import Trajectory

GAP_FRAMES = 10  # between the part that learning sees and the unseen part


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
    """A recording in two, with a gap between that nobody uses."""

    learning: Part  # what learning sees
    learning_truth: Part  # the same with depth, for the oracle
    unseen: Part  # for odometry
    unseen_truth: Part  # the same with depth, for scoring matches


def divide(whole: Source, learning_frames: int | None, mono: bool) -> Division:
    """Divides a recording; `learning_frames` None takes 60 % of what remains without the gap.

    Raises:
        ConfigError: too short.
    """
    count = whole.count_frames()
    first = learning_frames if learning_frames is not None else round(0.6 * (count - GAP_FRAMES))
    start = first + GAP_FRAMES
    return Division(
        Part(whole, 0, first, mono), Part(whole, 0, first), Part(whole, start, count, mono), Part(whole, start, count)
    )
