"""Where the node keeps learned weights: never in the working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from imatching_ros.core.config import MatcherConfig
from imatching_ros.ros.params import default_profile, weights_directory

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
    shipped = default_profile(MatcherConfig())
    mine = default_profile(MatcherConfig(weights="/data/my größe.safetensors"))
    assert shipped == "expectation" and mine == "my_gr__e_adapted"
    assert default_profile(MatcherConfig(name="regression")) != shipped


def test_nodes_of_two_namespaces_keep_their_weights_apart():
    names = [
        default_profile(MatcherConfig(), namespace) for namespace in ("/", "/front", "/robot1/front", "/robot1_front")
    ]
    assert names == ["expectation", "front_expectation", "robot1-front_expectation", "robot1_front_expectation"]


def test_two_nodes_of_one_namespace_keep_their_weights_apart():
    names = [default_profile(MatcherConfig(), "/front", name) for name in ("imatching", "left_eye", "right_eye")]
    assert names == ["front_expectation", "front-left_eye_expectation", "front-right_eye_expectation"]
    assert default_profile(MatcherConfig(), "/", "left_eye") == "left_eye_expectation"
