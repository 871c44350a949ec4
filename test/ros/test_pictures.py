"""Messages of the cameras as frames."""

from __future__ import annotations

from dataclasses import replace

import pytest
from peers import image_message, info_message
from sensor_msgs.msg import CameraInfo
from walls import CAMERA, look

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
