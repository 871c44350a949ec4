"""The node in a process of its own, and a peer that publishes images and receives the outputs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

ROOT = Path(__file__).parents[2]


@contextmanager
def own_domain() -> Iterator[int]:
    """A ROS_DOMAIN_ID that no other test on this machine uses; held by a listening socket."""
    for domain in range(10, 100):
        lock = socket.socket()
        try:
            lock.bind(("127.0.0.1", 24200 + domain))
            lock.listen(1)
        except OSError:
            lock.close()
            continue
        with lock:
            yield domain
        return
    raise RuntimeError("all domains are in use")


def wait_until(condition: Callable[[], Any], timeout_s: float = 120.0, what: str = "") -> Any:
    """The first true answer; fails after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what or condition}"
        time.sleep(0.02)
    return answer


def send_until(
    send: Callable[[], None], condition: Callable[[], Any], what: str = "", tries: int = 24, patience_s: float = 5.0
) -> Any:
    """Sends again while nothing happens: a best-effort subscriber may not have met a publisher that has already met it."""
    for _ in range(tries):
        send()
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if answer := condition():
                return answer
            time.sleep(0.02)
    raise AssertionError(f"sent {tries} times in vain: {what}")


class NodeProcess:
    """`python -m imatching_ros online` with parameters and remappings."""

    def __init__(
        self,
        domain: int,
        log: Path,
        parameters: dict[str, Any] | None = None,
        arguments: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "imatching_ros", "online"),
        environment: dict[str, str] | None = None,
    ) -> None:
        ros = ["--ros-args", *(part for k, v in (parameters or {}).items() for part in ("-p", f"{k}:={v}")), *arguments]
        self.log = log
        self._before = set(Path("/dev/shm").glob("fastrtps_*"))
        self._file = open(log, "w")
        self.process = subprocess.Popen(
            [sys.executable, *program, *ros],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self.environment(domain) | (environment or {}),
            cwd=log.parent,
        )

    @staticmethod
    def environment(domain: int) -> dict[str, str]:
        """That of a process in a domain, with the source tree on the path."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return os.environ | {"ROS_DOMAIN_ID": str(domain), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

    @property
    def shared_memory(self) -> set[Path]:
        """The segments of FastDDS that the process maps and that were not there before it: its own."""
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        return {Path(name) for name in re.findall(r"/dev/shm/fastrtps_[0-9a-f]{16}$", maps, re.M)} - self._before

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, timeout_s: float = 120.0) -> None:
        """Waits until the node has printed a text."""
        deadline = time.monotonic() + timeout_s
        while text not in self.output:
            assert self.process.poll() is None, f"the node ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, f"'{text}' was not printed:\n{self.output}"
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT, timeout_s: float = 60.0) -> int:
        """Sends a signal and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._file.close()


class Peer:
    """A ROS node of the test, spun by a thread."""

    def __init__(self, domain: int) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain, args=[])
        self.node = rclpy.create_node("peer", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._stop = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop:
            self._executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def collect(self, kind: type, topic: str, qos: QoSProfile | int = 100) -> list:
        """A list that grows with every message."""
        messages: list = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def meet(self, name: str = "/imatching") -> None:
        """Waits until a node has discovered every subscription made so far; what it publishes before is never received.

        DDS discovers subscriptions in the order in which they are made: when the last one has received something, all are discovered.
        """
        names: list[str] = []
        # It stays: to destroy a subscription that another thread spins may end that thread.
        self.node.create_subscription(
            DiagnosticArray, "/diagnostics", lambda m: names.extend(s.name for s in m.status), 10
        )
        wait_until(lambda: f"{name}: odometry" in names, what=f"diagnostics of {name}")

    def publisher(self, kind: type, topic: str, qos: QoSProfile | int = 20, subscribers: int = 1):
        """A publisher that has met its subscribers."""
        publisher = self.node.create_publisher(kind, topic, qos)
        if subscribers:
            wait_until(lambda: publisher.get_subscription_count() >= subscribers, what=f"a subscriber of {topic}")
        return publisher

    def rgbd_publishers(self, prefix: str = "", depth: str = "depth/image") -> tuple[Any, Any, Any]:
        """Publishers of CameraInfo, image and depth below a prefix, that have met the node."""
        topics = ((CameraInfo, "camera_info"), (Image, "image"), (Image, depth))
        infos, images, depths = (self.publisher(kind, f"{prefix}/{topic}") for kind, topic in topics)
        return infos, images, depths

    def call(self, kind: type, service: str, timeout_s: float = 120.0, **request: Any) -> Any:
        """Calls a service and returns the response."""
        client = self.node.create_client(kind, service)
        assert client.wait_for_service(timeout_s), f"no service {service}"
        future = client.call_async(kind.Request(**request))
        wait_until(future.done, timeout_s, f"an answer of {service}")
        self.node.destroy_client(client)
        return future.result()


def make_stamp(stamp_ns: int) -> Time:
    return Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)


def image_message(stamp_ns: int, image: np.ndarray, encoding: str, frame_id: str = "optical") -> Image:
    """(H, W) or (H, W, C) -> Image."""
    image = np.ascontiguousarray(image)
    return Image(
        header=Header(stamp=make_stamp(stamp_ns), frame_id=frame_id),
        height=image.shape[0],
        width=image.shape[1],
        encoding=encoding,
        step=image.strides[0],
        data=array("B", image.tobytes()),
    )


def info_message(stamp_ns: int, camera: Any, frame_id: str = "optical", baseline_m: float = 0.0) -> CameraInfo:
    """CameraInfo of an undistorted or distorted camera; with a baseline, that of the right camera of a pair."""
    model = "plumb_bob" if camera.model == "none" else camera.model
    info = CameraInfo(
        header=Header(stamp=make_stamp(stamp_ns), frame_id=frame_id),
        width=camera.width,
        height=camera.height,
        distortion_model=model,
        d=list(camera.distortion or (0.0,) * 5),
    )
    info.k = [camera.fx, 0.0, camera.cx, 0.0, camera.fy, camera.cy, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [camera.fx, 0.0, camera.cx, -camera.fx * baseline_m, 0.0, camera.fy, camera.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info
