"""The sheet of key figures: a small real run, and how it is compared, documented and kept."""

import copy
import json
from pathlib import Path

import pytest

from imatching_ros.__main__ import main
from imatching_ros.core.errors import ConfigError
from imatching_ros.offline.cli.bench_kpi import BASELINE, fill, find_worse, read_baseline, table
from imatching_ros.offline.experiments.kpi import SECTIONS

RESULTS = Path(__file__).parents[3] / "docs" / "results.md"


def sheet(**changes):
    """A sheet of two sections; `changes` are of the values of its only sequence."""
    values = {"ATE, cm": 10.0, "lost": 0, "TRACKING while wrong": 0, "judged": 90, "NEES, 1 s": 4.0} | changes
    machine = dict(processor="P", isa="AVX2", bfloat16=False, cores=2, torch="2.13", commit="abc")
    return {
        "machine": machine,
        "matcher": "expectation",
        "precision": "float32",
        "seconds": 200,
        "figures": {
            "odometry": {"room, mono": values},
            "time of a frame, ms": {"front end p50": {"ours": 50.0, "klt": 25.0, "/ klt": 2.0}},
        },
    }


def test_a_small_run_prints_and_writes_the_sheet(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("IMATCHING_DATA", raising=False)
    assert main(["bench", "kpi", "--quick", "--out", str(tmp_path / "kpi.json")]) == 0
    written = json.loads((tmp_path / "kpi.json").read_text())
    assert set(written["figures"]) == set(SECTIONS)
    for section, rows in written["figures"].items():
        for row, values in rows.items():
            assert set(values) <= set(SECTIONS[section]), row
    figures = written["figures"]
    assert 0.5 < figures["matching"]["rendered clutter, gap 1"]["MMA 5 px"] <= 1
    assert figures["time of a frame, ms"]["mean of all frames"]["/ klt"] > 0
    assert figures["bundle adjustment, ms"]["4 x 40"]["ours"] > 0
    assert figures["learning"]["one thread"]["steps per second"] > 0
    assert {"processor", "isa", "bfloat16", "torch", "commit"} <= set(written["machine"])
    printed = capsys.readouterr().out
    assert "no baseline" in printed and all(section in printed for section in SECTIONS)


@pytest.mark.parametrize(
    ("changes", "worse"),
    (
        ({}, 0),
        ({"ATE, cm": 12.4}, 0),
        ({"ATE, cm": 12.6}, 1),
        ({"ATE, cm": None}, 1),
        ({"ATE, cm": 1.0}, 0),
        ({"lost": 2, "TRACKING while wrong": 9}, 2),
        ({"judged": 0}, 0),
        ({"NEES, 1 s": 1.1}, 0),
        ({"NEES, 1 s": 12.4}, 0),
        ({"NEES, 1 s": 15.5}, 1),
        ({"NEES, 1 s": 0.7}, 1),
        ({"NEES, 1 s": None}, 1),
    ),
)
def test_accuracy_outside_its_tolerance_is_worse(changes, worse):
    now = sheet(**changes)
    assert len(list(find_worse(now, sheet()))) == worse
    assert table(now, sheet()).count("! ") == worse


@pytest.mark.parametrize(
    ("before", "now", "worse"), ((40.0, 45.0, 0), (40.0, 55.0, 1), (0.1, 0.09, 0), (0.1, 0.07, 1), (0.1, 11.0, 0))
)
def test_outside_its_interval_nees_may_not_go_much_farther(before, now, worse):
    assert len(list(find_worse(sheet(**{"NEES, 1 s": now}), sheet(**{"NEES, 1 s": before})))) == worse


def test_a_baseline_without_a_column_is_not_compared_by_it():
    before = sheet()
    del before["figures"]["odometry"]["room, mono"]["NEES, 1 s"]
    assert not list(find_worse(sheet(**{"NEES, 1 s": 99.0}), before))
    assert "99.0" in table(sheet(**{"NEES, 1 s": 99.0}), before)


def test_time_never_fails_and_other_rows_are_not_compared():
    slow, other = sheet(), sheet()
    slow["figures"]["time of a frame, ms"]["front end p50"] = {"ours": 900.0, "klt": 1.0, "/ klt": 900.0}
    other["figures"]["odometry"]["street, mono"] = other["figures"]["odometry"].pop("room, mono")
    assert not list(find_worse(slow, sheet())) and not list(find_worse(other, sheet()))
    printed = table(other, sheet())
    assert "in the baseline only: room, mono" in printed and "(+898.00)" in table(slow, sheet())


def test_the_document_is_filled_from_the_baseline(tmp_path):
    path, baseline = tmp_path / "page.md", tmp_path / "baseline.json"
    path.write_text("before\n<!-- begin key figures -->\nold\n<!-- end key figures -->\nafter\n")
    baseline.write_text(json.dumps(sheet()))
    assert main(["bench", "kpi", "--document", str(path), "--baseline", str(baseline)]) == 0
    text = path.read_text()
    assert "| room, mono | 10.00 | 0 | 0 | 90 | 4.0 |" in text and "commit abc" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("after\n") and fill(text, sheet()) == text
    with pytest.raises(ConfigError, match="expected one"):
        fill("no place", sheet())


def test_the_results_show_the_committed_baseline():
    text = RESULTS.read_text()
    assert fill(text, read_baseline(BASELINE)) == text, "run bench kpi --document docs/results.md"


def test_a_quick_sheet_is_no_baseline(capsys):
    assert main(["bench", "kpi", "--quick", "--update-baseline"]) == 1
    assert "--quick measures too little" in capsys.readouterr().err


def test_figures_of_another_version_are_left_out():
    now = copy.deepcopy(sheet())
    now["figures"]["odometry"]["room, mono"]["forgotten"] = 1.0
    now["figures"]["forgotten"] = {"row": {"column": 1.0}}
    assert not list(find_worse(sheet(), now))
