"""The bench that times the running node: its counts, not its times."""

from __future__ import annotations

import json

import pytest

from imatching_ros.__main__ import main

pytestmark = [pytest.mark.ros, pytest.mark.slow]


def test_the_running_node_is_timed(tmp_path, capsys):
    command = [
        "bench",
        "latency",
        "--sizes",
        "160x120",
        "--rates",
        "5",
        "--seconds",
        "4",
        "--idle-seconds",
        "0.5",
        "--matcher",
        "klt",
    ]
    assert (
        main(
            [
                *command,
                "--mode",
                "rgbd",
                "--json",
                str(tmp_path / "rows.json"),
                "--set",
                "odometry.corner_distance:=0.01",
            ]
        )
        == 0
    )
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["images"] == 20 and 10 <= row["answered"] and row["answered"] + row["dropped"] <= 20
    p = row["latency_ms"]
    assert 0 < p["p50"] <= p["p95"] <= p["p99"] <= p["max"] < 60_000
    assert row["working"]["cpu_percent"] > 0 and row["working"]["memory_mb"] > 50
    assert "160x120" in capsys.readouterr().out


def test_a_size_that_is_none_is_told(capsys):
    assert main(["bench", "latency", "--sizes", "large"]) == 1
    assert "expected WIDTHxHEIGHT" in capsys.readouterr().err
