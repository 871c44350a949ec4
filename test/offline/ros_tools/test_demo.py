"""The demonstration, small: everything in it runs, over DDS."""

from __future__ import annotations

import argparse
import json

import pytest

from imatching_ros.core.errors import SourceError
from imatching_ros.offline.ros_tools import demo

pytestmark = [pytest.mark.ros, pytest.mark.slow]


def run_demo(*arguments):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.run(parser.parse_args([str(a) for a in arguments]))


def test_the_whole_loop_runs_and_is_reported(tmp_path, capsys):
    out = tmp_path / "demo"
    size = ["--frames", 12, "--held-out", 8, "--size", 160, 120]
    assert run_demo("--out", out, "--shift", "none", *size) == 0
    metrics = json.loads((out / "run/metrics.json").read_text())
    assert metrics["frames"] + metrics["frames_dropped"] <= 12 and metrics["tracked_frames"] >= 6
    assert metrics["ate"]["alignment"] == "se3" and metrics["ate"]["percent_of_path"] < 10
    rows = [line[:26].strip() for line in capsys.readouterr().out.splitlines()]
    for name in ("learning", "frozen", "other path, frozen", "other path, adapted"):
        assert f"ATE, {name}" in rows
    assert {"matches, frozen", "matches, adapted", "adapted"} <= set(rows)
    assert (out / "report.html").stat().st_size > 10_000 and (out / "adapted.safetensors").exists()


@pytest.mark.parametrize(("dropped", "says"), [(10, False), (200, True)])
def test_a_computer_that_was_too_slow_is_named(dropped, says):
    """Tracking at half the rate, and hardly any windows, are no figures of the method."""
    metrics = {
        "frames": 300 - dropped,
        "frames_dropped": dropped,
        "tracked_frames": 100,
        "lost_frames": 0,
        "keyframes": 9,
    }
    metrics |= {"latency_ms": {"p50": 1, "p95": 2, "p99": 3}, "ate": None, "no_truth_because": "there is none"}
    metrics["learning"] = {"steps": 0, "samples": 0, "promotions": 0, "rollbacks": 0}
    assert (f"no time for {dropped} of 300 images" in demo.table({"learning": metrics}, {})) is says


def test_only_the_folder_of_a_demonstration_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SourceError, match="is no earlier demonstration"):
        run_demo("--out", tmp_path)
    assert (tmp_path / "thesis.tex").exists()
