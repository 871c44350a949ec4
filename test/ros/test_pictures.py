"""Messages of the cameras as frames."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from peers import image_message, info_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from walls import CAMERA, look

from imatching_ros.errors import SourceError
from imatching_ros.ros import pictures
from imatching_ros.ros.inputs import Picture
from imatching_ros.ros.pictures import PictureDecoder

pytestmark = pytest.mark.ros

FISHEYE = replace(CAMERA, model="equidistant", distortion=(0.05, -0.01, 0.002, 0.0))
BASELINE_M = 0.1


def info(shift: float = 0.0) -> CameraInfo:
    message = info_message(1, FISHEYE)
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [CAMERA.fx, 0.0, CAMERA.cx, shift, 0.0, CAMERA.fy, CAMERA.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message


def grey(x: float = 0.0, camera=FISHEYE):
    return image_message(1, look((x, 0, 0), camera=camera)[0], "mono8")


def test_a_rectified_fisheye_is_a_pinhole():
    frame = PictureDecoder("mono").decode(Picture(1, "optical", {"image": grey(camera=CAMERA)}, {"image": info()}, rectified=True))
    assert frame.camera == CAMERA


@pytest.mark.parametrize("alone", [False, True])
def test_a_raw_fisheye_pair_is_rectified_also_when_the_right_picture_is_missing(alone):
    images = {"left/image": grey(), "right/image": grey(BASELINE_M)}
    infos = {"left/image": info(), "right/image": info(-CAMERA.fx * BASELINE_M)}
    decoder = PictureDecoder("stereo")
    frame = decoder.decode(Picture(1, "optical", images, infos, rectified=False))
    assert frame.camera.model == "none" and frame.camera.baseline_m == pytest.approx(BASELINE_M) and frame.right is not None
    if alone:
        del images["right/image"]
        single = decoder.decode(Picture(2, "optical", images, infos, rectified=False))
        assert single.right is None and (single.image == frame.image).all() and (frame.id, single.id) == (0, 1)


class Bridge:
    """What cv_bridge does with one encoding that the core does not know, for machines without it: its errors are those of NumPy."""

    def imgmsg_to_cv2(self, message: Image, desired_encoding: str) -> np.ndarray:
        if message.encoding != "nv21":
            raise TypeError(f"Unrecognized image encoding [{message.encoding}]")
        return np.ndarray((message.height, message.width, 3), np.uint8, message.data)


@pytest.fixture(params=["the real one", "its like", "none"])
def bridge(request, monkeypatch) -> str:
    if request.param == "the real one":
        pytest.importorskip("cv_bridge", reason="cv_bridge is not installed: its like takes its place")
    else:
        monkeypatch.setattr(pictures, "cv_bridge", SimpleNamespace(CvBridge=Bridge) if request.param == "its like" else None)
    return request.param


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Image(width=4, height=2, encoding="rgb8", step=12, data=bytes(7)), "4 x 2 rgb8 with rows of 12 bytes has 7 bytes"),
        (Image(width=4, height=2, encoding="mono8", step=4), "4 x 2 mono8 with rows of 4 bytes has 0 bytes"),
        (Image(encoding="rgb8"), "0 x 0 rgb8"),
        (Image(), "images of encoding '' cannot be used; expected one of mono8"),
        (Image(width=3, height=2, encoding="yuv422", step=6, data=bytes(12)), "3 x 2 yuv422 with 12 bytes cannot be decoded by OpenCV: expected .*width"),
        (Image(width=4, height=2, encoding="mono42", step=4, data=bytes(8)), "images of encoding 'mono42' cannot be used; expected one of mono8"),
        (Image(width=4, height=2, encoding="nv21", step=4, data=bytes(7)), "images of encoding 'nv21' cannot be used"),
        (CompressedImage(format="jpeg", data=bytes(7)), "a compressed image of format 'jpeg' cannot be decoded"),
    ],
)
def test_what_cannot_be_read_is_bad_input_and_no_bug(bridge, message, reason):
    with pytest.raises(SourceError, match=reason):
        pictures.decode(message)


def test_only_what_the_core_does_not_know_is_left_to_cv_bridge(monkeypatch):
    monkeypatch.setattr(pictures, "cv_bridge", SimpleNamespace(CvBridge=Bridge))
    data = bytes(range(24))
    assert pictures.decode(Image(width=4, height=2, encoding="nv21", data=data)).shape == (3, 2, 4)
    assert pictures.decode(Image(width=4, height=2, encoding="rgb8", step=12, data=data)).flatten(1).T.flatten().tolist() == list(data)
