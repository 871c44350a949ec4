"""The local map against exact geometry: rows stay consistent, and the depth prior neither chooses landmarks by noise nor shrinks the map."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from imatching_ros import bundle
from imatching_ros.bundle import solve
from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.types import BAStatus, ObservationKind
from imatching_ros.matching.klt import KltMatcher
from imatching_ros.matching.sift import SiftMatcher
from imatching_ros.odometry import local_map
from imatching_ros.odometry.local_map import Keyframe, Window
from imatching_ros.odometry.preintegration import Preintegrated
from local_map_windows import DEPTH, IMAGE, NEW, build, depths, turning_window
from odometry_scenes import CAMERA


def test_triangulation_recovers_points_and_drops_a_wrong_observation():
    window, _, points = build()
    window.observations.obs[60 * 2 + 7, :2] += 40  # landmark 7 in keyframe 2
    rows = window.triangulate(CAMERA, 3.0, 3.0)
    kept = window.landmarks.triangulated
    assert len(rows) == int(kept.sum()) >= 58
    sane = kept.clone()
    sane[7] = False
    assert (window.landmarks.points_W - points)[sane].norm(dim=1).max() < 1e-5
    if kept[7]:
        assert window.views()[7] < 5


def test_no_parallax_resolves_nothing_in_mono_but_a_measured_depth_does():
    for depth, triangulated in ((False, 0), (True, 40)):
        window, _, points = build(keyframes=1, landmarks=40, depth=depth)
        assert len(window.triangulate(CAMERA, 3.0, 3.0)) == triangulated
    assert (window.landmarks.points_W - points).norm(dim=1).max() < 1e-4


def test_points_at_pixels_that_disagree_stay_pending():
    window, _, _ = build(keyframes=2)
    window.observations.obs[60:, 1] += 30  # across the epipolar lines
    assert len(window.triangulate(CAMERA, 3.0, 3.0)) == 0
    assert len(window.observations) == 120  # pending landmarks keep what was seen


def test_rows_stay_consistent_when_keyframes_and_landmarks_leave():
    window, T, points = build(noise_px=0.3)
    window.triangulate(CAMERA, 3.0, 3.0)
    wrong = torch.tensor([3, 11])
    window.set_positions(wrong, window.landmarks.points_W[wrong] + 5.0)
    window.cull(CAMERA, 3.0)
    ids = window.landmarks.id
    assert 3 not in ids and 11 not in ids and len(ids) >= 50
    gone = window.drop_keyframe(0)
    assert gone.id == 0 and len(window.keyframes) == 4 == len(window.T_WC)
    residual, depth = window.residuals(CAMERA)
    assert residual.max() < 3.0 and (depth > 0).all()
    assert (window.landmarks.points_W - points[window.landmarks.id]).norm(dim=1).median() < 0.05
    assert window.keyframe_dropped and bool(window.snapshot(CAMERA)[0].fixed[:2].all())
    at = window.seen_at(3)
    assert (window.observations.lm[at] == torch.arange(len(at))).all()
    assert len(window.triangulated_in(3)) == len(at)


def test_bundle_adjustment_of_the_window_returns_to_the_truth():
    window, T, _ = build(noise_px=0.05)
    window.triangulate(CAMERA, 3.0, 3.0)
    shaken = geometry.retract(
        T[1:], 0.01 * torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    )
    window.T_WC = torch.cat([T[:1], shaken])
    snapshot, used, rows = window.snapshot(CAMERA)
    result = bundle.solve(snapshot, BundleConfig())
    window.absorb(result, rows)
    window.rescale(float(T[4, :3].norm() / window.T_WC[4, :3].norm()))  # mono leaves the scale open
    assert (window.T_WC[:, :3] - T[:, :3]).norm(dim=1).max() < 0.005


def test_moving_the_map_moves_poses_and_points_alike():
    window, T, _ = build()
    window.triangulate(CAMERA, 3.0, 3.0)
    before, _ = window.residuals(CAMERA)
    window.move(geometry.exp(torch.tensor([1.0, 2.0, 3.0, 0.1, -0.2, 0.3], dtype=torch.float64)))
    after, _ = window.residuals(CAMERA)
    assert (
        torch.allclose(before, after, atol=1e-6) and (window.T_WC[0, :3] - torch.tensor([1.0, 2.0, 3.0])).norm() < 1.5
    )


def test_new_weights_describe_landmarks_again_at_a_keyframe_that_remains():
    matcher = SiftMatcher()
    window, _, _ = build(matcher)
    window.triangulate(CAMERA, 3.0, 3.0)
    window.drop_keyframe(0)
    window.landmarks = replace(
        window.landmarks, expected_inv_depth=torch.ones(len(window.landmarks), dtype=torch.float64)
    )
    matcher.weights_version = 7
    given = matcher.observe(IMAGE)
    window.renew_features(matcher, {20: given})
    assert [k.features.weights_version for k in window.keyframes] == [7] * 4
    assert window.keyframes[1].features is given
    assert window.queries.weights_version == 7 and len(window.queries) == len(window.landmarks)
    assert (window.landmarks.host == 40).all() and window.landmarks.expected_inv_depth.isnan().all()
    at = window.seen_at(3)
    assert torch.equal(window.queries.uv, window.observations.uv[at])


@pytest.mark.parametrize(("kind", "held"), [(ObservationKind.DEPTH, 2), (ObservationKind.STEREO, 1)])
def test_stereo_holds_one_pose_where_others_hold_two(kind, held):
    window, _, _ = build(depth=True)
    window.observations.kind[:] = int(kind)
    window.triangulate(replace(CAMERA, baseline_m=0.1), 3.0, 1e3)
    assert int(window.snapshot(CAMERA)[0].fixed.sum()) == 1
    window.drop_keyframe(0)
    assert window.snapshot(CAMERA)[0].fixed.tolist() == [True] * held + [False] * (4 - held)


def test_sigma_is_of_the_coordinates_that_it_weighs():
    """A match that is uncertain by one raw px near the corner of a fisheye is uncertain by more on the plane."""
    camera = replace(CAMERA, model="equidistant", distortion=(0.0, 0.0, 0.0, 0.0))
    window, _, _ = build(landmarks=2)
    window.observations = replace(window.observations, **{k: v[:0] for k, v in vars(window.observations).items()})
    uv = torch.tensor([[CAMERA.cx, CAMERA.cy], [5.0, 5.0]])
    window.observe(camera, 0, torch.arange(2), uv, torch.full((2,), 0.5))
    middle, corner = window.observations.sigma[:, 0].tolist()
    theta = float(((uv[1].double() - uv[0].double()) / camera.fx).norm())
    expected = 0.5 * (torch.tensor(theta).cos() ** -2 * torch.tensor(theta).tan() / theta).sqrt()
    assert (
        middle == pytest.approx(0.5, rel=1e-6) and corner == pytest.approx(float(expected), rel=1e-3) and corner > 0.6
    )


def test_scale_of_a_recalled_window_is_that_of_its_landmarks():
    window, T, points = build(keyframes=2)
    window.set_positions(torch.arange(60), points)
    window.remember_scale()
    # About the first camera, at the origin: what bundle adjustment with one pose held cannot tell.
    swollen = points * 1.3
    swollen[:20] += 0.5 * torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for _ in range(2):
        window.set_positions(torch.arange(60), swollen)
        window.T_WC = torch.cat([1.3 * T[:, :3], T[:, 3:]], 1)
        assert window.restore_scale(torch.arange(60)) == pytest.approx(1 / 1.3, rel=0.05)
        assert (
            torch.allclose(window.T_WC, T, atol=0.02)
            and float((window.landmarks.points_W - points)[20:].norm(dim=1).max()) < 0.2
        )
    window.rescale(2.0)
    window.restore_scale(torch.arange(60))
    assert float(window.T_WC[1, :3].norm() / T[1, :3].norm()) == pytest.approx(2.0, rel=0.05)
    window.drop_keyframe(0)
    before = window.T_WC.clone()
    assert window.restore_scale(torch.arange(60)) == 1 and torch.equal(window.T_WC, before)


KNOWN = 40


def wall(baseline: float, noise_px: float = 1.0, sigma_px: float = 1.0) -> Window:
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
    depth = entered(wall(baseline=3 * DEPTH / CAMERA.fx))
    assert len(depth) > 0.95 * NEW
    assert abs(float((1 / depth).mean()) * DEPTH - 1) < 0.05


def test_landmarks_of_no_expected_parallax_wait():
    assert len(entered(wall(baseline=1 * DEPTH / CAMERA.fx))) == 0


def test_an_expectation_is_that_of_the_surroundings_and_is_scaled_with_the_map():
    window = wall(baseline=0.3)
    window.triangulate(CAMERA, 3.0, 6.0)
    assert torch.allclose(window.landmarks.expected_inv_depth[KNOWN:], torch.tensor(1 / DEPTH, dtype=torch.float64))
    before = local_map.parallax_sigmas(window, window.observations, CAMERA)
    window.rescale(3.0)
    assert torch.allclose(window.landmarks.expected_inv_depth[KNOWN:], torch.tensor(1 / DEPTH / 3, dtype=torch.float64))
    assert torch.allclose(before, local_map.parallax_sigmas(window, window.observations, CAMERA), equal_nan=True)


def test_the_prior_is_left_out_once_parallax_is_enough_and_in_front_of_a_background():
    def with_prior(window: Window) -> torch.Tensor:
        o = local_map.with_depth_prior(
            window, window.observations, local_map.parallax_sigmas(window, window.observations, CAMERA)
        )
        assert bool((o.kf[o.kind == ObservationKind.DEPTH] == 0).all())  # at hosts alone
        return o.lm[o.kind == ObservationKind.DEPTH]

    near, far = wall(baseline=4 * DEPTH / CAMERA.fx, noise_px=0.1), wall(baseline=20 * DEPTH / CAMERA.fx)
    for window in (near, far):
        window.triangulate(CAMERA, 3.0, 6.0)
    assert len(with_prior(near)) == NEW and len(with_prior(far)) == 0
    row = torch.tensor([KNOWN])
    near.set_positions(row, near.landmarks.points_W[row] / 3)
    assert len(with_prior(near)) == NEW - 1


def test_an_expected_depth_is_no_measurement_a_turn_on_the_spot_stays_degenerate():
    snapshot, used, _ = turning_window().snapshot(CAMERA)
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


def test_a_window_that_measures_depth_has_no_use_for_it():
    window = wall(baseline=0.3)
    rows = torch.arange(3)
    window.observe(
        CAMERA,
        1,
        rows,
        torch.full((3, 2), 100.0),
        torch.ones(3),
        depths(torch.full((3,), 0.2), 1.0),
    )
    window.triangulate(CAMERA, 3.0, 6.0)
    assert bool(window.landmarks.expected_inv_depth.isnan().all())


# -- rotations by a gyroscope ---------------------------------------------------------------------------------------------


def turned_by(angle: float) -> Preintegrated:
    R = geometry.rotation_matrix(geometry.exp_so3(torch.tensor([0.0, angle, 0.0], dtype=torch.float64))).numpy()
    return Preintegrated(R, np.eye(3) * 1e-6, -np.eye(3), np.zeros(3), np.zeros(3), 1.0)


def with_rotations(*angles: float | None) -> Window:
    window, _, _ = build(keyframes=len(angles))
    steps = [None if angle is None else turned_by(angle) for angle in angles]
    window.keyframes = [replace(k, turned=step) for k, step in zip(window.keyframes, steps)]
    return window


def angles_of(window: Window) -> list[float | None]:
    return [None if k.turned is None else round(float(np.arcsin(k.turned.R[0, 2])), 6) for k in window.keyframes]


def test_the_rotation_to_a_keyframe_that_leaves_is_handed_on():
    window = with_rotations(None, 0.1, 0.2, 0.4, None, 0.3)
    window.drop_keyframe(2)
    assert angles_of(window) == [None, 0.1, 0.6, None, 0.3] and window.keyframes[2].turned.seconds == 2.0
    window.drop_keyframe(3)  # before it nothing was measured
    assert angles_of(window) == [None, 0.1, 0.6, None]
    window.drop_keyframe(0)
    assert angles_of(window)[1:] == [0.6, None]
    window.drop_keyframe(2)
    assert len(window.keyframes) == 2
