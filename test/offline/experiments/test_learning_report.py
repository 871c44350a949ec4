"""The tables of a comparison: changes, intervals over scenes, what is left out."""

import json

import numpy as np
import pytest

from imatching_ros.offline.experiments.ablation import COLUMNS, format_ablation
from imatching_ros.offline.experiments.learning_report import format_sources, summarise, write_report


def cell(variant, mma, source="fog", seed=0, ate=0.1, regime="repeated"):
    """A cell of one column whose MMA at 1 and 3 px is `mma` and twice that, at every gap."""
    shares = None if mma is None else {"1": mma, "3": 2 * mma, "5": 2 * mma}
    matches = {"mma": shares, "sigma": 0.7, "common_px": 0.1, "translation_ratio": 0.9, "pose_auc": {"5": 0.5}}
    matches |= {"sampson_within_1": 0.6, "own_within_1": None}
    part = {"matching": {gap: matches for gap in ("1", "5", "10")}, "tracked": 1.0, "ate": {"rmse": ate}, "rpe": None}
    learning = {"steps": 10, "promotions": 1, "rollbacks": 0, "first_promotion_s": 12.0}
    return {
        "source": source,
        "regime": "-" if variant == "frozen" else regime,
        "variant": variant,
        "seed": seed,
        "columns": {"revisit": part},
        "learning": learning if variant != "frozen" else {"steps": 0},
    }


def test_scenes_are_the_unit_of_means_and_intervals():
    gains = {"fog": 0.3, "rain": 0.1, "sand": 0.2}
    cells = [c for s, g in gains.items() for c in (cell("frozen", 0.2, s), cell("adapted", 0.2 + g, s, ate=0.05))]
    text = "\n".join(summarise(cells))
    half = 4.303 * np.std([30, 10, 20], ddof=1) / np.sqrt(3)  # Student's t of two degrees of freedom
    assert (
        f"| revisit | 1 | 0.200 to 0.400 | +20.0 [{20 - half:+.1f}, {20 + half:+.1f}] +10.0 | 0.400 to 0.800 |" in text
    )
    assert "0.700 to 0.700 | 0.100 to 0.100 | 0.900 to 0.900 | 0.50 [0.50, 0.50] |" in text
    assert "**adapted**, repeated, 3 runs, 10 steps on average; 3 promoted, first after 12 s (median)" in text
    assert "all columns: 0.50" in text


def test_seeds_are_averaged_within_a_scene():
    cells = [cell("frozen", 0.2), cell("adapted", 0.3), cell("frozen", 0.2, seed=1), cell("adapted", 0.1, seed=1)]
    assert "| revisit | 1 | 0.200 to 0.200 | +0.0 +0.0 |" in "\n".join(summarise(cells))


@pytest.mark.parametrize("cells", [[cell("frozen", 0.2)], []])
def test_what_a_table_lacks_is_named(cells):
    assert summarise(cells) == ["nothing was adapted: add adapted to --variants"]


def test_without_depth_the_share_near_epipolar_lines_is_shown():
    assert "0.600 0.600 0.600 | epipolar, true |" in format_sources([cell("frozen", None)])
    assert "0.200 0.200 0.200 | MMA |" in format_sources([cell("frozen", 0.2)])


def test_rows_show_what_was_before():
    (row,) = format_sources([cell("frozen", 0.2), cell("adapted", 0.3)]).splitlines()[2:]
    assert "0.200 0.200 0.200 to 0.300 0.300 0.300 | MMA | 0.500 to 0.500 | 0.100 to 0.100 | 1.00 to 1.00 |" in row


def test_errors_over_another_part_of_the_path_are_not_compared():
    cells = [
        cell("frozen", 0.2),
        cell("adapted", 0.3, ate=0.05),
        cell("frozen", 0.2, "sand"),
        cell("adapted", 0.3, "sand"),
    ]
    cells[3]["columns"]["revisit"]["tracked"] = 0.8
    assert "all columns: 0.50" in summarise(cells)[-1]


def test_report_has_table_and_cells(tmp_path):
    cells = [cell("frozen", 0.2), cell("adapted", 0.3)]
    text = write_report(tmp_path, cells)
    assert (tmp_path / "table.md").read_text() == text + "\n" and "+10.0" in text
    assert json.loads((tmp_path / "comparison.json").read_text())["cells"] == cells


def test_the_ablation_is_a_table_of_the_same_kind():
    def in_columns(variant, mma):
        one = cell(variant, mma)
        seconds = {"learning": {"steps": 10, "seconds": 20.0}} if variant != "frozen" else {}
        return {**one, **seconds, "columns": dict.fromkeys(COLUMNS, one["columns"]["revisit"])}

    text = format_ablation([in_columns("frozen", 0.2), in_columns("residual", 0.3)])
    caption, _, head, *rows = text.splitlines()
    assert caption.startswith("1 scenes") and head.startswith(
        "| recipe | revisit, 1 px | revisit, 3 px | revisit, sigma |"
    )
    assert rows[2].startswith("| residual | +50.0 +50.0 +50.0 | +50.0 +50.0 +50.0 | 0.70 0.70 |")
    assert rows[2].endswith("| 2.00 |") and len({row.count("|") for row in (head, *rows)}) == 1
