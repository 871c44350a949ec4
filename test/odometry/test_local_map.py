"""The window's flat arrays against exact geometry: rows stay consistent whatever joins or leaves."""

from dataclasses import replace

import pytest
import torch

from imatching_ros import bundle
from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.types import BAStatus, ObservationKind
from imatching_ros.matching.klt import KltMatcher
from imatching_ros.matching.sift import SiftMatcher
from imatching_ros.odometry.mapper import SolvedWindow
from imatching_ros.learning.sample import take_sample
from imatching_ros.odometry.local_map import Keyframe, Window
from odometry_scenes import CAMERA, speckle

IMAGE = torch.from_numpy(speckle(0, (240, 320)))[None]


def poses(count: int) -> torch.Tensor:
    """A sideways path that turns a little."""
    steps = torch.arange(count, dtype=torch.float64)
    zero = torch.zeros_like(steps)
    return geometry.exp(torch.stack([0.2 * steps, 0.02 * steps, 0.05 * steps, zero, 0.02 * steps, zero], 1))


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, generator=rng, dtype=torch.float64) * torch.tensor([4.0, 2.5, 4.0]) + torch.tensor(
        [-1.5, -1.25, 4.0]
    )


def build(
    matcher=None, keyframes: int = 5, landmarks: int = 60, noise_px: float = 0.0, depth: bool = False
) -> tuple[Window, torch.Tensor, torch.Tensor]:
    """A window with landmarks of the first keyframe seen in all; true poses and points. Rays that leave the image are kept."""
    matcher = matcher or KltMatcher()
    T, points = poses(keyframes), cloud(landmarks)
    window, rng = Window(), torch.Generator().manual_seed(1)
    for k in range(keyframes):
        window.add_keyframe(Keyframe(10 * k, 10 * k, IMAGE, matcher.observe(IMAGE)), T[k])
    seen = [geometry.act(geometry.inverse(pose), points) for pose in T]
    uv = [
        geometry.project(CAMERA, p) + noise_px * torch.randn(landmarks, 2, generator=rng, dtype=torch.float64)
        for p in seen
    ]
    queries = matcher.describe(window.keyframes[0].features, uv[0].float()) if matcher.wide_baseline else None
    rows = window.add_landmarks(0, uv[0].float(), queries)
    for k in range(keyframes):
        if depth:
            window.observe(
                CAMERA,
                k,
                rows,
                uv[k],
                torch.full((landmarks,), 0.5),
                1 / seen[k][:, 2],
                torch.full((landmarks,), 0.002),
                ObservationKind.DEPTH,
            )
        else:
            window.observe(CAMERA, k, rows, uv[k], torch.full((landmarks,), 0.5))
    return window, T, points


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
    at, total = window.seen_at(3)
    assert (window.observations.lm[at] == torch.arange(len(at))).all() and total == len(at)


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
    at, _ = window.seen_at(3)
    assert torch.equal(window.queries.uv, window.observations.uv[at])


@pytest.mark.parametrize("noise_px", [0.0, 0.3])
def test_a_learning_sample_is_complete_and_cloned(noise_px):
    window, _, _ = build(noise_px=noise_px)
    window.triangulate(CAMERA, 3.0, 3.0)
    snapshot, used, rows = window.snapshot(CAMERA)
    result = bundle.solve(snapshot, BundleConfig())
    assert result.status is BAStatus.CONVERGED
    solved = SolvedWindow.of(window, snapshot, result, used)
    sample = take_sample(solved, 0, 3, True)
    w = sample.window
    assert sample.keyframe_ids == (0, 10, 20, 30, 40) and len(sample.images) == 5 and sample.weights_version == 3
    assert (w.pt_idx[sample.host_obs] == torch.arange(len(w.points_W))).all() and (w.kf_idx[sample.host_obs] == 0).all()
    assert not sample.held_out[sample.host_obs].any()
    share = sample.held_out.float().mean()
    assert 0.08 < share < 0.3
    remaining = torch.bincount(w.pt_idx[~sample.held_out], minlength=len(w.points_W))
    assert remaining.min() >= 3
    assert torch.equal(sample.held_out, take_sample(solved, 0, 3, True).held_out)
    assert not torch.equal(sample.held_out, take_sample(solved, 1, 3, True).held_out)
    sample.images[0].zero_(), w.T_WC.zero_(), w.obs.zero_()
    assert (
        window.keyframes[0].image.any() and window.T_WC.any() and window.observations.obs.any() and snapshot.T_WC.any()
    )


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
    swollen = (
        points * 1.3
    )  # about the first camera, at the origin: what bundle adjustment with one pose held cannot tell
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
