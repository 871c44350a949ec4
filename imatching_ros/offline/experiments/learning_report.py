"""The comparison as tables: what the weights that learned are worth against the frozen ones. Scenes are the unit."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ...core.types import to_json_value
from ..tables import format_mean, format_number, format_table
from .corrupted_input import summarise_corrupted
from .learning_runs import GAPS

SUMMARY_HEAD = ["", "gap", "MMA 1 px", "change x 100 [95 %] worst", "MMA 3 px", "change x 100 [95 %] worst"]
SUMMARY_HEAD += ["within 1 sigma", "common error, px", "PnP ratio", "ATE ratio [95 %]"]

Cell = dict[str, Any]
Pairs = list[tuple[Cell, Cell]]  # a column of frozen weights and of others, by source and seed


def write_report(out: Path, cells: Sequence[Cell], corrupted_input: bool = False) -> str:
    """Writes table.md and comparison.json; returns the table."""
    summary = summarise_corrupted(cells) if corrupted_input else summarise(cells)
    text = "\n\n".join(["\n".join(summary), format_sources(cells)])
    (out / "table.md").write_text(text + "\n")
    (out / "comparison.json").write_text(json.dumps(to_json_value({"cells": list(cells)}), indent=1) + "\n")
    return text


def summarise(cells: Sequence[Cell]) -> list[str]:
    """One table for each regime and variant: rows are columns of the comparison and gaps."""
    lines: list[str] = []
    for regime, variant in dict.fromkeys((c["regime"], c["variant"]) for c in cells if c["variant"] != "frozen"):
        pairs = _pair_columns(cells, regime, variant)
        lines += ["", _describe_learning(cells, regime, variant), ""]
        rows = [_row(column, str(gap), of_column) for column, of_column in pairs.items() for gap in GAPS]
        lines += [format_table([SUMMARY_HEAD, *rows])]
        ratios = [ratio for of_column in pairs.values() for ratio in _ate_ratios(of_column)]
        lines += ["", f"ATE over that of the frozen weights, all columns: {_interval(ratios, '.2f', geometric=True)}"]
    return lines or ["nothing was adapted: add adapted to --variants"]


def _pair_columns(cells: Sequence[Cell], regime: str, variant: str) -> dict[str, dict[str, Pairs]]:
    """{column: {source: one pair for each seed}}, where there is a frozen cell to compare with."""
    frozen = {(c["source"], c["seed"]): c for c in cells if c["variant"] == "frozen"}
    found: dict[str, dict[str, Pairs]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        base = frozen.get((cell["source"], cell["seed"]))
        if (cell["regime"], cell["variant"]) == (regime, variant) and base is not None:
            for column, values in cell["columns"].items():
                found[column][cell["source"]].append((base["columns"][column], values))
    return found


def _describe_learning(cells: Sequence[Cell], regime: str, variant: str) -> str:
    mine = [c["learning"] for c in cells if (c["regime"], c["variant"]) == (regime, variant)]
    promoted = [c["first_promotion_s"] for c in mine if c.get("first_promotion_s") is not None]
    text = f"**{variant}**, {regime}, {len(mine)} runs, {np.mean([c['steps'] for c in mine]):.0f} steps on average"
    if variant in ("adapted", "unguarded"):
        text += f"; {len(promoted)} promoted" + (
            f", first after {np.median(promoted):.0f} s (median), {max(promoted):.0f} s (last)" if promoted else ""
        )
    if delays := [c["pose_delay_ms"] for c in mine if "pose_delay_ms" in c]:
        ratios = [d["learning"]["p95"] / d["off"]["p95"] for d in delays]
        text += (
            f"; p95 of the pose {np.mean([d['learning']['p95'] for d in delays]):.0f} ms, over that without learning "
            f"{np.exp(np.mean(np.log(ratios))):.2f} (mean), {max(ratios):.2f} (worst); "
            f"{sum(c['frames_dropped'] for c in mine)} of {sum(c['frames_dropped'] + c['frames'] for c in mine)} images dropped"
        )
    return text


def _row(column: str, gap: str, sources: dict[str, Pairs]) -> list[str]:
    def both(*keys: str) -> str:
        before, after = zip(
            *(_means(pairs, lambda part: _dig(part, ("matching", gap, *keys))) for pairs in sources.values())
        )
        return f"{format_mean(before)} to {format_mean(after)}"

    def change(px: str) -> str:
        means = (_means(pairs, lambda part: _dig(part, ("matching", gap, "mma", px))) for pairs in sources.values())
        return _interval([100 * (b - a) for a, b in means if a is not None and b is not None], "+.1f", worst=True)

    ate = _interval(_ate_ratios(sources), ".2f", geometric=True) if gap == str(GAPS[0]) else ""
    cells = [column, gap, both("mma", "1"), change("1"), both("mma", "3"), change("3")]
    return [*cells, both("sigma"), both("common_px"), both("translation_ratio"), ate]


def _ate_ratios(sources: dict[str, Pairs]) -> list[float]:
    """ATE over that of the frozen weights, one value for each source of which both tracked most, and about as much."""
    comparable = {
        name: [
            (a, b) for a, b in pairs if min(a["tracked"], b["tracked"]) > 0.5 and abs(a["tracked"] - b["tracked"]) < 0.1
        ]
        for name, pairs in sources.items()
    }
    means = (_means(pairs, lambda part: _dig(part, ("ate", "rmse"))) for pairs in comparable.values())
    return [after / before for before, after in means if before and after]


def _means(pairs: Pairs, read: Callable[[Cell], float | None]) -> tuple[float | None, float | None]:
    """Mean over seeds of the frozen and of the other value; None where one is missing."""
    values = [(read(before), read(after)) for before, after in pairs]
    known = [(a, b) for a, b in values if a is not None and b is not None]
    return (float(np.mean([a for a, _ in known])), float(np.mean([b for _, b in known]))) if known else (None, None)


def _interval(values: list[float], form: str, geometric: bool = False, worst: bool = False) -> str:
    """Mean over sources with its 95 % interval (Student's t); `worst` adds the lowest."""
    if not values:
        return "-"
    x = np.log(values) if geometric else np.array(values)
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan
    low, mean, high = (np.exp(v) if geometric else v for v in (x.mean() - half, x.mean(), x.mean() + half))
    text = format(mean, form) + (f" [{low:{form}}, {high:{form}}]" if len(x) > 1 else "")
    return text + (f" {min(values):{form}}" if worst else "")


def format_sources(cells: Sequence[Cell]) -> str:
    """One row for each cell and column, with the frozen weights' figures before; shares are of MMA, else of what the recording allows."""
    head = ["source", "variant", "seed", "column", "share within 1 px, gaps 1 5 10", "of", "AUC 5 deg, gap 5", "ATE, m"]
    head += ["tracked", "steps", "promotions", "rollbacks", "first, s"]
    frozen = {(c["source"], c["seed"]): c for c in cells if c["variant"] == "frozen"}
    adapted = [c for c in cells if c["variant"] != "frozen"]
    rows = []
    for cell in adapted or cells:
        base = frozen.get((cell["source"], cell["seed"]), cell)
        learning = [
            format_number(cell["learning"].get(k), ".0f")
            for k in ("steps", "promotions", "rollbacks", "first_promotion_s")
        ]
        for column, part in cell["columns"].items():
            name = [cell["source"], cell["variant"], str(cell["seed"]), column]
            rows.append([*name, *_describe_columns(base["columns"][column], part), *learning])
    return format_table([head, *rows])


def _describe_columns(base: Cell, part: Cell) -> list[str]:
    measures = {"MMA": ("mma", "1"), "epipolar, true": ("sampson_within_1",), "epipolar, own": ("own_within_1",)}

    def both(*keys: tuple[str, ...], form: str = ".3f") -> str:
        values = [" ".join(format_number(_dig(one, key), form) for key in keys) for one in (base, part)]
        return values[0] if base is part else " to ".join(values)

    def shares(name: str) -> list[tuple[str, ...]]:
        return [("matching", str(gap), *measures[name]) for gap in GAPS]

    of = next((name for name in measures if any(_dig(part, keys) is not None for keys in shares(name))), "MMA")
    pose_auc = both(("matching", "5", "pose_auc", "5"))
    return [both(*shares(of)), of, pose_auc, both(("ate", "rmse")), both(("tracked",), form=".2f")]


def _dig(value: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value
