"""The comparison as a text table, JSON and one HTML page."""

from __future__ import annotations

import html
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...core.types import to_json_value
from .corrupted_input import summarise_corrupted
from .retention import summarise_retention

HEALTHY_MMA = 0.10  # sources whose frozen MMA at 1 px is lower make no meaningful ratio
Rows = list[list[str]]


def write_report(out: Path, cells: list[dict[str, Any]], kind: str = "comparison") -> str:
    """Writes table.txt, comparison.json and index.html of a `comparison`, `corrupted_input` or `retention`; returns the table."""
    head, rows = _rows(cells)
    summary = {"comparison": summarise, "retention": summarise_retention, "corrupted_input": summarise_corrupted}[kind](
        cells
    )
    text = "\n".join([format_table(head, rows), "", *summary])
    (out / "table.txt").write_text(text + "\n")
    (out / "comparison.json").write_text(
        json.dumps(to_json_value({"cells": cells, "summary": summary}), indent=1) + "\n"
    )
    (out / "index.html").write_text(_page(head, rows, summary, _curves(cells) if kind == "comparison" else "", kind))
    return text


def _rows(cells: list[dict[str, Any]]) -> tuple[list[str], Rows]:
    """One row per source, regime and variant; numbers are means over seeds, with +- the deviation when there are several."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        groups[cell["source"], cell["regime"], cell["variant"]].append(cell)
    head = [
        "source",
        "regime",
        "variant",
        "seeds",
        "MMA 1/3/5 gap 1",
        "MMA 1/3/5 gap 5",
        "epi<1px",
        "AUC5/10/20",
        "ATE m",
        "RPE m",
        "tracked",
        "steps",
        "prom.",
        "rollb.",
        "first s",
    ]
    own = any(_dig(cell, ("matching", "1", "held_out_px")) for cell in cells)
    head += ["own<1px gap 1/5"] if own else []
    rows = []
    for (source, regime, variant), members in groups.items():

        def mean(*keys: str, form: str = ".3f") -> str:
            return _spread([_dig(m, keys) for m in members], form)

        rows.append(
            [
                source,
                regime,
                variant,
                str(len(members)),
                " ".join(mean("matching", "1", "mma", px) for px in "135"),
                " ".join(mean("matching", "5", "mma", px) for px in "135"),
                mean("matching", "1", "sampson_within_1"),
                " ".join(mean("matching", "5", "pose_auc", d) for d in ("5", "10", "20")),
                mean("ate", "rmse"),
                mean("rpe", "frame", "trans_rmse_m", form=".4f"),
                mean("tracked", form=".2f"),
                mean("learning", "steps", form=".0f"),
                mean("learning", "promotions", form=".1f"),
                mean("learning", "rollbacks", form=".1f"),
                mean("learning", "first_promotion_s", form=".0f"),
            ]
        )
        if own:
            rows[-1].append(" ".join(mean("matching", gap, "held_out_px", "within_1") for gap in "15"))
    return head, rows


Runs = dict[tuple[str, str, str, int], dict[str, Any]]  # by source, regime, variant and seed


def summarise(cells: list[dict[str, Any]]) -> list[str]:
    """Per regime and gap: the gain at 1 px as a ratio of sums, over the better of frozen and control, and the share of the oracle's.

    Sources without depth truth have a line of their own each.
    """
    runs = {(c["source"], c["regime"], c["variant"], c["seed"]): c for c in cells}
    regimes = sorted({c["regime"] for c in cells} - {"-"})
    measured = [gap for gap in "15" if gap == "1" or any(_mma(c, "1", gap) is not None for c in cells)]
    lines = [_describe(regime, gap, _collect(runs, regime, gap)) for regime in regimes for gap in measured]
    return lines + _summarise_without_depth(cells)


@dataclass
class _Gain:
    """MMA at 1 px of the runs of one regime at one gap that have a frozen run to compare with."""

    mma: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by variant, one entry per run
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # sources by reason
    worst_3px: float = 0.0  # largest loss of MMA at 3 px, negative
    worst_ate: float = 0.0  # largest growth of ATE, relative


def _collect(runs: Runs, regime: str, gap: str) -> _Gain:
    gain = _Gain()
    for (source, own, variant, seed), cell in runs.items():
        if own != regime or variant != "adapted":
            continue
        frozen = runs.get((source, "-", "frozen", seed))
        if frozen is None:
            gain.left_out["there is nothing frozen to compare with: add frozen to --variants"].append(source)
            continue
        base, base_3px = _mma(frozen, "1", gap), _mma(frozen, "3", gap)
        after, after_3px = _mma(cell, "1", gap), _mma(cell, "3", gap)
        if base is None or base_3px is None or after is None or after_3px is None:
            gain.left_out["without depth truth there is no MMA"].append(source)
            continue
        gain.worst_3px = min(gain.worst_3px, after_3px - base_3px)
        ate_before, ate_after = _dig(frozen, ("ate", "rmse")), _dig(cell, ("ate", "rmse"))
        if ate_before and ate_after:
            gain.worst_ate = max(gain.worst_ate, ate_after / ate_before - 1)
        if base < HEALTHY_MMA:
            gain.left_out[f"the frozen MMA at 1 px is below {HEALTHY_MMA}"].append(source)
            continue
        gain.mma["frozen"].append(base)
        gain.mma["adapted"].append(after)
        for other in ("unguarded", "control", "oracle"):
            rival = _mma(runs.get((source, regime, other, seed), {}), "1", gap)
            if rival is not None:
                gain.mma[other].append(rival)
    return gain


def _describe(regime: str, gap: str, gain: _Gain) -> str:
    note = "; ".join(
        f"{', '.join(dict.fromkeys(sources))} left out, since {reason}" for reason, sources in gain.left_out.items()
    )
    used = len(gain.mma["frozen"])
    if not used:
        return f"{regime}: the gain is unknown; " + (note or "nothing was adapted: add adapted to --variants")
    total = sum(gain.mma["frozen"])
    complete = {k: sum(v) / total - 1 for k, v in gain.mma.items() if len(v) == used}
    gains = ", ".join(f"{k} {100 * v:+.1f} %" for k, v in complete.items() if k != "frozen")
    claimed = complete["adapted"] - max(0.0, complete.get("control", 0.0))
    if "control" in complete:
        claim = f"claimed {100 * claimed:+.1f} %"
    else:
        claim = f"{100 * claimed:+.1f} % over frozen alone, for no control was run (add control to --variants)"
    if complete.get("oracle", 0) > 0:
        claim += f", {complete['adapted'] / complete['oracle']:.2f} of the oracle's gain"
    return (
        f"{regime}: MMA at 1 px (gap {gap}) against frozen over {used} runs: {gains}; {claim}; "
        f"largest loss at 3 px {-gain.worst_3px:.3f}, in ATE {100 * gain.worst_ate:+.0f} %"
        + (f"; {note}" if note else "")
    )


def _summarise_without_depth(cells: list[dict[str, Any]]) -> list[str]:
    """Per regime, source and gap where there is no MMA: what there is instead, means over seeds."""
    lines = []
    measures = {
        ("sampson_within_1",): "of the true epipolar line",
        (
            "held_out_px",
            "within_1",
        ): "of the epipolar line that the other matches agree on (no truth: wrong and consistent ones count as right)",
    }
    cases = dict.fromkeys((c["regime"], c["source"]) for c in cells if c["regime"] != "-")
    for (regime, source), gap in [(case, gap) for case in cases for gap in "15"]:
        mine = [c for c in cells if c["source"] == source and c["regime"] in ("-", regime)]
        if any(_mma(c, "1", gap) is not None for c in mine):
            continue
        for keys, what in measures.items():
            found: dict[str, list[float]] = defaultdict(list)
            for c in mine:
                share = _dig(c, ("matching", gap, *keys))
                if share is not None:
                    found[c["variant"]].append(share)
            if found:
                shares = ", ".join(f"{variant} {_spread([*values], '.3f')}" for variant, values in found.items())
                lines.append(f"{regime}: {source}, gap {gap}, share of matches within 1 px {what}: {shares}")
                break
    return lines


def format_table(head: list[str], rows: Rows) -> str:
    """Columns of equal width."""
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in (head, *rows))


def _mma(cell: dict[str, Any], px: str = "1", gap: str = "1") -> float | None:
    return _dig(cell, ("matching", gap, "mma", px))


def _dig(value: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _spread(values: list[float | None], form: str) -> str:
    known = [float(v) for v in values if v is not None]
    if not known:
        return "-"
    return format(np.mean(known), form) + (f"+-{format(np.std(known, ddof=1), form)}" if len(known) > 1 else "")


def _curves(cells: list[dict[str, Any]]) -> str:
    """One small bar chart per source and regime: MMA at 1, 3 and 5 px of every variant."""
    colours = {
        "frozen": "#8a8f98",
        "adapted": "#1f77b4",
        "unguarded": "#9ecae1",
        "control": "#d9a441",
        "oracle": "#4c9f70",
    }
    charts = []
    for source in dict.fromkeys(c["source"] for c in cells):
        for regime in sorted({c["regime"] for c in cells if c["source"] == source} - {"-"}):
            bars = []
            shown = [c for c in cells if c["source"] == source and c["regime"] in ("-", regime) and _mma(c) is not None]
            for group, px in enumerate("135"):
                for k, variant in enumerate(colours):
                    values = [mma for c in shown if c["variant"] == variant and (mma := _mma(c, px)) is not None]
                    if values:
                        height, x = 120 * float(np.mean(values)), 20 + group * 110 + k * 18
                        bars.append(
                            f'<rect x="{x}" y="{130 - height:.1f}" width="15" height="{height:.1f}" fill="{colours[variant]}">'
                            f"<title>{variant}, {px} px: {np.mean(values):.3f}</title></rect>"
                        )
                bars.append(f'<text x="{50 + group * 110}" y="146">{px} px</text>')
            charts.append(
                f'<figure><svg viewBox="0 0 350 150" role="img" aria-label="MMA of {html.escape(source)}">{"".join(bars)}</svg>'
                f"<figcaption>{html.escape(source)}, {regime}</figcaption></figure>"
            )
    legend = " ".join(f'<span style="border-bottom:3px solid {c}">{v}</span>' for v, c in colours.items())
    return f"<p>{legend}</p><div class=charts>{''.join(charts)}</div>"


def _page(head: list[str], rows: Rows, summary: list[str], curves: str, kind: str) -> str:
    title, note = {
        "comparison": (
            "Frozen vs. adapted",
            "Scored on the unseen part of every source, after a gap of 10 frames, with learning off. "
            "Live and repeated runs are never mixed.",
        ),
        "corrupted_input": (
            "Learning from corrupted input",
            "Scored on a clean scene that learning never saw. A row counts only where its clean twin promoted.",
        ),
        "retention": (
            "Learning at one place after another",
            "Learned on A (the source named), then on B. Scored on the unseen part of A, with learning off.",
        ),
    }[kind]
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #1c2126; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }} td, th {{ padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 1rem; }} figure {{ margin: 0; }}
svg text {{ font-size: 11px; fill: #555; }} .scroll {{ overflow-x: auto; }}
</style></head><body><h1>{title}</h1><p>{note}</p>
{"".join(f"<p><b>{html.escape(line)}</b></p>" for line in summary)}
{curves}<div class="scroll"><table><tr>{"".join(f"<th>{html.escape(h)}</th>" for h in head)}</tr>{cells}</table></div>
</body></html>
"""
