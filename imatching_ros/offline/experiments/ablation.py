"""Which term of the learning step carries the gain, and where: each recipe takes the same number of steps on the same windows.

A scene is rendered in four recordings: what is learned from; the same path again, at other instants and with other noise; another path
through the same scene, of which the frames count whose pose overlaps with none that was learned; another scene of the same kind under
the same shift. No candidate is validated: the recipes are compared, not the guard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core import geometry
from ...core.config import Config
from ...core.types import LearningSample
from ...matching import create_matcher
from ..evaluation.matching import evaluate_matcher
from ..recordings import open_source
from ..recordings.base import Source, SourceOptions
from ..simulation.sequence import SimulatedSequence
from .division import Part
from .learning_comparison import CellStore, ComparisonPlan
from .learning_runs import collect_windows, save_weights, train_on
from .scenes import RATE_HZ, TUNING, RenderedScene, render_once

GAPS = (1, 5, 10)
LEARNED_FRAMES = 80
SCORED_FRAMES = 40
REVISIT_RATE_HZ = 0.625 * RATE_HZ  # of the same path: between the learned instants
OTHER_SEED = 5000  # added to the seed of a path or of a scene
OVERLAP_M = 0.5  # a frame nearer to a learned one than this and OVERLAP_DEG shows a learned place
OVERLAP_DEG = 20.0
COLUMNS = ("revisit", "new place", "other scene")

_ONLY_RESIDUAL = {"learning.pseudo_truth_weight": 0.0, "learning.warp_weight": 0.0}
RECIPES: dict[str, dict[str, Any] | None] = {
    "frozen": None,
    "residual": {**_ONLY_RESIDUAL, "learning.l2_sp": 0.0},
    "+ pseudo-truth": {"learning.warp_weight": 0.0, "learning.augment": False, "learning.l2_sp": 0.0},
    "+ augmentation": {"learning.warp_weight": 0.0, "learning.l2_sp": 0.0},
    "+ warps": {"learning.l2_sp": 0.0},
    "+ pull (default)": {},
    "warps and pull": {"learning.residual_weight": 0.0, "learning.pseudo_truth_weight": 0.0},
    "without residual": {"learning.residual_weight": 0.0},
}


@dataclass(frozen=True)
class Case:
    """The recordings of one scene: what is learned from, and what is scored."""

    learned: Source
    scored: dict[str, Source]


def open_case(name: str, scene: RenderedScene, folder: Path) -> Case:
    """Renders a scene, unless it is there."""
    learned = SimulatedSequence(
        kind=scene.kind, seed=scene.seed, shift=scene.shift, frames=LEARNED_FRAMES, width=320, height=240, supersample=1
    )
    again = replace(learned, rate_hz=REVISIT_RATE_HZ, frames=round(LEARNED_FRAMES * REVISIT_RATE_HZ / RATE_HZ))
    scored = replace(learned, frames=SCORED_FRAMES)
    sequences = {
        "learned": learned,
        "revisit": again,
        "new place": replace(scored, path_seed=scene.seed + OTHER_SEED),
        "other scene": replace(scored, seed=scene.seed + OTHER_SEED),
    }
    sources = {
        part: open_source(render_once(folder / f"{name}_{part.replace(' ', '_')}", sequence), SourceOptions())
        for part, sequence in sequences.items()
    }
    whole = sources.pop("learned")
    sources["new place"] = without_overlap(sources["new place"], whole)
    return Case(Part(whole, 0, LEARNED_FRAMES, mono=True), sources)


def without_overlap(source: Source, learned: Source) -> Source:
    """The longest run of frames whose pose overlaps with none of `learned`."""
    poses, known = _poses(source), _poses(learned)
    distance = (poses[:, None, :3] - known[None, :, :3]).norm(dim=-1)
    turn = (poses[:, None, 3:] * known[None, :, 3:]).sum(-1).abs().clamp(max=1).acos() * 2
    new = ~((distance < OVERLAP_M) & (torch.rad2deg(turn) < OVERLAP_DEG)).any(1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], new.int().numpy(), [0]])))
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts)) if len(starts) else 0
    return Part(source, int(starts[longest]), int(stops[longest])) if len(starts) else Part(source, 0, 0)


def _poses(source: Source) -> torch.Tensor:
    truth = source.groundtruth()
    assert truth is not None  # rendered
    stamps = np.array([frame.stamp_ns for frame in source])
    return geometry.from_matrix(torch.from_numpy(truth.at(stamps)[0]))


def ablation_cells(config: Config, plan: ComparisonPlan, names: list[str], steps: int) -> Iterator[dict[str, Any]]:
    """One cell for every scene and recipe."""
    for name in names:
        store = CellStore(plan, ablation=TUNING[name], steps=steps)
        case = open_case(name, TUNING[name], plan.out / "scenes")
        samples: list[LearningSample] = []
        for recipe, values in RECIPES.items():
            settings = config.with_values({"odometry.mode": "mono", **(values or {})})

            def work(weights: Path) -> dict[str, Any]:
                if not samples:
                    samples.extend(collect_windows(settings, case.learned))
                matcher, counters = create_matcher(settings.matcher), {"steps": 0}
                if values is not None:
                    matcher, counters = train_on(samples, settings, steps)
                digest = save_weights(weights, matcher, counters)
                return {"learning": counters, "hash": digest, "columns": _score(matcher, case, plan.pairs)}

            yield store.get((name, "-", recipe.replace(" ", "_")), settings, work)


def _score(matcher: Any, case: Case, pairs: int) -> dict[str, dict[str, Any]]:
    """MMA and the share within one sigma, by column and gap."""
    scores = {}
    for column, source in case.scored.items():
        gaps = evaluate_matcher(matcher, source, GAPS, pairs, pose=False)["gaps"]
        scores[column] = {
            gap: {"mma": values["mma"], "sigma": (values["sigma"] or {}).get("within_1")}
            for gap, values in gaps.items()
        }
    return scores


def format_ablation(cells: list[dict[str, Any]]) -> str:
    """Change of MMA against the frozen weights in %, at gaps 1, 5 and 10, geometric means over scenes; and seconds a step."""
    frozen = {cell["source"]: cell for cell in cells if cell["variant"] == "frozen"}
    lines = [
        f"{len(frozen)} scenes; change of MMA in % at gaps {', '.join(map(str, GAPS))}; share within one sigma at gaps 1, 5"
    ]
    lines.append(" | ".join(["recipe".ljust(18), *(f"{c}: 1 px, 3 px, sigma".ljust(42) for c in COLUMNS), "s/step"]))
    for recipe in RECIPES:
        mine = [cell for cell in cells if cell["variant"] == recipe.replace(" ", "_") and cell["source"] in frozen]
        if not mine:
            continue
        parts = [recipe.ljust(18)]
        for column in COLUMNS:
            changes = (_changes(mine, frozen, column, px) for px in "13")
            sigma = " ".join(_mean_sigma(mine, column, gap) for gap in "15")
            parts.append(f"{' '.join(changes)} {sigma}".ljust(42))
        seconds = [c["learning"]["seconds"] / c["learning"]["steps"] for c in mine if c["learning"]["steps"]]
        lines.append(" | ".join([*parts, f"{np.mean(seconds):.2f}" if seconds else ""]))
    return "\n".join(lines)


def _changes(cells: list[dict[str, Any]], frozen: dict[str, Any], column: str, px: str) -> str:
    shown = []
    for gap in map(str, GAPS):
        ratios = []
        for cell in cells:
            after, before = (c["columns"][column][gap]["mma"] for c in (cell, frozen[cell["source"]]))
            if after and before and after[px] > 0 and before[px] > 0:
                ratios.append(after[px] / before[px])
        shown.append(f"{100 * (np.exp(np.mean(np.log(ratios))) - 1):+5.1f}" if ratios else "    -")
    return " ".join(shown)


def _mean_sigma(cells: list[dict[str, Any]], column: str, gap: str) -> str:
    values = [cell["columns"][column][gap]["sigma"] for cell in cells]
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.2f}" if known else "-"
