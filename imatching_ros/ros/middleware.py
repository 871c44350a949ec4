"""DDS: the FastDDS profile of the package, the QoS of inputs and its overrides, and why a subscription receives nothing."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.qos import (
    QoSCompatibility,
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_check_compatible,
    qos_profile_sensor_data,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

from ..core.errors import ConfigError
from .params import given_at_start, suggest

OVERRIDES = QoSOverridingOptions(
    (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
)


def use_shipped_profile() -> None:
    """Names the package's FastDDS profile in the environment, unless the user has named one. Call it before rclpy.init.

    Without its large shared memory segment most large images are lost between processes.
    """
    names = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    path = find_shared("config/fastdds.xml")
    if path is not None and not any(name in os.environ for name in names):
        for name in names:  # ROS 2 Jazzy reads the first, newer ones the second
            os.environ[name] = str(path)


def find_shared(relative: str) -> Path | None:
    """A file of the package's share folder: installed by colcon, or of the source tree; None for a bare pip installation."""
    places = [Path(__file__).parents[2]]
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if prefix:
            places.append(Path(prefix) / "share" / "imatching_ros")
    return next((place / relative for place in places if (place / relative).is_file()), None)


def make_qos(node: Node, topic: str, depth: int) -> QoSProfile:
    """The requested QoS of a subscription where nothing is overridden: sensor data QoS; reliable with transient_local durability,
    because best effort does not deliver earlier messages.

    Raises:
        ConfigError: an override of the topic that rclpy cannot apply (`qos_overrides.<topic>.subscription.<policy>`).
    """
    overrides = given_at_start(node)
    given = {}
    for policy in OVERRIDES.policy_kinds:
        name = f"qos_overrides.{topic}.subscription.{policy.name.lower()}"
        if name in overrides:
            given[policy] = _check_override(name, policy.name.lower(), overrides[name].value)
    qos = copy.copy(qos_profile_sensor_data)  # rclpy writes the overrides into the profile that it is given
    qos.depth = depth
    if given.get(QoSPolicyKind.DURABILITY) == "transient_local":
        qos.reliability = QoSReliabilityPolicy.RELIABLE
    return qos


def latched_only(node: Node, topic: str) -> bool:
    """Whether all publishers of a topic keep their messages for late subscribers (transient_local), and no override forbids it.

    Such a publisher may have sent its only message before this node began.
    """
    publishers = node.get_publishers_info_by_topic(topic)
    overridden = any(name.startswith(f"qos_overrides.{topic}.subscription.") for name in given_at_start(node))
    kept = (QoSDurabilityPolicy.TRANSIENT_LOCAL, QoSReliabilityPolicy.RELIABLE)
    offered = [(p.qos_profile.durability, p.qos_profile.reliability) for p in publishers]
    return bool(offered) and not overridden and all(qos == kept for qos in offered)


def find_unknown_overrides(node: Node) -> list[str]:
    """A text for each override that belongs to no topic of the node; call it when all are subscribed to."""
    known = [f"qos_overrides.{name}" for name in node.get_parameters_by_prefix("qos_overrides")]
    topics, policies = (sorted({name.split(".")[part] for name in known}) for part in (1, 3))
    return [
        f"parameter '{name}' belongs to no topic of the node and changes nothing{suggest(name, known)}; expected "
        f"qos_overrides.TOPIC.subscription.POLICY, TOPIC one of {', '.join(topics)}, POLICY one of {', '.join(policies)}"
        for name in given_at_start(node)
        if name.startswith("qos_overrides.") and name not in known
    ]


def _check_override(name: str, policy: str, value: object) -> object:
    if policy == "depth":
        good, expected = isinstance(value, int) and not isinstance(value, bool) and value > 0, "a whole number from 1"
    else:
        policies = {"history": QoSHistoryPolicy, "reliability": QoSReliabilityPolicy, "durability": QoSDurabilityPolicy}
        words = [word for word in policies[policy].short_keys() if word != "unknown"]
        good, expected = isinstance(value, str) and value.lower() in words, "one of " + ", ".join(words)
    if not good:
        raise ConfigError(f"parameter {name} is {value!r}, expected {expected}")
    return value.lower() if isinstance(value, str) else value


def type_name(kind: type) -> str:
    """Image -> 'sensor_msgs/msg/Image'."""
    package, group, _ = kind.__module__.split(".")
    return f"{package}/{group}/{kind.__name__}"


def explain_publisher(publisher: Any, topic: str, kind: type, requested: QoSProfile) -> str:
    """Why nothing is received from a publisher of the topic (an entry of get_publishers_info_by_topic)."""
    name = f"{publisher.node_namespace.rstrip('/')}/{publisher.node_name}"
    expected = type_name(kind)
    if publisher.topic_type != expected:
        return f"{name} publishes {publisher.topic_type}, expected {expected} (see the parameter image_transport)"
    verdict, reason = qos_check_compatible(publisher.qos_profile, requested)
    offers = f"offered {describe_qos(publisher.qos_profile)}, requested {describe_qos(requested)}"
    if verdict != QoSCompatibility.ERROR:
        return (
            f"{name} publishes it with compatible QoS ({offers}), but nothing arrives: it sends nothing, or one of the two runs in a "
            "container of its own, which needs --network=host and --ipc=host"
        )
    durability = (publisher.qos_profile.durability, requested.durability)
    late = durability == (QoSDurabilityPolicy.VOLATILE, QoSDurabilityPolicy.TRANSIENT_LOCAL)
    remedy = "durability:=volatile" if late else "reliability:=best_effort"
    return (
        f"{name} publishes it, QoS does not fit ({offers}): {reason.rstrip(';')}; "
        f"set for example qos_overrides.{topic}.subscription.{remedy}"
    )


def describe_qos(qos: QoSProfile) -> str:
    return f"{QoSReliabilityPolicy(qos.reliability).name} {QoSDurabilityPolicy(qos.durability).name}"
