"""The rendered scenes on which learning is judged, fixed before the first learning run, and parts of recordings.

No setting was ever chosen on these scenes: `TUNING` names the ones for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.types import Frame
from ...core.errors import ConfigError
from ..recordings.base import Source, SourceOptions
from ..recordings.truth import Trajectory

if TYPE_CHECKING:
    from ..simulation.sequence import SimulatedSequence

GAP_FRAMES = 10  # between the part that learning sees and the unseen part
RATE_HZ = 10.0


@dataclass(frozen=True)
class RenderedScene:
    """One scene under one domain shift: the first part is for learning, the rest is unseen."""

    kind: str
    seed: int
    shift: str
    motion: str = "tour"

    def sequence(self, extent: Extent) -> SimulatedSequence:
        """What is rendered of it."""
        from ..simulation.sequence import SimulatedSequence

        return SimulatedSequence(
            kind=self.kind,
            frames=extent.frames,
            seed=self.seed,
            width=extent.width,
            height=extent.height,
            rate_hz=RATE_HZ,
            shift=self.shift,
            motion=self.motion,
            supersample=extent.supersample,
        )


@dataclass(frozen=True)
class Extent:
    """How much of every scene is rendered."""

    learning_s: float
    unseen_s: float
    width: int
    height: int
    supersample: int

    @property
    def learning_frames(self) -> int:
        return round(self.learning_s * RATE_HZ)

    @property
    def frames(self) -> int:
        return self.learning_frames + GAP_FRAMES + round(self.unseen_s * RATE_HZ)


FULL = Extent(120.0, 60.0, 320, 240, 2)
QUICK = Extent(20.0, 6.0, 320, 240, 1)

SCENES = {
    "dark_noise": RenderedScene("room", 911, "dark_noise"),
    "motion_blur": RenderedScene("corridor", 912, "motion_blur"),
    "fog": RenderedScene("outdoor", 913, "fog"),
    "vignette": RenderedScene("room", 914, "vignette"),
    "new_texture": RenderedScene("clutter", 915, "new_texture"),
}
QUICK_SCENES = ("dark_noise", "fog", "new_texture")
TUNING = {
    "tuning_dark_noise": RenderedScene("room", 101, "dark_noise"),
    "tuning_motion_blur": RenderedScene("clutter", 102, "motion_blur"),
    "tuning_fog": RenderedScene("room", 103, "fog"),
    "tuning_none": RenderedScene("corridor", 104, "none"),
}
# Seen by a healthy camera: what was learned from corrupted input must not be worse here.
CLEAN = RenderedScene("clutter", 916, "none")
CLEAN_STILL = RenderedScene("clutter", 916, "none", "still")
CLEAN_ROTATION = RenderedScene("clutter", 916, "none", "pure_rotation")


def render_scene(name: str, scene: RenderedScene, extent: Extent, folder: Path, workers: int = 1) -> Path:
    """The folder of a scene's recording below `folder`; rendered unless it is there already."""
    from ..simulation.recording import write_recording

    path = folder / f"{name}_{scene.kind}{scene.seed}_{extent.width}x{extent.height}_{extent.frames}"
    done = path / "complete"
    if not done.is_file():
        write_recording(path, replace(scene.sequence(extent), workers=workers), format="tum", overwrite=True)
        done.touch()
    return path


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
