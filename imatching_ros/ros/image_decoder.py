"""Messages of the cameras -> frames of the core: decoding, calibration, rectification."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from ..camera.model import Camera
from ..core.types import Frame, Matches
from ..core.errors import SourceError
from ..core.masks import unite
from ..camera.calibration import camera_from_info, check_size
from ..camera.decoding import ENCODINGS, Stretch, decode_depth, decode_image, to_image
from ..camera.masks import check_mask, check_size_of_mask, read_mask
from ..camera.rectification import Rectification, calibrate_stereo
from .inputs import MASK, CameraImages

try:
    import cv_bridge
except ImportError:
    cv_bridge = None


class ImageDecoder:
    """Decodes images; keeps the calibration until a CameraInfo differs.

    Attributes:
        T_optical_camera: (4, 4) pose of the frames' camera in the optical frame that the messages name: a small rotation when
            stereo images are rectified here, else the identity.
    """

    MASK_KEPT_NS = 500_000_000  # images without a mask of their own take the newest one until it is so old

    def __init__(self, mode: str, mask_file: str = "") -> None:
        """`mask_file`: non-zero where images are not used; empty: none.

        Raises:
            SourceError: the file cannot be read.
        """
        self._mode = mode
        self._static_mask = read_mask(Path(mask_file).expanduser()) if mask_file else None
        self._mask: tuple[int, Tensor] | None = None  # the newest of the topic, and its image's stamp
        self._key: tuple | None = None
        self._camera: Camera | None = None
        self._rectification: Rectification | None = None
        self._stretch = Stretch()
        self._count = 0
        self.T_optical_camera = np.eye(4)

    def decode(self, received: CameraImages) -> Frame:
        """One frame; ids count up.

        Raises:
            CameraError: no usable calibration, or images of another size.
            SourceError: an encoding that cannot be read, or data that does not fit it.
        """
        first, *partner = (message for name, message in received.images.items() if name != MASK)
        image = self._decode(first)
        camera = self._calibrate(received, (image.shape[2], image.shape[1]))
        depth = right = None
        if partner and self._mode == "stereo":
            right = self._decode(partner[0])
            if right.shape != image.shape:
                raise SourceError(
                    f"the left image has the shape {tuple(image.shape)}, the right one {tuple(right.shape)}; expected the same"
                )
        elif partner and self._mode == "rgbd":
            depth = decode_depth(partner[0])
            if depth.shape != image.shape[1:]:
                raise SourceError(
                    f"the depth image is {depth.shape[1]} x {depth.shape[0]}, the colour image {image.shape[2]} x "
                    f"{image.shape[1]}; expected depth registered to colour (see depth_image_proc)"
                )
        check_size(camera, image.shape[1], image.shape[2], "the image")
        mask = self._decode_mask(received, image)
        if self._rectification is not None:
            image, right = self._rectification.apply(image, right)
            mask = None if mask is None else self._rectification.apply_mask(mask)
        self._count += 1
        return Frame(self._count - 1, received.stamp_ns, image, camera, depth, right, mask)

    def _decode_mask(self, received: CameraImages, image: Tensor) -> Tensor | None:
        """(H, W) bool of the image as it came: that of the file, and that of the topic."""
        height, width = image.shape[1:]
        if MASK in received.images:
            try:
                of_topic = decode_image(received.images[MASK]).amax(0) > 0
            except SourceError as error:
                raise SourceError(f"the mask of the topic cannot be used (expected mono8): {error}") from None
            check_size_of_mask(of_topic, height, width, "the mask of the topic")
            self._mask = received.stamp_ns, of_topic
        if self._static_mask is not None:
            check_mask(self._static_mask, height, width, "the mask of the file")
        newest = self._mask
        known = newest is not None and 0 <= received.stamp_ns - newest[0] <= self.MASK_KEPT_NS
        return unite(self._static_mask, newest[1] if newest is not None and known else None)

    def as_delivered(self, matches: Matches) -> Matches:
        """Matches in pixels of the frames -> in those of the images that came, which differ where a raw stereo pair is rectified here.

        Standard deviations and residuals are scaled by the size of a pixel at the newer point, the mean over directions.
        """
        if self._rectification is None:
            return matches
        size = self._rectification.raw_px_per_px(matches.uv_j)
        return replace(
            matches,
            uv_i=self._rectification.to_raw(matches.uv_i),
            uv_j=self._rectification.to_raw(matches.uv_j),
            sigma_px=matches.sigma_px * size,
            residual_px=matches.residual_px * size,
        )

    def _decode(self, message: Any) -> Tensor:
        return decode(message, self._stretch)

    def _calibrate(self, received: CameraImages, image_size: tuple[int, int]) -> Camera:
        """The frames' camera; computed again when a CameraInfo or the size of the images changes."""
        key = (image_size, *(_contents(info) for info in received.infos.values()))
        if self._camera is None or key != self._key:
            self._camera = self._rectification = None
            self.T_optical_camera = np.eye(4)
            if self._mode == "stereo":
                left, right = received.infos.values()
                self._camera, self._rectification = calibrate_stereo(left, right, received.rectified, image_size)
            else:
                (info,) = received.infos.values()
                self._camera = camera_from_info(info, rectified=received.rectified, image_size=image_size)
            if self._rectification is not None:
                self.T_optical_camera = self._rectification.T_left_rectified
            self._key = key
        return self._camera


def decode(message: Any, stretch: Stretch | None = None) -> Tensor:
    """Image or CompressedImage -> (3 or 1, H, W) uint8; encodings that `camera.decoding` does not read go to cv_bridge.

    Raises:
        SourceError: neither can read it, or its data does not fit the stated size.
    """
    encoding = getattr(message, "encoding", None)
    if cv_bridge is None or encoding is None or encoding in ENCODINGS:
        return decode_image(message, stretch)
    try:
        return to_image(np.asarray(cv_bridge.CvBridge().imgmsg_to_cv2(message, "rgb8")))
    except (
        TypeError,
        ValueError,
        cv2.error,
    ) as error:  # CvBridgeError is a TypeError; NumPy raises one too where bytes are missing
        raise SourceError(
            f"an image of {message.width} x {message.height} cannot be read: images of encoding '{encoding}' cannot be used; expected one "
            f"of {', '.join(ENCODINGS)}, or one that cv_bridge reads, which reports: {_one_line(error)}"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join((getattr(error, "err", "") or str(error)).split())


def _contents(info: Any) -> tuple:
    roi = info.roi
    return (
        info.width,
        info.height,
        info.distortion_model,
        tuple(info.d),
        tuple(info.k),
        tuple(info.r),
        tuple(info.p),
        info.binning_x,
        info.binning_y,
        roi.x_offset,
        roi.y_offset,
        roi.width,
        roi.height,
    )
