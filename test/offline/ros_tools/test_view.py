"""The viewer of a running node."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from peers import NodeProcess, Peer, image_message, wait_until

from imatching_ros.core.errors import ConfigError
from imatching_ros.msg import LearningStatus, Status
from imatching_ros.offline.ros_tools import view
from imatching_ros.ros.convert import make_cloud, make_header

pytestmark = pytest.mark.ros


def test_without_rerun_the_error_names_the_package(monkeypatch):
    parser = argparse.ArgumentParser()
    view.add_arguments(parser)
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ConfigError, match="pip install rerun-sdk"):
        view.run(parser.parse_args([]))


@pytest.mark.slow
def test_what_a_node_publishes_is_written_to_a_file(domain, peer: Peer, tmp_path: Path):
    pytest.importorskip("rerun", reason="rerun-sdk (170 MB) is not installed")
    file = tmp_path / "node.rrd"
    command = [sys.executable, "-m", "imatching_ros", "view", "--node", "/robot/imatching", "--out", str(file)]
    viewer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=NodeProcess.environment(domain))
    header = make_header(1_700_000_000 * 10**9, "odom")
    image = image_message(1_700_000_000 * 10**9, np.zeros((12, 16, 3), np.uint8), "rgb8")
    messages = {
        "/robot/odom": Odometry(header=header),
        "/robot/imatching/path": PathMessage(header=header, poses=[PoseStamped(header=header)] * 2),
        "/robot/imatching/landmarks": make_cloud(1_700_000_000 * 10**9, np.zeros((5, 3)), "odom"),
        "/robot/imatching/matches/image": image,
        "/robot/imatching/status": Status(header=header, state=Status.LOST, reason="too few inliers"),
        "/robot/imatching/learning/status": LearningStatus(header=header, loss=float("nan"), step=3),
    }
    publishers = {topic: peer.publisher(type(message), topic) for topic, message in messages.items()}
    for topic, message in messages.items():
        publishers[topic].publish(message)
    wait_until(lambda: file.is_file() and b"LOST too few inliers" in file.read_bytes(), 30.0, "the status in the file")
    viewer.send_signal(signal.SIGINT)
    output, _ = viewer.communicate(timeout=30)
    assert viewer.returncode == 0 and f"{len(messages)} messages shown" in output
    content = file.read_bytes()
    for entity in ("world/base", "world/path", "world/landmarks", "matches", "tracking/inliers", "learning/step"):
        assert f"/{entity}".encode() in content, entity
    assert b"/learning/loss" not in content, "a number that is not known yet"
