"""Cameras from CameraInfo and files."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from imatching_ros.core.errors import CameraError
from imatching_ros.camera.calibration import (
    camera_from_info,
    check_size,
    plausibility_warning,
    is_rectified,
    make_camera,
    read_camera,
    stereo_baseline_m,
)

K = [500.0, 0, 320.0, 0, 510.0, 240.0, 0, 0, 1]


def info(**values):
    base = dict(
        width=640,
        height=480,
        k=K,
        d=[0.1, -0.2, 0.001, 0.002, 0.05],
        distortion_model="plumb_bob",
        binning_x=0,
        binning_y=0,
        roi=SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
        p=[400.0, 0, 310, 0, 0, 400, 250, 0, 0, 0, 1, 0],
    )
    return SimpleNamespace(**{**base, **values})


def test_info_is_taken_as_it_is():
    camera = camera_from_info(info())
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.model) == (500, 510, 320, 240, "plumb_bob")
    assert camera.distortion == (0.1, -0.2, 0.001, 0.002, 0.05)


def test_ros1_spelling():
    message = info()
    message.K, message.D, message.P = message.k, message.d, message.p
    del message.k, message.d, message.p
    assert camera_from_info(message) == camera_from_info(info())


def test_region_of_interest_then_binning():
    """A point seen by the full sensor appears in the cropped and binned image where averaging of pixels puts it."""
    message = info(binning_x=2, binning_y=2, roi=SimpleNamespace(x_offset=100, y_offset=40, width=400, height=300))
    camera = camera_from_info(message)
    assert (camera.width, camera.height) == (200, 150)
    point = torch.tensor([0.1, 0.05, 1.0], dtype=torch.float64)
    full = camera_from_info(info()).project(point)
    expected = (full - torch.tensor([100.0, 40.0]) + 0.5) / 2 - 0.5
    torch.testing.assert_close(camera.project(point), expected)


def test_rectified_images_use_p():
    camera = camera_from_info(info(), rectified=True)
    assert (camera.fx, camera.cx, camera.model) == (400, 310, "none")


def test_rectified_images_of_a_fisheye_have_no_distortion_left():
    camera = camera_from_info(info(distortion_model="equidistant", d=[0.1, 0.01, 0.0, 0.0]), rectified=True)
    assert (camera.fx, camera.model, camera.distortion) == (400, "none", ())


def test_zeros_mean_not_calibrated():
    with pytest.raises(CameraError, match="not calibrated"):
        camera_from_info(info(k=[0.0] * 9))


def with_tx(tx):
    return info(p=[400.0, 0, 310, tx, 0, 400, 250, 0, 0, 0, 1, 0])


def test_baseline_of_a_pair():
    assert stereo_baseline_m(with_tx(0.0), with_tx(-48.0)) == pytest.approx(0.12)
    assert stereo_baseline_m(with_tx(24.0), with_tx(-24.0)) == pytest.approx(0.12)  # a rig whose origin lies between
    assert stereo_baseline_m(info(), info()) is None
    assert stereo_baseline_m(with_tx(-48.0), with_tx(0.0)) is None  # exchanged


def test_a_baseline_in_millimetres_is_questioned():
    camera = camera_from_info(info(), rectified=True)
    assert "mm or cm" in plausibility_warning(replace(camera, baseline_m=120.0))
    assert plausibility_warning(replace(camera, baseline_m=0.12)) == plausibility_warning(camera) == ""


@pytest.mark.parametrize("k", [[1.0, 0, 0, 0, 1, 0, 0, 0, 1], [0.8, 0, 0.5, 0, 1.1, 0.5, 0, 0, 1]])
@pytest.mark.parametrize("model, d", [("plumb_bob", [0.0] * 5), ("equidistant", [0.0] * 4)])
def test_focal_lengths_of_a_pixel_are_no_calibration(k, model, d):
    with pytest.raises(CameraError, match="degrees is not calibrated"):
        camera_from_info(info(k=k, d=d, distortion_model=model))


def test_wide_cameras_are_taken():
    assert camera_from_info(info(k=[60.0, 0, 320, 0, 60, 240, 0, 0, 1])).field_of_view_deg == pytest.approx(
        158.8, abs=0.1
    )
    fisheye = camera_from_info(
        info(k=[180.0, 0, 320, 0, 180, 240, 0, 0, 1], d=[0.0] * 4, distortion_model="equidistant")
    )
    assert fisheye.field_of_view_deg > 200


@pytest.mark.parametrize(
    "size, k",
    [
        ((1280, 960), [1000.0, 0, 640, 0, 1020, 480, 0, 0, 1]),  # all of the full sensor, as the message defines it
        ((640, 480), [1000.0, 0, 640, 0, 1020, 480, 0, 0, 1]),  # the size is binned already
        ((640, 480), [500.0, 0, 320, 0, 510, 240, 0, 0, 1]),  # and so is K
    ],
)
def test_binning_that_the_driver_applied_is_not_applied_again(size, k):
    message = info(width=size[0], height=size[1], k=k, binning_x=2, binning_y=2)
    camera = camera_from_info(message, image_size=(640, 480))
    assert (camera.width, camera.height) == (640, 480) and (camera.fx, camera.fy) == (500, 510)
    assert camera.cx == pytest.approx(320, abs=0.5)


def test_rectified_images_without_p():
    zeros = [0.0] * 12
    camera = camera_from_info(info(p=zeros, d=[0.0] * 5), rectified=True)
    assert (camera.fx, camera.cx, camera.model) == (500, 320, "none")
    with pytest.raises(CameraError, match="rectified to 'no'"):
        camera_from_info(info(p=zeros), rectified=True)
    with pytest.raises(CameraError, match="not calibrated"):
        camera_from_info(info(p=zeros, k=[0.0] * 9), rectified=True)


@pytest.mark.parametrize("model", ["omni", "ds", "eucm"])
def test_other_projections_are_refused_by_name(tmp_path, model):
    chain = dict(camera_model=model, intrinsics=[0.5, 500, 510, 320, 240], resolution=[640, 480])
    chain |= dict(distortion_model="none", distortion_coeffs=[])
    (tmp_path / "camchain.yaml").write_text(yaml.safe_dump({"cam0": chain}))
    with pytest.raises(CameraError, match=f"camchain.yaml: the camera model '{model}' is not supported"):
        read_camera(tmp_path / "camchain.yaml")
    with pytest.raises(CameraError, match=f"'{model}' is not supported"):
        make_camera(640, 480, K, model, [0.0] * 4)


@pytest.mark.parametrize(
    "model, distortion, expected",
    [
        ("plumb_bob k1 k2 p1 p2 k3", (0.1, 0, 0, 0, 0), "plumb_bob"),
        ("radtan", (0.1, 0, 0, 0), "plumb_bob"),
        ("plumb_bob", (0, 0, 0, 0, 0), "none"),
        ("rational_polynomial", (0.1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), "rational_polynomial"),
        ("equidistant", (0, 0, 0, 0), "equidistant"),
        ("", (), "none"),
        ("Brown Conrady", (0, 0, 0, 0, 0), "none"),
        ("perspective", (), "none"),
    ],
)
def test_spellings_of_models(model, distortion, expected):
    assert make_camera(640, 480, K, model, distortion).model == expected


@pytest.mark.parametrize("model, distortion", [("omni", (0.1,)), ("none", (0.1, 0, 0, 0)), ("plumb_bob", (0.1,))])
def test_unknown_models_are_refused(model, distortion):
    with pytest.raises(CameraError):
        make_camera(640, 480, K, model, distortion)


def test_files_of_all_forms_agree(tmp_path):
    expected = camera_from_info(info())
    (tmp_path / "camera.json").write_text(
        json.dumps(
            {
                "cameras": [
                    dict(
                        width=640,
                        height=480,
                        fx=500,
                        fy=510,
                        cx=320,
                        cy=240,
                        model="pinhole",
                        distortion_model="plumb_bob k1 k2 p1 p2 k3",
                        distortion=expected.distortion,
                    )
                ]
            }
        )
    )
    (tmp_path / "ros.yaml").write_text(
        yaml.safe_dump(
            dict(
                image_width=640,
                image_height=480,
                camera_matrix=dict(rows=3, cols=3, data=K),
                distortion_model="plumb_bob",
                distortion_coefficients=dict(rows=1, cols=5, data=list(expected.distortion)),
            )
        )
    )
    (tmp_path / "sensor.yaml").write_text(
        "%YAML:1.0\n"
        + yaml.safe_dump(
            dict(
                intrinsics=[500, 510, 320, 240],
                resolution=[640, 480],
                distortion_model="plumb_bob",
                distortion_coefficients=list(expected.distortion),
            )
        )
    )
    assert all(read_camera(tmp_path / name) == expected for name in ("camera.json", "ros.yaml", "sensor.yaml"))


@pytest.mark.parametrize("text", ["[1, 2]", "a: 1", "camera_matrix: {data: [1]}", "{"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(CameraError):
        read_camera(tmp_path / "x.yaml")


def test_size_disagreement_names_both():
    with pytest.raises(CameraError, match="320 x 240.*640 x 480"):
        check_size(camera_from_info(info()), 240, 320, "the image")


@pytest.mark.parametrize(
    "topic, rectified",
    [
        ("/camera/image_rect", True),
        ("/camera/image_rect_color/compressed", True),
        ("/camera/image_raw", False),
        ("/rectified/image_raw", False),
    ],
)
def test_rectified_topics_are_known_by_their_last_part(topic, rectified):
    assert is_rectified(topic) is rectified
