"""Windows that do not determine their poses: a status with a reason, never NaN, never an endless loop."""

import dataclasses

import pytest
import torch

from imatching_ros import bundle
from imatching_ros.core import geometry
from imatching_ros.offline.experiments.ba_windows import make_window
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.types import BAStatus, ObservationKind
from imatching_ros.core.errors import BundleError

PRECISIONS = ("float64", "float32")


def solve(window, precision="float64", **settings):
    result = bundle.solve(window, BundleConfig(precision=precision, **settings))
    assert result.T_WC.isfinite().all() and result.T_WC.dtype == torch.float64
    assert ((result.T_WC[:, 3:].norm(dim=1) - 1).abs() < 1e-9).all()
    assert result.points_W[window.points_W.isfinite().all(1)].isfinite().all()
    assert result.weight.isfinite().all() and result.iterations <= BundleConfig().max_iterations
    if result.status is BAStatus.DEGENERATE:
        assert result.reason and result.covariance_newest is None
    return result


def change(window, **fields):
    return dataclasses.replace(window, **fields)


def select(window, keep):
    return change(
        window, **{name: getattr(window, name)[keep] for name in ("kf_idx", "pt_idx", "obs", "kind", "sigma")}
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("noise_px", (0.3, 1.0))
def test_pure_rotation_has_no_parallax(precision, noise_px):
    made = make_window(5, 200, motion="rotation", noise_px=noise_px)
    result = solve(made.window, precision)
    assert result.status is BAStatus.DEGENERATE and "parallax" in result.reason


@pytest.mark.parametrize("precision", PRECISIONS)
def test_camera_that_stands_still_has_no_parallax(precision):
    made = make_window(5, 200, pose_noise=0.0)
    w = made.window
    still = geometry.identity(5)
    points = w.points_W.clone()
    points[:, 2] = points[:, 2].abs() + 3
    uv = geometry.project(w.camera, points[w.pt_idx]) + 0.5 * torch.randn(
        len(w.pt_idx), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    obs = torch.cat([uv, torch.zeros_like(uv[:, :1])], 1)
    exact = solve(change(w, T_WC=still, points_W=points, obs=obs), precision)
    assert exact.status is BAStatus.DEGENERATE and "no baseline" in exact.reason
    shaken = geometry.retract(
        still, 0.01 * torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    )
    result = solve(change(w, T_WC=shaken, points_W=points, obs=obs), precision)
    assert result.status is BAStatus.DEGENERATE and "parallax" in result.reason


@pytest.mark.parametrize("kind", (ObservationKind.STEREO, ObservationKind.DEPTH))
def test_pure_rotation_is_no_problem_with_measured_depth(kind):
    made = make_window(5, 200, motion="rotation", kind=kind, noise_px=0.5)
    result = solve(made.window)
    assert result.status is BAStatus.CONVERGED
    assert geometry.local(made.T_WC, result.T_WC)[:, 3:].norm(dim=1).max() < 5e-3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_planar_scene_is_solved(precision):
    made = make_window(5, 200, noise_px=0.3, pose_noise=0.01, point_noise=0.02)
    flat = made.points_W.clone()
    flat[:, 2] = 8.0
    w = made.window
    predicted = geometry.project(w.camera, geometry.act(geometry.inverse(made.T_WC)[w.kf_idx], flat[w.pt_idx]))
    result = solve(
        change(w, points_W=flat * 1.01, obs=torch.cat([predicted, torch.zeros_like(predicted[:, :1])], 1)), precision
    )
    assert result.status is BAStatus.CONVERGED
    scale = made.T_WC[-1, :3].norm() / result.T_WC[-1, :3].norm()
    assert (result.T_WC[:, :3] * scale - made.T_WC[:, :3]).norm(dim=1).max() < 0.02


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("motion", ("sideways", "forward"))
def test_two_keyframes_are_enough(precision, motion):
    made = make_window(2, 200, track=2, shortest_track=2, noise_px=0.3, motion=motion, point_noise=0.02)
    result = solve(made.window, precision)
    assert result.status is BAStatus.CONVERGED
    error = geometry.angle(result.T_WC[1, :3] - result.T_WC[0, :3], made.T_WC[1, :3] - made.T_WC[0, :3])
    assert error < 0.05


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", ("huber", "cauchy", "geman_mcclure", "none"))
def test_all_outliers(precision, kernel):
    made = make_window(5, 200)
    g = torch.Generator().manual_seed(3)
    obs = made.window.obs.clone()
    obs[:, :2] = torch.rand(len(obs), 2, generator=g, dtype=torch.float64) * torch.tensor([640.0, 480.0])
    result = solve(change(made.window, obs=obs), precision, kernel=kernel)
    assert result.status is BAStatus.DEGENERATE and "outliers" in result.reason


@pytest.mark.parametrize("precision", PRECISIONS)
def test_point_at_infinity_stays_finite_and_harms_nobody(precision):
    made = make_window(5, 200, noise_px=0.5)
    w = made.window
    far = w.points_W.clone()
    far[7] = made.T_WC[0, :3] + torch.tensor([0.0, 0, 1e8], dtype=torch.float64)
    obs = w.obs.clone()
    mine = w.pt_idx == 7
    obs[mine, :2] = geometry.project(
        w.camera, geometry.act(geometry.inverse(made.T_WC)[w.kf_idx[mine]], far[w.pt_idx[mine]])
    )
    result = solve(change(w, points_W=far, obs=obs), precision)
    plain = solve(w, precision)
    assert result.status is BAStatus.CONVERGED
    assert geometry.local(plain.T_WC, result.T_WC).norm(dim=1).max() < 0.02
    assert result.residual_px[mine].norm(dim=1).max() < 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_point_behind_its_cameras_is_set_aside(precision):
    made = make_window(5, 200, noise_px=0.5)
    points = made.window.points_W.clone()
    points[3] = -points[3]
    result = solve(change(made.window, points_W=points), precision)
    mine = made.window.pt_idx == 3
    assert result.status is BAStatus.CONVERGED and "behind" in result.reason
    assert (result.weight[mine] == 0).all() and result.residual_px[mine].isnan().all()
    assert result.residual_px[~mine].isfinite().all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_observation_that_is_not_finite_is_set_aside(precision, bad):
    made = make_window(5, 200, noise_px=0.5, kind=ObservationKind.STEREO)
    w = made.window
    obs = w.obs.clone()
    obs[11, 1] = bad
    result = solve(change(w, obs=obs), precision)
    keep = torch.arange(len(obs)) != 11
    without = solve(select(w, keep), precision)
    assert result.status is BAStatus.CONVERGED and "not finite" in result.reason
    assert result.weight[11] == 0
    assert geometry.local(without.T_WC, result.T_WC).norm(dim=1).max() < (1e-9 if precision == "float64" else 1e-4)


def test_landmark_and_sigma_that_are_not_finite_are_set_aside():
    made = make_window(5, 200, noise_px=0.5)
    points, sigma = made.window.points_W.clone(), made.window.sigma.clone()
    points[5, 0] = float("nan")
    sigma[40] = 0.0
    result = solve(change(made.window, points_W=points, sigma=sigma))
    assert result.status is BAStatus.CONVERGED and result.weight[40] == 0
    assert (result.weight[made.window.pt_idx == 5] == 0).all()


@pytest.mark.parametrize("kind", (ObservationKind.MONO, ObservationKind.STEREO))
def test_disconnected_window(kind):
    made = make_window(6, 300, kind=kind)
    w = made.window
    first_half = torch.zeros(300, dtype=torch.bool).index_fill(0, w.pt_idx[w.kf_idx < 3], True)
    keep = torch.where(w.kf_idx < 3, True, ~first_half[w.pt_idx])
    result = solve(select(w, keep))
    assert result.status is BAStatus.DEGENERATE and "disconnected" in result.reason and "[3, 4, 5]" in result.reason
    assert torch.equal(result.T_WC, w.T_WC)


def test_keyframe_without_observations():
    made = make_window(4, 200)
    w = made.window
    keep = w.kf_idx != 2
    result = solve(select(w, keep))
    assert result.status is BAStatus.DEGENERATE and "[2]" in result.reason


def test_window_without_observations():
    made = make_window(3, 50)
    w = made.window
    none = torch.zeros(0, dtype=torch.int64)
    empty = change(w, obs=w.obs[:0], kf_idx=none, pt_idx=none, kind=none, sigma=w.sigma[:0])
    assert solve(empty).status is BAStatus.DEGENERATE
    assert solve(change(empty, points_W=w.points_W[:0])).status is BAStatus.DEGENERATE


def test_single_keyframe_moves_landmarks_only():
    made = make_window(2, 100, track=2, shortest_track=2, kind=ObservationKind.STEREO, noise_px=0.3)
    w = made.window
    keep = w.kf_idx == 0
    result = solve(change(select(w, keep), T_WC=w.T_WC[:1], fixed=w.fixed[:1]))
    assert result.status is BAStatus.CONVERGED and torch.equal(result.T_WC, w.T_WC[:1])
    assert (result.cost_after < 1e-6 * result.cost_before) and result.covariance_newest is None


@pytest.mark.parametrize("precision", PRECISIONS)
def test_start_far_from_the_truth_ends_with_a_status(precision):
    made = make_window(5, 200, pose_noise=1.0, point_noise=0.5, outliers=0.2)
    result = solve(made.window, precision)
    assert result.status in (BAStatus.CONVERGED, BAStatus.MAX_ITER, BAStatus.DEGENERATE)
    assert result.cost_after <= result.cost_before


@pytest.mark.parametrize(
    "field, value, word",
    (
        ("T_WC", torch.full((5, 7), float("nan")), "not finite"),
        ("kf_idx", torch.full((1,), 9), "shape"),
        ("fixed", torch.zeros(3, dtype=torch.bool), "shape"),
    ),
)
def test_contradicting_arrays_are_named(field, value, word):
    made = make_window(5, 50)
    with pytest.raises(BundleError, match=word):
        solve(change(made.window, **{field: value}))


def test_index_outside_the_window_and_missing_baseline_are_named():
    made = make_window(5, 50, kind=ObservationKind.STEREO)
    w = made.window
    with pytest.raises(BundleError, match="0..4"):
        solve(change(w, kf_idx=w.kf_idx + 1))
    with pytest.raises(BundleError, match="baseline_m"):
        solve(change(w, camera=dataclasses.replace(w.camera, baseline_m=None)))
