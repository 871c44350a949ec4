"""Where the node keeps learned weights: never in the working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from imatching_ros.config import Config
from imatching_ros.ros.node import default_profile, weights_directory

pytestmark = pytest.mark.ros


def test_parameter_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("ROS_HOME", str(tmp_path))
    assert weights_directory("/srv/robot") == Path("/srv/robot")


def test_ros_home(monkeypatch, tmp_path):
    monkeypatch.setenv("ROS_HOME", str(tmp_path))
    assert weights_directory("") == tmp_path / "imatching_ros"


def test_home(monkeypatch, tmp_path):
    monkeypatch.delenv("ROS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_directory("") == tmp_path / ".ros" / "imatching_ros"


def test_weights_of_different_origin_are_kept_apart():
    shipped = default_profile(Config())
    mine = default_profile(Config.from_dict({"matcher.weights": "/data/my site.safetensors"}))
    assert shipped == "expectation" and mine == "my_site_adapted"
    assert default_profile(Config.from_dict({"matcher.name": "regression"})) != shipped
