"""What other nodes do that spoils the odometry: a second camera on a topic, a second source of the pose, of the clock or of the name."""

from __future__ import annotations

from rclpy.node import Node

from .params import NodeConfig


def find(node: Node, image_topics: list[str], config: NodeConfig) -> list[str]:
    """One line for each conflict that there is now.

    Args:
        image_topics: resolved names of those that the node is subscribed to.
    """
    found = [_of_clock(node), _of_name(node), _of_pose(node, config)]
    found += [_of_publishers(node, topic, "images of two cameras are mixed") for topic in image_topics]
    return [text for text in found if text]


def _of_clock(node: Node) -> str:
    """Why simulated time cannot be relied on; empty when it can, or is not used."""
    if not node.get_parameter("use_sim_time").value:
        return ""
    if not node.count_publishers("/clock"):
        return (
            "use_sim_time is set, but nobody publishes /clock: latencies are unknown; play the bag with --clock, or set "
            "use_sim_time to false"
        )
    return _of_publishers(node, "/clock", "time goes back and forth")


def _of_publishers(node: Node, topic: str, effect: str) -> str:
    if node.count_publishers(topic) < 2:
        return ""
    publishers = node.get_publishers_info_by_topic(topic)
    names = ", ".join(sorted(f"{p.node_namespace.rstrip('/')}/{p.node_name}" for p in publishers))
    return f"{topic} has {len(publishers)} publishers ({names}), expected one: {effect}"


def _of_name(node: Node) -> str:
    own = node.get_name(), node.get_namespace()
    count = node.get_node_names_and_namespaces().count(own)
    if count < 2:
        return ""
    return (
        f"{count} nodes are named {node.get_fully_qualified_name()}: their topics, services and parameters are mixed; give each "
        "a name of its own: -r __node:=NAME"
    )


def _of_pose(node: Node, config: NodeConfig) -> str:
    return _of_publishers(node, node.resolve_topic_name("odom"), "their poses are mixed")
