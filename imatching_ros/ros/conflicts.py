"""What other nodes do that disturbs the odometry: a second camera on a topic, a second source of the pose, of the clock or of the name."""

from __future__ import annotations

import time
from collections.abc import Container

from .lifecycle import ManagedNode
from .params import NodeConfig


class Conflicts:
    """Looked for once a second, each logged when it begins.

    Attributes:
        found: one line for each conflict that there is now.
    """

    TF_MEMORY_S = 5.0  # a transform of another node counts for so long

    def __init__(self, node: ManagedNode) -> None:
        self._node = node
        self._own_tf: Container[int] = ()
        self._other_tf_s = -self.TF_MEMORY_S
        self.found: list[str] = []

    def watch_tf(self, own_stamps: Container[int]) -> None:
        """`own_stamps`, in ns: of the newest transforms from odom_frame to base_frame that this node has published."""
        self._own_tf = own_stamps

    def on_tf(self, stamp_ns: int) -> None:
        """There was a transform from odom_frame to base_frame on /tf."""
        if stamp_ns not in self._own_tf:
            self._other_tf_s = time.monotonic()

    def look(self, image_topics: list[str], config: NodeConfig) -> None:
        """`image_topics`: resolved names of those that the node is subscribed to."""
        lines = [self._of_clock(), self._of_name(), self._of_tf(config)]
        lines.append(self._of_publishers(self._node.resolve_topic_name("odom"), "their poses are mixed"))
        lines += [self._of_publishers(topic, "images of two cameras are mixed") for topic in image_topics]
        before, self.found = self.found, [line for line in lines if line]
        for line in self.found:
            if line not in before:
                self._node.get_logger().warning(line)

    def _of_clock(self) -> str:
        node = self._node
        if not node.get_parameter("use_sim_time").value:
            return ""
        if not node.count_publishers("/clock"):
            return (
                "use_sim_time is set, but nobody publishes /clock: latencies are unknown; play the bag with --clock, or set "
                "use_sim_time to false"
            )
        return self._of_publishers("/clock", "time goes back and forth")

    def _of_publishers(self, topic: str, effect: str) -> str:
        if self._node.count_publishers(topic) < 2:
            return ""
        publishers = self._node.get_publishers_info_by_topic(topic)
        names = ", ".join(sorted(f"{p.node_namespace.rstrip('/')}/{p.node_name}" for p in publishers))
        return f"{topic} has {len(publishers)} publishers ({names}), expected one: {effect}"

    def _of_name(self) -> str:
        node = self._node
        count = node.get_node_names_and_namespaces().count((node.get_name(), node.get_namespace()))
        if count < 2:
            return ""
        return (
            f"{count} nodes are named {node.get_fully_qualified_name()}: their topics, services and parameters are mixed; give "
            "each a name of its own: -r __node:=NAME"
        )

    def _of_tf(self, config: NodeConfig) -> str:
        if not config.publish_tf or time.monotonic() - self._other_tf_s > self.TF_MEMORY_S:
            return ""
        return (
            f"another node publishes TF from {config.odom_frame} to {config.base_frame} too: the robot jumps between the two; "
            "set publish_tf to false here, where a filter publishes it"
        )
