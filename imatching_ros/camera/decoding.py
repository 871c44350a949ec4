"""Images from files and from Image/CompressedImage messages, as uint8 RGB or grey tensors and float32 metres."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..core.errors import SourceError


class Stretch:
    """16-bit images of one camera -> 8 bits, by the range of their content: thermal, infrared and 12-bit cameras use a part of it.

    The range follows the images slowly, so that a thing keeps its brightness; it begins again where the content leaves it.
    """

    INNER_PERCENT = (0.5, 99.5)  # of the pixels span the range: a few hot ones do not count
    # What an image closes of the difference, and at most of the range: within some ten images.
    RATE, MOST_STEP = 0.1, 0.05
    LEAST_SPAN = 256.0  # counts; fewer would show noise
    MOST_CLIPPED = 0.1  # share of the pixels outside of the range; more is another scene, or an offset of the sensor

    def __init__(self) -> None:
        self._range: tuple[float, float] | None = None

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, C) uint16 -> the same, uint8."""
        step = max(min(image.shape[:2]) // 120, 1)
        low, high = self._follow(image[::step, ::step])
        span = max(high - low, self.LEAST_SPAN)
        low = (low + high - span) / 2
        table = np.clip((np.arange(65536) - low) * (255 / span) + 0.5, 0, 255).astype(np.uint8)
        return table[image]

    def _follow(self, image: np.ndarray) -> tuple[float, float]:
        found = np.percentile(image, self.INNER_PERCENT)
        if self._range is not None and not self._has_left(image, *self._range):
            before = np.array(self._range)
            most = self.MOST_STEP * max(before[1] - before[0], self.LEAST_SPAN)
            found = before + np.clip(self.RATE * (found - before), -most, most)
        self._range = float(found[0]), float(found[1])
        return self._range

    def _has_left(self, image: np.ndarray, low: float, high: float) -> bool:
        return float(((image < low) | (image > high)).mean()) > self.MOST_CLIPPED


def read_image(path: str | Path, stretch: Stretch | None = None) -> Tensor:
    """An image file -> (3 or 1, H, W) uint8, RGB or grey; 16 bits by `stretch` (by this image alone where none is given).

    Raises:
        SourceError: missing or corrupt file.
    """
    return to_image(_read(path), bgr=True, stretch=stretch)


def read_depth(path: str | Path, units_per_metre: float) -> Tensor:
    """A depth image (16-bit, or float32 metres) -> (H, W) float32 m; 0 = unknown.

    Raises:
        SourceError: missing or corrupt file, or one with several channels.
    """
    depth = _read(path)
    if depth.ndim != 2:
        raise SourceError(f"the depth image {path} has {depth.shape[2]} channels, expected one")
    return to_depth(depth, 1.0 if depth.dtype.kind == "f" else units_per_metre)


def _read(path: str | Path) -> np.ndarray:
    try:
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
    except OSError as error:
        raise SourceError(f"cannot read the image {path}: {error.strerror}") from None
    image = _decompress(data)
    if image is None:
        raise SourceError(f"the image {path} cannot be decoded ({len(data)} bytes)")
    return image


# encoding: (number type, channels in memory, OpenCV's conversion to RGB or grey). OpenCV names a Bayer pattern by the second
# row's second and third pixel, so rggb is its BG.
ENCODINGS: dict[str, tuple[type, int, int | None]] = {
    "mono8": (np.uint8, 1, None),
    "8UC1": (np.uint8, 1, None),
    "mono16": (np.uint16, 1, None),
    "rgb8": (np.uint8, 3, None),
    "rgba8": (np.uint8, 4, cv2.COLOR_RGBA2RGB),
    "bgr8": (np.uint8, 3, cv2.COLOR_BGR2RGB),
    "8UC3": (np.uint8, 3, cv2.COLOR_BGR2RGB),
    "bgra8": (np.uint8, 4, cv2.COLOR_BGRA2RGB),
    "8UC4": (np.uint8, 4, cv2.COLOR_BGRA2RGB),
    "rgb16": (np.uint16, 3, None),
    "bgr16": (np.uint16, 3, cv2.COLOR_BGR2RGB),
    "uyvy": (np.uint8, 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422": (np.uint8, 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuyv": (np.uint8, 2, cv2.COLOR_YUV2RGB_YUYV),
    "yuv422_yuy2": (np.uint8, 2, cv2.COLOR_YUV2RGB_YUYV),
    "bayer_rggb8": (np.uint8, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (np.uint8, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (np.uint8, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (np.uint8, 1, cv2.COLOR_BayerGB2RGB),
    "bayer_rggb16": (np.uint16, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr16": (np.uint16, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg16": (np.uint16, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg16": (np.uint16, 1, cv2.COLOR_BayerGB2RGB),
}


def decode_image(message: Any, stretch: Stretch | None = None) -> Tensor:
    """An Image or CompressedImage message, of rclpy or rosbags -> (3 or 1, H, W) uint8, RGB or grey; 16 bits as `read_image`.

    Raises:
        SourceError: an encoding that cannot be read, or data that does not fit the stated size.
    """
    encoding = getattr(message, "encoding", None)
    if encoding is None:
        image = _decompress(np.frombuffer(message.data, np.uint8))
        if image is None:
            raise SourceError(
                f"a compressed image of format '{message.format}' cannot be decoded ({len(message.data)} bytes); "
                "expected jpeg or png"
            )
        return to_image(image, bgr=True, stretch=stretch)
    if encoding not in ENCODINGS:
        raise SourceError(f"images of encoding '{encoding}' cannot be used; expected one of {', '.join(ENCODINGS)}")
    dtype, channels, conversion = ENCODINGS[encoding]
    image = _raw(message, dtype, channels)
    try:
        return to_image(image if conversion is None else cv2.cvtColor(image, conversion), stretch=stretch)
    except cv2.error as error:  # as for an odd width in yuv422
        raise SourceError(
            f"an image of {message.width} x {message.height} {encoding} cannot be converted: {error.err}"
        ) from error


_PNG = b"\x89PNG"


def decode_depth(message: Any) -> Tensor:
    """A 16UC1 (mm) or 32FC1 (m) Image, or the png of compressed_depth_image_transport -> (H, W) float32 m; 0 = unknown.

    Raises:
        SourceError: another encoding.
    """
    encoding = getattr(message, "encoding", None)
    if encoding is None:
        # compressed_depth_image_transport puts 12 bytes (its quantisation) before the png; others leave them out.
        data = np.frombuffer(message.data, np.uint8)
        data = data if bytes(data[:4]) == _PNG else data[12:]
        image = _decompress(data) if "32FC1" not in message.format else None
        if image is None or image.ndim != 2 or image.dtype != np.uint16:
            raise SourceError(
                f"compressed depth of format '{message.format}' cannot be read; expected a 16-bit png in mm (16UC1)"
            )
        return to_depth(image, 1000.0)
    if encoding in ("16UC1", "mono16"):
        return to_depth(_raw(message, np.uint16, 1), 1000.0)
    if encoding == "32FC1":
        return to_depth(_raw(message, np.float32, 1), 1.0)
    raise SourceError(f"depth images of encoding '{encoding}' cannot be used; expected 16UC1 (mm) or 32FC1 (m)")


def _decompress(data: np.ndarray) -> np.ndarray | None:
    if not len(data) or (bytes(data[:4]) == _PNG and not _is_plausible_png(data.tobytes())):
        return None
    try:
        return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:  # as for a header that states a size beyond OpenCV's bound
        return None


def _is_plausible_png(data: bytes) -> bool:
    """Whether the chunks fit in the data, and the pixels in the chunks: both are allocated, up to GiB, before they are read."""
    most_pixels_per_byte = 8 * 1032  # deflate's greatest ratio, at one bit a pixel
    at = 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            return False
        if data[at + 4 : at + 8] == b"IHDR" and length >= 8:
            width, height = struct.unpack_from(">II", data, at + 8)
            if width * height > most_pixels_per_byte * len(data):
                return False
        at += 12 + length
    return True


def _raw(message: Any, dtype: type, channels: int) -> np.ndarray:
    """(H, W) or (H, W, channels) in the machine's byte order; rows may be padded (`step`)."""
    height, width, kind = int(message.height), int(message.width), np.dtype(dtype)
    row = width * channels * kind.itemsize
    step = int(message.step) or row
    data = np.frombuffer(message.data, np.uint8)
    if height <= 0 or width <= 0 or step < row or len(data) < step * (height - 1) + row:
        raise SourceError(
            f"an image of {width} x {height} {message.encoding} with rows of {step} bytes has {len(data)} bytes; "
            f"expected rows of at least {row} and {height * step} in all"
        )
    rows = np.lib.stride_tricks.as_strided(data, (height, row), (step, 1))
    image = (
        np.ascontiguousarray(rows)
        .view(kind.newbyteorder(">" if message.is_bigendian else "<"))
        .astype(kind, copy=False)
    )
    return image.reshape((height, width) if channels == 1 else (height, width, channels))


def to_image(image: np.ndarray, bgr: bool = False, stretch: Stretch | None = None) -> Tensor:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4), 8 or 16 bit -> (3 or 1, H, W) uint8; alpha is dropped."""
    if image.dtype == np.uint16:
        image = (stretch or Stretch()).apply(image[..., :3] if image.ndim == 3 else image)
    elif image.dtype != np.uint8:
        raise SourceError(f"an image of {image.dtype} numbers cannot be used; expected 8 or 16 bit")
    if image.ndim == 2:
        # A message's bytes belong to the message.
        return torch.from_numpy(np.ascontiguousarray(image) if image.flags.writeable else image.copy())[None]
    image = image[..., :3] if image.shape[2] >= 3 else image[..., :1]
    if bgr and image.shape[2] == 3:
        image = image[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def to_depth(depth: np.ndarray, units_per_metre: float) -> Tensor:
    """(H, W) numbers -> (H, W) float32 m; what is not finite or not positive becomes 0 = unknown."""
    metres = depth.astype(np.float32) / np.float32(units_per_metre)
    return torch.from_numpy(np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0)))
