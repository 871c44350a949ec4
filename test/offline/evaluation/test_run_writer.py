"""The folder that a run leaves behind."""

import json
import math

import numpy as np
import torch

from imatching_ros.core import geometry
from imatching_ros.core.config import Config
from imatching_ros.core.types import Matches, OdometryOutput, TrackingState
from imatching_ros.offline.evaluation.run_writer import FRAME_COLUMNS, RunWriter
from imatching_ros.offline.recordings.truth import Trajectory, read_trajectory

STEP = 100_000_000


def output(k, state=TrackingState.TRACKING):
    T = geometry.identity()
    T[0], T[1] = 0.1 * k, 0.01 * k * k
    n = 20
    matches = Matches(
        k - 1,
        k,
        0,
        0,
        torch.zeros(n, 2),
        torch.zeros(n, 2),
        torch.ones(n),
        torch.ones(n),
        torch.full((n,), 0.25),
        torch.arange(n) < 15,
        torch.arange(n),
        0,
    )
    tracked = state is TrackingState.TRACKING
    return OdometryOutput(
        k,
        k * STEP,
        state,
        "",
        T if tracked else None,
        None,
        15 if tracked else 0,
        k % 3 == 0,
        False,
        0,
        matches if tracked else None,
    )


def write(folder, truth):
    writer = RunWriter(folder, Config())
    states = [TrackingState.UNINITIALIZED] * 2 + [TrackingState.TRACKING] * 7 + [TrackingState.LOST]
    for k, state in enumerate(states):
        writer.add_frame(output(k, state), 10.0 + k, 20.0)
    writer.add_event({"stamp_ns": 5, "event": "test", "value": math.nan, "array": np.arange(2)})
    return writer.finish(truth, [(2 * STEP, geometry.identity())], {"seed": 3})


def test_everything_is_there_and_counts(tmp_path):
    truth = Trajectory(np.arange(10) * STEP, np.stack([output(k).T_WC.numpy() for k in range(10)]))
    truth.T_WC[:, :3] *= 4
    metrics = write(tmp_path, truth)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["frames"], metrics["tracked_frames"], metrics["lost_frames"], metrics["keyframes"]) == (10, 7, 1, 4)
    assert metrics["initialized_at_frame"] == 2 and metrics["tracked_share_after_initialization"] == 7 / 8
    assert (
        metrics["ate"]["rmse"] < 1e-6
        and abs(metrics["ate"]["scale"] - 4) < 1e-6
        and metrics["ate"]["alignment"] == "sim3"
    )
    assert metrics["latency_ms"]["max"] == 19 and metrics["fps"] == 50 and metrics["seed"] == 3
    consistency = metrics["self_consistency"]
    assert abs(consistency["median_residual_px"] - 0.25) < 1e-9 and consistency["mean_track_length_frames"] == 7
    assert (
        sum(metrics["residual_histogram"]["counts"]) == 7 * 15 and metrics["residual_histogram"]["counts"][2] == 7 * 15
    )
    assert (
        len(read_trajectory(tmp_path / "trajectory.txt")) == 7 and len(read_trajectory(tmp_path / "keyframes.txt")) == 1
    )
    assert (tmp_path / "frames.csv").read_text().splitlines()[0] == ",".join(FRAME_COLUMNS)
    assert json.loads((tmp_path / "events.jsonl").read_text()) == {
        "stamp_ns": 5,
        "event": "test",
        "value": None,
        "array": [0, 1],
    }
    assert Config.from_file(tmp_path / "config.yaml") == Config()


def test_no_truth_is_said(tmp_path):
    metrics = write(tmp_path, None)
    assert (
        metrics["ate"] is None
        and "no truth" in metrics["no_truth_because"]
        and metrics["path_length_is"].startswith("estimated")
    )


def test_lines_are_on_disk_before_the_end(tmp_path):
    writer = RunWriter(tmp_path, Config())
    writer.add_frame(output(3), 1.0, 1.0)
    writer.add_event({"event": "x"})
    assert len((tmp_path / "trajectory.txt").read_text().splitlines()) == 2
    assert (tmp_path / "events.jsonl").read_text().count("\n") == 1
    writer.close()
    writer.add_event({"event": "late"})  # a learner's thread may speak last


def test_truth_that_cannot_be_compared_costs_no_run(tmp_path):
    truth = Trajectory(np.arange(1, 6) * STEP, np.full((5, 7), np.nan))
    metrics = write(tmp_path, truth)
    assert metrics["ate"] is None and "comparison with the truth failed" in metrics["no_truth_because"]
    assert (tmp_path / "metrics.json").is_file()
