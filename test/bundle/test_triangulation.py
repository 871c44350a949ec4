import cv2
import pytest
import torch

from imatching_ros.bundle import triangulate
from imatching_ros.camera.model import Camera
from imatching_ros.core import geometry
from imatching_ros.core.types import ObservationKind
from imatching_ros.offline.experiments.ba_windows import make_window


@pytest.mark.parametrize("kind", list(ObservationKind))
def test_triangulation_of_exact_observations_is_exact(kind):
    made = make_window(6, 200, noise_px=1e-9, kind=kind)
    w = made.window
    found = triangulate(w.camera, made.T_WC, w.kf_idx, w.pt_idx, w.obs, 200, w.kind, torch.ones_like(w.sigma))
    assert found.valid.all()
    assert (found.points_W - made.points_W).abs().max() < 1e-6
    assert found.rms_px.max() < 1e-6
    assert torch.equal(found.views, torch.bincount(w.pt_idx, minlength=200))


def test_triangulation_minimises_the_reprojection_error():
    made = make_window(5, 100, noise_px=1.0)
    w = made.window
    found = triangulate(w.camera, made.T_WC, w.kf_idx, w.pt_idx, w.obs[:, :2], 100, iterations=20)
    X = found.points_W.clone().requires_grad_()
    predicted = geometry.project(w.camera, geometry.act(geometry.inverse(made.T_WC)[w.kf_idx], X[w.pt_idx]))
    (gradient,) = torch.autograd.grad(((predicted - w.obs[:, :2]) ** 2).sum(), X)
    assert found.valid.all() and gradient.abs().max() < 1e-3


def test_triangulation_of_two_views_agrees_with_opencv():
    made = make_window(2, 100, track=2, shortest_track=2, noise_px=1e-9)
    w, c = made.window, made.window.camera
    K = torch.tensor([[c.fx, 0, c.cx], [0, c.fy, c.cy], [0, 0, 1]], dtype=torch.float64)
    P = (K @ geometry.to_matrix(geometry.inverse(made.T_WC))[:, :3]).numpy()
    expected = cv2.triangulatePoints(P[0], P[1], w.obs[w.kf_idx == 0, :2].T.numpy(), w.obs[w.kf_idx == 1, :2].T.numpy())
    found = triangulate(c, made.T_WC, w.kf_idx, w.pt_idx, w.obs[:, :2], 100)
    assert torch.allclose(found.points_W, torch.tensor((expected[:3] / expected[3]).T), atol=1e-5)


def test_triangulation_refuses_what_it_cannot_know():
    camera = Camera(640, 480, 400.0, 400.0, 320.0, 240.0)
    T = geometry.identity(2)
    T[1, 0] = 1.0
    # 0: seen once; 1: rays that meet behind the cameras; 2: not finite; 3: good; 4: never seen
    kf = torch.tensor([0, 0, 1, 0, 1, 0, 1])
    pt = torch.tensor([0, 1, 1, 2, 2, 3, 3])
    nan = float("nan")
    uv = torch.tensor(
        [[320.0, 240], [300, 240], [340, 240], [nan, 1], [2, 2], [340, 240], [300, 240]], dtype=torch.float64
    )
    found = triangulate(camera, T, kf, pt, uv, 5)
    assert found.valid.tolist() == [False, False, False, True, False]
    assert found.points_W.isfinite().all()
    assert (found.points_W[3] - torch.tensor([0.5, 0, 10.0], dtype=torch.float64)).abs().max() < 1e-6


def test_single_stereo_or_depth_observation_is_enough():
    camera = Camera(640, 480, 400.0, 400.0, 320.0, 240.0, baseline_m=0.5)
    obs = torch.tensor([[320.0, 240, 320 - 400 * 0.5 / 4], [320, 240, 1 / 4]], dtype=torch.float64)
    kind = torch.tensor([ObservationKind.STEREO, ObservationKind.DEPTH])
    found = triangulate(camera, geometry.identity(1), torch.zeros(2, dtype=torch.int64), torch.arange(2), obs, 2, kind)
    assert found.valid.all() and (found.points_W - torch.tensor([0, 0, 4.0], dtype=torch.float64)).abs().max() < 1e-9
