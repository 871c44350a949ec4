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
    predicted = residuals.reproject(w, made.T_WC, made.points_W)
    used = 2 if kind == ObservationKind.MONO else 3
    assert (predicted - w.obs)[:, :used].abs().max() < 1e-6
    assert predicted.shape == w.obs.shape and (kind != ObservationKind.MONO or (predicted[:, 2] == 0).all())


def test_kinds_may_be_mixed():
    w, made = window(ObservationKind.STEREO)
    kind = torch.arange(len(w.kf_idx)) % 3
    predicted = residuals.reproject(dataclasses.replace(w, kind=kind), made.T_WC, made.points_W)
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
        part = dataclasses.replace(w, kf_idx=kf, pt_idx=pt, obs=z, kind=k, sigma=torch.full_like(z, 2.0))
        return residuals.squared_norm(part, T, X)

    assert torch.autograd.gradcheck(call, (T, points, obs), atol=1e-4)


def test_landmark_behind_the_camera_has_no_reprojection():
    w, made = window(ObservationKind.MONO)
    points = made.points_W.clone()
    points[0] = -points[0]
    predicted = residuals.reproject(w, made.T_WC, points)
    assert torch.equal(predicted.isnan().all(1) | predicted[:, :2].isnan().any(1), w.pt_idx == 0)


def test_mono_ignores_the_third_number():
    kind = torch.zeros(2, dtype=torch.int64)
    r = torch.tensor([[1.0, 2.0, float("nan")], [3.0, 4.0, 9.0]])
    assert residuals.whiten(r, torch.full((2, 3), 2.0), kind).tolist() == [[0.5, 1.0, 0.0], [1.5, 2.0, 0.0]]


def test_stereo_needs_a_baseline():
    w, made = window(ObservationKind.STEREO)
    camera = dataclasses.replace(w.camera, baseline_m=None)
    with pytest.raises(CameraError, match="baseline_m"):
        residuals.reproject(dataclasses.replace(w, camera=camera), made.T_WC, made.points_W)


@pytest.mark.parametrize("width", (0.5, 2.0))
@pytest.mark.parametrize("name", KERNELS)
def test_weight_and_its_derivative_are_those_of_the_cost(name, width):
    kernel = residuals.RobustKernel(name, width)
    s = torch.tensor([1e-6, 0.1, 0.2, 1.0, 3.0, 5.0, 30.0, 900.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(kernel.cost(s).sum(), s, create_graph=True)
    assert torch.allclose(first, kernel.weight(s), rtol=1e-12)
    second = torch.autograd.grad(first.sum(), s)[0] if first.requires_grad and first.grad_fn else torch.zeros_like(s)
    assert torch.allclose(second, kernel.weight_derivative(s), rtol=1e-12)
    assert torch.allclose(-2 * s * second / first, kernel.curvature_loss(s), atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_weights_start_at_one_and_fall(name):
    weight = residuals.RobustKernel(name, 2.0).weight(torch.linspace(0, 100, 500, dtype=torch.float64))
    assert weight[0] == 1 and (weight.diff() <= 0).all() and (weight > 0).all()


def test_unknown_kernel_is_named():
    with pytest.raises(ConfigError, match="tukey"):
        residuals.RobustKernel("tukey", 1.0)


def layout(kind):
    """A window as the solvers lay it out, one keyframe a row and one slot a landmark, and the points in the cameras."""
    w, made = window(kind)
    mine = w.kf_idx == 1
    X = made.points_W[w.pt_idx[mine]]
    T = made.T_WC[1]
    rows = residuals.normalize(
        w.camera, w.obs[mine] + 0.4, w.sigma[mine], w.kind[mine], torch.ones_like(w.kind[mine]).bool()
    )
    return (
        residuals.unpack(rows[:, None]),
        T,
        X,
        dataclasses.replace(
            w,
            kf_idx=w.kf_idx[mine] * 0,
            pt_idx=torch.arange(len(X)),
            obs=w.obs[mine] + 0.4,
            kind=w.kind[mine],
            sigma=w.sigma[mine],
        ),
    )


@pytest.mark.parametrize("kind", list(ObservationKind))
def test_both_layouts_are_one_model(kind):
    observations, T, X, part = layout(kind)
    points_C = geometry.act(geometry.inverse(T), X).T[None]
    expected = residuals.whiten(part.obs - residuals.reproject(part, T[None], X), part.sigma, part.kind)
    at = residuals.project(observations, points_C)
    scale = expected.abs().max()
    assert (at.whitened[:, 0].T - expected[:, : len(at.whitened)]).abs().max() < 1e-9 * scale


@pytest.mark.parametrize("kind", list(ObservationKind))
def test_written_jacobians_are_those_of_autograd(kind):
    observations, T, X, _ = layout(kind)
    R, one = geometry.rotation_matrix(T[3:])[None], torch.ones(1, len(X), dtype=torch.float64)

    def whitened(twist, points):
        return residuals.project(
            observations, geometry.act(geometry.inverse(geometry.retract(T, twist)), points).T[None]
        ).whitened

    by_twist, by_point = torch.autograd.functional.jacobian(whitened, (T.new_zeros(6), X))
    at = residuals.project(observations, geometry.act(geometry.inverse(T), X).T[None])
    world = residuals.landmark_jacobian(observations, at, R, one).unbind(2)
    own = residuals.landmark_jacobian(observations, at, torch.eye(3, dtype=torch.float64)[None], one).unbind(2)
    points_C = geometry.act(geometry.inverse(T), X).T[None]
    i = torch.arange(len(X))
    for d in range(len(world)):
        assert torch.allclose(-world[d][0].T, by_point[d, 0][i, i], rtol=1e-9)
        pose = residuals.pose_jacobian(own[d], points_C)[0].T
        assert (pose + by_twist[d, 0]).abs().max() < 1e-9 * pose.abs().max()
