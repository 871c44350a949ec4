"""The thing that is put before the camera of a recording."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.core.errors import ConfigError
from imatching_ros.core.types import Frame
from imatching_ros.offline.experiments.moving_object import BEGIN, DISTANCE_M, WithObject, composite, make_objects
from imatching_ros.offline.recordings.base import Source, SourceOptions
from imatching_ros.offline.recordings.truth import Trajectory
from odometry_scenes import CAMERA, STEP_NS

OBJECTS = {thing.name: thing for thing in make_objects()}


class Grey(Source):
    """A camera that moves forward by 1 cm an image before a grey wall."""

    name, mode, camera, options = "grey", "rgbd", CAMERA, SourceOptions()

    def __init__(self, truth: bool = True) -> None:
        super().__init__()
        self._truth = truth

    def read(self):
        image, depth = torch.full((1, 240, 320), 100, dtype=torch.uint8), torch.full((240, 320), 4.0)
        yield from (Frame(i, i * STEP_NS, image, CAMERA, depth) for i in range(2 * BEGIN))

    def groundtruth(self):
        T_WC = geometry.identity(2 * BEGIN)
        T_WC[:, 2] = 0.01 * torch.arange(2 * BEGIN)
        stamps_ns = np.arange(2 * BEGIN, dtype=np.int64) * STEP_NS
        return Trajectory(stamps_ns, T_WC.numpy()) if self._truth else None


def covered(frame: Frame) -> torch.Tensor:
    return frame.depth < 4.0


@pytest.mark.parametrize("name", ["15% sways", "25% sways", "40% sways", "60% sways"])
def test_it_fills_its_share_at_its_depth_and_leaves_the_rest(name):
    frame = next(iter(WithObject(Grey(), OBJECTS[name])))
    inside = covered(frame)
    assert abs(float(inside.double().mean()) - OBJECTS[name].share) < 0.01
    assert (frame.depth[inside] == DISTANCE_M).all() and (frame.depth[~inside] == 4.0).all()
    assert (frame.image[:, ~inside] == 100).all() and float(frame.image[:, inside].float().std()) > 20


def test_one_that_passes_comes_in_late_and_moves_on():
    frames = list(WithObject(Grey(), OBJECTS["40% passes"]))
    shares = [float(covered(frame).double().mean()) for frame in frames]
    assert max(shares[: BEGIN + 1]) == 0 and shares == sorted(shares) and shares[-1] > 0.1


def test_one_that_stands_does_so_in_the_world_and_then_walks():
    frames = list(WithObject(Grey(), OBJECTS["25% walks away"]))
    centre = [covered(f).nonzero().double().mean(0) for f in frames]
    for i in range(BEGIN + 1):
        assert abs(float(frames[i].depth[120, 160]) - (DISTANCE_M - 0.01 * i)) < 1e-6
        assert (centre[i] - centre[0]).abs().max() < 1
    assert float(centre[BEGIN + 5][1] - centre[BEGIN][1]) > 20
    with pytest.raises(ConfigError, match="needs ground truth"):
        WithObject(Grey(truth=False), OBJECTS["25% walks away"])


def test_the_right_image_shows_it_by_its_disparity():
    camera = CAMERA.__class__(**(vars(CAMERA) | {"baseline_m": 0.1}))
    image = torch.full((1, 240, 320), 100, dtype=torch.uint8)
    T_CO = geometry.identity()
    T_CO[2] = DISTANCE_M
    texture = np.full((24, 32), 200, np.uint8)
    frame = composite(Frame(0, 0, image, camera, right=image), T_CO, 0.25, texture)
    left, right = ((side[0] == 200).nonzero()[:, 1].double().mean() for side in (frame.image, frame.right))
    assert abs(float(left - right) - 0.1 * camera.fx / DISTANCE_M) < 1
