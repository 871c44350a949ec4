"""Times the running node over DDS, from the stamp of an image to its odometry in another process, and measures CPU and memory.

Images of a rendered scene, forth and back along a path, are stamped and published at a steady rate; the node runs in a process of
its own with the given settings. Idle is the active node before the first image.

examples:
  python -m imatching_ros bench latency
  python -m imatching_ros bench latency --rates 30 --sizes 640x480 --seconds 60 --learning thread
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rclpy
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from imatching_ros.msg import Status

from ...core.errors import SourceError
from ...core.types import Frame
from ...ros import convert
from ...ros.middleware import use_shipped_profile
from ..experiments.realtime import SensorClock
from .processes import free_domain, process, wait_for


@dataclass(frozen=True)
class Usage:
    """CPU and memory of a process."""

    cpu_percent: float  # of one core
    memory_mb: float  # in RAM, at the end


@dataclass(frozen=True)
class Timing:
    """One row of the table."""

    size: str
    rate_hz: float
    images: int
    answered: int  # images with odometry of their own
    dropped: int  # replaced by a newer one before they could be processed
    latency_ms: dict[str, float]  # p50, p95, p99, max: from an image's stamp to its odometry here
    idle: Usage
    working: Usage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--sizes", nargs="+", default=["320x240", "640x480"], metavar="WxH")
    parser.add_argument("--rates", nargs="+", type=float, default=[10.0, 30.0], metavar="HZ")
    parser.add_argument("--seconds", type=float, default=20.0, help="of images, for each row (default 20)")
    parser.add_argument("--idle-seconds", type=float, default=5.0, help="before the first image (default 5)")
    parser.add_argument("--matcher", default="auto")
    parser.add_argument("--learning", choices=("off", "thread"), default="off")
    parser.add_argument("--mode", choices=("mono", "rgbd"), default="mono")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME:=VALUE", dest="values", help="a parameter of the node"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        SourceError: a size that is none, or a node that does not start or answer.
    """
    use_shipped_profile()
    rows = []
    print(
        f"{'size':<10}{'rate':>6}{'latency p50':>13}{'p95':>7}{'p99':>7}{'max':>7} ms{'images':>10}{'answered':>10}{'dropped':>9}"
        f"{'idle CPU':>11}{'MB':>6}{'working CPU':>13}{'MB':>6}",
        flush=True,
    )
    for size in args.sizes:
        width, _, height = size.partition("x")
        if not (width.isdigit() and height.isdigit()):
            raise SourceError(f"--sizes {size}: expected WIDTHxHEIGHT, such as 640x480")
        frames = _render(int(width), int(height))
        for rate in args.rates:
            row = _measure(frames, size, rate, args)
            rows.append(row)
            p = row.latency_ms
            print(
                f"{size:<10}{rate:>6g}{p['p50']:>13.1f}{p['p95']:>7.1f}{p['p99']:>7.1f}{p['max']:>7.1f}   {row.images:>10}{row.answered:>10}"
                f"{row.dropped:>9}{row.idle.cpu_percent:>10.1f}%{row.idle.memory_mb:>6.0f}{row.working.cpu_percent:>12.1f}%"
                f"{row.working.memory_mb:>6.0f}",
                flush=True,
            )
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


def _render(width: int, height: int) -> list[Frame]:
    from ..simulation.sequence import SimulatedSequence

    sequence = SimulatedSequence(
        kind="room", frames=40, width=width, height=height, supersample=1, workers=os.cpu_count() or 1
    )
    frames = [frame for frame, _ in sequence.read()]
    return frames + frames[-2:0:-1]


def _measure(frames: list[Frame], size: str, rate: float, args: argparse.Namespace) -> Timing:
    """A fresh node for every row: nothing is warm from the row before but the files."""
    domain = free_domain()
    environment = os.environ | {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "node.log"
        given = [
            "mode:=" + args.mode,
            "matcher.name:=" + args.matcher,
            "learning.mode:=" + args.learning,
            "base_frame:=camera",
            f"weights_dir:={folder}",
            *args.values,
        ]
        online = ["online", "--ros-args", *(part for value in given for part in ("-p", value))]
        with process("imatching_ros", *online, log=log, environment=environment) as node:
            wait_for(node, log, "active", 60.0)
            camera = _Camera(domain, args.mode == "rgbd")
            try:
                camera.wait_for_node()
                meter = _Meter(node.pid)
                time.sleep(args.idle_seconds)
                idle = meter.read()
                camera.play(frames, rate, max(1, round(args.seconds * rate)))
                working = meter.read()
                time.sleep(2.0)  # for the odometry of the last images
            finally:
                camera.close()
            if node.poll() is not None or not camera.received:
                raise SourceError(f"the node gave no odometry:\n{log.read_text()}")
    sent = camera.sent
    latencies = np.array([(arrived - stamp) / 1e6 for stamp, arrived in camera.received if stamp in sent])
    percentiles = {f"p{p}": float(np.percentile(latencies, p)) for p in (50, 95, 99)} | {"max": float(latencies.max())}
    return Timing(size, rate, len(sent), len(latencies), camera.dropped, percentiles, idle, working)


class _Camera:
    """Publishes images, and receives odometry in a thread of its own."""

    DISCOVERY_S = 30.0  # on a busy computer

    def __init__(self, domain: int, with_depth: bool) -> None:
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context, domain_id=domain)
        self._node = rclpy.create_node("camera", context=self._context)
        self._infos = self._node.create_publisher(CameraInfo, "/camera_info", qos_profile_sensor_data)
        self._images = self._node.create_publisher(Image, "/image", qos_profile_sensor_data)
        self._depths = (
            self._node.create_publisher(Image, "/depth/image", qos_profile_sensor_data) if with_depth else None
        )
        self.sent: set[int] = set()
        self.received: list[tuple[int, int]] = []  # stamp of the image, time of arrival
        self.dropped = 0
        self._node.create_subscription(Odometry, "/odom", self._receive, 100)
        self._node.create_subscription(Status, "/imatching/status", self._note, 100)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._stop = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def wait_for_node(self) -> None:
        """Waits until the node has subscribed, and its odometry is published."""
        deadline = time.monotonic() + self.DISCOVERY_S
        publishers = [p for p in (self._infos, self._images, self._depths) if p is not None]
        while not all(p.get_subscription_count() for p in publishers) or not self._node.count_publishers("/odom"):
            if time.monotonic() > deadline:
                raise SourceError(f"the node and the camera did not discover each other within {self.DISCOVERY_S:g} s")
            time.sleep(0.05)
        time.sleep(1.0)  # best effort: the other side may complete discovery later

    def play(self, frames: list[Frame], rate: float, count: int) -> None:
        """Publishes `count` images at a steady rate; an image's stamp is the moment of its publication."""
        messages = [
            _message(frame.image.permute(1, 2, 0).numpy(), "rgb8" if len(frame.image) == 3 else "mono8")
            for frame in frames
        ]
        depths = [
            _message(frame.depth.numpy(), "32FC1")
            for frame in frames
            if self._depths is not None and frame.depth is not None
        ]
        clock = SensorClock()
        for k in range(count):
            clock.wait_until(k / rate)
            stamp = time.time_ns()
            self.sent.add(stamp)
            header = convert.make_header(stamp, "camera")
            self._infos.publish(_info(frames[0], header))
            if self._depths is not None:
                depths[k % len(depths)].header = header
                self._depths.publish(depths[k % len(depths)])
            messages[k % len(messages)].header = header
            self._images.publish(messages[k % len(messages)])

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    def _spin(self) -> None:
        while not self._stop:
            self._executor.spin_once(timeout_sec=0.1)

    def _receive(self, message: Odometry) -> None:
        self.received.append((convert.stamp_ns(message.header.stamp), time.time_ns()))

    def _note(self, message: Status) -> None:
        self.dropped = message.frames_dropped


class _Meter:
    """CPU and memory of a process, from /proc."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self._last = time.monotonic(), self._cpu_s()

    def read(self) -> Usage:
        """Usage since the last reading."""
        (then, before), now = self._last, (time.monotonic(), self._cpu_s())
        self._last = now
        pages = int((self._folder / "statm").read_text().split()[1])
        return Usage(100 * (now[1] - before) / (now[0] - then), pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def _cpu_s(self) -> float:
        fields = (self._folder / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _message(pixels: np.ndarray, encoding: str) -> Image:
    pixels = np.ascontiguousarray(pixels)
    return Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        step=pixels.strides[0],
        data=array("B", pixels.tobytes()),
    )


def _info(frame: Frame, header: Header) -> CameraInfo:
    c = frame.camera
    info = CameraInfo(header=header, width=c.width, height=c.height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [c.fx, 0.0, c.cx, 0.0, c.fy, c.cy, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [c.fx, 0.0, c.cx, 0.0, 0.0, c.fy, c.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info
