"""Rendered videos, their shifts, and the recordings made of them."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from imatching_ros.__main__ import main
from imatching_ros.camera.model import Camera
from imatching_ros.core.types import as_grey
from imatching_ros.core.errors import ConfigError, SourceError
from imatching_ros.offline.recordings.base import SourceOptions
from imatching_ros.offline.recordings import open_source
from imatching_ros.odometry.gyroscope import preintegrate
from imatching_ros.offline.simulation.imu import R_CAMERA_IMU, Sensor, measure
from imatching_ros.offline.simulation.recording import write_recording
from imatching_ros.offline.simulation.sequence import SimulatedSequence, simulated_frames
from imatching_ros.offline.simulation.shifts import SHIFTS, add_drops, motion_blur, take_image

SMALL = dict(frames=3, width=64, height=48, supersample=1, texture_size=64)


@pytest.fixture(scope="module")
def truth():
    return list(SimulatedSequence(seed=2, **SMALL).read())


def test_a_sequence_is_repeatable_and_its_stamps_are_exact(truth):
    again = list(simulated_frames("room", 3, 2, (48, 64), supersample=1, texture_size=64))
    for (frame, T), (frame_again, T_again) in zip(truth, again):
        assert torch.equal(frame.image, frame_again.image) and torch.equal(T, T_again)
    assert [f.stamp_ns - truth[0][0].stamp_ns for f, _ in truth] == [0, 100_000_000, 200_000_000]
    assert truth[0][0].image.dtype == torch.uint8 and truth[0][0].depth.dtype == torch.float32


def assert_same_pose(first, second, atol):
    """Both signs of a quaternion are one rotation."""
    sign = np.sign(first[3:] @ second[3:])
    assert np.allclose(first, np.concatenate([second[:3], sign * second[3:]]), atol=atol)


def test_workers_change_nothing_but_the_time(truth):
    together = list(SimulatedSequence(seed=2, workers=3, **SMALL).read())
    assert len(together) == 3
    for (frame, T), (expected, T_expected) in zip(together, truth):
        assert frame.id == expected.id and torch.equal(frame.image, expected.image) and torch.equal(T, T_expected)


@pytest.mark.parametrize("name", ["bag", "bare.mcap"])
@pytest.mark.parametrize("depth", ["16UC1", "32FC1"])
def test_a_bag_holds_what_was_rendered(tmp_path, truth, name, depth):
    path = write_recording(tmp_path / name, SimulatedSequence(seed=2, **SMALL), depth=depth)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    source = open_source(path)
    frames = list(source)
    poses = source.groundtruth()
    assert len(frames) == 3 and source.camera == truth[0][0].camera
    for i, (frame, (expected, T_WC)) in enumerate(zip(frames, truth)):
        assert frame.stamp_ns == expected.stamp_ns == poses.stamps_ns[i]
        assert torch.equal(frame.image, expected.image)
        assert torch.allclose(frame.depth, expected.depth, atol=5.1e-4 if depth == "16UC1" else 0)
        assert_same_pose(poses.T_WC[i], T_WC.numpy(), 1e-12)


def test_a_tum_folder_holds_what_was_rendered(tmp_path, truth):
    source = open_source(write_recording(tmp_path / "folder", SimulatedSequence(seed=2, **SMALL), "tum"))
    poses = source.groundtruth()
    for i, (frame, (expected, T_WC)) in enumerate(zip(source, truth)):
        assert frame.stamp_ns == expected.stamp_ns == poses.stamps_ns[i]
        assert torch.equal(frame.image, expected.image)
        assert torch.allclose(frame.depth, expected.depth, atol=1.1e-4)
        assert_same_pose(poses.T_WC[i], T_WC.numpy(), 1e-8)
    assert (tmp_path / "folder" / "rgb.txt").read_text().count("\n") == 3


def test_the_right_image_is_the_left_one_moved_by_the_disparity(tmp_path):
    sequence = SimulatedSequence(kind="clutter", seed=2, frames=1, width=160, height=120, supersample=2, baseline_m=0.1)
    source = open_source(write_recording(tmp_path / "pair", sequence, "tum"), SourceOptions(mode="stereo"))
    (frame,) = source
    ((rendered, _),) = sequence.read()
    assert source.camera.baseline_m == 0.1 and frame.camera.baseline_m == 0.1
    assert torch.equal(frame.right, rendered.right) and not torch.equal(frame.right, frame.image)
    left, right = (
        cv2.GaussianBlur(as_grey(image)[0].float().numpy(), (0, 0), 1.0) for image in (rendered.image, rendered.right)
    )
    u, v = np.meshgrid(np.arange(160, dtype=np.float32), np.arange(120, dtype=np.float32))
    disparity = frame.camera.fx * 0.1 / rendered.depth.numpy()
    errors = {
        shift: np.median(np.abs(cv2.remap(right, u - disparity + shift, v, cv2.INTER_LINEAR) - left)[:, 40:])
        for shift in (-1, 0, 1)
    }
    assert errors[0] < 0.5 * min(errors[-1], errors[1])
    with pytest.raises(ConfigError, match="tum format only"):
        write_recording(tmp_path / "pair.mcap", sequence)


def test_depth_noise_has_the_deviation_asked_for(truth):
    ((noisy, T),) = SimulatedSequence(seed=2, depth_noise=0.01, **SMALL | dict(frames=1)).read()
    ((exact, T_exact),) = SimulatedSequence(seed=2, **SMALL | dict(frames=1)).read()
    assert torch.equal(noisy.image, exact.image) and torch.equal(T, T_exact)
    assert 0.0095 < float((1 / noisy.depth - 1 / exact.depth).std()) < 0.0105


@pytest.mark.parametrize("format, name", [("mcap", "cut.mcap"), ("tum", "cut")])
def test_an_interrupted_rendering_leaves_a_recording(tmp_path, format, name):
    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_recording(tmp_path / name, SimulatedSequence(**SMALL), format, progress=stop)
    assert len(list(open_source(tmp_path / name))) == 2


def test_bad_input_is_named(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(SourceError, match="exists.*--overwrite"):
        write_recording(tmp_path / "there", SimulatedSequence(**SMALL))
    with pytest.raises(ConfigError, match="'avi'.*mcap"):
        write_recording(tmp_path / "x", SimulatedSequence(**SMALL), "avi")
    for wrong, words in (
        (dict(kind="moon"), "moon.*room"),
        (dict(shift="hail"), "hail.*fog"),
        (dict(frames=0), "frames is 0"),
        (dict(rate_hz=float("nan")), "rate_hz is nan"),
    ):
        with pytest.raises(ConfigError, match=words):
            SimulatedSequence(**wrong)


def test_the_command_writes_a_bag(tmp_path, capsys):
    assert (
        main(
            [
                "simulate",
                str(tmp_path / "a.mcap"),
                "--frames",
                "2",
                "--width",
                "64",
                "--height",
                "48",
                "--kind",
                "corridor",
            ]
        )
        == 0
    )
    assert len(list(open_source(tmp_path / "a.mcap"))) == 2
    assert main(["simulate", str(tmp_path / "a.mcap")]) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(SHIFTS))
def test_every_shift_changes_what_it_says(name, truth):
    frames = [f for f, _ in SimulatedSequence(seed=2, shift=name, **SMALL).read()]
    plain = truth[2][0].image.float()
    image = frames[2].image.float()
    if name == "none":
        assert torch.equal(image, plain)
    elif name == "dark_noise":
        assert image.mean() < 0.5 * plain.mean()
    elif name == "fog":
        assert image.std() < 0.75 * plain.std()
    elif name == "vignette":
        assert frames[0].camera.fx == pytest.approx(1.5 * truth[0][0].camera.fx)
    elif name == "motion_blur":
        assert (image[:, :, 1:] - image[:, :, :-1]).abs().mean() < 0.95 * (
            plain[:, :, 1:] - plain[:, :, :-1]
        ).abs().mean()
    elif name == "sand":
        assert detail(image) < 0.95 * detail(plain)  # what is left are edges of things, and noise
    elif name == "thermal":
        assert np.corrcoef(image.mean(0).flatten(), plain.mean(0).flatten())[0, 1] < -0.8
        assert image.std() < 0.4 * plain.std()
    else:
        assert (image - plain).abs().mean() > 1


def detail(image):
    """Mean difference of neighbours along a row."""
    return (image[:, :, 1:] - image[:, :, :-1]).abs().mean()


def test_drops_stay_on_the_lens_and_change_nothing_beside_them():
    first, second = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    wet = [(add_drops(image, 6, seed=1) != image).any(0) for image in (first, second)]
    assert torch.equal(*wet) and 0.02 < wet[0].float().mean() < 0.6
    assert torch.equal(add_drops(first, 0, seed=1), first)


def test_stripes_lie_along_rows_and_move_from_frame_to_frame():
    shift = replace(SHIFTS["stripes"], read_noise=0.0, shot_noise=0.0, vignetting=0.0)
    rows = [take_image(torch.full((3, 48, 64), 0.8), shift, 1.0, frame, 0)[0].float() for frame in (0, 1)]
    assert all(image.std(1).max() < 1 for image in rows)  # one brightness along a row
    assert all(image[:, 0].min() < 0.4 * image[:, 0].max() for image in rows)
    assert (rows[0] - rows[1]).abs().max() > 50


def test_compression_loses_detail_and_keeps_the_blocks():
    shift = replace(SHIFTS["jpeg"], read_noise=0.0, shot_noise=0.0, vignetting=0.0)
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))
    taken = take_image(image, shift, 1.0, 0, 0).float()
    assert detail(taken) < 0.6 * detail(image * 255)
    blocks = torch.nn.functional.avg_pool2d(torch.stack([taken, image * 255]).mean(1, keepdim=True), 8)
    assert (blocks[0] - blocks[1]).abs().max() < 16


def test_a_path_of_stated_length_does_not_depend_on_how_much_of_it_is_seen():
    whole = SimulatedSequence(seed=2, **{**SMALL, "frames": 40})
    part = SimulatedSequence(seed=2, path_s=4.0, rate_hz=5.0, **{**SMALL, "frames": 8})
    scene = whole.scene()
    assert torch.allclose(part.trajectory(scene), whole.trajectory(scene)[:16:2])


def test_motion_blur_follows_the_motion_and_is_centred_on_the_stamp():
    camera = Camera(61, 41, 50.0, 50.0, 30.0, 20.0)
    image = torch.zeros(3, 41, 61)
    image[:, 20, 30] = 1.0
    depth = torch.full((41, 61), 5.0)

    def at(x):
        return torch.tensor([x, 0, 0, 0, 0, 0, 1.0], dtype=torch.float64)

    assert torch.allclose(motion_blur(image, depth, camera, at(0.0), at(0.0), at(0.0)), image, atol=1e-5)
    # 0.8 m at 5 m and f = 50: a streak of 8 px along u.
    out = motion_blur(image, depth, camera, at(-0.4), at(0.0), at(0.4))[0]
    u = torch.arange(61.0)
    assert ((out.sum(0) * u).sum() / out.sum()).item() == pytest.approx(30, abs=1e-3)
    lit = (out > 1e-3).nonzero()
    assert lit[:, 0].unique().tolist() == [20]
    assert lit[:, 1].min() == 26 and lit[:, 1].max() == 34


def test_a_rolling_shutter_exposes_the_middle_row_at_the_stamp():
    sequence = SimulatedSequence("clutter", 60, 1, 64, 48, 30.0, motion="sweep", readout_ms=20.0, texture_size=64)
    scene = sequence.scene()
    rows, mid = sequence.row_trajectory(scene), sequence.trajectory(scene)
    fast = int((mid[1:, 3:] * mid[:-1, 3:]).sum(1).abs().argmin())
    between = (rows[fast, 23] + rows[fast, 24]) / 2
    assert torch.allclose(between, mid[fast], atol=1e-5)
    turned = 2 * torch.acos((rows[fast, 0, 3:] @ rows[fast, -1, 3:]).abs().clamp(max=1))
    assert float(torch.rad2deg(turned)) == pytest.approx(120 * 0.02, rel=0.2)
    image, _ = next(iter(SimulatedSequence("clutter", 1, 1, 64, 48, 30.0, readout_ms=20.0).read()))
    assert image.image.shape == (3, 48, 64) and image.camera.readout_s == 0  # which the recording does not name


def test_a_longer_exposure_blurs_more():
    def contrast(exposure_ms):
        sequence = SimulatedSequence("clutter", 17, 1, 96, 64, motion="sweep", exposure_ms=exposure_ms, texture_size=64)
        image = list(sequence.read())[-1][0].image.float()
        return float((image[..., 1:] - image[..., :-1]).abs().mean())

    assert contrast(25.0) < 0.8 * contrast(0.0)


# -- inertial sensors -----------------------------------------------------------------------------------------------------

SWEEP = SimulatedSequence("room", 60, 1, 32, 24, 30.0, motion="sweep", texture_size=64, imu="bmi088")


def test_rates_integrate_to_the_true_rotation_and_rest_weighs_gravity():
    still = replace(SWEEP, motion="still").measure_imu()
    assert np.linalg.norm(still.accelerations.mean(0)) == pytest.approx(9.81, abs=0.2)
    assert abs(np.diff(still.rates, axis=0).std() - 2.44e-4 * np.sqrt(200) * np.sqrt(2)) < 5e-4
    exact, scene = Sensor(0, 0, 0, 0, 0, 0), SWEEP.scene()
    samples = measure(lambda times: SWEEP.poses_at(scene, times).numpy(), 59 / 30, 0, exact, 0)
    rates = samples.rates @ R_CAMERA_IMU.T
    step = preintegrate((rates[1:] + rates[:-1]) / 2, np.full(len(rates) - 1, 0.005), np.zeros(3), 1e-4)
    ends = Rotation.from_quat(SWEEP.poses_at(scene, np.array([0, (len(rates) - 1) * 0.005]))[:, 3:].numpy())
    assert (Rotation.from_matrix(step.R).inv() * (ends[0].inv() * ends[1])).magnitude() < 1e-3
    assert np.abs(samples.rates).max() > 1.8  # 120 degrees/s about an axis


@pytest.mark.parametrize("format, name", [("tum", "seq"), ("mcap", "seq.mcap")])
def test_recordings_hold_what_the_sensor_measured(tmp_path, format, name):
    sequence = replace(SWEEP, frames=8)
    path = write_recording(tmp_path / name, sequence, format)
    found = open_source(path, SourceOptions(imu_topic=None if format == "tum" else "/imu/data")).imu()
    expected = sequence.measure_imu()
    assert np.array_equal(found.stamps_ns, expected.stamps_ns)
    assert np.allclose(found.rates, expected.rates @ R_CAMERA_IMU.T, atol=1e-7)
