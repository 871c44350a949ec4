"""ROS parameters, made from the node's settings and from those of the core that are exposed: each declared once, in its config."""

from __future__ import annotations

import difflib
import os
import re
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, ParameterType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from ..core.config import Config, MatcherConfig, check, setting, walk
from ..core.errors import ConfigError
from ..core.timing import BACKWARD_JUMP_S, SYNC_SLOP_S
from ..matching.weights import choose_matcher
from .transforms import from_pose

NODE_NAME = "imatching"  # unless it is remapped

# Python type of a setting: the type of its parameter, and its name in a message.
TYPES = {
    bool: (ParameterType.PARAMETER_BOOL, "true or false"),
    int: (ParameterType.PARAMETER_INTEGER, "a whole number"),
    float: (ParameterType.PARAMETER_DOUBLE, "a number (written with a decimal point)"),
    str: (ParameterType.PARAMETER_STRING, "a text"),
    tuple: (ParameterType.PARAMETER_DOUBLE_ARRAY, "a list of numbers"),
}


@dataclass(frozen=True)
class NodeConfig:
    """Settings of the node; all are parameters."""

    mode: str = setting("mono", "cameras in use", choices=("mono", "stereo", "rgbd"))
    image_transport: str = setting(
        "raw",
        "how images arrive; 'compressed' listens to <image topic>/compressed, and <depth topic>/compressedDepth",
        choices=("raw", "compressed"),
    )
    camera_info_topic: str = setting(
        "",
        "CameraInfo of the (left) camera; empty: `camera_info` as remapped, else `camera_info` beside the image topic",
    )
    right_camera_info_topic: str = setting("", "CameraInfo of the right camera of a stereo pair, likewise")
    mask_file: str = setting(
        "", "image file of the (left) image's size, non-zero where images are not used: parts of the robot"
    )
    mask_topic: str = setting(
        "", "mono8 images, non-zero where the (left) image of the same stamp is not used: people; empty: none"
    )
    rectified: str = setting(
        "auto",
        "whether images are rectified (P of CameraInfo applies, not K and D); auto: when the last part of the "
        "topic's name contains 'rect'",
        choices=("auto", "yes", "no"),
    )
    sync: str = setting(
        "approximate", "how images of two cameras are paired by stamp", choices=("exact", "approximate")
    )
    sync_slop_s: float = setting(
        SYNC_SLOP_S,
        "largest difference of two stamps that approximate synchronisation pairs",
        unit="s",
        low=0.0,
        high=1.0,
    )
    odom_frame: str = setting("odom", "frame of the published poses")
    base_frame: str = setting("base_link", "frame of the robot, whose pose is published")
    publish_tf: bool = setting(True, "publish odom_frame -> base_frame on /tf", live=True)
    base_from_camera: tuple = setting(
        (0.0,) * 7, "pose of the camera's optical frame in base_frame: x y z qx qy qz qw; all zeros: from TF"
    )
    imu_topic: str = setting("", "sensor_msgs/Imu of a gyroscope beside the camera; empty: none")
    camera_from_imu: tuple = setting(
        (0.0,) * 4, "rotation of the IMU's axes in the camera's optical frame: qx qy qz qw; all zeros: from TF"
    )
    tf_timeout_s: float = setting(
        2.0,
        "how long to wait for TF from base_frame to the camera before base_frame is assumed at the camera, x along the optical axis",
        unit="s",
        low=0.0,
        high=3600.0,
        live=True,
    )
    require_tf: bool = setting(
        False,
        "publish no poses before TF or base_from_camera gives the pose of the camera, however long that takes, instead of assuming one",
        live=True,
    )
    path_length: int = setting(2000, "poses kept in ~/path", low=1, high=1000000, live=True)
    no_data_warning_s: float = setting(
        5.0, "silence of an input after which a warning gives the reason", unit="s", low=0.5, high=3600.0, live=True
    )
    backward_jump_s: float = setting(
        BACKWARD_JUMP_S,
        "a stamp older than the last by more than this begins another map when the next image confirms it: at the origin with "
        "use_sim_time (a bag that loops), else at the last pose (a clock that is set); by less, the image is dropped",
        unit="s",
        low=0.0,
        high=3600.0,
        live=True,
    )
    weights_dir: str = setting(
        "", "folder of the saved weights; empty: $ROS_HOME/imatching_ros, else ~/.ros/imatching_ros"
    )
    weights_profile: str = setting(
        "",
        "name of a site's weights: resumed at start when they exist, written when promoted ones passed post-deployment validation; empty: named "
        "after the node's namespace, its name (unless it is imatching) and the matcher",
    )
    autostart: bool = setting(True, "configure and activate at start; false waits for a lifecycle manager")


@dataclass(frozen=True)
class Configs:
    """Everything that is set for a node."""

    node: NodeConfig
    core: Config


def weights_directory(given: str) -> Path:
    """Folder of the saved weights: the parameter, else under $ROS_HOME; never the working directory."""
    if given:
        return Path(given).expanduser()
    home = os.environ.get("ROS_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".ros") / "imatching_ros"


def default_profile(matcher: MatcherConfig, namespace: str = "/", node_name: str = NODE_NAME) -> str:
    """Name of the weights where `weights_profile` gives none.

    One for each network, for each weights file that it started from, and for each node: two nodes of one robot learn from two cameras.
    """
    if matcher.weights == "default":
        own = choose_matcher(matcher).name
    else:
        own = re.sub(r"\W", "_", Path(matcher.weights).stem, flags=re.ASCII) + "_adapted"
    names = [*namespace.strip("/").split("/"), "" if node_name == NODE_NAME else node_name]
    prefix = "-".join(name for name in names if name)
    return f"{prefix}_{own}" if prefix else own


def given_at_start(node: Node) -> dict[str, Parameter]:
    """{name: parameter} from files and the command line. (rclpy has no public access to it.)"""
    return node._parameter_overrides


def declare(node: Node) -> list[str]:
    """Declares every parameter; returns a warning for each given name that is none.

    Raises:
        ConfigError: a value given at start that has the wrong type or is out of bounds.
    """
    overrides = given_at_start(node)
    for name, default, meta in settings():
        value = list(default) if isinstance(default, tuple) else default
        if name in overrides:
            overrides[name] = Parameter(name, value=adapt(overrides[name].value, default, meta["choices"]))
        try:
            node.declare_parameter(name, value, make_descriptor(default, meta))
        except (InvalidParameterTypeException, InvalidParameterValueException):
            expected = f"{TYPES[type(default)][1]} {describe_bounds(meta)}".rstrip()
            raise ConfigError(f"parameter {name} is {overrides[name].value!r}, expected {expected}") from None
    unknown = [name for name in overrides if not node.has_parameter(name) and not name.startswith("qos_overrides.")]
    return [f"parameter '{name}' {describe_unknown(name)}" for name in unknown]


def describe_unknown(name: str) -> str:
    if any(name == other for other, _, _ in walk(Config())):
        return "is a setting of the offline commands only and changes nothing in the node"
    return f"is unknown and changes nothing{suggest(name, [known for known, _, _ in settings()])}"


def find_word(value: Any, choices: tuple[str, ...]) -> str | None:
    """The choice that a boolean stands for: YAML reads the words off and no as false, on and yes as true."""
    words = {False: ("off", "no"), True: ("on", "yes")}.get(value, ()) if isinstance(value, bool) else ()
    return next((word for word in words if word in choices), None)


def adapt(value: Any, default: Any, choices: tuple[str, ...]) -> Any:
    """A value as YAML reads it -> that of the parameter: the word of a boolean, numbers without a decimal point as doubles."""
    if isinstance(value, bool):
        return find_word(value, choices) or value
    if isinstance(default, float) and isinstance(value, int):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, (list, array)):
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in value)
        return [float(number) for number in value] if whole else value
    return value


def adapt_parameters(parameters: list[Parameter]) -> list[Parameter]:
    """Parameters as `ros2 param set` sends them -> of the declared types: 15 for a double, off for a word."""
    known = {name: (default, meta["choices"]) for name, default, meta in settings()}
    return [
        Parameter(p.name, value=adapt(p.value, *known[p.name])) if p.name in known and p.value is not None else p
        for p in parameters
    ]


def settings() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(name, default, metadata) of every parameter; those of the node first."""
    yield from walk(NodeConfig())
    yield from (entry for entry in walk(Config()) if entry[2]["expose"])


def suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def make_descriptor(default: Any, meta: dict[str, Any]) -> ParameterDescriptor:
    """The content of `ros2 param describe`."""
    descriptor = ParameterDescriptor()
    descriptor.description = meta["doc"] + (f" [{meta['unit']}]" if meta["unit"] else "")
    descriptor.additional_constraints = "one of " + ", ".join(meta["choices"]) if meta["choices"] else ""
    descriptor.read_only = not meta["live"]
    descriptor.type = TYPES[type(default)][0]
    low, high = meta["low"], meta["high"]
    if low is None and high is None:
        return descriptor
    if isinstance(default, float):
        limits = -sys.float_info.max if low is None else float(low), sys.float_info.max if high is None else float(high)
        descriptor.floating_point_range = [FloatingPointRange(from_value=limits[0], to_value=limits[1])]
    else:
        whole = -(2**63) if low is None else int(low), 2**63 - 1 if high is None else int(high)
        descriptor.integer_range = [IntegerRange(from_value=whole[0], to_value=whole[1], step=0)]
    return descriptor


def describe_bounds(meta: dict[str, Any]) -> str:
    if meta["choices"]:
        return "one of " + ", ".join(meta["choices"])
    if meta["low"] is not None or meta["high"] is not None:
        return f"from {meta['low']} to {meta['high']} {meta['unit']}".strip()
    return f"in {meta['unit']}" if meta["unit"] else ""


def read_configs(node: Node, changes: list[Parameter] | None = None) -> Configs:
    """Both configurations from the node's parameters, as they would be with `changes`.

    Raises:
        ConfigError: a value out of bounds, or settings that contradict each other.
    """
    values = {name: node.get_parameter(name).value for name, _, _ in settings()}
    return make_configs({**values, **{p.name: p.value for p in changes or [] if p.name in values}})


def make_configs(values: dict[str, Any]) -> Configs:
    """Both configurations from a value for every parameter.

    Raises:
        ConfigError: a value out of bounds, or settings that contradict each other.
    """
    own: dict[str, Any] = {f.name: values[f.name] for f in fields(NodeConfig)}
    for name in ("odom_frame", "base_frame"):
        own[name] = own[name].lstrip("/")  # as ROS 1 wrote it
    for name in ("base_from_camera", "camera_from_imu"):
        own[name] = tuple(own[name])  # ROS has it as an array
    config = NodeConfig(**own)
    for name, value, meta in walk(config):
        check(name, value, meta)
    if len(config.base_from_camera) != 7:
        raise ConfigError(f"base_from_camera has {len(config.base_from_camera)} numbers, expected 7: x y z qx qy qz qw")
    if len(config.camera_from_imu) != 4:
        raise ConfigError(f"camera_from_imu has {len(config.camera_from_imu)} numbers, expected 4: qx qy qz qw")
    mountings = {"base_from_camera": config.base_from_camera, "camera_from_imu": (0.0,) * 3 + config.camera_from_imu}
    for name, pose in mountings.items():
        try:
            if any(pose):
                from_pose(np.array(pose))
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    check_frames(config)
    core = {name: value for name, value in values.items() if name not in own}
    return Configs(config, Config.from_dict({**core, "odometry.mode": config.mode}))


def check_frames(config: NodeConfig) -> None:
    """Raises ConfigError for names of frames that cannot make a tree."""
    for name in ("odom_frame", "base_frame"):
        if not getattr(config, name).strip():
            raise ConfigError(f"{name} is empty, expected the name of a frame")
    if config.odom_frame == config.base_frame:
        raise ConfigError(
            f"odom_frame and base_frame are both '{config.odom_frame}', expected two frames: the pose of base_frame is "
            "published in odom_frame"
        )
