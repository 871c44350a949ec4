import dataclasses

import pytest
import torch

from imatching_ros.core import geometry, residuals
from imatching_ros.offline.experiments.ba_windows import make_window
from imatching_ros.core.types import ObservationKind
from imatching_ros.core.errors import CameraError, ConfigError

KERNELS = ("huber", "cauchy", "geman_mcclure", "none")


def window(kind, **options):
    made = make_window(4, 30, kind=kind, noise_px=1e-9, **options)
    return made.window, made


@pytest.mark.parametrize("kind", list(ObservationKind))
def test_reprojection_says_what_a_perfect_observation_says(kind):
    w, made = window(kind)
    predicted = residuals.reproject(w.camera, made.T_WC, made.points_W, w.kf_idx, w.pt_idx, w.kind)
    used = 2 if kind == ObservationKind.MONO else 3
    assert (predicted - w.obs)[:, :used].abs().max() < 1e-6
    assert predicted.shape == w.obs.shape and (kind != ObservationKind.MONO or (predicted[:, 2] == 0).all())


def test_kinds_may_be_mixed():
    w, made = window(ObservationKind.STEREO)
    kind = torch.arange(len(w.kf_idx)) % 3
    predicted = residuals.reproject(w.camera, made.T_WC, made.points_W, w.kf_idx, w.pt_idx, kind)
    z = geometry.act(geometry.inverse(made.T_WC)[w.kf_idx], made.points_W[w.pt_idx])[:, 2]
    assert (predicted[kind == 0, 2] == 0).all()
    assert (predicted[kind == 1, 2] - w.obs[kind == 1, 2]).abs().max() < 1e-6
    assert (predicted[kind == 2, 2] - 1 / z[kind == 2]).abs().max() < 1e-12


@pytest.mark.parametrize("kind", list(ObservationKind))
def test_gradients_in_poses_landmarks_and_observations(kind):
    w, made = window(kind)
    kf, pt, k = w.kf_idx[:8], w.pt_idx[:8], w.kind[:8]
    points = made.points_W[: int(pt.max()) + 1].clone().requires_grad_()
    T, obs = made.T_WC.clone().requires_grad_(), (w.obs[:8] + 0.7).requires_grad_()

    def call(T, X, z):
        return residuals.squared(w.camera, T, X, kf, pt, z, k, torch.full_like(z, 2.0))

    assert torch.autograd.gradcheck(call, (T, points, obs), atol=1e-4)


def test_landmark_behind_the_camera_has_no_reprojection():
    w, made = window(ObservationKind.MONO)
    points = made.points_W.clone()
    points[0] = -points[0]
    predicted = residuals.reproject(w.camera, made.T_WC, points, w.kf_idx, w.pt_idx, w.kind)
    assert torch.equal(predicted.isnan().all(1) | predicted[:, :2].isnan().any(1), w.pt_idx == 0)


def test_mono_ignores_the_third_number():
    kind = torch.zeros(2, dtype=torch.int64)
    r = torch.tensor([[1.0, 2.0, float("nan")], [3.0, 4.0, 9.0]])
    assert residuals.whiten(r, torch.full((2, 3), 2.0), kind).tolist() == [[0.5, 1.0, 0.0], [1.5, 2.0, 0.0]]


def test_stereo_needs_a_baseline():
    w, made = window(ObservationKind.STEREO)
    camera = dataclasses.replace(w.camera, baseline_m=None)
    with pytest.raises(CameraError, match="baseline_m"):
        residuals.reproject(camera, made.T_WC, made.points_W, w.kf_idx, w.pt_idx, w.kind)


@pytest.mark.parametrize("width", (0.5, 2.0))
@pytest.mark.parametrize("kernel", KERNELS)
def test_weight_and_bend_are_the_derivatives_of_the_cost(kernel, width):
    s = torch.tensor([1e-6, 0.1, 0.2, 1.0, 3.0, 5.0, 30.0, 900.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(residuals.kernel_cost(kernel, s, width).sum(), s, create_graph=True)
    assert torch.allclose(first, residuals.kernel_weight(kernel, s, width), rtol=1e-12)
    second = torch.autograd.grad(first.sum(), s)[0] if first.requires_grad and first.grad_fn else torch.zeros_like(s)
    assert torch.allclose(-2 * s * second / first, residuals.kernel_bend(kernel, s, width), atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_start_at_one_and_fall(kernel):
    s = torch.linspace(0, 100, 500, dtype=torch.float64)
    weight = residuals.kernel_weight(kernel, s, 2.0)
    assert weight[0] == 1 and (weight.diff() <= 0).all() and (weight > 0).all()


def test_unknown_kernel_is_named():
    for call in (residuals.kernel_cost, residuals.kernel_weight, residuals.kernel_bend):
        with pytest.raises(ConfigError, match="tukey"):
            call("tukey", torch.ones(1), 1.0)
