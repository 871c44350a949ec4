"""JPEG compression of live images: found where it is, and its blocks leave no trace of their grid."""

import cv2
import numpy as np
import pytest

from imatching_ros.learning.compression import compress, find_quality, without_blocks


def texture(height=176, width=240, noise=1.5, seed=0):
    rng = np.random.default_rng(seed)
    image = sum(
        cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), sigmaX=s) * 25 * s for s in (1.0, 2.5, 6.0, 15.0)
    )
    return np.clip(128 + image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def blockiness(image):
    """Mean step between columns at the borders of blocks over that elsewhere."""
    step = np.abs(np.diff(image.astype(np.float64), axis=1)).mean(0)
    inner = np.arange(len(step)) % 8 != 7
    return step[~inner].mean() / step[inner].mean()


@pytest.mark.parametrize("quality", (12, 30, 50, 75, 90))
@pytest.mark.parametrize("noise", (0.0, 4.0))
def test_quality_of_a_compressed_image_is_found(quality, noise):
    assert find_quality(compress(texture(noise=noise), quality)) == quality


@pytest.mark.parametrize("noise", (0.0, 1.5, 4.0, 15.0))
def test_image_without_compression_has_none(noise):
    assert find_quality(texture(noise=noise, seed=1)) is None


def test_image_that_was_resized_since_has_none():
    assert find_quality(cv2.resize(compress(texture(), 12), (210, 154), interpolation=cv2.INTER_AREA)) is None


@pytest.mark.parametrize("image", (np.zeros((176, 240), np.uint8), np.full((4, 4), 90, np.uint8)))
def test_blank_or_tiny_image_has_none(image):
    assert find_quality(image) is None


def test_blocks_are_smoothed_away_and_the_scene_stays():
    clean = texture()
    image = compress(clean, 12)
    smoothed = without_blocks(image, 12)
    assert blockiness(image) > 1.5 and blockiness(smoothed) < 1.05
    errors = [np.square(view.astype(np.float64) - clean).mean() for view in (smoothed, image)]
    assert errors[0] < errors[1]


def test_image_is_left_as_it_was():
    image = compress(texture(), 12)
    before = image.copy()
    without_blocks(image, 12)
    find_quality(image)
    assert np.array_equal(image, before)
