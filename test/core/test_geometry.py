import math

import pypose as pp
import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.offline.experiments.ba_windows import make_window
from imatching_ros.camera.model import Camera


def twists(n=20, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, dtype=torch.float64, generator=g)
    x[0] = 0
    x[1, 3:] *= 1e-9
    x[2, 3:] *= 1e-5
    x[3, 3:] *= 3.1 / x[3, 3:].norm()
    return x


def test_poses_agree_with_pypose():
    x = twists()
    T = geometry.exp(x)
    p = torch.randn(len(x), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other = geometry.exp(x.flip(0))
    generator = torch.zeros(len(x), 4, 4, dtype=torch.float64)
    generator[:, :3, :3], generator[:, :3, 3] = geometry.skew(x[:, 3:]), x[:, :3]
    assert (geometry.to_matrix(T) - torch.linalg.matrix_exp(generator)).abs().max() < 1e-12
    # pypose drops the coupling of translation and tiny rotations
    assert (T - pp.se3(x).Exp().tensor()).abs().max() < 1e-8
    reference = pp.SE3(T)
    assert (geometry.log(T) - reference.Log().tensor()).abs().max() < 1e-9
    assert (geometry.inverse(T) - reference.Inv().tensor()).abs().max() < 1e-13
    assert (geometry.compose(T, other) - (reference @ pp.SE3(other)).tensor()).abs().max() < 1e-13
    assert (geometry.relative(T, other) - (reference.Inv() @ pp.SE3(other)).tensor()).abs().max() < 1e-12
    assert (geometry.act(T, p) - reference.Act(p)).abs().max() < 1e-13
    assert (geometry.to_matrix(T) - reference.matrix()).abs().max() < 1e-13
    assert (geometry.adjoint(T) @ x[..., None] - reference.Adj(pp.se3(x)).tensor()[..., None]).abs().max() < 1e-12
    assert (geometry.retract(T, x) - (reference @ reference).tensor()).abs().max() < 1e-12


def test_gradients_are_those_of_plain_autograd_which_pypose_does_not_give():
    x = twists()[4].requires_grad_()
    p = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda y: geometry.act(geometry.exp(y), p), (x,), atol=1e-6)
    (ours,) = torch.autograd.grad(geometry.act(geometry.exp(x), p).sum(), x)
    (mixed,) = torch.autograd.grad(geometry.act(pp.se3(x).Exp().tensor(), p).sum(), x)
    assert (ours - mixed).abs().max() > 0.1 * ours.abs().max()


def test_exp_log_retract_and_local_are_inverse_to_each_other():
    x = twists()
    x[:, 3:] *= (x[:, 3:].norm(dim=1).clamp_max(3.1) / x[:, 3:].norm(dim=1).clamp_min(1e-30))[:, None]
    T = geometry.exp(twists(seed=3))
    assert (geometry.log(geometry.exp(x)) - x).abs().max() < 1e-9
    assert (geometry.local(T, geometry.retract(T, x)) - x).abs().max() < 1e-9


def test_matrices_round_trip_for_every_largest_part():
    q = torch.tensor(
        [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]],
        dtype=torch.float64,
    )
    T = torch.cat([torch.arange(18.0, dtype=torch.float64).view(6, 3), q], 1)
    back = geometry.from_matrix(geometry.to_matrix(T))
    assert (geometry.to_matrix(back) - geometry.to_matrix(T)).abs().max() < 1e-14
    assert (back[:, :3] == T[:, :3]).all()


def test_exp_and_log_have_finite_exact_gradients_at_identity():
    x = torch.zeros(2, 6, dtype=torch.float64)
    x[1, 3:] = 1e-5
    x.requires_grad_()
    assert torch.autograd.gradcheck(geometry.exp, (x,), atol=1e-6)
    assert torch.autograd.gradcheck(lambda y: geometry.log(geometry.exp(y)), (x,), atol=1e-6)


def test_angle_is_exact_for_tiny_angles():
    a = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    for size in (1e-9, 1e-4, 1.0, 3.0):
        b = torch.tensor([math.cos(size), math.sin(size), 0], dtype=torch.float64) * 7
        assert abs(float(geometry.angle(a, b)) / size - 1) < 1e-9


def test_parallax_of_hand_made_rays():
    T = geometry.identity(4)
    T[:, 0] = torch.tensor([0.0, 1.0, -1.0, 0.3])
    points = torch.tensor([[0.0, 0, 1], [0, 0, 2], [0, 0, 5]], dtype=torch.float64)
    kf, pt = torch.tensor([3, 1, 0, 2, 0, 1, 0]), torch.tensor([0, 0, 0, 0, 1, 1, 2])
    found = geometry.parallax(T, points, kf, pt)
    assert torch.allclose(found, torch.tensor([math.pi / 2, math.atan(0.5), 0.0], dtype=torch.float64), atol=1e-12)


def test_parallax_is_at_least_half_of_the_widest_pair():
    made = make_window(6, 100)
    w = made.window
    found = geometry.parallax(w.T_WC, w.points_W, w.kf_idx, w.pt_idx)
    for p in range(0, 100, 7):
        rays = w.T_WC[w.kf_idx[w.pt_idx == p], :3] - w.points_W[p]
        exact = geometry.angle(rays[:, None], rays[None]).max()
        assert 0.5 * exact - 1e-12 <= found[p] <= exact + 1e-12


def test_back_projection_is_the_inverse_of_projection():
    camera = Camera(640, 480, 400.0, 410.0, 320.0, 240.0)
    uv = torch.tensor([[10.0, 20], [600, 400]], dtype=torch.float64)
    depth = torch.tensor([2.0, 5.0], dtype=torch.float64)
    X = geometry.back_project(camera, uv, depth)
    assert (X[:, 2] == depth).all() and (geometry.project(camera, X) - uv).abs().max() < 1e-12


def test_sampson_distance_is_the_distance_to_the_epipolar_geometry():
    made = make_window(2, 200, track=2, shortest_track=2, noise_px=1e-9)
    w, T = made.window, made.T_WC
    T_ij = geometry.relative(T[0], T[1])
    uv_i, uv_j = w.obs[w.kf_idx == 0, :2], w.obs[w.kf_idx == 1, :2]
    assert geometry.sampson(w.camera, w.camera, T_ij, uv_i, uv_j).max() < 1e-6
    # A shift across the epipolar line by d needs at least d / sqrt(2) of both points together, at most d of one.
    E = geometry.skew(T_ij[:3]) @ geometry.rotation_matrix(T_ij[3:])
    line = (geometry.rays(w.camera, uv_i) @ E)[:, :2]
    shifted = uv_j + 0.5 * line / line.norm(dim=1, keepdim=True)
    distance = geometry.sampson(w.camera, w.camera, T_ij, uv_i, shifted)
    assert ((distance > 0.5 / math.sqrt(2) - 0.1) & (distance < 0.5 + 1e-6)).all()
    assert distance.median() > 0.3


def test_sampson_distance_without_translation_is_not_a_number():
    camera = Camera(640, 480, 400.0, 400.0, 320.0, 240.0)
    uv = torch.tensor([[10.0, 20.0]], dtype=torch.float64)
    assert geometry.sampson(camera, camera, geometry.identity(), uv, uv).isnan().all()


FISHEYE = Camera(320, 240, 118.0, 118.0, 159.5, 119.5, "equidistant", (0.0, 0.0, 0.0, 0.0))
BARREL = Camera(320, 240, 256.0, 256.0, 159.5, 119.5, "plumb_bob", (-0.28, 0.07, 0.0, 0.0))


@pytest.mark.parametrize(
    "camera", [Camera(320, 240, 256.0, 256.0, 159.5, 119.5), FISHEYE, BARREL], ids=["plain", "fisheye", "barrel"]
)
def test_what_lies_in_the_raw_image_is_seen_and_nothing_else(camera):
    """Also near its border, where undistorted coordinates leave the image's box."""
    width, height = camera.width, camera.height
    raw = torch.tensor(
        [[3.0, height / 2], [width - 4.0, height / 2], [width / 2, 3.0], [width / 2, height / 2]], dtype=torch.float64
    )
    rays = torch.cat(
        [
            (camera.undistort(raw) - raw.new_tensor([camera.cx, camera.cy])) / raw.new_tensor([camera.fx, camera.fy]),
            torch.ones(4, 1),
        ],
        1,
    )
    uv, inside = geometry.see(camera, rays * 3)
    assert inside.all() and torch.allclose(uv, raw, atol=1e-3)
    _, inside = geometry.see(camera, rays * -3)
    assert not inside.any()
    outside = torch.tensor([[-8.0, height / 2], [width + 8.0, height / 2]], dtype=torch.float64)
    away = torch.cat(
        [
            (camera.undistort(outside) - raw.new_tensor([camera.cx, camera.cy]))
            / raw.new_tensor([camera.fx, camera.fy]),
            torch.ones(2, 1),
        ],
        1,
    )
    assert not geometry.see(camera, away.nan_to_num(1e3))[1].any()
    assert not geometry.see(camera, torch.tensor([[0.3, 0.2, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64))[1].any()


def test_rotation_matrix_of_any_norm():
    q = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    unit = q / q.norm(dim=1, keepdim=True)
    assert (geometry.rotation_matrix_of_any_norm(q) - geometry.rotation_matrix(unit)).abs().max() < 1e-14
    # Cayley's formula: (I - K)^-1 (I + K) with K = [phi / 2]x.
    phi = 0.1 * q[:, :3]
    eye, K = torch.eye(3, dtype=torch.float64), geometry.skew(phi / 2)
    cayley = torch.linalg.solve(eye - K, eye + K)
    assert (
        geometry.rotation_matrix_of_any_norm(torch.cat([phi, torch.full((20, 1), 2.0)], 1)) - cayley
    ).abs().max() < 1e-14
