"""Overrides of the QoS of inputs, `qos_overrides.<topic>.subscription.<policy>`: checked before rclpy applies them."""

from __future__ import annotations

import copy

from rclpy.node import Node
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_profile_sensor_data,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

from ..core.errors import ConfigError
from .params import suggest

_WORDS = {"history": QoSHistoryPolicy, "reliability": QoSReliabilityPolicy, "durability": QoSDurabilityPolicy}
OVERRIDES = QoSOverridingOptions(
    (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
)


def make_qos(node: Node, topic: str, depth: int) -> QoSProfile:
    """What a subscription asks for where nothing is overridden: sensor data QoS, reliable where old messages are asked for, for
    nobody sends these again otherwise.

    Raises:
        ConfigError: an override of the topic that rclpy cannot take.
    """
    given = {}
    for policy in OVERRIDES.policy_kinds:
        name = f"qos_overrides.{topic}.subscription.{policy.name.lower()}"
        if name in node._parameter_overrides:  # rclpy has no public way to ask what was given at start
            given[policy] = _check(name, policy.name.lower(), node._parameter_overrides[name].value)
    qos = copy.copy(
        qos_profile_sensor_data
    )  # a copy, because rclpy writes the overrides into the profile that it is given
    qos.depth = depth
    if given.get(QoSPolicyKind.DURABILITY) == "transient_local":
        qos.reliability = QoSReliabilityPolicy.RELIABLE
    return qos


def find_unknown_overrides(node: Node) -> list[str]:
    """A text for each override that belongs to no topic of the node; to be asked once all are subscribed to."""
    known = [f"qos_overrides.{name}" for name in node.get_parameters_by_prefix("qos_overrides")]
    topics, policies = (sorted({name.split(".")[part] for name in known}) for part in (1, 3))
    return [
        f"parameter '{name}' belongs to no topic of the node and changes nothing{suggest(name, known)}; expected "
        f"qos_overrides.TOPIC.subscription.POLICY, TOPIC one of {', '.join(topics)}, POLICY one of {', '.join(policies)}"
        for name in node._parameter_overrides
        if name.startswith("qos_overrides.") and name not in known
    ]


def _check(name: str, policy: str, value: object) -> object:
    if policy == "depth":
        good, expected = isinstance(value, int) and not isinstance(value, bool) and value > 0, "a whole number from 1"
    else:
        words = [word for word in _WORDS[policy].short_keys() if word != "unknown"]
        good, expected = isinstance(value, str) and value.lower() in words, "one of " + ", ".join(words)
    if not good:
        raise ConfigError(f"parameter {name} is {value!r}, expected {expected}")
    return value.lower() if isinstance(value, str) else value
