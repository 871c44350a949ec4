"""Launch files, parameter files, messages and documentation agree with the code."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from peers import ROOT

from imatching_ros.core.errors import ConfigError
from imatching_ros.ros import params
from imatching_ros.offline.ros_tools import reference
from imatching_ros.ros.inputs import TOPICS

pytestmark = pytest.mark.ros

KNOWN = {name: (default, meta) for name, default, meta in params.settings()}
PARAMETER_FILES = sorted(p.name for p in (ROOT / "config").glob("*.yaml"))


OPTIONAL = {"rviz2", "robot_localization", "nav2_lifecycle_manager"}  # packages that launch can start


def load_launch(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_file_for_every_camera_and_computer():
    assert {"mono.yaml", "stereo.yaml", "rgbd.yaml", "cpu.yaml", "jetson.yaml", "desktop_gpu.yaml"} == set(
        PARAMETER_FILES
    )


@pytest.mark.parametrize("name", PARAMETER_FILES)
def test_parameter_file(name):
    text = (ROOT / "config" / name).read_text()
    given = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert set(given) <= set(KNOWN), set(given) - set(KNOWN)
    values = {k: default for k, (default, _) in KNOWN.items()} | {
        k: params.find_word(v, KNOWN[k][1]["choices"]) or v for k, v in given.items()
    }
    params.make_configs(values)
    for key, value in given.items():
        assert type(value) is type(KNOWN[key][0]) or value is False, (
            f"{key}: {value!r} would be refused by ROS, which is strict about types"
        )
    lines = [line for line in text.splitlines()[3:] if line.strip() and not line.lstrip().startswith("#")]
    assert all("#" in line for line in lines if "ros__parameters" not in line and "/**" not in line), (
        "every line is commented"
    )


def test_launch_sets_only_parameters_that_exist():
    launch = load_launch("online")
    assert set(launch.PARAMETERS.values()) <= {*KNOWN, "use_sim_time"} and set(launch.PARAMETERS) <= set(
        launch.ARGUMENTS
    )
    defaults = {name: default for name, (default, _) in launch.ARGUMENTS.items()}
    assert launch.make_parameters(defaults) == {}, "defaults would override the user's parameter file"
    assert ("external_odometry", "/wheels") in launch.make_remappings(
        defaults | {"external_odometry_topic": "/wheels"}, "mono"
    )
    assert launch.make_parameters(defaults | {"external_odometry_use": "both"})["external_odometry.use"] == "both"
    changed = launch.make_parameters(defaults | {"publish_tf": "false", "learning": "sync", "base_frame": "robot"})
    assert (changed["publish_tf"], changed["learning.mode"], changed["base_frame"]) == (False, "sync", "robot")


@pytest.mark.parametrize(
    "text",
    [
        "/**: {ros__parameters: {mode: rgbd}}",
        "imatching: {ros__parameters: {mode: rgbd}}\ncamera: {ros__parameters: {mode: 3}}",
        "/robot/imatching: {ros__parameters: {mode: rgbd}}",
        "robot: {imatching: {ros__parameters: {mode: rgbd}}, camera: {ros__parameters: {mode: 3}}}",
    ],
)
def test_launch_reads_the_parameters_of_the_node(text):
    assert load_launch("online").read_parameters(yaml.safe_load(text)) == {"mode": "rgbd"}


def test_the_player_of_launch_waits_for_the_node():
    from imatching_ros.offline.ros_tools import play

    launch = load_launch("online")
    values = {name: default for name, (default, _) in launch.ARGUMENTS.items()} | {"bag": "my_bag"}
    parser = argparse.ArgumentParser()
    play.add_arguments(parser)
    for changes, settings, topic in (
        ({"image_topic": "/cam/image"}, {}, "/cam/image"),
        ({"namespace": "/robot"}, {}, "/robot/image"),
        ({}, {"mode": "stereo"}, "/left/image"),
        ({"image_topic": "/cam/image"}, {"image_transport": "compressed"}, "/cam/image/compressed"),
    ):
        parsed = parser.parse_args(launch.make_player_arguments(values | changes, {"mode": "mono", **settings}))
        assert (str(parsed.bag), parsed.wait_for, parsed.clock) == ("my_bag", [topic], False)
    assert parser.parse_args(launch.make_player_arguments(values, {"mode": "mono", "use_sim_time": True})).clock


@pytest.mark.parametrize("mode", ["mono", "stereo", "rgbd"])
def test_launch_remaps_only_topics_that_exist(mode):
    launch = load_launch("online")
    defaults = {name: default for name, (default, _) in launch.ARGUMENTS.items()}
    assert launch.make_remappings(defaults, mode) == [], "without arguments topics keep the node's own names"
    values = defaults | {"image_topic": "/a", "right_image_topic": "/c", "depth_topic": "/e"}
    names = [name for name, _ in launch.make_remappings(values, mode)]
    assert names == list(TOPICS[mode]) and launch.IMAGES[mode] == names[0]
    assert set(launch.IMAGES) == set(TOPICS) and (ROOT / "config" / f"{mode}.yaml").is_file()


def test_nav2_launch_fuses_the_planar_twist_that_the_node_publishes():
    nav2, online = load_launch("nav2"), load_launch("online")
    assert set(nav2.ONLINE) <= set(online.ARGUMENTS)
    assert nav2.make_filter({"base_frame": "base"})["odom0"] == nav2.ONLINE["odom_topic"]
    mine = nav2.make_filter({"base_frame": "base", "odom_frame": "r1/odom", "odom_topic": "/vo"})
    assert (mine["odom0"], mine["odom_frame"], mine["world_frame"], mine["base_link_frame"]) == (
        "/vo",
        "r1/odom",
        "r1/odom",
        "base",
    )
    names = "x y z roll pitch yaw vx vy vz vroll vpitch vyaw ax ay az".split()
    fused = [name for name, used in zip(names, nav2.FILTER["odom0_config"], strict=True) if used]
    assert fused == ["vx", "vy", "vyaw"]


def test_replay_launch_passes_options_that_exist():
    launch = load_launch("replay")
    arguments = launch.make_command({name: "1" for name in launch.ARGUMENTS})
    text = subprocess.run(
        [sys.executable, "-m", "imatching_ros", "replay", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert all(a in text for a in arguments if a.startswith("--")), arguments


def test_layouts_show_topics_that_exist():
    from imatching_ros.ros.outputs import TOPICS as published

    names = {name.replace("~/", "imatching/").lstrip("/") for name in published}
    displays = yaml.safe_load((ROOT / "config" / "imatching.rviz").read_text())["Visualization Manager"]["Displays"]
    shown = {d["Topic"]["Value"] for d in displays if "Topic" in d}
    text = json.dumps(json.loads((ROOT / "config" / "foxglove.json").read_text()))
    shown |= {t.split(".")[0] for t in re.findall(r'"/((?:odom|imatching/)[\w/.]*)"', text)}
    assert len(shown) >= 6 and shown <= names, shown - names


def test_documentation_matches_the_code():
    text = (ROOT / "docs" / "ros.md").read_text()
    assert reference.fill(text) == text, "run: python -m imatching_ros.offline.ros_tools.reference docs/ros.md"


def test_words_that_yaml_reads_as_booleans_are_choices():
    meant = {name: yaml.safe_load(word) for name, word in (("rectified", "yes"), ("learning.mode", "off"))}
    assert meant == {"rectified": True, "learning.mode": False}
    found = {name: params.find_word(value, KNOWN[name][1]["choices"]) for name, value in meant.items()}
    assert found == {"rectified": "yes", "learning.mode": "off"}
    assert params.find_word(False, ("auto", "yes", "no")) == "no" and params.find_word(True, ("mono", "stereo")) is None
    assert params.find_word(0, ("off",)) is None and params.find_word("off", ("off",)) is None


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("odometry.min_inliers", 2, "expected 6 to 1000"),
        ("mode", "quad", "one of mono, stereo, rgbd"),
        ("base_from_camera", (1.0, 2.0), "has 2 numbers"),
        ("base_from_camera", (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0), "is no pose"),
        ("learning.budget", float("nan"), "expected 0.01 to 1"),
        ("odom_frame", "", "odom_frame is empty"),
        ("base_frame", "/", "base_frame is empty"),
        ("odom_frame", "base_link", "odom_frame and base_frame are both 'base_link'"),
        ("base_frame", "/odom", "odom_frame and base_frame are both"),
        ("odometry.depth_min_m", 30.0, "odometry.depth_min_m is 30 m, expected less than odometry.depth_max_m .20 m."),
    ],
)
def test_bad_values_are_refused(name, value, reason):
    with pytest.raises(ConfigError, match=reason):
        params.make_configs({k: default for k, (default, _) in KNOWN.items()} | {name: value})


def test_a_leading_slash_of_a_frame_is_stripped():
    defaults = {k: default for k, (default, _) in KNOWN.items()}
    config = params.make_configs(defaults | {"odom_frame": "/map", "base_frame": "/base"}).node
    assert (config.odom_frame, config.base_frame) == ("map", "base")


def test_settings_that_are_no_parameters_are_refused_with_a_hint():
    assert len(KNOWN) < 60 and not {"learning.guard", "bundle.precision", "seed"} & set(KNOWN)
    assert params.describe_unknown("bundle.precision") == (
        "is a setting of the offline commands only and changes nothing in the node"
    )
    assert params.describe_unknown("learning.budgt").endswith("did you mean 'learning.budget'?")


def test_the_tuning_guide_names_parameters_of_the_node():
    text = (ROOT / "docs" / "tuning.md").read_text()
    named = set(re.findall(r"`((?:matcher|bundle|odometry|external_odometry|learning)\.\w+)", text))
    assert named and named <= set(KNOWN), named - set(KNOWN)


def test_every_dependency_of_the_code_is_in_package_xml():
    named = set(re.findall(r"<(?:exec_|build_|buildtool_)?depend>([\w-]+)<", (ROOT / "package.xml").read_text()))
    imported, started = set(), set()
    for file in [*(ROOT / "imatching_ros" / "ros").glob("*.py"), *(ROOT / "launch").glob("*.py")]:
        imported |= set(re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE))
        started |= set(re.findall(r"package=\"(\w+)\"", file.read_text())) - {"imatching_ros"}
    ros = {
        name
        for name in imported
        if name.endswith("_msgs")
        or name in ("rclpy", "sensor_msgs_py", "builtin_interfaces", "rcl_interfaces", "std_srvs")
        or name in ("ament_index_python", "launch", "launch_ros")
    }
    assert {"ament_index_python", "launch_ros"} <= ros and started == OPTIONAL
    started |= {package for packages in load_launch("camera").DRIVERS.values() for package in packages}
    assert ros <= named and not started & named, (ros - named, started & named)  # what launch can start is optional
    assert {"rclpy", "cv_bridge", "sensor_msgs_py", "python3-opencv"} <= named


@pytest.mark.parametrize("name", ["online", "play", "record", "replay"])
def test_installed_programs_bring_their_interpreter(name):
    """systemd, or a bringup launch, starts them without an active virtual environment."""
    places = [Path(p) / "lib" / "imatching_ros" / name for p in os.environ["AMENT_PREFIX_PATH"].split(os.pathsep)]
    program = next((place for place in places if place.is_file()), None)
    if program is None:
        pytest.skip("the package is not installed by colcon")
    environment = os.environ | {"PATH": "/usr/bin:/bin"}
    environment.pop("VIRTUAL_ENV", None)
    done = subprocess.run([program, "--help"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
