"""The bond with a lifecycle manager: formed when the node is active, broken when it is not, and noticed when it is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from peers import NodeProcess, Peer, wait_until
from rclpy.duration import Duration

pytestmark = [pytest.mark.ros, pytest.mark.slow]

WITHOUT_BONDPY = importlib.util.find_spec("bondpy") is None
MANAGED = {"matcher.name": "klt", "learning.mode": "off", "autostart": "false"}


@pytest.fixture
def start(domain, tmp_path: Path) -> Iterator:
    """Starts a node in a namespace of its own: that of the test before may still be known."""
    nodes = []

    def start(namespace: str) -> NodeProcess:
        nodes.append(NodeProcess(domain, tmp_path / "node.txt", MANAGED, ("-r", f"__ns:=/{namespace}")))
        return nodes[-1]

    yield start
    for node in nodes:
        node.stop()


def change(peer: Peer, namespace: str, *transitions: int) -> None:
    for transition in transitions:
        request = Transition(id=transition)
        assert peer.call(ChangeState, f"/{namespace}/imatching/change_state", transition=request).success


@pytest.mark.skipif(not WITHOUT_BONDPY, reason="bondpy is installed")
def test_without_bondpy_the_log_names_it_and_the_setting_of_the_manager(start, peer):
    managed = start("without")
    change(peer, "without", Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    managed.wait_for("which needs bond_timeout: 0.0: the package bondpy is not installed")


@pytest.mark.skipif(WITHOUT_BONDPY, reason="bondpy is not installed")
@pytest.mark.parametrize("end", ["deactivate", "SIGINT", "SIGKILL"])
def test_the_manager_notices_the_end(start, peer, end):
    """The manager's end is bondpy as well, with the times of Nav2's lifecycle manager."""
    from bondpy.bondpy import Bond

    space = f"ended_by_{end.lower()}"
    managed = start(space)

    def form() -> Bond:
        bond = Bond(peer.node, f"/{space}/bond", "imatching")
        bond.heartbeat_period, bond.heartbeat_timeout = 0.1, 4.0
        bond.start()
        assert bond.wait_until_formed(Duration(seconds=10.0)), managed.output
        return bond

    change(peer, space, Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    bond = form()
    managed.wait_for("bond with the lifecycle manager formed")
    time.sleep(5.0)  # longer than the manager waits for a heartbeat
    assert not bond.is_broken()
    begin = time.monotonic()
    if end == "deactivate":
        change(peer, space, Transition.TRANSITION_DEACTIVATE)
    elif end == "SIGINT":
        managed.process.send_signal(signal.SIGINT)
    else:
        os.kill(managed.process.pid, signal.SIGKILL)
    wait_until(bond.is_broken, 10.0, f"the end of the bond:\n{managed.output}")
    assert end == "SIGKILL" or time.monotonic() - begin < 4.0, "the manager waited for a heartbeat"
    if end == "deactivate":
        change(peer, space, Transition.TRANSITION_ACTIVATE)
        assert not form().is_broken(), "a bond after the node was active before"
        change(peer, space, Transition.TRANSITION_DEACTIVATE)
        assert "Traceback" not in managed.output and "internal error" not in managed.output, managed.output
