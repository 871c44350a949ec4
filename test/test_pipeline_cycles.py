"""Starting, processing and stopping again and again leaves nothing behind."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest
import torch

from imatching_ros.camera.model import Camera
from imatching_ros.core.config import Config
from imatching_ros.core.types import Frame
from imatching_ros.pipeline import Pipeline

CAMERA = Camera(96, 72, 77.0, 77.0, 47.5, 35.5)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def cycle(config: Config, frames: list[Frame]) -> None:
    pipeline = Pipeline(config)
    for frame in frames:
        pipeline.process(frame)
    pipeline.close()


def images() -> list[Frame]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 18, 24, generator=generator)
    image = (torch.nn.functional.interpolate(coarse, size=(72, 96), mode="bilinear") * 255).to(torch.uint8)[0]
    depth = torch.full((72, 96), 2.0)
    return [Frame(k, 10**9 + k * 10**8, image.roll(k, 2), CAMERA, depth) for k in range(2)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("matcher", "learning", "count", "warm", "cycles"),
    [("klt", "off", 1, 100, 1000), ("expectation", "thread", 2, 4, 12)],
)
def test_no_growth(matcher, learning, count, warm, cycles):
    config = Config.from_dict({"matcher.name": matcher, "learning.mode": learning, "odometry.mode": "rgbd"})
    frames = images()[:count]
    for _ in range(warm):
        cycle(config, frames)
    gc.collect()
    threads, memory = threading.active_count(), resident_mb()
    for _ in range(cycles):
        cycle(config, frames)
    gc.collect()
    assert threading.active_count() == threads
    assert resident_mb() - memory < 15
