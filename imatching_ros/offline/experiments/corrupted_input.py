"""Corrupted input: whatever is learned from it, the weights must not become worse on a clean scene.

That guarded weights stay shows something only where the same scene, as long and not corrupted, is promoted from: its clean twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.config import Config
from ...core.types import Frame
from ...core.errors import ConfigError
from ...matching import create_matcher
from .learning_comparison import CellStore, ComparisonPlan
from .learning_runs import learn_in_turn, save_weights, score_weights
from .division import Division, Part
from .scenes import CLEAN, CLEAN_ROTATION, CLEAN_STILL, FULL, QUICK, open_learned, open_scene


def wrong_focal_length(frames: list[Frame]) -> list[Frame]:
    """The focal length of the calibration is 20 % too large."""
    return [replace(f, camera=replace(f.camera, fx=1.2 * f.camera.fx, fy=1.2 * f.camera.fy)) for f in frames]


def moving_object(frames: list[Frame]) -> list[Frame]:
    """Something rich in corners, two fifths of the image wide and high, walks through it against the camera's motion."""
    height, width = frames[0].image.shape[-2:]
    h, w = 2 * height // 5, 2 * width // 5
    coarse = torch.randint(30, 226, (1, 1, h // 6, w // 6), generator=torch.Generator().manual_seed(0)).float()
    texture = torch.nn.functional.interpolate(coarse, (h, w), mode="bilinear")[0].byte()
    corrupted = []
    for k, frame in enumerate(frames):
        x = int((width - w) * (0.5 + 0.5 * torch.sin(torch.tensor(k / 8.0))))
        image = frame.image.clone()
        image[:, height // 3 : height // 3 + h, x : x + w] = texture
        corrupted.append(replace(frame, image=image))
    return corrupted


def out_of_order(frames: list[Frame]) -> list[Frame]:
    """Images change places within groups of five; the stamps still ascend."""
    generator = torch.Generator().manual_seed(0)
    order = [
        k + int(j)
        for k in range(0, len(frames), 5)
        for j in torch.randperm(min(5, len(frames) - k), generator=generator)
    ]
    return [replace(frame, image=frames[k].image) for frame, k in zip(frames, order)]


def repeated_texture(frames: list[Frame]) -> list[Frame]:
    """The middle of every image, eight times side by side: every corner has seven twins."""
    corrupted = []
    for frame in frames:
        _, height, width = frame.image.shape
        h, w = height // 2, width // 4
        tile = frame.image[:, height // 4 : height // 4 + h, 3 * width // 8 : 3 * width // 8 + w]
        corrupted.append(replace(frame, image=tile.repeat(1, 2, 4)[:, :height, :width].contiguous()))
    return corrupted


def black_frames(frames: list[Frame]) -> list[Frame]:
    """Every third image is black."""
    return [replace(f, image=torch.zeros_like(f.image)) if k % 3 == 2 else f for k, f in enumerate(frames)]


CORRUPTIONS: dict[str, Callable[[list[Frame]], list[Frame]]] = {
    "wrong_focal_length": wrong_focal_length,
    "moving_object": moving_object,
    "out_of_order": out_of_order,
    "repeated_texture": repeated_texture,
    "black_frames": black_frames,
}
MOTIONS = {"pure_rotation": CLEAN_ROTATION, "still": CLEAN_STILL}


def corrupted_input_cells(
    config: Config, plan: ComparisonPlan, chosen: Sequence[str] = (), unguarded: bool = False
) -> Iterator[dict[str, Any]]:
    """One cell per corruption, guarded and if wished `unguarded` too, besides the frozen weights and the clean twin.

    All are scored in the columns of the clean scene.

    Args:
        chosen: names out of `CORRUPTIONS` and `MOTIONS`, or `clean`; all when empty.

    Raises:
        ConfigError: a name that is none of these.
    """
    known = ("clean", *CORRUPTIONS, *MOTIONS)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ConfigError(f"'{unknown[0]}' is no corruption of the input; known are {', '.join(known)}")
    config = config.with_values({"odometry.mode": "mono"})
    store = CellStore(plan)
    clean = open_scene("clean", CLEAN, QUICK if plan.quick else FULL, plan.out / "scenes")

    def cell(name: str, variant: str, frames: Callable[[], list[Frame]]) -> dict[str, Any]:
        settings = config.with_values({"learning.guard": variant == "guarded"})

        def work(weights: Path) -> dict[str, Any]:
            if variant == "frozen":
                matcher, counters = create_matcher(settings.matcher), {"steps": 0}
            else:
                matcher, counters = learn_in_turn(settings, [frames()])
            digest = save_weights(weights, matcher, counters)
            columns = score_weights(matcher, settings, clean, plan.pairs)
            return {"learning": counters, "hash": digest, "columns": columns}

        return store.get((name, "repeated" if variant != "frozen" else "-", variant), settings, work)

    yield cell("clean", "frozen", list)
    for name in [n for n in known if not chosen or n in chosen or n == "clean"]:
        for variant in ("guarded", "unguarded") if unguarded else ("guarded",):
            yield cell(name, variant, lambda: _learning_frames(name, clean, plan))


def summarise_corrupted(cells: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each corruption: over the seeds whose clean twin was promoted from, what guarded learning did to the matches."""
    runs = {(cell["source"], cell["variant"], cell["seed"]): cell for cell in cells}
    lines = []
    for name in dict.fromkeys(cell["source"] for cell in cells if cell["source"] != "clean"):
        guarded = {seed: run for (source, variant, seed), run in runs.items() if (source, variant) == (name, "guarded")}
        twins = {seed: runs.get(("clean", "guarded", seed)) for seed in guarded}
        counted = [seed for seed, twin in twins.items() if twin is not None and twin["learning"]["promotions"] > 0]
        if not counted:
            lines.append(f"{name}: shows nothing, as its clean twin promoted nothing; learn longer")
            continue
        promotions = sum(guarded[seed]["learning"]["promotions"] for seed in counted)
        losses = [(_mma(runs["clean", "frozen", seed]) - _mma(guarded[seed])).max() for seed in counted]
        lines.append(
            f"{name}: {promotions} promotions in {len(counted)} of {len(guarded)} runs whose clean twin promoted; "
            f"largest loss of MMA at 1 px in any column at any gap: {max(losses):.3f}"
        )
    return lines


def _mma(cell: dict[str, Any]) -> np.ndarray:
    """MMA at 1 px in every column and at every gap."""
    return np.array([[gap["mma"]["1"] for gap in part["matching"].values()] for part in cell["columns"].values()])


def _learning_frames(name: str, clean: Division, plan: ComparisonPlan) -> list[Frame]:
    if name in MOTIONS:
        extent = QUICK if plan.quick else FULL
        return list(Part.whole(open_learned(name, MOTIONS[name], extent, plan.out / "scenes"), mono=True))
    return CORRUPTIONS.get(name, list)(list(clean.learning))
