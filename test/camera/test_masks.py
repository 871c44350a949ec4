"""Masks from files: what they leave out, and those that cannot be used."""

import cv2
import numpy as np
import pytest
import torch

from imatching_ros.camera.masks import check_mask, read_mask
from imatching_ros.core.errors import CameraError, SourceError


@pytest.mark.parametrize("channels", (1, 3, 4))
def test_what_is_not_zero_is_masked(tmp_path, channels):
    image = np.zeros((6, 8, channels), np.uint8)
    image[2:4, 1:5, 0] = 1
    if channels == 4:
        image[..., 3] = 255  # opaque
    cv2.imwrite(str(tmp_path / "mask.png"), image)
    expected = torch.zeros(6, 8, dtype=torch.bool)
    expected[2:4, 1:5] = True
    assert read_mask(tmp_path / "mask.png").equal(expected)


def test_a_mask_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(SourceError, match="cannot read the mask .*nothing.png"):
        read_mask(tmp_path / "nothing.png")
    with pytest.raises(CameraError, match="the mask is 8 x 6, the image 6 x 8"):
        check_mask(torch.zeros(6, 8, dtype=torch.bool), 8, 6, "the mask")
    with pytest.raises(CameraError, match="non-zero everywhere"):
        check_mask(torch.ones(6, 8, dtype=torch.bool), 6, 8, "the mask")
