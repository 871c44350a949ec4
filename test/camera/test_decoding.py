"""Decoding of images and messages."""

import resource
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from imatching_ros.core.errors import SourceError
from imatching_ros.camera.decoding import Stretch, decode_depth, decode_image, read_depth, read_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def message(array, encoding, padding=0, big=0):
    array = np.ascontiguousarray(array)
    rows = array.reshape(array.shape[0], -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return SimpleNamespace(
        height=array.shape[0],
        width=array.shape[1],
        encoding=encoding,
        is_bigendian=big,
        step=rows.shape[1],
        data=rows.tobytes(),
    )


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    "encoding, array",
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("8UC3", RGB[..., ::-1]),
        ("rgba8", np.dstack([RGB, RGB[..., 0]])),
        ("bgra8", np.dstack([RGB[..., ::-1], RGB[..., 0]])),
    ],
)
def test_colour_comes_out_as_rgb(encoding, array, padding):
    assert (decode_image(message(array, encoding, padding)).numpy() == RGB.transpose(2, 0, 1)).all()


def test_grey_stays_grey():
    assert (decode_image(message(RGB[..., 0], "mono8", 3)).numpy() == RGB[None, ..., 0]).all()


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize("per_level, offset", [(257, 0), (16, 0), (2, 21_000)])
def test_sixteen_bits_are_stretched_by_their_content(big, per_level, offset):
    """The whole range, 12 bits, and a thermal camera that uses 512 of 65536 counts; but for one pixel in two hundred at the ends."""
    wide = GREY.astype(np.uint16) * per_level + offset
    image = decode_image(message(wide.astype(">u2" if big else "<u2"), "mono16", 4, big)).numpy()[0]
    assert np.abs(image.astype(int) - GREY).max() <= 2


def test_sixteen_bits_of_files_and_compressed_images_are_stretched(tmp_path):
    wide = GREY.astype(np.uint16) * 4 + 7000
    cv2.imwrite(str(tmp_path / "a.png"), wide)
    data = cv2.imencode(".png", wide)[1]
    for image in (read_image(tmp_path / "a.png"), decode_image(SimpleNamespace(format="mono16; png", data=data))):
        assert image.min() == 0 and image.max() == 255


def test_noise_is_not_stretched_to_an_image():
    noise = np.random.default_rng(0).normal(8000, 3, (48, 64)).astype(np.uint16)
    assert decode_image(message(noise, "mono16")).float().std() < 4


def test_the_stretch_is_steady_and_follows():
    """Something hot comes into view for ten images, then another scene: what stays in view hardly changes its brightness."""
    rng, stretch = np.random.default_rng(0), Stretch()
    scene = rng.integers(7000, 7400, (48, 64)).astype(np.uint16)
    levels = []
    for k in range(30):
        image = scene.copy()
        if 10 <= k < 20:
            image[:6, :8] = 9000
        levels.append(float(decode_image(message(image, "mono16"), stretch)[0, 8:].float().mean()))
    assert np.abs(np.diff(levels)).max() < 15 and levels[0] == pytest.approx(127.5, abs=3)
    assert np.abs(np.diff(levels[21:])).max() < 8
    other = decode_image(message(scene + np.uint16(20_000), "mono16"), stretch).float()
    assert other.mean() == pytest.approx(127.5, abs=3) and other.std() > 60


def test_bayer_colours_are_in_the_right_order():
    red = np.zeros((8, 8), np.uint8)
    red[0::2, 0::2] = 200  # the R of rggb
    image = decode_image(message(red, "bayer_rggb8")).float().mean((1, 2))
    assert image[0] > 100 and image[1] < 20 and image[2] < 20


def test_compressed_images():
    data = cv2.imencode(".png", RGB[..., ::-1])[1]
    assert (decode_image(SimpleNamespace(format="png", data=data)).numpy() == RGB.transpose(2, 0, 1)).all()
    with pytest.raises(SourceError, match="cannot be decoded"):
        decode_image(SimpleNamespace(format="jpeg", data=b"nonsense"))
    with pytest.raises(SourceError, match="cannot be decoded"):
        decode_image(SimpleNamespace(format="jpeg", data=b""))


def test_encodings_that_cannot_be_read_are_named():
    with pytest.raises(SourceError, match="nv99"):
        decode_image(message(RGB, "nv99"))
    short = message(RGB, "rgb8")
    short.data = short.data[:-20]
    with pytest.raises(SourceError, match="bytes"):
        decode_image(short)


def test_sizes_that_cannot_be_converted_are_named():
    with pytest.raises(SourceError, match="7 x 6 yuv422"):
        decode_image(message(np.zeros((6, 7, 2), np.uint8), "yuv422"))


def test_depth_in_metres_with_holes():
    millimetres = np.array([[0, 1500], [65535, 2]], np.uint16)
    torch.testing.assert_close(decode_depth(message(millimetres, "16UC1")), torch.tensor([[0, 1.5], [65.535, 0.002]]))
    metres = np.array([[np.nan, 1.5], [-1, np.inf]], np.float32)
    torch.testing.assert_close(decode_depth(message(metres, "32FC1")), torch.tensor([[0, 1.5], [0, 0]]))
    with pytest.raises(SourceError, match="rgb8"):
        decode_depth(message(RGB, "rgb8"))


def test_compressed_depth_has_a_header_or_none():
    millimetres = np.arange(48, dtype=np.uint16).reshape(6, 8) * 100
    png = cv2.imencode(".png", millimetres)[1].tobytes()
    for data in (b"\0" * 12 + png, png):  # some publish it without
        depth = decode_depth(SimpleNamespace(format="16UC1; compressedDepth png", data=data))
        torch.testing.assert_close(depth, torch.from_numpy(millimetres.astype(np.float32) / 1000))


def test_files(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), RGB[..., ::-1])
    assert (read_image(tmp_path / "a.png").numpy() == RGB.transpose(2, 0, 1)).all()
    cv2.imwrite(str(tmp_path / "d.png"), np.full((4, 4), 5000, np.uint16))
    assert read_depth(tmp_path / "d.png", 5000).unique().tolist() == [1.0]
    with pytest.raises(SourceError, match="3 channels"):
        read_depth(tmp_path / "a.png", 1000)
    with pytest.raises(SourceError, match="cannot read"):
        read_image(tmp_path / "none.png")


def test_a_compressed_image_that_states_an_impossible_size_is_bad_input():
    png = bytearray(cv2.imencode(".png", RGB)[1].tobytes())
    png[16:24] = (100_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(bytes(png[12:29])).to_bytes(4, "big")
    with pytest.raises(SourceError, match="png"):
        decode_image(SimpleNamespace(format="png", data=bytes(png)))


def test_a_png_that_states_more_bytes_than_it_has_allocates_nothing():
    png = bytearray(cv2.imencode(".png", RGB)[1].tobytes())
    png[33:37] = (2**32 - 1).to_bytes(4, "big")  # the length of the chunk after the header
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match="png"):
        decode_image(SimpleNamespace(format="png", data=bytes(png)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000
