"""scripts/environment, with a Python that only writes down what it is asked: what is installed where, and what is never removed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Makes virtual environments out of itself; colcon's part is an empty install/setup.bash.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    --version) echo "Python 3.12.3" ;;
    "-m venv"*) mkdir -p "${@: -1}/bin" "${@: -1}/share"; cp "$0" "${@: -1}/bin/python" ;;
    "-m pip"*) echo "$*" >> "$PIP_LOG"; echo "Collecting torch"; echo "Installing collected packages: torch"; exit "${PIP_RC:-0}" ;;
    "-m colcon"*) mkdir -p install log; touch install/setup.bash ;;
esac
"""


class Clone:
    """A clone, and a shell in which ROS is sourced or not."""

    def __init__(self, folder: Path, ros: bool) -> None:
        self.folder, self.log = folder / "clone", folder / "pip.txt"
        self.venv = self.folder / ".venv"
        for name in ("scripts", "requirements"):
            shutil.copytree(ROOT / name, self.folder / name)
        python = folder / "python"
        python.write_text(PYTHON)
        python.chmod(0o755)
        self.environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "PIP_LOG": str(self.log)}
        if ros:
            self.environment |= {"AMENT_PREFIX_PATH": "/opt/ros/jazzy", "ROS_DISTRO": "jazzy"}

    def source(self, **more: str) -> tuple[int, str, str]:
        """Exit code, what pip was asked for, and what was printed."""
        self.log.write_text("")
        done = subprocess.run(
            ["bash", "-c", "source scripts/environment"],
            cwd=self.folder,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, self.log.read_text(), done.stderr


def files(asked: str) -> list[str]:
    return re.findall(r"requirements/(\w[\w-]*)\.txt", asked)


def test_beside_ros_only_what_it_lacks_is_installed_and_in_ranges(tmp_path):
    clone = Clone(tmp_path, ros=True)
    code, asked, said = clone.source()
    assert code == 0, said
    assert files(asked) == ["robot", "offline", "build"] and "numpy<2" in asked
    for name in ("robot", "offline", "build"):
        lines = [
            line
            for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
            if not line.startswith("#")
        ]
        assert all(re.fullmatch(r"[\w-]+>=[\d.]+", line) for line in lines), f"{name}.txt would replace what is there"
    assert clone.source()[1] == ""  # nothing to do
    assert files(clone.source(WITH_TESTS="1")[1]) == ["test", "oracles"]
    assert clone.source()[1] == clone.source(WITH_TESTS="1")[1] == ""


def test_a_handed_over_environment_is_never_made_anew(tmp_path):
    clone = Clone(tmp_path, ros=True)
    clone.venv.mkdir()
    code, _, said = clone.source()
    assert code == 1 and "was not made here" in said
    line = next(line.strip() for line in said.splitlines() if line.strip().startswith("echo"))
    subprocess.run(["bash", "-c", line.replace("$_venv", str(clone.venv))], check=True)
    (clone.venv / "torch").touch()  # the user's own
    assert clone.source()[0] == 0
    code, _, said = clone.source(AMENT_PREFIX_PATH="", ROS_DISTRO="")  # a terminal in which ROS is not sourced
    assert code == 1 and "is ROS sourced?" in said and (clone.venv / "torch").exists()


def test_what_was_built_without_ros_does_not_hide_ros(tmp_path):
    clone = Clone(tmp_path, ros=True)
    stub = clone.folder / "install" / "tf2_msgs"
    stub.mkdir(parents=True)
    assert clone.source()[0] == 0 and not stub.exists()


def test_without_ros_all_of_it_comes_in_the_tested_versions(tmp_path):
    clone = Clone(tmp_path, ros=False)
    code, asked, said = clone.source()
    assert code == 0, said
    assert files(asked) == ["runtime", "build", "opencv", "ros-jazzy", "test", "oracles"] and "numpy<2" not in asked
    assert clone.source()[1] == ""


def test_the_installation_shows_its_progress(tmp_path):
    clone = Clone(tmp_path, ros=False)
    lines = clone.source()[2].splitlines()
    assert any(re.fullmatch(r"environment: \d+ s: Installing collected packages: torch", line) for line in lines)
    assert "environment:" not in clone.source()[2]  # nothing to do, nothing to show


def test_a_failed_installation_is_an_error(tmp_path):
    clone = Clone(tmp_path, ros=False)
    assert clone.source(PIP_RC="1")[0] != 0
    assert clone.source()[0] == 0 and clone.log.read_text() != "", "it is tried again"


@pytest.mark.parametrize("ros", [True, False])
def test_a_virtual_environment_of_the_user_s_is_never_removed(tmp_path, ros):
    clone = Clone(tmp_path, ros)
    torch = clone.venv / "lib" / "torch-of-nvidia"
    torch.mkdir(parents=True)
    code, asked, said = clone.source()
    assert code != 0 and asked == "" and "was not made here and is left as it is" in said and torch.exists()
    command = re.search(r"^ +(echo .*)$", said, re.M)[1]  # does what it promises
    subprocess.run(["bash", "-c", command], check=True)
    code, asked, said = clone.source()
    assert code == 0 and torch.exists() and "pip install" in asked, said


def test_an_environment_of_another_ros_is_made_anew(tmp_path):
    clone = Clone(tmp_path, ros=True)
    assert clone.source()[0] == 0
    (clone.venv / "old").touch()
    assert clone.source(ROS_DISTRO="humble")[0] == 0
    assert not (clone.venv / "old").exists() and os.listdir(clone.venv / "bin") == ["python"]
