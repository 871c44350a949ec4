"""The covariance of the pose only grows where motion does; a camera that stands still keeps its pose, a slow one does not."""

import math
from dataclasses import replace

import pytest
import torch

from imatching_ros.bundle import RotationPrior
from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.types import BAResult, BAStatus
from imatching_ros.odometry.motion import (
    MotionModel,
    PoseCovariance,
    SeenLandmarks,
    TrackedFrame,
    ZeroMotionUpdate,
    skew_covariance,
)
from imatching_ros.offline.simulation.sequence import SimulatedSequence
from imatching_ros.pipeline import Pipeline
from odometry_scenes import CAMERA, configure, rotating

SMALL = torch.diag(torch.tensor([1e-4, 1e-4, 1e-4, 1e-6, 1e-6, 1e-6], dtype=torch.float64))


def pose_at(x: float) -> torch.Tensor:
    return torch.tensor([x, 0, 0, 0, 0, 0, 1.0], dtype=torch.float64)


def solved_at(x: float, covariance=SMALL) -> BAResult:
    poses = torch.stack([pose_at(x - 1), pose_at(x - 0.5), pose_at(x)])
    return BAResult(
        poses, torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(0), 0.0, 0.0, 1, BAStatus.CONVERGED, "", covariance
    )


def test_a_window_that_slides_adds_up_and_one_that_rests_does_not():
    covariance = PoseCovariance()
    assert covariance.at(pose_at(0)).abs().max() == 0
    covariance.propagate(solved_at(1.0), keyframe_dropped=False)
    assert torch.allclose(covariance.at(pose_at(1.0)), SMALL)
    sizes = []
    for k in range(10):
        covariance.propagate(solved_at(2.0 + k), keyframe_dropped=True)
        sizes.append(float(covariance.at(pose_at(2.0 + k)).trace()))
    assert all(b > a for a, b in zip(sizes, sizes[1:]))
    assert float(covariance.at(pose_at(11.0)).trace()) == sizes[-1]  # asking changes nothing


def test_an_error_of_direction_becomes_one_of_position_with_distance():
    covariance = PoseCovariance()
    yaw = torch.zeros(6, 6, dtype=torch.float64)
    yaw[5, 5] = 1e-4  # 0.01 rad about z
    covariance.add(yaw, pose_at(0.0))
    far = covariance.at(pose_at(100.0))
    assert abs(float(far[1, 1].sqrt()) - 1.0) < 1e-6 and float(far[0, 0]) < 1e-12
    moved = geometry.retract(pose_at(0.0), torch.tensor([0, 0, 0, 0, 0, 0.01], dtype=torch.float64))
    assert abs(float(geometry.compose(moved, pose_at(100.0))[1]) - 1.0) < 1e-3


def test_a_degenerate_window_keeps_what_was_known_and_grows_as_it_slides():
    covariance = PoseCovariance()
    covariance.propagate(solved_at(1.0), keyframe_dropped=False)
    before = covariance.at(pose_at(2.0))
    covariance.propagate(solved_at(2.0, None), keyframe_dropped=False)
    assert torch.allclose(covariance.at(pose_at(2.0)), before)
    sizes = [float(before.trace())]
    for k in range(5):
        covariance.propagate(solved_at(2.0 + k, None), keyframe_dropped=True)
        sizes.append(float(covariance.at(pose_at(2.0 + k)).trace()))
    assert all(b > a + 0.9 * float(SMALL.trace()) for a, b in zip(sizes, sizes[1:]))


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


def update(
    zero_motion: ZeroMotionUpdate,
    views: Views,
    uv: torch.Tensor,
    T: torch.Tensor,
    id: torch.Tensor | None = None,
    turned: RotationPrior | None = None,
) -> torch.Tensor:
    id = views.id if id is None else id
    held = zero_motion.apply(CAMERA, T, SeenLandmarks(id, uv, torch.full((len(id),), 0.5)), CONFIG, turned)
    zero_motion.set_reference(0, id, uv, views.depth, held)
    return held


def test_an_error_of_the_map_is_not_taken_for_motion():
    views, zero_motion = Views(), ZeroMotionUpdate()
    start, wrong = geometry.identity(), geometry.exp(torch.tensor([0.01, 0, 0, 0, 0, 0], dtype=torch.float64))
    assert torch.equal(update(zero_motion, views, views.seen(start), start), start) and not zero_motion.still
    assert torch.equal(update(zero_motion, views, views.seen(start), wrong), start) and zero_motion.still


def test_slow_motion_adds_up_against_one_reference():
    views, zero_motion = Views(), ZeroMotionUpdate()
    poses = [geometry.exp(torch.tensor([0.0005 * i, 0, 0, 0, 0, 0], dtype=torch.float64)) for i in range(40)]
    held = torch.stack([update(zero_motion, views, views.seen(T), T) for T in poses])
    behind = (held[:, 0] - torch.stack(poses)[:, 0]).abs()
    assert zero_motion.still or behind[-1] == 0
    assert 0 < float(behind.max()) < 0.012 and float(held[-1, 0]) > 0.008


def test_a_measured_turn_is_no_rest_although_images_do_not_show_it():
    views, start = Views(), geometry.identity()
    turned = geometry.exp(torch.tensor([0, 0, 0, 0, 1e-3, 0], dtype=torch.float64))
    for measured, held in ((None, True), (turned, False), (start, True)):
        zero_motion = ZeroMotionUpdate()
        update(zero_motion, views, views.seen(start, 0.5), start)
        known = torch.eye(3, dtype=torch.float64) * 1e-4**2
        prior = None if measured is None else RotationPrior(measured[3:], known)
        T = update(zero_motion, views, views.seen(start if measured is None else measured, 0.5), turned, turned=prior)
        assert zero_motion.still == held and torch.equal(T, start if held else turned)


def test_nothing_is_held_without_common_landmarks_or_after_a_reset():
    views, zero_motion = Views(), ZeroMotionUpdate()
    start, other = geometry.identity(), geometry.exp(torch.tensor([0.3, 0, 0, 0, 0, 0], dtype=torch.float64))
    update(zero_motion, views, views.seen(start), start)
    assert (
        torch.equal(update(zero_motion, views, views.seen(start), other, views.id + 1000), other)
        and not zero_motion.still
    )
    zero_motion.reset()
    assert torch.equal(update(zero_motion, views, views.seen(start), other), other) and not zero_motion.still


def test_the_reference_moves_with_bundle_adjustment():
    views, zero_motion = Views(), ZeroMotionUpdate()
    start = geometry.identity()
    update(zero_motion, views, views.seen(start), start)
    adjusted = geometry.exp(torch.tensor([0.02, 0, 0, 0, 0.01, 0], dtype=torch.float64))
    zero_motion.follow_adjustment(start, adjusted)
    held = update(zero_motion, views, views.seen(start), start)
    assert zero_motion.still and torch.allclose(held, adjusted, atol=1e-12)


def last_frame(T: torch.Tensor, depth: float = 4.0) -> TrackedFrame:
    return TrackedFrame(0, 0, None, T, torch.zeros(3, 2), torch.full((3,), depth, dtype=torch.float64))


def test_motion_is_predicted_at_constant_velocity_and_bounded_by_the_decayed_maximum():
    motion, start, second = MotionModel(), last_frame(geometry.identity()), 1_000_000_000
    motion.update(start, second // 10, pose_at(0.1), recovered=False)
    assert torch.allclose(motion.predict(start, second // 2), pose_at(0.5))
    # Half of the way at maximum velocity, and 2 % of the depth.
    assert motion.is_plausible(start, second, pose_at(1.5)) and not motion.is_plausible(start, second, pose_at(1.6))
    motion.update(start, second, pose_at(9.0), recovered=True)
    assert torch.equal(motion.predict(start, second), start.T_WC), "a relocalization is no motion"
    motion.add_gap(start, second)
    assert torch.allclose(motion.covariance.at(start.T_WC)[:3, :3].diagonal().sqrt(), torch.ones(3).double())


def test_after_a_long_gap_the_rotation_is_unknown_and_no_more():
    motion, start, second = MotionModel(), last_frame(geometry.identity()), 1_000_000_000
    turned = geometry.exp(torch.tensor([0.5, 0, 0, 0, 0.5, 0], dtype=torch.float64))
    motion.update(start, second, turned, recovered=False)
    motion.add_gap(start, 60 * second)
    sigma = motion.covariance.at(start.T_WC).diagonal().sqrt()
    assert torch.allclose(sigma[3:], torch.full((3,), math.pi / 3**0.5, dtype=torch.float64)) and 25 < sigma[0] < 35


def drift_after(frames: int, mono: bool, x: float = 4.0, depth: float = 4.0) -> torch.Tensor:
    """Covariance (6, 6) at the end of a way along x, divided into frames; a window is solved at the start."""
    motion = MotionModel()
    motion.covariance.propagate(solved_at(0.0), keyframe_dropped=False)
    for k in range(frames):
        motion.add_step(last_frame(pose_at(x * k / frames), depth), pose_at(x * (k + 1) / frames), mono)
    window = PoseCovariance()
    window.propagate(solved_at(0.0), keyframe_dropped=False)
    return motion.covariance.at(pose_at(x)) - window.at(pose_at(x))


@pytest.mark.parametrize("mono", (False, True))
def test_motion_adds_its_share_once_and_the_same_at_every_frame_rate(mono):
    """A way of one median depth: 1 rad of motion of the image. Only the lever arm between the frames' rotations depends on their number."""
    share = 0.01 if mono else 0.003
    once, slow, fast = drift_after(1, mono), drift_after(30, mono), drift_after(300, mono)
    assert torch.allclose(slow, fast, rtol=0.02, atol=0.02 * float(slow.max()))
    torch.testing.assert_close(once[3:, 3:], share**2 * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(fast[3:, 3:], once[3:, 3:])
    across, along = float(once[1, 1]), float(once[0, 0])
    assert across == pytest.approx((4 * share) ** 2) and along == pytest.approx(across + mono * (4 * 0.02) ** 2)


def test_the_errors_of_motion_do_not_depend_on_the_unit_and_rest_adds_none():
    unit = torch.diag(torch.tensor([10.0] * 3 + [1] * 3, dtype=torch.float64))
    torch.testing.assert_close(
        drift_after(5, True, 40.0, 40.0), unit @ drift_after(5, True) @ unit, rtol=1e-6, atol=1e-9
    )
    assert float(drift_after(5, True, x=0.0).abs().max()) == 0


def test_a_gap_is_exceeded_after_three_seconds():
    motion, last = MotionModel(), last_frame(geometry.identity())
    assert not motion.gap_exceeded(last, 3_000_000_000) and motion.gap_exceeded(last, 3_000_000_001)


def test_a_rate_is_uncertain_by_half_of_its_change_once_two_are_known():
    motion, turn = MotionModel(), torch.tensor([0, 0, 0, 0, 0.1, 0], dtype=torch.float64)
    last = TrackedFrame(0, 0, None, geometry.identity(), torch.zeros(1, 2), torch.ones(1, dtype=torch.float64))
    assert motion.rate_error(turn) == 0
    motion.update(last, 100_000_000, geometry.exp(turn), recovered=False)  # 1 rad/s
    assert motion.rate_error(30 * turn) == pytest.approx(1.0) and motion.rate_error(10 * turn) == pytest.approx(0.0)
    motion.update(last, 100_000_000, geometry.exp(turn), recovered=True)
    assert motion.rate_error(turn) == 0


def test_the_twist_at_an_image_is_that_of_the_motions_around_it():
    motion, still = MotionModel(), geometry.identity()
    turn = torch.tensor([0, 0, 0, 0, 1.0, 0], dtype=torch.float64)
    poses = [still, geometry.exp(0.1 * turn), geometry.exp(0.5 * turn)]  # 1 rad/s for 0.1 s, then 2 rad/s for 0.2 s
    frames = [replace(last_frame(T), stamp_ns=ns) for T, ns in zip(poses, (0, 100_000_000))]
    motion.update(frames[0], 100_000_000, poses[1], recovered=False)
    assert motion.twist_before is None
    motion.update(frames[1], 300_000_000, poses[2], recovered=False)
    assert motion.twist_before is not None
    torch.testing.assert_close(motion.twist_before.twist, turn * (1 + 1 / 3), rtol=1e-6, atol=1e-9)
    assert motion.twist_before.change == pytest.approx(1 / 0.15)
    motion.update(frames[1], 300_000_000, poses[2], recovered=True)
    assert motion.twist_before is None


def test_rows_that_are_turned_against_each_other_leave_angle_and_position_uncertain():
    covariance = skew_covariance(0.01, 4.0)
    expected = torch.tensor([0.04] * 3 + [0.01] * 3, dtype=torch.float64).square()
    torch.testing.assert_close(covariance, torch.diag(expected))
