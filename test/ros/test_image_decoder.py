"""Messages of the cameras as frames."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from peers import image_message, info_message
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from walls import CAMERA, look

from imatching_ros.core.types import Matches
from imatching_ros.core.errors import CameraError, SourceError
from imatching_ros.ros import image_decoder
from imatching_ros.ros.inputs import CameraImages
from imatching_ros.ros.image_decoder import ImageDecoder

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
    frame = ImageDecoder("mono").decode(
        CameraImages(1, "optical", {"image": grey(camera=CAMERA)}, {"image": info()}, rectified=True)
    )
    assert frame.camera == CAMERA


@pytest.mark.parametrize("alone", [False, True])
def test_a_raw_fisheye_pair_is_rectified_also_when_the_right_image_is_missing(alone):
    images = {"left/image": grey(), "right/image": grey(BASELINE_M)}
    infos = {"left/image": info(), "right/image": info(-CAMERA.fx * BASELINE_M)}
    decoder = ImageDecoder("stereo")
    frame = decoder.decode(CameraImages(1, "optical", images, infos, rectified=False))
    assert (
        frame.camera.model == "none"
        and frame.camera.baseline_m == pytest.approx(BASELINE_M)
        and frame.right is not None
    )
    if alone:
        del images["right/image"]
        single = decoder.decode(CameraImages(2, "optical", images, infos, rectified=False))
        assert single.right is None and (single.image == frame.image).all() and (frame.id, single.id) == (0, 1)


@pytest.mark.parametrize(
    "camera", [FISHEYE, replace(CAMERA, model="plumb_bob", distortion=(-0.25, 0.08, 0.001, -0.0005, 0.0))]
)
def test_matches_of_a_raw_pair_are_given_in_its_own_pixels(camera):
    """Against OpenCV: the rectified pixel's ray, seen by the raw camera."""
    rng = np.random.default_rng(6)
    turn = Rotation.from_rotvec([1.5, -2.0, 1.0], degrees=True)  # of the raw camera in the rectified one
    images = {"left/image": grey(camera=camera), "right/image": grey(BASELINE_M, camera)}
    infos = {side: info_message(1, camera) for side in ("left", "right")}
    for side, message in infos.items():
        message.r = turn.as_matrix().ravel().tolist()
        shift = -CAMERA.fx * BASELINE_M if side == "right" else 0.0
        message.p = [CAMERA.fx, 0.0, CAMERA.cx, shift, 0.0, CAMERA.fy, CAMERA.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    decoder = ImageDecoder("stereo")
    rectified = decoder.decode(CameraImages(1, "optical", images, infos, rectified=False)).camera

    def project(uv: np.ndarray) -> np.ndarray:
        rays = np.column_stack(
            [(uv[:, 0] - rectified.cx) / rectified.fx, (uv[:, 1] - rectified.cy) / rectified.fy, np.ones(len(uv))]
        )
        rays = rays @ decoder.T_optical_camera[:3, :3].T
        K, D = np.array(infos["left"].k).reshape(3, 3), np.array(camera.distortion)
        found = (cv2.fisheye if camera.model == "equidistant" else cv2).projectPoints(
            rays[:, None], np.zeros(3), np.zeros(3), K, D
        )[0]
        return found[:, 0]

    uv_i, uv_j = rng.uniform((20, 20), (300, 220), (2, 30, 2)).astype(np.float32)
    ones = torch.ones(30)
    matches = Matches(
        0, 1, 0, 1, torch.from_numpy(uv_i), torch.from_numpy(uv_j), ones, ones, 2 * ones, ones.bool(), ones.long(), 1
    )
    raw = decoder.as_delivered(matches)
    np.testing.assert_allclose(raw.uv_i, project(uv_i), atol=1e-3)
    np.testing.assert_allclose(raw.uv_j, project(uv_j), atol=1e-3)
    assert np.abs(raw.uv_j.numpy() - uv_j).max() > 3
    # A small square of rectified pixels, by the area that it has in the raw image.
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    x, y = np.stack([project(uv_j + corner) for corner in corners]).transpose(2, 0, 1)
    area = np.abs(sum(x[k - 1] * y[k] - x[k] * y[k - 1] for k in range(4))) / 2
    np.testing.assert_allclose(raw.sigma_px, np.sqrt(area), rtol=1e-3)
    np.testing.assert_allclose(raw.residual_px, 2 * np.sqrt(area), rtol=1e-3)
    assert ImageDecoder("mono").as_delivered(matches) is matches


class Bridge:
    """cv_bridge for one encoding that the core lacks, for machines without it; it raises the errors of NumPy."""

    def imgmsg_to_cv2(self, message: Image, desired_encoding: str) -> np.ndarray:
        if message.encoding != "nv21":
            raise TypeError(f"Unrecognized image encoding [{message.encoding}]")
        return np.ndarray((message.height, message.width, 3), np.uint8, message.data)


@pytest.fixture(params=["the real one", "its like", "none"])
def bridge(request, monkeypatch) -> str:
    if request.param == "the real one":
        pytest.importorskip("cv_bridge", reason="cv_bridge is not installed: its like takes its place")
    else:
        monkeypatch.setattr(
            image_decoder, "cv_bridge", SimpleNamespace(CvBridge=Bridge) if request.param == "its like" else None
        )
    return request.param


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            Image(width=4, height=2, encoding="rgb8", step=12, data=bytes(7)),
            "4 x 2 rgb8 with rows of 12 bytes has 7 bytes",
        ),
        (Image(width=4, height=2, encoding="mono8", step=4), "4 x 2 mono8 with rows of 4 bytes has 0 bytes"),
        (Image(encoding="rgb8"), "0 x 0 rgb8"),
        (Image(), "images of encoding '' cannot be used; expected one of mono8"),
        (
            Image(width=3, height=2, encoding="yuv422", step=6, data=bytes(12)),
            "3 x 2 yuv422 cannot be converted: .*width",
        ),
        (
            Image(width=4, height=2, encoding="mono42", step=4, data=bytes(8)),
            "images of encoding 'mono42' cannot be used; expected one of mono8",
        ),
        (Image(width=4, height=2, encoding="nv21", step=4, data=bytes(7)), "images of encoding 'nv21' cannot be used"),
        (CompressedImage(format="jpeg", data=bytes(7)), "a compressed image of format 'jpeg' cannot be decoded"),
    ],
)
def test_what_cannot_be_read_is_bad_input_and_no_bug(bridge, message, reason):
    with pytest.raises(SourceError, match=reason):
        image_decoder.decode(message)


def test_only_what_the_core_does_not_know_is_left_to_cv_bridge(monkeypatch):
    monkeypatch.setattr(image_decoder, "cv_bridge", SimpleNamespace(CvBridge=Bridge))
    data = bytes(range(24))
    assert image_decoder.decode(Image(width=4, height=2, encoding="nv21", data=data)).shape == (3, 2, 4)
    assert image_decoder.decode(Image(width=4, height=2, encoding="rgb8", step=12, data=data)).flatten(
        1
    ).T.flatten().tolist() == list(data)


def masked_images(stamp_ns: int, mask=None) -> CameraImages:
    images = {"image": grey(camera=CAMERA)} | ({} if mask is None else {"mask": image_message(1, mask, "mono8")})
    return CameraImages(stamp_ns, "optical", images, {"image": info()}, rectified=True)


def test_masks_of_file_and_topic_unite_and_the_newest_is_kept_for_a_while(tmp_path):
    of_file, of_topic = (np.zeros((CAMERA.height, CAMERA.width), np.uint8) for _ in range(2))
    of_file[:20], of_topic[:, :30] = 255, 1
    cv2.imwrite(str(tmp_path / "robot.png"), of_file)
    decoder = ImageDecoder("mono", str(tmp_path / "robot.png"))
    expected = torch.from_numpy((of_file | of_topic) > 0)
    assert decoder.decode(masked_images(1, of_topic)).mask.equal(expected)
    assert decoder.decode(masked_images(200_000_001)).mask.equal(expected)
    assert decoder.decode(masked_images(900_000_001)).mask.equal(torch.from_numpy(of_file > 0))
    assert ImageDecoder("mono").decode(masked_images(1)).mask is None
    with pytest.raises(CameraError, match="the mask of the topic is 8 x 6"):
        decoder.decode(masked_images(2, np.zeros((6, 8), np.uint8)))
    labels = masked_images(3)
    labels.images["mask"] = image_message(1, of_topic.astype(np.float32), "32FC1")
    with pytest.raises(SourceError, match="the mask of the topic cannot be used .expected mono8.: .*'32FC1'"):
        decoder.decode(labels)


def test_a_mask_of_a_raw_pair_is_rectified_with_its_image():
    images = {"left/image": grey(), "right/image": grey(BASELINE_M)}
    mask = np.zeros((CAMERA.height, CAMERA.width), np.uint8)
    mask[:, : CAMERA.width // 2] = 255
    infos = {"left/image": info(), "right/image": info(-CAMERA.fx * BASELINE_M)}
    images["mask"] = image_message(1, mask, "mono8")
    frame = ImageDecoder("stereo").decode(CameraImages(1, "optical", images, infos, rectified=False))
    assert frame.right is not None and frame.camera.model == "none"
    row = frame.mask[CAMERA.height // 2]
    assert abs(int(row.sum()) - CAMERA.width // 2) < CAMERA.width // 10 and bool(row[0]) and not bool(row[-1])
