"""The command measures what it says: true covariances have a mean NEES of 6."""

import json

import torch

from imatching_ros.__main__ import main
from imatching_ros.offline.experiments import scenes
from imatching_ros.offline.experiments.consistency import Consistency, summarise
from imatching_ros.offline.simulation.sequence import SimulatedSequence


def test_the_interval_narrows_with_independent_windows():
    g = torch.Generator().manual_seed(0)
    e = torch.randn(400, 6, generator=g, dtype=torch.float64)
    nees, ones = e.square().sum(1), torch.ones(400, dtype=torch.float64)
    few, many = (
        summarise([Consistency(nees, 2 * nees, nees / 2, nees / 2, ones, ones, independent)])
        for independent in (10, 100)
    )
    assert many["inside"] and few["low"] < many["low"] < 6 < many["high"] < few["high"]
    assert many["naive"] == 2 * many["nees"] and many["error_mm"] == 1000.0


def test_the_command_renders_runs_and_prints(tmp_path, capsys, monkeypatch):
    small = SimulatedSequence(
        kind="clutter", seed=1, frames=16, width=320, height=240, supersample=1, depth_noise=0.003, speed_mps=1.4
    )
    monkeypatch.setattr(
        "imatching_ros.offline.experiments.scenes.consistency",
        lambda seed: {f"small_{seed}": scenes.Rendering(small, ("rgbd",))},
    )
    assert (
        main(
            [
                "bench",
                "nees",
                str(tmp_path),
                "--seeds",
                "1",
                "--modes",
                "rgbd",
                "--matchers",
                "klt",
                "--json",
                str(tmp_path / "f.json"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "small_1" in printed and "mean NEES" in printed
    rows = json.loads((tmp_path / "f.json").read_text())
    assert rows[0]["windows"] > 0 and rows[0]["naive"] >= rows[0]["nees"] > 0
