"""Rendered images and running nodes for the tests over DDS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; run scripts/test")
pytest.importorskip("imatching_ros.msg", reason="the messages are not built; run scripts/test")

from peers import NodeProcess, Peer, own_domain  # noqa: E402

from imatching_ros.camera.model import Camera
from imatching_ros.ros.middleware import use_shipped_profile

use_shipped_profile()


@dataclass(frozen=True)
class Shot:
    """One rendered image with its truth."""

    stamp_ns: int
    image: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray  # (H, W) float32 m
    T_WC: np.ndarray  # (7,)
    camera: Camera


@pytest.fixture(scope="session")
def tour() -> list[Shot]:
    """30 images of a walk through a room, 320 x 240 at 10 Hz."""
    from imatching_ros.offline.simulation.sequence import simulated_frames

    return [
        Shot(
            frame.stamp_ns + 1000 * 10**9,
            frame.image.permute(1, 2, 0).numpy(),
            frame.depth.numpy(),
            pose.numpy(),
            frame.camera,
        )
        for frame, pose in simulated_frames("room", 30, 0, (240, 320))
    ]


@pytest.fixture(scope="module")
def domain() -> Iterator[int]:
    with own_domain() as number:
        yield number


@pytest.fixture(scope="module")
def peer(domain: int) -> Iterator[Peer]:
    peer = Peer(domain)
    yield peer
    peer.close()


@pytest.fixture(scope="module")
def start_node(domain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Starts nodes in this module's domain, ends those that still run."""
    nodes: list[NodeProcess] = []

    def start(parameters: dict | None = None, arguments: tuple[str, ...] = (), **options) -> NodeProcess:
        folder = tmp_path_factory.mktemp("node")
        quick = {"matcher.name": "klt", "learning.mode": "off", "weights_dir": folder}
        node = NodeProcess(domain, folder / "log.txt", quick | (parameters or {}), arguments, **options)
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        node.stop()
