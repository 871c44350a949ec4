"""The rendered recordings that benchmarks share: fixed scenes, seeds and paths, none of which training has seen.

Choices of odometry were made on those of `ACCURACY`: how many poses are held, and how much must agree before a pose is believed
(`bench odometry --jumps`). So they compare versions and matchers, and are no test on scenes that nothing was fitted to.
They are written once, in the frames.csv layout, below a folder of the caller's choice, and used again from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..progress import Progress
from ..simulation.recording import write_recording
from ..simulation.sequence import SimulatedSequence


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


def written(folder: Path, name: str, rendering: Rendering, frames: int | None = None) -> Path:
    """The recording below `folder`, rendered unless it is there; `frames` shortens it (the path then is another one)."""
    sequence = (
        rendering.sequence if frames is None else SimulatedSequence(**vars(rendering.sequence) | {"frames": frames})
    )
    path = folder / (name if frames is None else f"{name}_{frames}")
    complete = path / "complete"
    if not complete.is_file():
        with Progress(f"render {path.name}", sequence.frames) as bar:
            write_recording(path, sequence, format="tum", overwrite=True, progress=bar.update)
        complete.touch()
    return path
