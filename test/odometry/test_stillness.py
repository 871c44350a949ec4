"""A camera that stands still keeps its pose; one that moves slowly does not."""

from dataclasses import replace

import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig
from imatching_ros.pipeline import Pipeline
from imatching_ros.offline.simulation.sequence import SimulatedSequence
from imatching_ros.odometry.motion import ZeroMotionUpdate
from imatching_ros.odometry.front_end import PoseEstimate
from odometry_scenes import CAMERA, configure, rotating

CONFIG = BundleConfig()


@pytest.fixture(scope="module")
def standing():
    """A second of a camera on a tripod: the noise and the exposure of a sensor, noisy depth, a stereo pair."""
    sequence = SimulatedSequence(
        kind="clutter",
        seed=81,
        frames=11,
        width=320,
        height=240,
        supersample=1,
        baseline_m=0.12,
        depth_noise=0.003,
        motion="still",
    )
    return [frame for frame, _ in sequence.read()]


@pytest.mark.parametrize("mode", ["rgbd", "stereo"])
@pytest.mark.parametrize("matcher", ["klt", "expectation"])
def test_standing_still_drifts_nowhere_and_adds_no_keyframe(standing, mode, matcher):
    pipeline = Pipeline(configure(matcher, odometry__mode=mode))
    outputs = [pipeline.process(frame) for frame in standing]
    poses = torch.stack([output.T_WC for output in outputs])
    away = geometry.local(poses[0], poses)
    assert float(away[:, :3].norm(dim=1).max()) < 0.001 and float(torch.rad2deg(away[:, 3:].norm(dim=1)).max()) < 0.05
    assert sum(output.is_keyframe for output in outputs) == 1 and len(pipeline.window.keyframes) == 1


def test_slow_rotation_is_not_swallowed():
    degrees = 0.02  # a frame: a tenth of a pixel
    frames = [replace(frame, depth=torch.full((240, 320), 3.0)) for frame in rotating(26, degrees)]
    pipeline = Pipeline(configure("klt"))
    turned = [float(torch.rad2deg(geometry.log(pipeline.process(frame).T_WC)[3:].norm())) for frame in frames]
    assert abs(turned[-1] - 25 * degrees) < 0.1
    assert max(abs(angle - i * degrees) for i, angle in enumerate(turned)) < 0.12


class Views:
    """Landmarks seen from a moving camera, with errors of a matcher."""

    def __init__(self, count: int = 200) -> None:
        g = torch.Generator().manual_seed(0)
        self.generator = g
        self.id = torch.arange(count)
        self.uv = torch.rand(count, 2, generator=g, dtype=torch.float64) * torch.tensor([300.0, 220.0]) + 10
        self.depth = 2 + 4 * torch.rand(count, generator=g, dtype=torch.float64)

    def seen(self, T: torch.Tensor, noise_px: float = 0.2) -> torch.Tensor:
        points = geometry.back_project(CAMERA, self.uv, self.depth)
        noise = torch.randn(self.uv.shape, generator=self.generator, dtype=torch.float64) * noise_px
        return geometry.project(CAMERA, geometry.act(geometry.inverse(T), points)) + noise

    def estimate(self, T: torch.Tensor) -> PoseEstimate:
        count = len(self.id)
        return PoseEstimate(
            T,
            torch.ones(count, dtype=torch.bool),
            torch.zeros(count, dtype=torch.float64),
            torch.eye(6, dtype=torch.float64),
        )


def judge(
    zero_motion: ZeroMotionUpdate, views: Views, uv: torch.Tensor, T: torch.Tensor, id: torch.Tensor | None = None
) -> torch.Tensor:
    id = views.id if id is None else id
    held = zero_motion.apply(CAMERA, views.estimate(T), id, uv, torch.full((len(id),), 0.5), CONFIG).T_WC
    zero_motion.set_reference(id, uv, views.depth, held)
    return held


def test_an_error_of_the_map_is_not_taken_for_motion():
    views, zero_motion = Views(), ZeroMotionUpdate()
    start, wrong = geometry.identity(), geometry.exp(torch.tensor([0.01, 0, 0, 0, 0, 0], dtype=torch.float64))
    assert torch.equal(judge(zero_motion, views, views.seen(start), start), start) and not zero_motion.still
    assert torch.equal(judge(zero_motion, views, views.seen(start), wrong), start) and zero_motion.still


def test_slow_motion_adds_up_against_one_reference():
    views, zero_motion = Views(), ZeroMotionUpdate()
    poses = [geometry.exp(torch.tensor([0.0005 * i, 0, 0, 0, 0, 0], dtype=torch.float64)) for i in range(40)]
    held = torch.stack([judge(zero_motion, views, views.seen(T), T) for T in poses])
    behind = (held[:, 0] - torch.stack(poses)[:, 0]).abs()
    assert zero_motion.still or behind[-1] == 0
    assert 0 < float(behind.max()) < 0.012 and float(held[-1, 0]) > 0.008


def test_nothing_is_held_without_common_landmarks_or_after_forgetting():
    views, zero_motion = Views(), ZeroMotionUpdate()
    start, other = geometry.identity(), geometry.exp(torch.tensor([0.3, 0, 0, 0, 0, 0], dtype=torch.float64))
    judge(zero_motion, views, views.seen(start), start)
    assert (
        torch.equal(judge(zero_motion, views, views.seen(start), other, views.id + 1000), other)
        and not zero_motion.still
    )
    zero_motion.reset()
    assert torch.equal(judge(zero_motion, views, views.seen(start), other), other) and not zero_motion.still


def test_the_reference_moves_with_bundle_adjustment():
    views, zero_motion = Views(), ZeroMotionUpdate()
    start = geometry.identity()
    judge(zero_motion, views, views.seen(start), start)
    adjusted = geometry.exp(torch.tensor([0.02, 0, 0, 0, 0.01, 0], dtype=torch.float64))
    zero_motion.follow_adjustment(start, adjusted)
    held = judge(zero_motion, views, views.seen(start), start)
    assert zero_motion.still and torch.allclose(held, adjusted, atol=1e-12)
