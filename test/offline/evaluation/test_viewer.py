"""The Rerun recording of a replay."""

from __future__ import annotations

import sys

import pytest

from imatching_ros.core.config import Config
from imatching_ros.core.errors import ConfigError
from imatching_ros.offline.evaluation.viewer import Viewer
from imatching_ros.offline.simulation.sequence import SimulatedSequence
from imatching_ros.pipeline import Pipeline


@pytest.fixture(scope="module")
def frames():
    sequence = SimulatedSequence(
        frames=8, width=160, height=120, seed=3, depth_noise=0.003, texture_size=128, supersample=1
    )
    return [frame for frame, _ in sequence.read()]


def test_without_rerun_the_error_names_the_package(monkeypatch, frames, tmp_path):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ConfigError, match="pip install rerun-sdk"):
        Viewer(frames[0].camera, tmp_path / "run.rrd")


def test_a_recording_holds_what_was_logged(frames, tmp_path):
    rerun = pytest.importorskip("rerun", reason="rerun-sdk (170 MB) is not installed")
    values = {"odometry.mode": "rgbd", "matcher.name": "klt", "learning.mode": "off"}
    pipeline = Pipeline(Config().with_values(values))
    file = tmp_path / "run.rrd"
    viewer = Viewer(frames[0].camera, file)
    for frame in frames:
        viewer.add(frame, pipeline.process(frame), pipeline)
    rerun.get_global_data_recording().flush()
    content = file.read_bytes()
    for path in ("camera/image/matches", "landmarks", "trajectory/0"):
        assert f"/world/{path}".encode() in content, path
