"""The fault catalogue does what it says, and its verdicts follow from the outputs."""

import numpy as np
import pytest
import torch

from imatching_ros.__main__ import main
from imatching_ros.offline.experiments.odometry_runs import compare_ates, measure, timings
from imatching_ros.offline.experiments.faults import judge, make_faults
from imatching_ros.offline.experiments.jumps import judge_jump, jump_about
from imatching_ros.offline.experiments.realtime import play_recording
from imatching_ros.core.types import Frame, OdometryOutput, TrackingState
from imatching_ros.core.errors import ConfigError
from imatching_ros.offline.recordings.base import SourceOptions
from imatching_ros.offline.recordings import open_source
from imatching_ros.offline.simulation.recording import write_recording
from imatching_ros.offline.simulation.sequence import SimulatedSequence
from odometry_scenes import CAMERA, configure, rotating, speckle


def output(i: int, tracked: bool, map_id: int = 0) -> OdometryOutput:
    state = TrackingState.TRACKING if tracked else TrackingState.LOST
    pose = torch.tensor([0, 0, 0, 0, 0, 0, 1.0], dtype=torch.float64) if tracked else None
    return OdometryOutput(
        i,
        i,
        state,
        "",
        pose,
        None,
        20 * tracked,
        False,
        True,
        map_id,
        None,
        timings_ms={"match": 1.0 + i, "keyframe": 5.0},
    )


def test_faults_change_exactly_their_frames():
    image = torch.from_numpy(speckle(0, (240, 320)))[None]
    faults = {fault.name: fault for fault in make_faults(3)}
    frame = Frame(0, 0, image, CAMERA)
    assert [faults["5 dropped"].apply(i, frame) is None for i in range(9)] == [False] * 3 + [True] * 5 + [False]
    assert faults["10 black"].apply(3, frame).image.max() == 0 and faults["10 black"].apply(13, frame) is frame
    assert faults["exposure x 0.4"].apply(99, frame).image.float().mean() < 0.5 * image.float().mean()
    covered = faults["10 covered"]
    assert covered.apply(4, frame).image.float().mean() < 20 and covered.end == 13


def test_verdicts():
    faults = {fault.name: fault for fault in make_faults(2)}
    outputs = (
        [output(i, True) for i in range(2)]
        + [None] * 5
        + [output(7, False), output(8, False)]
        + [output(i, True, 1) for i in range(9, 12)]
    )
    verdict = judge(faults["5 dropped"], outputs)
    assert (verdict.frames, verdict.lost_after, verdict.maps) == (3, 2, 2)
    never = judge(faults["5 dropped"], outputs[:7] + [output(7, False)])
    assert never.frames is None and never.lost_after == 1
    black = [output(i, i < 2 or i == 5 or i >= 12) for i in range(14)]
    assert judge(faults["10 black"], black).invented == 1


def test_front_end_time_leaves_keyframe_work_out():
    times = timings([output(i, True) for i in range(3)])
    assert times["front_p50"] == 2.0 and times["keyframe_p50"] == 5.0


def test_ratios_are_taken_case_by_case():
    def row(source: str, matcher: str, ate_m: float | None, tracked: int = 100) -> dict:
        told = {
            "source": source,
            "mode": "mono",
            "learning": "off",
            "seed": 0,
            "matcher": matcher,
            "frames": 100,
            "tracked": tracked,
        }
        return told | ({} if ate_m is None else {"ate_m": ate_m})

    rows = [
        row("a", "mine", 1.0),
        row("a", "klt", 2.0),
        row("b", "mine", 8.0),
        row("b", "klt", 1.0),
        row("c", "mine", 1.0),
        row("c", "klt", None),
    ]
    (line,) = compare_ates(rows, ["mine", "klt"])
    assert "2 of 3 cases: 2.000" in line  # the geometric mean of 1/2 and 8
    assert compare_ates(rows, ["mine"]) == []
    (line,) = compare_ates(
        [
            *rows,
            row("d", "mine", 9.0),
            row("d", "klt", 1.0, tracked=50),
            row("e", "mine", 2.0),
            row("e", "klt", 2.0, tracked=91),
        ],
        ["mine", "klt"],
    )
    assert "3 of 5 cases: 1.587; left out, since they tracked different shares of the frames: d (mono)" in line


def test_percent_is_of_the_path_that_was_tracked(tmp_path):
    """As in a replay: a matcher that starts late has gone a shorter way."""
    sequence = SimulatedSequence(kind="clutter", seed=1, frames=12, width=320, height=240, supersample=1, speed_mps=1.0)
    path = write_recording(tmp_path / "walk", sequence, "tum")
    source = open_source(path, SourceOptions(duration_s=0.6))
    row = measure(source, configure("klt", odometry__mode="rgbd"))
    truth = source.groundtruth()
    steps = np.linalg.norm(np.diff(truth.T_WC[:, :3], axis=0), axis=1)
    assert row["tracked"] < len(truth) and row["ate_percent"] == pytest.approx(
        100 * row["ate_m"] / steps[: row["tracked"] - 1].sum(), rel=1e-6
    )


def test_a_camera_that_is_played_loses_none_or_says_how_many():
    found = play_recording(rotating(5, 0.3), configure("klt"), seconds=1.2, rate_hz=10.0)
    assert found["frames"] == 12 and 0 <= found["dropped"] < 12 and found["memory_mb"] > 0 and "growth_mb" in found


def test_the_command_takes_modes_per_recording_and_runs_seeds_only_where_they_matter(tmp_path, capsys):
    sequence = SimulatedSequence(kind="clutter", seed=1, frames=5, width=320, height=240, supersample=1, speed_mps=1.0)
    path = write_recording(tmp_path / "walk", sequence, "tum")
    assert main(["bench", "odometry", f"{path}=rgbd", "--matchers", "klt", "--seeds", "0,1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and "rgbd" in printed[1] and "identity_deg" in printed[0]
    assert main(["bench", "odometry", f"{path}=sideways"]) == 1
    assert main(["bench", "odometry"]) == 1


def at(i: int, x: float, state=TrackingState.TRACKING, map_id: int = 0, metric: bool = True) -> OdometryOutput:
    pose = None if state is TrackingState.LOST else torch.tensor([x, 0, 0, 0, 0, 0, 1], dtype=torch.float64)
    return OdometryOutput(i, i, state, "", pose, None, 20, False, metric, map_id, None)


def test_outcomes_of_a_jump():
    truth = torch.zeros(6, 7, dtype=torch.float64)
    truth[:, 6], truth[:, 0] = 1, torch.tensor([0, 0.1, 0.2, 0.3, 0.4, 1.4])
    walk = [at(i, 0.1 * i) for i in range(5)]
    assert judge_jump(walk, at(5, 1.3), truth) == "right" and judge_jump(walk, at(5, 1.1), truth) == "wrong"
    assert judge_jump(walk, at(5, 0.5, TrackingState.UNVERIFIED), truth) == "wrong_unverified"
    assert (
        judge_jump(walk, at(5, 0, TrackingState.LOST), truth) == "lost" == judge_jump(walk, at(5, 1.4, map_id=1), truth)
    )
    mono = [at(i, 0.3 * i, metric=False) for i in range(5)]
    assert judge_jump(mono, at(5, 4.2, metric=False), truth) == "right"
    turned = truth.clone()
    turned[5, 3:] = torch.tensor([0, 0.1, 0, 0.995])
    assert judge_jump(walk, at(5, 1.4), turned) == "wrong"
    assert judge_jump([*walk[:4], at(4, 0, TrackingState.LOST)], at(5, 1.4), truth) == "not_started"


def test_jumps_need_truth_and_are_the_same_every_time(tmp_path):
    sequence = SimulatedSequence(kind="clutter", frames=40, seed=1, width=160, height=120, supersample=1)
    write_recording(tmp_path / "clip", sequence, format="tum")
    source = open_source(tmp_path / "clip")
    found = jump_about(source, configure("klt", odometry__mode="rgbd"), 3)
    assert (
        found["jumps"] == 3 == sum(v for k, v in found.items() if k not in ("jumps", "ever_wrong", "in_the_end_right"))
    )
    assert found["not_started"] == 0 and found["wrong"] <= found["ever_wrong"] <= 3 and found["in_the_end_right"] <= 3
    assert jump_about(source, configure("klt", odometry__mode="rgbd"), 3) == found
    (tmp_path / "clip/groundtruth.txt").unlink()
    with pytest.raises(ConfigError, match="no ground truth"):
        jump_about(open_source(tmp_path / "clip"), configure("klt"), 1)
