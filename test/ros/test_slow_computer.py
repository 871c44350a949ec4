"""The real node with images that are too large for it, over DDS: an even, lower rate, and what to change."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from imatching_ros.msg import Status
from peers import image_message, info_message, wait_until
from sensor_msgs.msg import CameraInfo, Image

from imatching_ros.camera.model import Camera

pytestmark = [pytest.mark.ros, pytest.mark.slow]

WIDTH, HEIGHT = 1280, 960
INTERVAL_S = 0.05
CAMERA = Camera(WIDTH, HEIGHT, 1000.0, 1000.0, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)


class Camera20Hz(threading.Thread):
    """Publishes a wall that moves by; ends with the test."""

    def __init__(self, peer) -> None:
        super().__init__(daemon=True)
        random = np.random.default_rng(0)
        noise = random.integers(0, 255, (HEIGHT // 8, WIDTH // 4), np.uint8)
        self._wall = cv2.resize(noise, (2 * WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        self._infos = peer.publisher(CameraInfo, "/camera_info")
        self._images = peer.publisher(Image, "/image")
        self.stop = threading.Event()

    def run(self) -> None:
        k, start = 0, time.monotonic()
        while not self.stop.wait(max(start + k * INTERVAL_S - time.monotonic(), 0)):
            stamp_ns = 10**9 + round(k * INTERVAL_S * 1e9)
            shift = 2 * k % WIDTH
            self._infos.publish(info_message(stamp_ns, CAMERA))
            self._images.publish(image_message(stamp_ns, self._wall[:, shift : shift + WIDTH], "mono8"))
            k += 1


def test_a_steady_share_of_the_images_is_processed(peer, start_node):
    node = start_node({"matcher.name": "expectation", "matcher.precision": "float32", "base_frame": "optical"})
    status = peer.collect(Status, "/imatching/status")
    diagnostics = peer.collect(DiagnosticArray, "/diagnostics")
    peer.meet()
    camera = Camera20Hz(peer)
    camera.start()
    try:
        wait_until(lambda: status and status[-1].every_nth > 1, 240.0, "a lower rate")
        begun = len(status)
        wait_until(lambda: len(status) >= begun + 8, 240.0, "eight images at that rate")
        last = status[-1]
        report = wait_until(lambda: slow_report(diagnostics), 10.0, "diagnostics of a slow computer")
    finally:
        camera.stop.set()
    stamps = np.array([m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 for m in status[begun:]])
    steps = np.rint(np.diff(stamps) / INTERVAL_S).astype(int)
    held = np.array([m.every_nth for m in status[begun + 1 :]])
    # Equal, but for images that a busy computer loses before they arrive, which widens a step.
    assert (steps >= held).mean() > 0.8 and np.median(steps / held) < 1.3, (steps, held)
    assert last.frames_dropped > last.frames_processed and last.frames_received >= last.frames_dropped
    assert last.processed_hz < last.input_hz <= 1.3 / INTERVAL_S
    assert "image is processed, for one takes" in report.message and "matcher.max_width to 640" in report.message
    values = {v.key: v.value for v in report.values}
    assert values["processed images"].startswith("every ")
    assert values["matcher"] == "expectation on cpu in float32, 1 thread"
    assert node.stop() == 0
    assert node.output.count("this computer cannot keep up with the images: every ") == 1


def slow_report(diagnostics: list) -> DiagnosticStatus | None:
    reports = [s for message in diagnostics[-3:] for s in message.status if s.level == DiagnosticStatus.WARN]
    return next((s for s in reports if "image is processed" in s.message), None)
