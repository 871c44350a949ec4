"""A short rendered recording, its windows, and runs of the finetune command that tests compare with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imatching_ros.__main__ import main
from imatching_ros.offline.simulation.recording import write_recording
from imatching_ros.offline.simulation.sequence import SimulatedSequence

ROOT = Path(__file__).parents[1]
# Small, and so that some windows of a step are refused: the others must count for what they are.
SETTINGS = [
    "--mode",
    "mono",
    "--batch",
    "3",
    "--seed",
    "3",
    "--set",
    "learning.min_landmarks=15",
    "--set",
    "learning.keyframes_per_step=2",
    "--set",
    "odometry.landmarks_per_frame=150",
]
STEPS = 4


def arguments(scene: Path, out: Path, *more: str) -> list[str]:
    """Of Python, for the command on a recording; `more` may begin with further recordings."""
    further = [m for m in more if m.startswith("/")]
    more = tuple(m for m in more if m not in further)
    return ["-m", "imatching_ros", "finetune", str(scene), *further, "--out", str(out), "--quiet", *SETTINGS, *more]


def start(scene: Path, out: Path, *more: str, **environment: str) -> subprocess.Popen:
    """A process of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments(scene, out, *more)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """A recording of 26 frames."""
    folder = tmp_path_factory.mktemp("recordings") / "scene"
    write_recording(
        folder,
        SimulatedSequence(
            kind="clutter", frames=24, seed=7, width=320, height=240, supersample=1, texture_size=256, speed_mps=0.9
        ),
        format="tum",
    )
    return folder


@pytest.fixture(scope="session")
def straight(scene, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight")
    assert main(arguments(scene, out, "--steps", str(STEPS))[2:]) == 0
    return out


@pytest.fixture
def collected(straight, tmp_path):
    """A folder in which the windows of the first epoch were collected and no step was taken."""
    out = tmp_path / "out"
    shutil.copytree(straight / "windows", out / "windows", ignore=shutil.ignore_patterns("epoch*"))
    shutil.copy(straight / "plan.json", out / "plan.json")
    return out
