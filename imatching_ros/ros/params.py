"""ROS parameters, made from the node's settings and from those of the core that are exposed: each declared once, in its config."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, ParameterType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from ..core.config import Config, check, setting, walk
from ..core.errors import ConfigError
from .transforms import from_pose

_TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
    tuple: ParameterType.PARAMETER_DOUBLE_ARRAY,
}


@dataclass(frozen=True)
class NodeConfig:
    """Settings that only the node has."""

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
    rectified: str = setting(
        "auto",
        "whether images are rectified (P of CameraInfo holds, not K and D); auto: when the topic's "
        "name has 'rect' in its last part",
        choices=("auto", "yes", "no"),
    )
    sync: str = setting(
        "approximate", "how images of two cameras are paired by stamp", choices=("exact", "approximate")
    )
    sync_slop_s: float = setting(
        0.01, "largest difference of two stamps that approximate synchronisation pairs", unit="s", low=0.0, high=1.0
    )
    odom_frame: str = setting("odom", "frame of the published poses")
    base_frame: str = setting("base_link", "frame of the robot, whose pose is published")
    publish_tf: bool = setting(True, "publish odom_frame -> base_frame on /tf", live=True)
    base_from_camera: tuple = setting(
        (0.0,) * 7, "pose of the camera's optical frame in base_frame: x y z qx qy qz qw; all zeros: from TF"
    )
    tf_timeout_s: float = setting(
        2.0,
        "how long to wait for TF from base_frame to the camera before the camera itself is taken as the base, looking along +x",
        unit="s",
        low=0.0,
        high=3600.0,
        live=True,
    )
    path_length: int = setting(2000, "poses kept in ~/path", low=1, high=1000000, live=True)
    no_data_warning_s: float = setting(
        5.0, "silence of an input after which a warning says why", unit="s", low=0.5, high=3600.0, live=True
    )
    backward_jump_s: float = setting(
        0.5,
        "a stamp that is older than the last by more than this resets odometry (a bag that "
        "loops); by less, the image is dropped",
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
        "after the node's namespace and the matcher",
    )
    autostart: bool = setting(True, "configure and activate at start; false waits for a lifecycle manager")


def declare(node: Node) -> list[str]:
    """Declares every parameter; returns a warning for each given name that is none.

    Raises:
        ConfigError: a value given at start that has the wrong type or is out of bounds.
    """
    overrides = node._parameter_overrides  # rclpy has no public way to ask what was given at start
    for name, default, meta in settings():
        value = list(default) if isinstance(default, tuple) else default
        descriptor = make_descriptor(default, meta)
        if name in overrides and (word := find_word(overrides[name].value, meta["choices"])):
            overrides[name] = Parameter(name, value=word)
        try:
            node.declare_parameter(name, value, descriptor)
        except (InvalidParameterTypeException, InvalidParameterValueException):
            bounds = describe_bounds(meta)
            raise ConfigError(
                f"parameter {name} is {overrides[name].value!r}, expected {describe_type(default)}"
                f"{' (written with a decimal point)' if isinstance(default, float) else ''} {bounds}".rstrip()
            ) from None
    unknown = [name for name in overrides if not node.has_parameter(name) and not name.startswith("qos_overrides.")]
    return [f"parameter '{name}' {describe_unknown(name)}" for name in unknown]


def describe_unknown(name: str) -> str:
    if any(name == other for other, _, _ in walk(Config())):
        return "is a setting of the offline commands only and changes nothing in the node"
    return f"is unknown and changes nothing{suggest(name, [known for known, _, _ in settings()])}"


def find_word(value: Any, choices: tuple[str, ...]) -> str | None:
    """The choice that was meant: YAML reads the words off and no as false, on and yes as true."""
    words = {False: ("off", "no"), True: ("on", "yes")}.get(value, ()) if isinstance(value, bool) else ()
    return next((word for word in words if word in choices), None)


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
    descriptor.type = _TYPES[type(default)]
    low, high = meta["low"], meta["high"]
    if low is None and high is None:
        return descriptor
    if isinstance(default, float):
        descriptor.floating_point_range = [
            FloatingPointRange(
                from_value=-sys.float_info.max if low is None else float(low),
                to_value=sys.float_info.max if high is None else float(high),
            )
        ]
    else:
        descriptor.integer_range = [
            IntegerRange(
                from_value=-(2**63) if low is None else int(low),
                to_value=2**63 - 1 if high is None else int(high),
                step=0,
            )
        ]
    return descriptor


def describe_type(default: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "a list of numbers"}[
        type(default)
    ]


def describe_bounds(meta: dict[str, Any]) -> str:
    if meta["choices"]:
        return "one of " + ", ".join(meta["choices"])
    if meta["low"] is not None or meta["high"] is not None:
        return f"from {meta['low']} to {meta['high']} {meta['unit']}".strip()
    return f"in {meta['unit']}" if meta["unit"] else ""


def read_configs(node: Node) -> tuple[NodeConfig, Config]:
    """Both configurations as the node's parameters state them.

    Raises:
        ConfigError: a value out of bounds, or settings that contradict each other.
    """
    return make_configs({name: node.get_parameter(name).value for name, _, _ in settings()})


def make_configs(values: dict[str, Any]) -> tuple[NodeConfig, Config]:
    """Both configurations from a value for every parameter.

    Raises:
        ConfigError: a value out of bounds, or settings that contradict each other.
    """
    own = {f.name: values[f.name] for f in fields(NodeConfig)}
    config = NodeConfig(
        **{name: value if isinstance(value, (bool, int, float, str)) else tuple(value) for name, value in own.items()}
    )
    for name, value, meta in walk(config):
        check(name, value, meta)
    if len(config.base_from_camera) != 7:
        raise ConfigError(f"base_from_camera has {len(config.base_from_camera)} numbers, expected 7: x y z qx qy qz qw")
    if any(config.base_from_camera):
        try:
            from_pose(np.array(config.base_from_camera))
        except ValueError as error:
            raise ConfigError(f"base_from_camera: {error}") from None
    core = {name: value for name, value in values.items() if name not in own}
    return config, Config.from_dict({**core, "odometry.mode": config.mode})


def changed(node: Node, parameters: list[Parameter]) -> dict[str, Any]:
    """The value of every parameter once `parameters` are set."""
    values = {name: node.get_parameter(name).value for name, _, _ in settings()}
    return {**values, **{p.name: p.value for p in parameters if p.name in values}}
