"""New landmarks begin at the depth of their surroundings: noise must not choose which of them enter, nor shrink the map."""

from dataclasses import replace

import torch

from imatching_ros.odometry import local_map
from imatching_ros.core import geometry
from imatching_ros.bundle import solve
from imatching_ros.core.config import BundleConfig, LearningConfig
from imatching_ros.core.types import BAStatus, ObservationKind
from imatching_ros.learning.gate import refuse
from imatching_ros.matching.klt import KltMatcher
from imatching_ros.odometry.mapper import SolvedWindow
from imatching_ros.learning.sample import take_sample
from imatching_ros.odometry.local_map import Keyframe, Window
from odometry_scenes import CAMERA, speckle

IMAGE = torch.from_numpy(speckle(0, (240, 320)))[None]
KNOWN, NEW = 40, 400
DEPTH = 5.0


def build(baseline: float, noise_px: float = 1.0, sigma_px: float = 1.0) -> Window:
    """A wall 5 m away, two keyframes; 40 landmarks are known, 400 are new and were seen with noise."""
    rng = torch.Generator().manual_seed(0)
    T = torch.stack([geometry.identity(), geometry.exp(torch.tensor([baseline, 0, 0, 0, 0, 0], dtype=torch.float64))])
    uv0 = torch.rand(KNOWN + NEW, 2, generator=rng, dtype=torch.float64) * torch.tensor([240.0, 200.0]) + torch.tensor(
        [60.0, 20.0]
    )
    points = geometry.back_project(CAMERA, uv0, torch.full((KNOWN + NEW,), DEPTH, dtype=torch.float64))
    uv1 = geometry.project(CAMERA, geometry.act(geometry.inverse(T[1]), points))
    uv1[KNOWN:] += noise_px * torch.randn(NEW, 2, generator=rng, dtype=torch.float64)
    window = Window()
    for k in range(2):
        window.add_keyframe(Keyframe(k, k, IMAGE, KltMatcher().observe(IMAGE)), T[k])
    rows = window.add_landmarks(0, uv0.float(), None)
    for k, uv in enumerate((uv0, uv1)):
        window.observe(CAMERA, k, rows, uv, torch.full((len(rows),), sigma_px))
    window.set_positions(rows[:KNOWN], points[:KNOWN])
    return window


def entered(window: Window) -> torch.Tensor:
    rows = window.triangulate(CAMERA, 3.0, 6.0)
    return window.landmarks.points_W[rows][:, 2]


def test_noise_neither_chooses_landmarks_nor_brings_them_nearer():
    # 3 px of parallax under 1.4 px of noise: by their own parallax half of them would be refused, the far half.
    depth = entered(build(baseline=3 * DEPTH / CAMERA.fx))
    assert len(depth) > 0.95 * NEW
    assert abs(float((1 / depth).mean()) * DEPTH - 1) < 0.05


def test_landmarks_of_no_expected_parallax_wait():
    assert len(entered(build(baseline=1 * DEPTH / CAMERA.fx))) == 0


def test_an_expectation_is_that_of_the_surroundings_and_is_scaled_with_the_map():
    window = build(baseline=0.3)
    window.triangulate(CAMERA, 3.0, 6.0)
    assert torch.allclose(window.landmarks.expected_inv_depth[KNOWN:], torch.tensor(1 / DEPTH, dtype=torch.float64))
    before = local_map.parallax_sigmas(window, CAMERA)
    window.rescale(3.0)
    assert torch.allclose(window.landmarks.expected_inv_depth[KNOWN:], torch.tensor(1 / DEPTH / 3, dtype=torch.float64))
    assert torch.allclose(before, local_map.parallax_sigmas(window, CAMERA), equal_nan=True)


def test_the_prior_is_left_out_once_parallax_is_enough_and_in_front_of_a_background():
    def with_prior(window: Window) -> torch.Tensor:
        o = local_map.with_prior(window, CAMERA)
        assert bool((o.kf[o.kind == ObservationKind.DEPTH] == 0).all())  # at hosts alone
        return o.lm[o.kind == ObservationKind.DEPTH]

    near, far = build(baseline=4 * DEPTH / CAMERA.fx, noise_px=0.1), build(baseline=20 * DEPTH / CAMERA.fx)
    for window in (near, far):
        window.triangulate(CAMERA, 3.0, 6.0)
    assert len(with_prior(near)) == NEW and len(with_prior(far)) == 0
    row = torch.tensor([KNOWN])
    near.set_positions(row, near.landmarks.points_W[row] / 3)
    assert len(with_prior(near)) == NEW - 1


def turning() -> Window:
    """Five keyframes that turn about one point, the first two held as once keyframes have left; all landmarks known, under a prior."""
    rng = torch.Generator().manual_seed(3)
    window = Window()
    uv0 = torch.rand(NEW, 2, generator=rng, dtype=torch.float64) * torch.tensor([220.0, 200.0]) + torch.tensor(
        [70.0, 20.0]
    )
    points = geometry.back_project(CAMERA, uv0, torch.full((NEW,), DEPTH, dtype=torch.float64))
    for k in range(5):
        turn = geometry.exp(torch.tensor([0.002 * k, 0, 0, 0, 0.02 * k, 0], dtype=torch.float64))
        window.add_keyframe(Keyframe(k, k, IMAGE, KltMatcher().observe(IMAGE)), turn)
    rows = window.add_landmarks(0, uv0.float(), None)
    for k, T in enumerate(window.T_WC):
        seen = geometry.project(CAMERA, geometry.act(geometry.inverse(T), points))
        window.observe(
            CAMERA,
            k,
            rows,
            seen + 0.3 * torch.randn(NEW, 2, generator=rng, dtype=torch.float64),
            torch.full((NEW,), 0.5),
        )
    window.set_positions(rows, points)
    window.landmarks = replace(window.landmarks, expected_inv_depth=torch.full((NEW,), 1 / DEPTH, dtype=torch.float64))
    window.keyframe_dropped = True
    return window


def test_an_expected_depth_is_no_measurement_a_turn_on_the_spot_stays_degenerate():
    snapshot, used, _ = turning().snapshot(CAMERA)
    assert snapshot.fixed.tolist() == [True, True, False, False, False] and bool(
        (snapshot.kind == ObservationKind.DEPTH).any()
    )
    off = dict(max_baseline_error=1000.0, min_parallax_deg=0.0)
    for limits, why in (
        (dict(), "no parallax"),
        (off | dict(max_baseline_error=0.1), "longest baseline"),
        (off | dict(min_parallax_deg=80.0), "80 deg"),
    ):
        result = solve(snapshot, BundleConfig(**limits))
        assert result.status is BAStatus.DEGENERATE and why in result.reason and result.covariance_newest is None
    assert solve(snapshot, BundleConfig(**off)).status is not BAStatus.DEGENERATE


def test_the_gate_refuses_a_turn_on_the_spot_whatever_bundle_adjustment_says_of_it():
    window = turning()
    snapshot, used, _ = window.snapshot(CAMERA)
    result = solve(snapshot, BundleConfig())
    sample = take_sample(SolvedWindow.of(window, snapshot, result, used), 0, 0, True)
    assert sample.window.expected_depth
    assert refuse(sample, LearningConfig()) == "bundle adjustment degenerate"
    believed = replace(sample, result=replace(sample.result, status=BAStatus.CONVERGED))
    assert refuse(believed, LearningConfig()) == "no translation"


def test_a_window_that_measures_depth_has_no_use_for_it():
    window = build(baseline=0.3)
    rows = torch.arange(3)
    window.observe(
        CAMERA,
        1,
        rows,
        torch.full((3, 2), 100.0),
        torch.ones(3),
        torch.full((3,), 0.2),
        torch.ones(3),
        ObservationKind.DEPTH,
    )
    window.triangulate(CAMERA, 3.0, 6.0)
    assert bool(window.landmarks.expected_inv_depth.isnan().all())
