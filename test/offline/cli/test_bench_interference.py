"""What the timing of odometry beside learning makes of its rounds."""

import json

import pytest

from imatching_ros.__main__ import main
from imatching_ros.offline.cli.bench_interference import table
from imatching_ros.offline.experiments.realtime import compare_learning, resident_mb


def round_of(learning, p95, dropped=0, memory=(100.0, 200.0, 200.0, 201.0, 203.0)):
    return {
        "learning": learning,
        "frames": 50,
        "dropped": dropped,
        "latency_ms": {"p50": p95 / 2, "p95": p95, "p99": 2 * p95},
        "memory_mb": list(memory),
        "steps": 0 if learning == "off" else 7,
    }


def test_settings_are_compared_by_the_median_of_their_rounds():
    result = compare_learning(
        [
            round_of("off", 100.0),
            round_of("thread", 120.0),
            round_of("off", 100.0),
            round_of("thread", 130.0, dropped=2),
        ]
    )
    assert result["p95_ratio"] == pytest.approx(1.25)
    assert result["thread"]["dropped"] == 2 and result["thread"]["frames"] == 100 and result["thread"]["steps"] == 14
    assert result["off"]["memory_growth_mb"] == pytest.approx(3.0)  # what loading took does not count
    assert "p95 on / off: 1.25" in table(result)


def test_resident_memory_is_known():
    assert 1 < resident_mb() < 1e6


def test_a_small_run_writes_its_rounds(tmp_path, capsys):
    size = ["--size", "160x120", "--loop", "1", "--seconds", "1.5", "--rounds", "1"]
    assert main(["bench", "interference", "--out", str(tmp_path), *size]) == 0
    told = json.loads((tmp_path / "interference.json").read_text())
    assert [r["learning"] for r in told["rounds"]] == ["off", "thread"] and all(
        r["frames"] == 15 for r in told["rounds"]
    )
    assert "p95 on / off" in capsys.readouterr().out
    # Not the scene of another rate.
    assert main(["bench", "interference", "--out", str(tmp_path), *size, "--rate-hz", "5"]) == 0
    assert len(list(tmp_path.glob("scene_*"))) == 2
