"""The gyroscope: the bias, what leaves it out, and how it guides tracking and bundle adjustment."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from imatching_ros import bundle
from imatching_ros.bundle import RelativeRotations
from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig, ImuConfig
from imatching_ros.core.types import BAResult, TrackingState, WindowSnapshot
from imatching_ros.odometry import mapper
from imatching_ros.odometry.pose_estimator import PoseEstimate
from imatching_ros.odometry.gyroscope import Gyroscope, RateBuffer
from imatching_ros.odometry.preintegration import Bias
from imatching_ros.pipeline import Pipeline
from odometry_scenes import CAMERA, STEP_NS, configure, rotating, swing

MS = 1_000_000
DENSITY = 2.4e-4


def rotation_angle(R: np.ndarray) -> float:
    return float(np.linalg.norm(Rotation.from_matrix(R).as_rotvec()))


# -- the buffer -----------------------------------------------------------------------------------------------------------


def filled(rate_hz=200, seconds=1.0, rates=lambda t: np.tile([0.1, 0.2, 0.3], (len(t), 1))) -> RateBuffer:
    buffer, t = RateBuffer(), np.arange(round(seconds * rate_hz)) / rate_hz
    for time, rate in zip(t, rates(t)):
        buffer.add(round(time * 1e9), rate)
    return buffer


@pytest.mark.parametrize("rate_hz", (25, 200, 1000))
def test_rates_of_any_frequency_are_interpolated_at_the_images(rate_hz):
    rates, dt, sigma = filled(rate_hz, rates=lambda t: np.outer(t, [1, 2, 3])).between(303 * MS, 337 * MS)
    assert dt.sum() == pytest.approx(0.034) and np.allclose(
        (rates * dt[:, None]).sum(0), 0.034 * 0.32 * np.array([1, 2, 3])
    )
    assert sigma < 3e-3 if rate_hz < 100 else sigma < 1e-5


def test_the_newest_rate_is_extrapolated_for_a_stated_time_only():
    buffer = filled()  # until 995 ms
    rates, dt, sigma = buffer.between(980 * MS, 1010 * MS)
    assert dt.sum() == pytest.approx(0.03) and sigma > 1e-3
    assert "is 25 ms older than the image" in buffer.between(980 * MS, 1020 * MS)
    assert "nothing has arrived for 1.5 s" in buffer.between(980 * MS, 2500 * MS)
    assert RateBuffer().between(0, MS) == "no message has arrived"
    assert "began after" in buffer.between(-5 * MS, 20 * MS)
    assert "of another clock" in buffer.between(10**18, 10**18 + 33 * MS)


def test_a_hole_is_not_bridged():
    buffer = filled()
    buffer.add(1200 * MS, np.zeros(3))
    assert "0.1 s and more pass between" in buffer.between(900 * MS, 1200 * MS)


def test_saturated_rates_are_not_used_until_they_are_past():
    rng = np.random.default_rng(0)

    def clipped(t):
        rates = np.stack([8 * np.sin(2 * np.pi * t), 0 * t, 0 * t], 1) + rng.normal(0, 0.003, (len(t), 3))
        return rates.clip(-4.36, 4.36)  # 250 degrees/s

    buffer = filled(seconds=1.0, rates=clipped)
    assert buffer.between(200 * MS, 233 * MS).startswith("it is saturated, at 4.4 rad/s")
    assert not isinstance(buffer.between(950 * MS, 983 * MS), str)


def test_a_constant_rate_without_noise_is_not_saturated():
    buffer = filled(rates=lambda t: np.outer(np.minimum(8 * t, 1.5), [0, 0, 1]))  # it speeds up to 1.5 rad/s
    assert not isinstance(buffer.between(900 * MS, 933 * MS), str)


@pytest.mark.parametrize("rate, reason", [([math.nan, 0, 0], "not finite"), ([0, 90.0, 0], "is it in degrees?")])
def test_bad_values_are_left_out_and_named(rate, reason):
    gyroscope = Gyroscope(ImuConfig())
    gyroscope.add(0, np.array(rate))
    assert reason in gyroscope.problem
    gyroscope.add(1, np.zeros(3))
    assert gyroscope.problem == ""


def test_the_buffer_is_bounded_and_time_that_starts_again_begins_anew():
    buffer = filled(rate_hz=1000, seconds=30)
    assert len(buffer) <= 2 * RateBuffer.CAPACITY
    buffer.add(29_900 * MS, np.zeros(3))  # late
    assert not isinstance(buffer.between(29_000 * MS, 29_990 * MS), str)
    buffer.add(0, np.zeros(3))
    assert len(buffer) == 1


# -- the filter -----------------------------------------------------------------------------------------------------------


def turned(R: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(3), Rotation.from_matrix(R).as_quat()]))


def follow(gyroscope, frames=90, sigma=2e-3, mounting=np.eye(3), bias=(0.02, -0.03, 0.01), still=False, inliers=100):
    """Images at 30 Hz of a hand that swings, their rotations known to sigma rad; returns errors of the predictions, rad."""
    rng, errors, dt = np.random.default_rng(0), [], 0.005
    R, last, covariance = np.eye(3), turned(np.eye(3)), torch.eye(6, dtype=torch.float64) * sigma**2
    for k in range(frames):
        for i in range(6):
            t = (6 * k + i) * dt
            moving = 0 if still else 1
            rate = mounting @ swing(t) * moving + bias + rng.normal(0, DENSITY / math.sqrt(dt), 3)
            gyroscope.add(round(t * 1e9), rate)
            if i or k:
                R = R @ Rotation.from_rotvec(swing(t - dt / 2) * dt * moving).as_matrix()
        end = round((6 * k + 5) * dt * 1e9)
        prior = gyroscope.predict(last, end - 30 * MS, end) if k else None
        seen = turned(R @ Rotation.from_rotvec(rng.normal(0, sigma, 3)).as_matrix())
        if prior is not None:
            errors.append(rotation_angle(R.T @ Rotation.from_quat(prior.q_WC.numpy()).as_matrix()))
        inlier = torch.ones(inliers, dtype=torch.bool)
        gyroscope.update(PoseEstimate(seen, inlier, torch.zeros(inliers), covariance), still)
        last = seen
    return np.array(errors)


def test_images_in_a_row_do_not_teach_the_bias():
    gyroscope = Gyroscope(ImuConfig())
    follow(gyroscope, frames=60)
    assert np.array_equal(gyroscope.bias, np.zeros(3)) and gyroscope.problem == ""


def test_a_bias_that_a_window_has_found_is_that_of_the_next_prediction():
    """The rotation of the last pose was predicted with the bias of before: it is known better, too."""
    gyroscope, true = Gyroscope(ImuConfig()), np.array([0.02, -0.03, 0.01])
    follow(gyroscope, frames=60, sigma=2e-4, bias=(0.0, 0.0, 0.0))
    last, span = turned(np.eye(3)), (1_700 * MS, 1_733 * MS)
    before, bias = gyroscope.predict(last, *span), gyroscope.usable_bias()
    gyroscope.learn_bias(Bias(true, bias.covariance / 100))
    after = gyroscope.predict(last, *span)
    less = before.covariance.trace() - after.covariance.trace()
    assert float(less) == pytest.approx(0.033**2 * 0.99 * bias.covariance.trace(), rel=0.1)
    assert torch.linalg.eigvalsh(after.covariance).min() > 0
    moved = (Rotation.from_quat(before.q_WC.numpy()).inv() * Rotation.from_quat(after.q_WC.numpy())).as_rotvec()
    assert np.allclose(moved, -0.033 * true, atol=6e-5)
    assert np.array_equal(gyroscope.usable_bias().mean, true)


def test_the_bias_is_learned_at_rest_as_fast_as_images_show_the_rest():
    known, noisy = Gyroscope(ImuConfig()), Gyroscope(ImuConfig())
    for gyroscope, sigma in ((known, 5e-4), (noisy, 5e-3)):
        follow(gyroscope, frames=30, still=True, sigma=sigma)
    assert np.abs(known.bias - (0.02, -0.03, 0.01)).max() < 1e-3
    sd = np.sqrt(np.diag(noisy.usable_bias().covariance))
    assert sd == pytest.approx(np.full(3, 5e-3 / 0.87), rel=0.1)  # the first image has no prediction
    assert np.abs(noisy.bias - (0.02, -0.03, 0.01)).max() < 3 * sd.max()


def test_a_slow_turn_that_two_images_do_not_show_is_no_bias():
    """Every tenth image is held for one at rest."""
    gyroscope, R, last, rate = Gyroscope(ImuConfig()), np.eye(3), turned(np.eye(3)), np.array([0.0, -0.08, 0.0])
    covariance, inlier = torch.eye(6, dtype=torch.float64) * 2e-3**2, torch.ones(100, dtype=torch.bool)
    for k in range(0, 3000, 5):
        gyroscope.add(k * MS, rate)
    for k in range(40):
        R = R @ Rotation.from_rotvec(rate * 0.035).as_matrix()
        assert gyroscope.predict(last, (k + 1) * 35 * MS, (k + 2) * 35 * MS) is not None
        last = turned(R)
        gyroscope.update(PoseEstimate(last, inlier, torch.zeros(100), covariance), still=k % 10 == 0)
    sd = np.sqrt(np.diag(gyroscope.usable_bias().covariance))
    assert np.linalg.norm(gyroscope.bias / sd) < 3 and sd.min() > 0.02


def test_a_wrong_mounting_is_found_and_its_correction_too():
    gyroscope, wrong = Gyroscope(ImuConfig()), Rotation.from_euler("x", 20, degrees=True).as_matrix()
    follow(gyroscope, frames=60, mounting=wrong, sigma=5e-4)
    assert "check its mounting" in gyroscope.problem
    assert gyroscope.predict(turned(np.eye(3)), 1_700 * MS, 1_733 * MS) is None
    gyroscope.clear()
    follow(gyroscope, frames=60)
    assert gyroscope.problem == ""


def test_what_has_long_agreed_is_binding_until_tracking_is_lost():
    gyroscope = Gyroscope(ImuConfig())
    follow(gyroscope, frames=60)
    last = turned(np.eye(3))
    assert gyroscope.predict(last, 1_700 * MS, 1_733 * MS).binding
    assert gyroscope.refutes(turned(Rotation.from_euler("y", 30, degrees=True).as_matrix()))
    assert not gyroscope.refutes(turned(Rotation.from_euler("y", 5, degrees=True).as_matrix()))
    for _ in range(30):
        gyroscope.notify_lost()
    assert not gyroscope.predict(last, 1_700 * MS, 1_733 * MS).binding
    assert not Gyroscope(ImuConfig()).refutes(last)


def test_a_wrong_time_offset_is_found():
    gyroscope = Gyroscope(ImuConfig(time_offset_ms=60.0))
    follow(gyroscope, sigma=5e-4)
    assert "imu.time_offset_ms" in gyroscope.problem


def test_the_rotation_since_an_image_is_that_of_all_steps_and_known_once_it_is_trusted():
    assert Gyroscope(ImuConfig()).turned_since(0, 33 * MS) is None
    gyroscope, at_once = Gyroscope(ImuConfig()), Gyroscope(ImuConfig())
    for each in (gyroscope, at_once):
        follow(each, frames=60)
    for until in range(1_000, 1_700, 33):
        found = gyroscope.turned_since(900 * MS, until * MS)
    expected = at_once.turned_since(900 * MS, until * MS)
    assert torch.allclose(found.q_WC, expected.q_WC, atol=1e-5)
    assert torch.allclose(found.covariance, expected.covariance, rtol=0.2, atol=1e-6)
    bias = gyroscope.usable_bias().covariance.trace()
    assert float(found.covariance.trace()) > 0.7**2 * bias


@pytest.mark.parametrize("offset_ms, text", [(100.0, "100 ms late"), (40.0, "40 ms late")])
def test_stamps_that_are_off_are_named(offset_ms, text):
    gyroscope = Gyroscope(ImuConfig(time_offset_ms=offset_ms))
    follow(gyroscope)
    assert text in gyroscope.problem
    assert gyroscope.usable_bias() is None and not gyroscope.refutes(turned(np.eye(3)))


def test_rates_that_miss_a_turn_contradict_it():
    """By themselves they show no turn that could contradict anything."""
    gyroscope = Gyroscope(ImuConfig())
    follow(gyroscope, mounting=np.zeros((3, 3)))
    assert "contradicts" in gyroscope.problem


def test_images_with_few_inliers_prove_nothing_against_it():
    gyroscope = Gyroscope(ImuConfig())
    follow(gyroscope, mounting=np.diag([1.0, -1.0, -1.0]), sigma=5e-4, inliers=20)
    assert gyroscope.problem == ""


def test_a_wrong_unit_is_found():
    gyroscope = Gyroscope(ImuConfig())
    follow(gyroscope, mounting=np.eye(3) * math.degrees(1) / 10)
    assert "contradicts" in gyroscope.problem


def test_the_time_offset_is_added_to_the_stamps():
    gyroscope = Gyroscope(ImuConfig(time_offset_ms=30.0))
    for k in range(40):
        gyroscope.add(k * 5 * MS, np.zeros(3))
    assert not isinstance(gyroscope.rotation(200 * MS, 224 * MS), str)
    assert gyroscope.rotation(0, 20 * MS) == "it began after the last image"


# -- tracking -------------------------------------------------------------------------------------------------------------


def on_sphere() -> torch.Tensor:
    """Depth (240, 320) of a sphere of 3 m around the camera, the same however it is turned."""
    v, u = torch.meshgrid(torch.arange(240.0), torch.arange(320.0), indexing="ij")
    return 3 / geometry.rays(CAMERA, torch.stack([u, v], -1)).norm(dim=-1)


def sweep(jump: int = 20):
    """RGB-D images of a camera that turns by a degree an image, and in one step by `jump` degrees; its angles in degrees."""
    angles = [*range(6), *range(5 + jump, 9 + jump)]
    views = rotating(10 + jump, 1.0)
    frames = [replace(views[angle], id=k, stamp_ns=k * STEP_NS, depth=on_sphere()) for k, angle in enumerate(angles)]
    return frames, np.radians(angles)


def turn(frames, angles, mounting=np.eye(3), matcher="klt", give=True, bias=(0.0, 0.0, 0.0)):
    """Outputs with rates at 1 kHz, and the events."""
    events, rng = [], np.random.default_rng(0)
    pipeline = Pipeline(configure(matcher, camera__readout_ms=0.01), on_event=events.append)  # a global shutter
    outputs = []
    for frame, before, now in zip(frames, [angles[0], *angles], angles):
        for k in range(100 if give else 0):
            rate = np.array([0.0, (now - before) / (STEP_NS * 1e-9), 0.0])
            rate = mounting @ rate + bias + rng.normal(0, 5e-3, 3)
            pipeline.add_angular_rate(frame.stamp_ns - STEP_NS + (k + 1) * STEP_NS // 100, rate)
        outputs.append(pipeline.process(frame))
    return outputs, events, pipeline


def heading(output) -> float:
    return float(geometry.log_so3(output.T_WC[3:])[1])


def test_a_fast_turn_is_followed_that_constant_velocity_loses():
    frames, angles = sweep()
    without, _, _ = turn(frames, angles, give=False)
    outputs, events, _ = turn(frames, angles)
    assert all(o.state is TrackingState.TRACKING for o in outputs)
    assert abs(heading(outputs[-1]) - angles[-1]) < math.radians(0.5)
    lost = [o for o in without if o.state is not TrackingState.TRACKING or abs(heading(o) - angles[o.frame_id]) > 0.02]
    assert lost
    assert not [e for e in events if e["event"] == "imu"]


def test_rates_that_contradict_the_images_are_left_out_and_named():
    views = rotating(24, 1.0)
    frames = [replace(view, depth=on_sphere()) for view in views]
    plain, _, _ = turn(frames, np.radians(np.arange(24.0)), give=False)
    outputs, events, pipeline = turn(frames, np.radians(np.arange(24.0)), mounting=-np.eye(3))
    assert all(o.state is TrackingState.TRACKING for o in outputs)
    assert max(abs(heading(a) - heading(b)) for a, b in zip(outputs, plain)) < 1e-3
    told = [e for e in events if e["event"] == "imu"]
    assert told[-1]["used"] is False and "contradicts" in told[-1]["reason"]
    assert pipeline.odometry.gyroscope.problem


def spy_on_windows(monkeypatch) -> list[tuple[WindowSnapshot, RelativeRotations | None, BAResult]]:
    """What is solved from now on, in a list that grows."""
    solved = []

    def spy(window, config, rotations=None):
        solved.append((window, rotations, bundle.solve(window, config, rotations)))
        return solved[-1][2]

    monkeypatch.setattr(mapper, "solve", spy)
    return solved


def on_the_spot(count: int):
    angles = np.arange(float(count))
    return [replace(view, depth=on_sphere()) for view in rotating(count, 1.0)], np.radians(angles)


def test_windows_are_solved_with_the_rotations_and_teach_the_bias(monkeypatch):
    solved = spy_on_windows(monkeypatch)
    frames, angles = on_the_spot(40)
    outputs, _, pipeline = turn(frames, angles, bias=(0.02, -0.01, 0.03))
    assert all(o.state is TrackingState.TRACKING for o in outputs)
    assert all(rotations is not None and result.rotations_used for _, rotations, result in solved)
    window, rotations, _ = solved[-1]
    held = window.fixed[1:] & window.fixed[:-1]  # known exactly, they would tell the bias exactly
    assert rotations.second.tolist() == (1 + (~held).nonzero()[:, 0]).tolist() and len(rotations) > 2
    for pair, R in zip(rotations.second.tolist(), rotations.R):
        before, after = (k.stamp_ns for k in pipeline.window.keyframes[pair - 1 : pair + 1])
        assert rotation_angle(R) == pytest.approx(math.radians((after - before) / STEP_NS), abs=0.02)
    bias = pipeline.odometry.gyroscope.usable_bias()
    sigmas = (bias.mean - (0.02, -0.01, 0.03)) / np.sqrt(np.diag(bias.covariance))
    assert np.abs(sigmas).max() < 3 and np.sqrt(np.diag(bias.covariance)).max() < 0.02


def test_the_weight_in_a_window_is_that_of_the_errors_in_those_before(monkeypatch):
    solved = spy_on_windows(monkeypatch)
    frames, angles = on_the_spot(40)
    turn(frames, angles)
    scales = [result.residual_scale * result.covariance_scale for _, _, result in solved]
    weights = [rotations.weight for _, rotations, _ in solved if rotations is not None]
    assert weights[0] == BundleConfig().shared_error and weights[1] == pytest.approx(scales[0])
    assert weights[2] == pytest.approx((scales[0] * scales[1]) ** 0.5)


def test_rotations_that_a_window_contradicts_are_never_used_again(monkeypatch):
    solved = spy_on_windows(monkeypatch)
    monkeypatch.setattr(Gyroscope, "_count", lambda *_: None)  # nothing else leaves it out
    frames, angles = on_the_spot(16)
    _, _, pipeline = turn(frames, angles, mounting=np.diag([1.0, -1.0, -1.0]))
    used = [result.rotations_used for _, rotations, result in solved if rotations is not None]
    assert not all(used)
    assert used.index(False) >= 0 and all(len(r) == 1 for _, r, s in solved[used.index(False) + 1 :] if r is not None)


def test_the_rotation_between_keyframes_is_known_while_nothing_contradicts_it():
    gyroscope = Gyroscope(ImuConfig())
    assert gyroscope.between_keyframes(0, MS) is None and gyroscope.usable_bias() is None
    follow(gyroscope, frames=60)
    bias = gyroscope.usable_bias()
    assert np.array_equal(bias.mean, gyroscope.bias)
    step = gyroscope.between_keyframes(1_000 * MS, 1_500 * MS)
    assert step.seconds == pytest.approx(0.5) and np.array_equal(step.bias, gyroscope.bias)
    assert gyroscope.between_keyframes(1_500 * MS, 1_500 * MS) is None
    assert gyroscope.between_keyframes(-100 * MS, 1_500 * MS) is None
    for k in range(1_800, 9_000, 5):
        gyroscope.add(k * MS, np.zeros(3))
    assert gyroscope.between_keyframes(1_000 * MS, 8_000 * MS) is None
    gyroscope.blocked = "no mounting"
    assert gyroscope.between_keyframes(1_000 * MS, 1_500 * MS) is None
    wrong = Gyroscope(ImuConfig())
    follow(wrong, frames=60, mounting=-np.eye(3), sigma=5e-4)
    assert wrong.between_keyframes(1_000 * MS, 1_500 * MS) is None and wrong.usable_bias() is None


def test_without_an_imu_nothing_is_expected():
    frames, angles = sweep(1)
    _, events, pipeline = turn(frames, angles, give=False)
    assert pipeline.odometry.gyroscope.problem == "" and not [e for e in events if e["event"] == "imu"]
