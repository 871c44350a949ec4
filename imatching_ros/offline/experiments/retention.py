"""A -> B -> A: how much of what was learned at one place is left after learning at another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...core.config import Config
from ...matching import create_matcher
from .learning_comparison import CellStore, ComparedSource, ComparisonPlan
from .learning_runs import learn_in_turn, save_weights, score_weights
from .division import Division


def retention_cells(
    first: ComparedSource, second: ComparedSource, config: Config, plan: ComparisonPlan
) -> Iterator[dict[str, Any]]:
    """Frozen weights, those after A and those after A and then B, guarded and not; all scored on the unseen part of A.

    One learner lives through both places, with its replay buffer, as on a robot that drives on.
    """
    store = CellStore(plan, recording=first.recording, then=[second.name, second.recording])

    def cell(variant: str, guard: bool, *parts: Division) -> dict[str, Any]:
        settings = config.with_values({"learning.guard": guard})

        def work(weights: Path) -> dict[str, Any]:
            if parts:
                matcher, counters = learn_in_turn(settings, [part.learning for part in parts])
            else:
                matcher, counters = create_matcher(settings.matcher), {"steps": 0}
            digest = save_weights(weights, matcher, counters)
            return {
                "learning": counters,
                "hash": digest,
                **score_weights(matcher, settings, first.division, plan.pairs),
            }

        return store.get((first.name, "repeated" if parts else "-", variant), settings, work)

    yield cell("frozen", True)
    for guard, tag in ((True, ""), (False, " unguarded")):
        yield cell(f"A{tag}", guard, first.division)
        yield cell(f"A+B{tag}", guard, first.division, second.division)


def summarise_retention(cells: list[dict[str, Any]]) -> list[str]:
    """Accuracy on A after A and B over that after A alone, MMA at 1 and 3 px, gap 1; mean over seeds."""
    lines = []
    found = {(cell["variant"], cell["seed"]): cell for cell in cells}
    for tag in ("", " unguarded"):
        seeds = [seed for variant, seed in found if variant == f"A+B{tag}" and (f"A{tag}", seed) in found]
        if not seeds:
            continue
        if any(
            found[f"{place}{tag}", seed]["matching"]["1"]["mma"] is None for place in ("A", "A+B") for seed in seeds
        ):
            lines.append(f"retention{tag}: unknown, since without depth truth there is no MMA on A")
            continue

        def total(variant: str, px: str) -> float:
            return sum(found[variant, seed]["matching"]["1"]["mma"][px] for seed in seeds)

        kept = [100 * total(f"A+B{tag}", px) / total(f"A{tag}", px) for px in "13"]
        promotions = sum(found[f"A+B{tag}", seed]["learning"]["promotions"] for seed in seeds)
        lines.append(
            f"retention{tag}: {kept[0]:.1f} % of MMA at 1 px and {kept[1]:.1f} % at 3 px are left on A after B; "
            f"{len(seeds)} seeds, {promotions} promotions"
        )
    return lines
