"""Every way to let keyframes go is driven, and they are compared with dropping."""

import json

from imatching_ros.__main__ import main
from imatching_ros.offline.cli.bench_leaving import WAYS, summarise
from imatching_ros.offline.simulation.recording import write_recording
from imatching_ros.offline.simulation.sequence import SimulatedSequence


def test_the_mean_is_geometric_and_over_whole_rows():
    rows = [{"matcher": "klt", "mode": "mono"} | dict.fromkeys(WAYS, 1.0) | {"hold2": ate} for ate in (4.0, 0.25)]
    rows.append({"matcher": "klt", "mode": "mono"} | dict.fromkeys(WAYS, 1.0) | {"hold2": None})
    means = summarise(rows)
    assert means["all"] == means["klt"] == means["mono"] and all(
        abs(mean - 1) < 1e-12 for mean in means["all"].values()
    )


def test_every_way_gives_a_trajectory_of_its_own(tmp_path, capsys):
    sequence = SimulatedSequence(kind="clutter", seed=1, frames=18, width=320, height=240, supersample=1, speed_mps=0.9)
    path = write_recording(tmp_path / "walk", sequence, "tum")
    assert (
        main(
            [
                "bench",
                "leaving",
                f"{path}=rgbd",
                "--matchers",
                "klt",
                "--json",
                str(tmp_path / "rows.json"),
                "--set",
                "odometry.window_keyframes=6",
                "--set",
                "odometry.keyframe_parallax=0.001",
            ]
        )
        == 0
    )
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    ates = [row[way] for way in WAYS]
    assert len(set(ates)) == 4 and max(ates) < 0.05
    assert "over drop, all" in capsys.readouterr().out
