"""Which term of the learning step carries the gain, and where: each recipe takes the same number of steps on the same windows.

Scored where the comparison scores. No candidate is validated: the recipes are compared, not the guard.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...core.config import Config
from ...core.types import LearningSample
from ...matching import create_matcher
from ..tables import format_mean, format_table
from .learning_comparison import CellStore, ComparisonPlan
from .learning_runs import GAPS, collect_windows, save_weights, score_weights, train_on
from .scenes import BRIEF, TUNING, open_scene

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


def ablation_cells(config: Config, plan: ComparisonPlan, names: list[str], steps: int) -> Iterator[dict[str, Any]]:
    """One cell for every scene and recipe."""
    for name in names:
        store = CellStore(plan, ablation=TUNING[name], steps=steps)
        division = open_scene(name, TUNING[name], BRIEF, plan.out / "scenes")
        samples: list[LearningSample] = []
        for recipe, values in RECIPES.items():
            settings = config.with_values({"odometry.mode": "mono", **(values or {})})

            def work(weights: Path) -> dict[str, Any]:
                if not samples:
                    samples.extend(collect_windows(settings, division.learning))
                matcher, counters = create_matcher(settings.matcher), {"steps": 0}
                if values is not None:
                    matcher, counters = train_on(samples, settings, steps)
                digest = save_weights(weights, matcher, counters)
                columns = score_weights(matcher, settings, division, plan.pairs)
                return {"learning": counters, "hash": digest, "columns": columns}

            yield store.get((name, "-", recipe.replace(" ", "_")), settings, work)


def format_ablation(cells: list[dict[str, Any]]) -> str:
    """Change of MMA against the frozen weights in %, at gaps 1, 5 and 10, geometric means over scenes; and seconds a step."""
    frozen = {cell["source"]: cell for cell in cells if cell["variant"] == "frozen"}
    caption = f"{len(frozen)} scenes; change of MMA in % at gaps {', '.join(map(str, GAPS))}; share within one sigma at gaps 1, 5"
    head = ["recipe", *(f"{column}, {what}" for column in COLUMNS for what in ("1 px", "3 px", "sigma")), "s a step"]
    by_recipe = {
        recipe: [c for c in cells if c["variant"] == recipe.replace(" ", "_") and c["source"] in frozen]
        for recipe in RECIPES
    }
    rows = [[recipe, *_describe_recipe(mine, frozen)] for recipe, mine in by_recipe.items() if mine]
    return f"{caption}\n\n{format_table([head, *rows])}"


def _describe_recipe(cells: list[dict[str, Any]], frozen: dict[str, Any]) -> list[str]:
    parts = []
    for column in COLUMNS:
        sigmas = ([c["columns"][column]["matching"][gap]["sigma"] for c in cells] for gap in "15")
        parts += [
            *(_changes(cells, frozen, column, px) for px in "13"),
            " ".join(format_mean(s, ".2f") for s in sigmas),
        ]
    seconds = [c["learning"]["seconds"] / c["learning"]["steps"] for c in cells if c["learning"]["steps"]]
    return [*parts, format_mean(seconds, ".2f")]


def _changes(cells: list[dict[str, Any]], frozen: dict[str, Any], column: str, px: str) -> str:
    shown = []
    for gap in map(str, GAPS):
        ratios = []
        for cell in cells:
            after, before = (c["columns"][column]["matching"][gap]["mma"] for c in (cell, frozen[cell["source"]]))
            if after and before and after[px] > 0 and before[px] > 0:
                ratios.append(after[px] / before[px])
        shown.append(f"{100 * (np.exp(np.mean(np.log(ratios))) - 1):+.1f}" if ratios else "-")
    return " ".join(shown)
