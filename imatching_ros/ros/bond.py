"""The bond by which a lifecycle manager, as that of Nav2, notices that the node has died. The package bondpy is optional."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node

TOPIC = "bond"  # of Nav2's nodes too, relative to the namespace; the bond's name is the node's
HEARTBEAT_S = 0.1  # as Nav2's nodes
# Nothing depends on the manager here, and a service may occupy the executor for longer than any useful timeout. (Nav2's nodes never
# time out either.)
HEARTBEAT_TIMEOUT_S = 86400.0


class ManagerBond:
    """Holds the node's end of the bond from `__init__` to `close`.

    Attributes:
        formed: whether the manager holds its end.
    """

    def __init__(self, node: Node) -> None:
        self.formed = False
        self._node, self._bond = node, None
        try:
            from bondpy.bondpy import Bond
        except ImportError:
            node.get_logger().info(
                "no bond with the lifecycle manager, which needs bond_timeout: 0.0: the package bondpy is not installed"
            )
            return
        bond: Any = Bond(node, TOPIC, node.get_name(), on_broken=self._on_broken, on_formed=self._on_formed)
        bond.heartbeat_period, bond.heartbeat_timeout = HEARTBEAT_S, HEARTBEAT_TIMEOUT_S
        bond.start()
        self._bond = bond

    def close(self) -> None:
        """Breaks the bond; the manager's end is told. bondpy leaves its destroyed subscription and publisher with the node."""
        if self._bond is not None:
            bond, self._bond = self._bond, None
            bond.shutdown()
            self._node.destroy_subscription(bond.sub)
            self._node.destroy_publisher(bond.pub)

    def _on_formed(self) -> None:
        self.formed = True
        self._node.get_logger().info("bond with the lifecycle manager formed")

    def _on_broken(self) -> None:
        if self.formed and self._bond is not None:  # else no manager has come within bondpy's time, or the end is ours
            self._node.get_logger().info("the lifecycle manager has broken the bond")
        self.formed = False
