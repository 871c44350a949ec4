"""A rolling shutter that nobody has named shows in the residuals of windows, and odometry says so."""

from dataclasses import replace

import pytest
import torch

from imatching_ros.bundle import solve
from imatching_ros.camera import rolling_shutter
from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig, LearningConfig
from imatching_ros.core.types import ObservationKind, TrackingState, WindowSnapshot
from imatching_ros.learning.gate import refuse
from imatching_ros.learning.sample import next_sample
from imatching_ros.odometry.odometry import Odometry
from imatching_ros.odometry.shutter import MAX_SKEW_PX, UnnamedReadout
from imatching_ros.matching import create_matcher
from imatching_ros.offline.simulation.sequence import SimulatedSequence
from odometry_scenes import CAMERA, configure, rotating

CONFIG = BundleConfig()
PERIOD_S = 0.1


def sweep(readout_s, named_s, deg_s=120.0, seed=0):
    """Seven keyframes of a camera that walks and begins to turn: what a shutter of `readout_s` makes of them under another name, solved."""
    g = torch.Generator().manual_seed(seed)
    rate = torch.deg2rad(torch.tensor([0.0, 0, 0, 0.3, 0.7, 1, 1], dtype=torch.float64) * deg_s)
    twist = torch.zeros(7, 6, dtype=torch.float64)
    twist[:, 0], twist[:, 2], twist[:, 4] = 0.5, 0.2, rate
    T_WC = [geometry.identity()]
    for k in range(6):
        T_WC.append(geometry.retract(T_WC[-1], (twist[k] + twist[k + 1]) / 2 * PERIOD_S))
    T_WC = torch.stack(T_WC)
    host = torch.arange(300) % 7
    uv = torch.rand(300, 2, generator=g, dtype=torch.float64) * torch.tensor([320.0, 240.0])
    depth = 1 + 4 * torch.rand(300, generator=g, dtype=torch.float64)
    points = geometry.act(T_WC[host], geometry.back_project(CAMERA, uv, depth))
    rolling, named = replace(CAMERA, readout_s=readout_s), replace(CAMERA, readout_s=named_s)
    parts = []
    for k in range(7):
        points_C = geometry.act(geometry.inverse(T_WC[k]), points)
        seen, inside = rolling_shutter.see(rolling, points_C, twist[k])
        at = inside.nonzero()[:, 0]
        raw = seen[at] + 0.3 * torch.randn(len(at), 2, generator=g, dtype=torch.float64)
        ideal = rolling_shutter.undistort(named, raw, twist[k], points_C[at, 2])
        parts.append((torch.full((len(at),), k), at, raw, ideal))
    kf, lm, raw, ideal = (torch.cat(columns) for columns in zip(*parts))
    keep = torch.bincount(lm, minlength=300)[lm] >= 2
    kf, lm, raw, ideal = kf[keep], lm[keep], raw[keep], ideal[keep]
    obs = torch.cat([ideal, torch.zeros(len(ideal), 1, dtype=torch.float64)], 1)
    fixed = torch.arange(7) < 2
    kind = torch.full((len(kf),), int(ObservationKind.MONO))
    window = WindowSnapshot(named, T_WC, points, kf, lm, obs, kind, torch.full((len(kf), 3), 0.3).double(), fixed)
    return window, solve(window, CONFIG), raw.float(), twist


def estimate(*arguments, windows=3, **options):
    readout = UnnamedReadout()
    for seed in range(windows):
        readout.add(*sweep(*arguments, **options, seed=seed), CONFIG)
    return readout


@pytest.mark.parametrize("named_s", (0.0, 0.01))
def test_a_readout_time_that_nobody_named_is_found(named_s):
    readout = estimate(0.02, named_s, windows=8)
    assert 0.5 * (0.02 - named_s) < readout.missing_s < 1.3 * (0.02 - named_s)
    assert "camera.readout_ms" in readout.describe(replace(CAMERA, readout_s=named_s))


@pytest.mark.parametrize("readout_s, named_s", ((0.0, 0.0), (0.02, 0.02)))
def test_a_camera_that_is_as_named_misses_nothing(readout_s, named_s):
    readout = estimate(readout_s, named_s)
    assert readout.missing_s == 0 and readout.describe(CAMERA) == ""


def test_a_slow_camera_says_nothing():
    assert estimate(0.02, 0.0, deg_s=5.0, windows=20).missing_s == 0


def test_what_is_not_significant_yet_is_uncertain():
    readout = estimate(0.02, 0.0, deg_s=80.0, windows=1)
    assert readout.missing_s == 0 and readout.describe(CAMERA) == "" and 0.01 < readout.uncertain_s < 0.05
    assert estimate(0.0, 0.0, deg_s=80.0, windows=1).uncertain_s == 0


def test_a_likely_shutter_counts_in_fast_turns_until_windows_refute_it():
    fast = torch.tensor([0, 0, 0, 0, 1.5, 0], dtype=torch.float64)
    assert UnnamedReadout().skew_rad(CAMERA, fast, "mono") == pytest.approx(0.01 * 1.5)
    assert UnnamedReadout().skew_rad(CAMERA, fast, "stereo") == 0
    assert UnnamedReadout().skew_rad(CAMERA, fast / 2, "mono") == 0
    assert UnnamedReadout().skew_rad(CAMERA, fast / 2, "rgbd") == pytest.approx(0.01 * 0.75)
    assert UnnamedReadout().skew_rad(CAMERA, fast / 4, "rgbd") == 0
    assert UnnamedReadout().skew_rad(replace(CAMERA, readout_s=1e-5), fast, "mono") == 0, "named"
    assert estimate(0.0, 0.0, windows=1).skew_rad(CAMERA, fast, "mono") == 0
    assert estimate(0.02, 0.0, deg_s=40.0, windows=1).skew_rad(CAMERA, fast, "mono") > 0.012


def test_a_time_that_was_just_found_may_be_as_wrong_as_a_likely_one():
    readout = estimate(0.02, 0.0)
    readout.found_s = 0.009
    readout.adopt()
    assert 0.009 < readout.found_s and readout.uncertain_s == max(readout.found_s, readout.LIKELY_S)
    assert readout.bound_sigmas == 2 and UnnamedReadout().bound_sigmas == 1


def test_what_is_found_in_steps_comes_close_and_becomes_certain():
    """Each step is found by windows that the last one has straightened."""
    readout, seed = UnnamedReadout(), 0
    assert readout.uncertain_s == 0
    for _ in range(3):
        for seed in range(seed, seed + 6):
            readout.add(*sweep(0.02, readout.found_s, seed=seed), CONFIG)
        readout.adopt()
    assert readout.found_s == pytest.approx(0.02, rel=0.2)
    assert "20 ms" in readout.describe(CAMERA) or "about" in readout.describe(CAMERA)
    assert readout.uncertain_s == readout.found_s or readout.uncertain_s < 0.005
    for seed in range(6):
        readout.add(*sweep(0.02, readout.found_s, seed=seed), CONFIG)
    assert readout.uncertain_s < 0.006


def test_windows_of_few_observations_say_nothing():
    readout = UnnamedReadout()
    for seed in range(20):
        window, result, uv, twist = sweep(0.0, 0.0, seed=seed)
        few = torch.arange(len(uv)) % 10 == 0
        thinned = {n: getattr(window, n)[few] for n in ("kf_idx", "pt_idx", "obs", "kind", "sigma")}
        readout.add(replace(window, **thinned), result, uv[few], twist, CONFIG)
    assert readout.missing_s == 0


def test_a_readout_time_that_no_shutter_has_is_an_error_of_another_kind():
    assert estimate(0.15, 0.0).missing_s == 0


def test_what_later_windows_take_back_was_no_shutter():
    """The stripes of a flickering lamp wander over the rows: at first as a shutter of 20 ms would shift them, later the other way."""
    readout = UnnamedReadout()
    for seed in range(3):
        readout.add(*sweep(0.02, 0.0, seed=seed), CONFIG)
    readout.adopt()
    assert readout.found_s > 0.01
    for seed in range(6):
        readout.add(*sweep(0.0, 0.02, seed=seed), CONFIG)
    readout.adopt()
    assert readout.found_s == readout.uncertain_s == 0 and readout.describe(CAMERA) == ""
    for seed in range(6):
        readout.add(*sweep(0.02, 0.0, seed=seed), CONFIG)
    readout.adopt()
    assert readout.found_s == readout.uncertain_s == 0, "it is not looked for again"


def turn(odometry, frames=6, deg=6.0):
    """Outputs for a camera that turns on the spot at 60 degrees/s, with depth."""
    outputs = []
    for frame in rotating(frames, deg):
        outputs.append(odometry.track(replace(frame, depth=torch.full((CAMERA.height, CAMERA.width), 2.0))))
        odometry.extend()
    return outputs


@pytest.mark.parametrize("deg, state", ((6.0, TrackingState.UNVERIFIED), (1.0, TrackingState.TRACKING)))
def test_fast_frames_of_a_shutter_that_is_named_wrongly_are_unverified(deg, state):
    """What a user has named is not changed."""
    config = configure("klt", odometry__mode="rgbd", camera__readout_ms=1.0)
    healthy, skewed = (Odometry(config, create_matcher(config.matcher)) for _ in range(2))
    for seed in range(3):
        skewed.mapper.readout.add(*sweep(0.02, 0.001, seed=seed), CONFIG)
    expected, outputs = turn(healthy, deg=deg), turn(skewed, deg=deg)
    assert [o.state for o in expected] == [TrackingState.TRACKING] * 6 and not expected[-1].fault
    assert [o.state for o in outputs[1:]] == [state] * 5
    assert all(torch.equal(a.T_WC, b.T_WC) for a, b in zip(expected, outputs))
    assert "longer than the 1 ms of camera.readout_ms" in outputs[-1].fault
    assert skewed.healthy == (state is TrackingState.TRACKING)
    if state is TrackingState.UNVERIFIED:
        assert "camera.readout_ms" in outputs[-1].reason and not skewed.tracking_failed
        more = outputs[-1].covariance - expected[-1].covariance
        assert float(more.diagonal()[3:].min()) > (0.3 * 0.01) ** 2
        for seed in range(20):  # the images, which no shutter has skewed, have spoken against it
            skewed.mapper.readout.add(*sweep(0.02, 0.001, seed=seed % 3), CONFIG)
        sample = replace(next_sample(skewed), tracking_healthy=True)
        assert refuse(sample, LearningConfig()) == "rolling shutter not known well"


def test_the_covariance_of_rows_ends_with_their_frame_unless_it_becomes_a_keyframe():
    """Of a keyframe it stays, and the frames located by the landmarks that it placed have it once more."""
    config = configure("klt", odometry__mode="rgbd", camera__readout_ms=1.0)
    healthy, skewed = (Odometry(config, create_matcher(config.matcher)) for _ in range(2))
    for seed in range(3):
        skewed.mapper.readout.add(*sweep(0.02, 0.001, seed=seed), CONFIG)
    more = []
    for expected, output in zip(turn(healthy), turn(skewed)):
        lasting = output.covariance - output.covariance_in_map - (expected.covariance - expected.covariance_in_map)
        own = output.covariance_in_map - expected.covariance_in_map
        more.append((output.is_keyframe, float(lasting[4, 4]), float(own[4, 4])))
    assert all(own > (0.3 * 0.01) ** 2 for _, _, own in more[1:])
    placed, keyframes = 0.0, 0
    for (is_keyframe, before, own), (_, after, _) in zip(more[1:], more[2:]):
        rows = own - placed
        assert rows > (0.3 * 0.01) ** 2 and after - before == pytest.approx(rows * is_keyframe, rel=0.3, abs=1e-7)
        placed, keyframes = (rows, keyframes + 1) if is_keyframe else (placed, keyframes)
    assert keyframes > 1


def test_a_keyframe_is_corrected_by_the_motions_around_it():
    config = configure("klt", odometry__mode="rgbd", camera__readout_ms=20.0)
    odometry = Odometry(config, create_matcher(config.matcher))
    turn(odometry, frames=5)
    keyframe, o = odometry.window.keyframes[-1], odometry.window.observations
    assert keyframe.id == odometry.last.id
    slower = replace(rotating(6, 6.0)[-1], stamp_ns=odometry.last.stamp_ns + 200_000_000)
    odometry.track(replace(slower, depth=torch.full((CAMERA.height, CAMERA.width), 2.0)))
    before, now = float(keyframe.twist[3:].norm()), odometry.window.keyframes[-1]
    # The twist of 30 degrees/s is 0.15 s later.
    assert float(now.twist[3:].norm()) == pytest.approx(before * (1 - 1 / 6), rel=0.05)
    changed = (odometry.window.observations.obs - o.obs)[:, :2].norm(dim=1)
    mine = o.kf == len(odometry.window.keyframes) - 1
    assert float(changed[mine].max()) > 0.3 and float(changed[~mine].max()) == 0


def test_a_slow_frame_is_unverified_while_the_newest_keyframe_is_skewed():
    config = configure("klt", odometry__mode="rgbd", camera__readout_ms=1.0)
    depth = torch.full((CAMERA.height, CAMERA.width), 2.0)
    frame = replace(rotating(7, 1.0)[-1], depth=depth)
    outputs = []
    for turned in (0.2, 2.0):  # rad/s, at the newest keyframe
        odometry = Odometry(config, create_matcher(config.matcher))
        turn(odometry, deg=1.0)
        for seed in range(3):
            odometry.mapper.readout.add(*sweep(0.02, 0.001, seed=seed), CONFIG)
        keyframes = odometry.window.keyframes
        keyframes[-1] = replace(keyframes[-1], twist=torch.tensor([0, 0, 0, 0, turned, 0], dtype=torch.float64))
        outputs.append(odometry.track(frame))
    assert [o.state for o in outputs] == [TrackingState.TRACKING, TrackingState.UNVERIFIED]
    assert "last keyframe" in outputs[1].reason
    assert torch.equal(outputs[0].covariance, outputs[1].covariance), "only an image that is bent itself adds to it"


@pytest.mark.parametrize("error, state", ((0.05, TrackingState.TRACKING), (0.3, TrackingState.UNVERIFIED)))
def test_one_camera_is_unverified_where_the_rate_changes_within_the_rows(error, state):
    config = configure("klt", odometry__mode="mono", camera__readout_ms=40.0)
    odometry = Odometry(config, create_matcher(config.matcher))
    sequence = SimulatedSequence(kind="clutter", seed=81, frames=12, width=320, height=240, supersample=1)
    frames = [frame for frame, _ in sequence.read()]
    for frame in frames[:-1]:
        output = odometry.track(frame)
        odometry.extend()
    assert output.state is TrackingState.TRACKING
    odometry.motion.twist = odometry.motion.twist + torch.tensor([0, 0, 0, 0, 2 * error, 0], dtype=torch.float64)
    assert odometry.track(frames[-1]).state is state


def test_windows_of_a_shutter_that_is_known_are_learned_from_however_fast_it_turns():
    config = configure("klt", odometry__mode="rgbd", camera__readout_ms=20.0)
    odometry = Odometry(config, create_matcher(config.matcher))
    turn(odometry)
    sample = next_sample(odometry)
    camera, fastest = sample.window.camera, max(sample.twist, key=lambda t: float(t[3:].norm()))
    assert rolling_shutter.skew_px(camera, fastest, camera.readout_s) > 2 * MAX_SKEW_PX
    assert sample.skew_px == 0 and refuse(sample, LearningConfig()) is None


def test_windows_of_a_shutter_that_is_named_too_long_are_not_learned_from():
    config = configure("klt", odometry__mode="rgbd", camera__readout_ms=20.0)
    odometry = Odometry(config, create_matcher(config.matcher))
    for seed in range(6):
        odometry.mapper.readout.add(*sweep(0.0, 0.02, seed=seed), CONFIG)
    assert odometry.mapper.readout.missing_s < -0.01
    turn(odometry)
    assert refuse(next_sample(odometry), LearningConfig()) == "rolling shutter not known well"


@pytest.mark.parametrize("readout_ms, refused", ((0.0, False), (20.0, True)))
def test_stereo_windows_of_a_rolling_shutter_are_not_learned_from(readout_ms, refused):
    """The right images are not corrected."""
    config = configure("klt", odometry__mode="stereo", camera__readout_ms=readout_ms)
    odometry = Odometry(config, create_matcher(config.matcher))
    camera = replace(CAMERA, baseline_m=20 / CAMERA.fx)
    for frame in rotating(6, 6.0):
        right = torch.roll(frame.image, -10, dims=-1)  # the scene is 2 m away
        odometry.track(replace(frame, camera=camera, right=right))
        odometry.extend()
    sample = next_sample(odometry)
    assert (refuse(sample, LearningConfig()) == "rolling shutter not known well") == refused


def test_a_readout_time_that_nobody_named_is_used_from_the_next_frame_on():
    config = configure("klt", odometry__mode="rgbd")
    odometry = Odometry(config, create_matcher(config.matcher))
    turn(odometry, 3)
    for seed in range(3):
        odometry.mapper.readout.add(*sweep(0.02, 0.0, seed=seed), CONFIG)
    before = odometry.window.observations.obs[:, :2].clone()
    frame = list(rotating(4, 6.0))[3]
    output = odometry.track(replace(frame, depth=torch.full((CAMERA.height, CAMERA.width), 2.0)))
    assert "which are used" in output.fault and output.state is TrackingState.UNVERIFIED
    moved = (odometry.window.observations.obs[: len(before), :2] - before).norm(dim=1)
    assert 1.0 < float(moved.max()) < 6.0  # rows at the edge, at 60 degrees/s
