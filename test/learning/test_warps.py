"""Synthetic pairs of images whose correspondences are known."""

import cv2
import numpy as np
import pytest

from imatching_ros.learning.compression import compress, find_quality
from imatching_ros.learning.warps import CORNER_SHIFT, draw_pair, noise_level


def texture(seed=0):
    coarse = np.random.default_rng(seed).uniform(40, 200, (24, 32)).astype(np.float32)
    return cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def test_a_pair_shows_the_same_points_at_the_true_places():
    pair = draw_pair(texture(), np.random.default_rng(1))
    rows, columns = np.mgrid[20:100:4, 20:140:4]
    uv = np.stack([columns.ravel(), rows.ravel()], 1).astype(np.float32)
    truth, inside = pair.truth(uv)
    assert inside.all() and 0 < np.abs(truth - uv).max() <= 1.01 * CORNER_SHIFT * 160
    a = pair.image_a[rows.ravel(), columns.ravel()].astype(float)
    b = cv2.remap(pair.image_b, truth[None].astype(np.float32), None, cv2.INTER_LINEAR)[0].astype(float)
    assert np.corrcoef(a, b)[0, 1] > 0.99, "equal up to gain, offset and noise"


def test_one_seed_draws_one_pair():
    first, second = (draw_pair(texture(), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first.H_BA, second.H_BA) and np.array_equal(first.image_b, second.image_b)


def test_both_images_are_compressed_as_the_live_one_was():
    """Blocks are fixed to an image; a warp that moved them would show them as texture."""
    detail = np.random.default_rng(1).normal(0, 12, (120, 160))
    clean = np.clip(texture() + cv2.GaussianBlur(detail, (0, 0), sigmaX=1.5), 0, 255).astype(np.uint8)
    for quality in (12, 50):
        pair = draw_pair(compress(clean, quality), np.random.default_rng(4))
        assert find_quality(pair.image_a) == find_quality(pair.image_b) == quality
    pair = draw_pair(clean, np.random.default_rng(4))
    assert find_quality(pair.image_a) is None and find_quality(pair.image_b) is None


@pytest.mark.parametrize("sigma", (2.0, 8.0))
def test_noise_of_an_image_is_measured_beside_its_edges(sigma):
    rows, columns = np.mgrid[:120, :160]
    image = 80 + 60 * ((rows // 24 + columns // 24) % 2) + 0.2 * columns
    noisy = image + np.random.default_rng(0).normal(0, sigma, image.shape)
    assert noise_level(np.clip(noisy, 0, 255).astype(np.uint8)) == pytest.approx(sigma, rel=0.15)
