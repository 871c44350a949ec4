"""Every rendered scene that something is measured on: fixed seeds and paths, none of which training has seen.

- `ACCURACY`: odometry. Its settings were chosen on these (how many poses are held, and how much must agree before a pose is believed),
  so they compare versions and matchers, and are no test on scenes that nothing was fitted to.
- `consistency`: the truth of covariances. `INTERFERENCE_SEED`: odometry beside the learner.
- `SCENES`: what learning is judged on, fixed before the first learning run; no setting was ever chosen on them. `TUNING` is for that.
  The shifts from `rain` on are in no augmentation that training uses.
- `CLEAN`: seen by a healthy camera; what was learned from corrupted input must not be worse here. Its textures are new to the shipped
  weights, so that there is something to promote.

Recordings are rendered once, below a folder of the caller's choice, and used again from there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..progress import Progress
from ..recordings import open_source
from ..recordings.base import Source, SourceOptions
from ..simulation.recording import write_recording
from ..simulation.sequence import SimulatedSequence
from .division import Division, Part, shows_new_place

RATE_HZ = 6.0
REVISIT_RATE_HZ = 1.1 * RATE_HZ  # of the same path: between the learned instants
OTHER_SEED = 9000  # added to the seed of a path or of a scene
INTERFERENCE_SEED = 907


def render_once(path: Path, sequence: SimulatedSequence) -> Path:
    """The recording at `path` in the TUM RGB-D layout; rendered unless it is there, complete."""
    complete = path / "complete"
    if not complete.is_file():
        with Progress(f"render {path.name}", sequence.frames) as bar:
            write_recording(path, sequence, format="tum", overwrite=True, progress=bar.update)
        complete.touch()
    return path


@dataclass(frozen=True)
class Rendering:
    """One recording and the modes that it is used in."""

    sequence: SimulatedSequence
    modes: tuple[str, ...]  # mono, stereo, rgbd


def _walk(
    kind: str, seed: int, modes: tuple[str, ...], width: int, height: int, frames: int, **options: int
) -> Rendering:
    baseline_m = 0.5 if kind == "outdoor" else 0.12
    return Rendering(
        SimulatedSequence(
            kind=kind,
            seed=seed,
            frames=frames,
            width=width,
            height=height,
            supersample=1,
            baseline_m=baseline_m if "stereo" in modes else 0.0,
            depth_noise=0.003 if "rgbd" in modes else 0.0,
            **options,
        ),
        modes,
    )


# For the accuracy of odometry.
ACCURACY = {
    "eval_room_mono": _walk("room", 71, ("mono",), 640, 480, 100),
    "eval_clutter_mono": _walk("clutter", 72, ("mono",), 640, 480, 100),
    "eval_corridor_stereo": _walk("corridor", 73, ("stereo",), 640, 480, 100),
    "eval_outdoor_stereo": _walk("outdoor", 74, ("stereo",), 640, 480, 100),
    "eval_room_rgbd": _walk("room", 75, ("rgbd",), 640, 480, 100),
}


def key_figures(width: int, height: int, frames: int, texture_size: int) -> dict[str, Rendering]:
    """For `bench kpi`: the first scene in the size given, which is also matched and timed, and smaller ones of other cameras."""
    small, options = (width // 2, height // 2), {"texture_size": texture_size, "workers": 2}
    scenes = {
        "clutter": _walk("clutter", 81, ("mono",), width, height, frames, **options),
        "corridor": _walk("corridor", 82, ("stereo",), *small, frames, **options),
        "room": _walk("room", 83, ("rgbd",), *small, frames, **options),
    }
    return {f"kpi_{name}_{width}x{height}_{frames}": rendering for name, rendering in scenes.items()}


def consistency(seed: int) -> dict[str, Rendering]:
    """For the truth of covariances: small recordings with the depth of a sensor and a right image."""
    return {
        f"nees_{kind}_{seed}": _walk(kind, seed, ("rgbd", "stereo"), 320, 240, 80)
        for kind in ("room", "clutter", "corridor")
    }


def render(folder: Path, name: str, rendering: Rendering, frames: int | None = None) -> Path:
    """The recording of that name below `folder`; `frames` shortens it (the path then is another one)."""
    if frames is None:
        return render_once(folder / name, rendering.sequence)
    return render_once(folder / f"{name}_{frames}", replace(rendering.sequence, frames=frames))


@dataclass(frozen=True)
class RenderedScene:
    """One scene under one domain shift."""

    kind: str
    seed: int
    shift: str
    motion: str = "tour"


@dataclass(frozen=True)
class Extent:
    """How much of every scene is rendered."""

    learned_s: float
    scored_frames: int  # of each part that is scored
    width: int = 240
    height: int = 180

    def learned(self, scene: RenderedScene) -> SimulatedSequence:
        """What is learned from."""
        return SimulatedSequence(
            kind=scene.kind,
            frames=round(self.learned_s * RATE_HZ),
            seed=scene.seed,
            width=self.width,
            height=self.height,
            rate_hz=RATE_HZ,
            shift=scene.shift,
            motion=scene.motion,
            supersample=1,
            texture_size=256,
        )

    def scored(self, scene: RenderedScene) -> dict[str, SimulatedSequence]:
        """What is scored, by column: the same path again at other instants, another path, another scene of the kind and shift."""
        learned = self.learned(scene)
        part = replace(learned, frames=self.scored_frames)
        return {
            "revisit": replace(part, path_s=self.learned_s, rate_hz=REVISIT_RATE_HZ),
            "new place": _another_path(part, learned),
            "other scene": replace(part, seed=scene.seed + OTHER_SEED),
        }


def _another_path(part: SimulatedSequence, learned: SimulatedSequence) -> SimulatedSequence:
    """Of some other paths through the scene, the first that shows the fewest learned places."""
    scene = replace(part, texture_size=32).scene()  # textures do not matter
    known = learned.trajectory(scene)
    paths = [replace(part, path_seed=part.seed + OTHER_SEED + k) for k in range(16)]
    return max(paths, key=lambda path: int(shows_new_place(path.trajectory(scene), known).sum()))


FULL = Extent(30.0, 24)
QUICK = Extent(15.0, 16)
BRIEF = Extent(10.0, 24)  # of the ablation

SCENES = {
    "dark_noise": RenderedScene("room", 911, "dark_noise"),
    "motion_blur": RenderedScene("corridor", 912, "motion_blur"),
    "fog": RenderedScene("outdoor", 913, "fog"),
    "vignette": RenderedScene("room", 914, "vignette"),
    "new_texture": RenderedScene("clutter", 915, "new_texture"),
    "rain": RenderedScene("corridor", 921, "rain"),
    "thermal": RenderedScene("room", 922, "thermal"),
    "jpeg": RenderedScene("outdoor", 923, "jpeg"),
    "stripes": RenderedScene("clutter", 924, "stripes"),
    "sand": RenderedScene("room", 925, "sand"),
    "wet": RenderedScene("corridor", 926, "wet"),
}
QUICK_SCENES = ("dark_noise", "rain", "new_texture")
TUNING = {
    "tuning_dark_noise": RenderedScene("room", 101, "dark_noise"),
    "tuning_motion_blur": RenderedScene("clutter", 102, "motion_blur"),
    "tuning_fog": RenderedScene("room", 103, "fog"),
    "tuning_none": RenderedScene("corridor", 104, "none"),
    "tuning_light_change": RenderedScene("clutter", 105, "light_change"),
    "tuning_street": RenderedScene("outdoor", 106, "none"),
    "tuning_jpeg": RenderedScene("corridor", 107, "jpeg"),
    "tuning_jpeg_street": RenderedScene("outdoor", 108, "jpeg"),
}
CLEAN = RenderedScene("clutter", 916, "new_texture")
CLEAN_STILL = RenderedScene("clutter", 916, "new_texture", "still")
CLEAN_ROTATION = RenderedScene("clutter", 916, "new_texture", "pure_rotation")


def open_scene(name: str, scene: RenderedScene, extent: Extent, folder: Path) -> Division:
    """Renders a scene below `folder`, unless it is there: what is learned from and the columns that are scored, for one camera."""
    learned = open_learned(name, scene, extent, folder)
    scored = {
        column: _open(folder / f"{_stem(name, extent)}_{column.replace(' ', '_')}", sequence)
        for column, sequence in extent.scored(scene).items()
    }
    return Division(Part.whole(learned, mono=True), learned, scored, mono=True)


def open_learned(name: str, scene: RenderedScene, extent: Extent, folder: Path) -> Source:
    """What is learned from, with its depth."""
    return _open(folder / f"{_stem(name, extent)}_learned", extent.learned(scene))


def _stem(name: str, extent: Extent) -> str:
    return f"{name}_{extent.learned_s:g}s_{extent.scored_frames}"


def _open(path: Path, sequence: SimulatedSequence) -> Source:
    return open_source(render_once(path, sequence), SourceOptions())
