"""Rectification of raw stereo pairs, and when it is needed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imatching_ros.camera.model import Camera
from imatching_ros.camera.rectification import Rectification, calibrate_stereo
from imatching_ros.core.errors import CameraError

H, W = 48, 64
EYE = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
K = (50.0, 0, 31, 0, 50, 23, 0, 0, 1)


def info(shift=0.0, d=(), r=EYE):
    """A CameraInfo; `shift` is -fx * baseline of a right camera."""
    p = (45.0, 0, 30, shift, 0, 45, 22, 0, 0, 0, 1, 0)
    return SimpleNamespace(
        width=W, height=H, k=K, d=d, r=r, p=p, distortion_model="plumb_bob", binning_x=0, binning_y=0, roi=None
    )


@pytest.mark.parametrize(
    "model, distortion", [("plumb_bob", (-0.2, 0.05, 0.001, 0.0)), ("equidistant", (0.05, -0.01, 0.002, 0.0))]
)
def test_rectification_keeps_rays(model, distortion):
    """A pixel of the rectified left camera is the same ray as the raw pixel that is copied there."""
    left = Camera(W, H, 50, 50, 31.5, 23.5, model, distortion)
    T = np.eye(4)
    T[:3, 3] = 0.11, 0.01, 0.0
    rectification = Rectification(left, left, T)
    ramp = torch.arange(W, dtype=torch.uint8).mul(3).expand(1, H, W)
    image_left, _ = rectification.apply(ramp, ramp)
    camera = rectification.camera
    uv = torch.tensor([[30.0, 20.0], [40.0, 30.0]], dtype=torch.float64)
    plane = (uv - torch.tensor([camera.cx, camera.cy])) / torch.tensor([camera.fx, camera.fy])
    ray = torch.cat([plane, torch.ones(2, 1)], 1)
    raw = left.project(ray @ torch.from_numpy(rectification.T_left_rectified[:3, :3]).T)
    assert torch.allclose(rectification.to_raw(uv), raw)
    seen = image_left[0, uv[:, 1].long(), uv[:, 0].long()].double()
    assert (seen - 3 * raw[:, 0]).abs().max() < 1.5
    assert camera.baseline_m == pytest.approx(np.hypot(0.11, 0.01))


def test_a_right_camera_on_the_left_is_refused():
    T = np.eye(4)
    T[0, 3] = -0.1
    with pytest.raises(CameraError, match="baseline"):
        Rectification(Camera(W, H, 50, 50, 31, 23), Camera(W, H, 50, 50, 31, 23), T)


def test_images_that_are_rectified_are_left_alone():
    pair = Camera(W, H, 45, 45, 30, 22, baseline_m=0.1)
    bent = dict(d=(-0.2, 0.05, 0, 0, 0))
    assert calibrate_stereo(info(**bent), info(-4.5, **bent), rectified=True) == (pair, None)
    assert calibrate_stereo(info(), info(-4.5), rectified=False) == (pair, None)


@pytest.mark.parametrize("raw", [dict(d=(-0.2, 0.05, 0, 0, 0)), dict(r=(0.995, 0, 0.1, 0, 1, 0, -0.1, 0, 0.995))])
def test_distorted_or_turned_cameras_are_rectified(raw):
    camera, rectification = calibrate_stereo(info(**raw), info(-4.5, **raw), rectified=False)
    assert rectification is not None and camera == rectification.camera and not camera.is_distorted
    assert camera.baseline_m == pytest.approx(0.1, rel=1e-4)
    R = np.reshape(raw.get("r", EYE), (3, 3))
    np.testing.assert_allclose(rectification.T_left_rectified[:3, :3], R.T, atol=0.01)


def test_a_pair_without_baseline_is_refused():
    with pytest.raises(CameraError, match="no baseline"):
        calibrate_stereo(info(), info(), rectified=True)


def test_a_raw_pair_without_a_rotation_is_refused():
    with pytest.raises(CameraError, match="left CameraInfo has R = .* no rotation"):
        calibrate_stereo(info(r=(0.0,) * 9), info(-4.5), rectified=False)
    assert calibrate_stereo(info(r=(0.0,) * 9), info(-4.5, r=(0.0,) * 9), rectified=True)[1] is None


def test_an_exchanged_pair_is_named():
    with pytest.raises(CameraError, match="left one P.3. = -4.5.*exchanged"):
        calibrate_stereo(info(-4.5), info(), rectified=True)
