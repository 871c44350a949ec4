"""The error rates of the guard: measured on gains that are made up, and by the command on a small recording."""

import dataclasses
import json
from math import nan

import numpy as np
import pytest

from imatching_ros.__main__ import main
from imatching_ros.core.config import LearningConfig
from imatching_ros.learning.validation import Score
from imatching_ros.offline.experiments.guard import Drive, autocorrelation, measure

BASE = Score(1.0, 0.5, 0.4, 1000, 0.6, 0.68, 0.0, 0.05, nan)


def drive(gains, **after):
    """A drive whose candidates have these gains (candidates, W) px."""
    return Drive(
        "made up",
        [BASE] * gains.shape[1],
        [[dataclasses.replace(BASE, held_out_px=1 - float(g), **after) for g in row] for row in gains],
    )


@pytest.fixture(scope="module")
def gains():
    return np.random.default_rng(0).normal(0.02, 0.01, (20, 120))


def test_candidates_of_equal_quality_are_hardly_promoted_and_better_ones_are(gains):
    result = measure([drive(gains)], LearningConfig(), sessions=60, candidates=40)
    assert result["false_promotion_per_session"] <= 0.1 and result["power"] >= 0.8
    assert result["vetoed_of_better"] == 0.0 and 6 <= result["median_windows"] <= 15
    assert np.abs(result["correlation"]["made up"]).max() < 0.1


def test_a_check_that_is_lost_promotes_nothing(gains):
    result = measure([drive(gains, along_flow_px=-0.3)], LearningConfig(), sessions=5, candidates=5)
    assert result["power"] == 0.0 and result["vetoed_of_better"] == 1.0


def test_correlation_of_neighbours_is_seen():
    drawn = np.random.default_rng(0).normal(size=(5, 2001))
    assert autocorrelation(drawn[:, 1:] + drawn[:, :-1])[:2] == pytest.approx([0.5, 0.0], abs=0.05)


def test_the_command_scores_a_recording_and_prints(tmp_path, capsys):
    walk = [
        "--kind",
        "clutter",
        "--frames",
        "24",
        "--speed",
        "1.4",
        "--width",
        "320",
        "--height",
        "240",
        "--supersample",
        "1",
    ]
    assert main(["simulate", str(tmp_path / "walk"), "--format", "tum", *walk]) == 0
    few = ["--set", "learning.validation_windows=3", "--set", "learning.validation_windows_max=3"]
    out = tmp_path / "guard.json"
    arguments = [str(tmp_path / "walk"), "--mode", "mono", "--perturbations", "1", "--sessions", "2", *few]
    assert main(["bench", "guard", *arguments, "--candidates", "2", "--json", str(out)]) == 0
    assert "correlation of gains" in (printed := capsys.readouterr().out) and "false promotion" in printed
    assert 0 <= json.loads(out.read_text())["power"] <= 1
