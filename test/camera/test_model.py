import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from imatching_ros.camera.model import Camera
from imatching_ros.core.errors import CameraError

PINHOLE = dict(width=640, height=480, fx=420.0, fy=415.0, cx=322.5, cy=238.0)
CAMERAS = {
    "none": Camera(**PINHOLE),
    "plumb_bob4": Camera(**PINHOLE, model="plumb_bob", distortion=(-0.28, 0.07, 0.001, -0.0005)),
    "plumb_bob5": Camera(**PINHOLE, model="plumb_bob", distortion=(0.26, -0.95, -0.005, 0.003, 1.16)),
    "rational": Camera(
        **PINHOLE, model="rational_polynomial", distortion=(0.5, -0.2, 0.001, 0.0004, 0.01, 0.8, -0.1, 0.02)
    ),
    "equidistant": Camera(**PINHOLE, model="equidistant", distortion=(-0.01, 0.02, -0.015, 0.003)),
}


def matrix(camera):
    return np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])


def points(n=300, spread=0.6):
    g = torch.Generator().manual_seed(0)
    z = 1 + 5 * torch.rand(n, 1, generator=g, dtype=torch.float64)
    xy = (torch.rand(n, 2, generator=g, dtype=torch.float64) - 0.5) * 2 * spread
    return torch.cat([xy * z, z], 1)


@pytest.mark.parametrize("name", CAMERAS)
def test_project_agrees_with_opencv(name):
    camera, X = CAMERAS[name], points()
    zero = np.zeros(3)
    if camera.model == "equidistant":
        expected, _ = cv2.fisheye.projectPoints(
            X.numpy()[:, None], zero, zero, matrix(camera), np.array(camera.distortion)
        )
    else:
        expected, _ = cv2.projectPoints(
            X.numpy(), zero, zero, matrix(camera), np.array(camera.distortion or (0.0,) * 4)
        )
    assert np.abs(camera.project(X).numpy() - expected[:, 0]).max() < 1e-9


@pytest.mark.parametrize("dtype, tolerance", ((torch.float64, 1e-9), (torch.float32, 2e-3)))
@pytest.mark.parametrize("name", CAMERAS)
def test_undistort_is_the_inverse_of_distort(name, dtype, tolerance):
    camera, X = CAMERAS[name], points()
    ideal = (X[:, :2] / X[:, 2:] * torch.tensor([camera.fx, camera.fy]) + torch.tensor([camera.cx, camera.cy])).to(
        dtype
    )
    assert (camera.undistort(camera.distort(ideal)) - ideal).abs().max() < tolerance
    assert camera.undistort(camera.distort(ideal)).dtype == dtype


@pytest.mark.parametrize("name", [n for n in CAMERAS if n != "none"])
def test_undistort_agrees_with_opencv_over_the_image(name):
    camera = CAMERAS[name]
    v, u = np.meshgrid(np.linspace(60, 420, 10), np.linspace(80, 560, 12), indexing="ij")
    uv = np.stack([u.ravel(), v.ravel()], 1)
    if camera.model == "equidistant":
        expected = cv2.fisheye.undistortPoints(
            uv[:, None], matrix(camera), np.array(camera.distortion), P=matrix(camera)
        )
    else:
        criteria = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 200, 1e-12)
        K = matrix(camera)
        expected = cv2.undistortPointsIter(uv[:, None], K, np.array(camera.distortion), None, K, criteria)
    assert np.abs(camera.undistort(torch.tensor(uv)).numpy() - expected[:, 0]).max() < 1e-4


@pytest.mark.parametrize("name", CAMERAS)
def test_gradients_of_undistort_and_project(name):
    camera = CAMERAS[name]
    uv = torch.tensor([[100.0, 80.0], [322.0, 240.0], [560.0, 400.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(camera.undistort, (uv,), atol=1e-5)
    assert torch.autograd.gradcheck(camera.project, (points(5).requires_grad_(),), atol=1e-5)


def test_undistort_is_nan_where_the_model_has_no_inverse():
    # r (1 - 0.6 r^2) never exceeds 0.5: a corner of the image lies beyond it.
    camera = Camera(**PINHOLE, model="plumb_bob", distortion=(-0.6, 0.0, 0.0, 0.0))
    far = torch.tensor([[639.0, 479.0], [330.0, 240.0]], dtype=torch.float64)
    assert camera.undistort(far).isnan().all(1).tolist() == [True, False]


def test_what_is_outside_the_view_is_never_folded_into_the_image():
    camera = Camera(**PINHOLE, model="plumb_bob", distortion=(-0.6, 0.0, 0.0, 0.0))
    angle = torch.linspace(0, 6.28, 50, dtype=torch.float64)[:, None]
    radius = torch.linspace(0.01, 5, 400, dtype=torch.float64)[None]
    xy = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle), torch.ones_like(radius * angle)], -1)
    distorted = (camera.project(xy) - torch.tensor([camera.cx, camera.cy])) / torch.tensor([camera.fx, camera.fy])
    assert (distorted.norm(dim=-1).diff(dim=1) > 0).all()


@pytest.mark.parametrize("factor", (0.5, 0.25, 2.0))
@pytest.mark.parametrize("name", CAMERAS)
def test_scaled_camera_sees_the_resized_image(name, factor):
    camera, X = CAMERAS[name], points()
    expected = (camera.project(X) + 0.5) * factor - 0.5
    assert (camera.scaled(factor).project(X) - expected).abs().max() < 1e-9
    assert camera.scaled(factor).width == round(640 * factor)


@pytest.mark.parametrize(
    "change, word",
    (
        (dict(model="fov"), "unknown distortion model"),
        (dict(model="plumb_bob", distortion=(0.1,)), "4 or 5"),
        (dict(fx=0.0), "not calibrated"),
        (dict(fy=float("nan")), "not finite"),
        (dict(width=0), "image size"),
    ),
)
def test_impossible_calibrations_are_named(change, word):
    with pytest.raises(CameraError, match=word):
        Camera(**{**PINHOLE, **change})


@pytest.mark.parametrize("name", CAMERAS)
def test_stretch_is_the_growth_of_small_areas(name):
    camera = CAMERAS[name]
    raw = torch.tensor([[40.0, 30.0], [320.0, 240.0], [600.0, 400.0], [500.0, 60.0]], dtype=torch.float64)
    raw = raw[camera.undistort(raw).isfinite().all(1)]  # not all models have an inverse everywhere
    corners = camera.undistort(
        raw[:, None] + 0.05 * torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    )
    x, y = corners.unbind(-1)
    area = 0.5 * (x * y.roll(-1, 1) - x.roll(-1, 1) * y).sum(1).abs()
    torch.testing.assert_close(camera.stretch(camera.undistort(raw)), 10 * area.sqrt(), rtol=1e-3, atol=0)
    assert name not in ("plumb_bob4", "equidistant") or float(camera.stretch(camera.undistort(raw)).max()) > 1.05


class CountOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in CAMERAS if name != "none"])
def test_undistorting_takes_few_operations(name):
    """The matches of every frame are undistorted several times; they are few, so that the time is that of starting operations."""
    camera = CAMERAS[name]
    uv = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([640.0, 480.0])
    with CountOperations() as operations:
        camera.undistort(uv)
    assert operations.count < 30  # the rest is numpy's
