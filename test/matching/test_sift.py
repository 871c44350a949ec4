"""SIFT against known shifts: its own keypoints are found again anywhere, and a wrong neighbourhood gives nothing."""

import cv2
import numpy as np
import torch

from imatching_ros.matching.sift import SiftMatcher
from odometry_scenes import speckle


def pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    image, shift = speckle(1), torch.tensor([60.0, -35.0])
    moved = cv2.warpAffine(
        image, np.float32([[1, 0, 60], [0, 1, -35]]), image.shape[::-1], borderMode=cv2.BORDER_REPLICATE
    )
    return torch.from_numpy(image)[None], torch.from_numpy(moved)[None], shift


def test_keypoints_are_found_again_without_a_prediction():
    sift, (a, b, shift) = SiftMatcher(), pair()
    source = sift.observe(a)
    uv = sift.points(source)[:300]
    found = sift.estimate(sift.describe(source, uv), [sift.observe(b)])
    good = found.score[0] > 0.3
    assert good.float().mean() > 0.5
    assert ((found.uv[0] - uv - shift).norm(dim=1)[good] < 1.5).float().mean() > 0.95


def test_nothing_is_found_in_a_wrong_neighbourhood():
    sift, (a, b, _) = SiftMatcher(), pair()
    source = sift.observe(a)
    uv = sift.points(source)[:300]
    found = sift.estimate(sift.describe(source, uv), [sift.observe(b)], (uv + torch.tensor([-60.0, 90.0]))[None], 15.0)
    assert (found.score[0] > 0.3).float().mean() < 0.1


def test_a_image_without_keypoints_matches_nothing():
    sift = SiftMatcher()
    blank = sift.observe(torch.full((1, 120, 160), 90, dtype=torch.uint8))
    queries = sift.describe(blank, torch.tensor([[80.0, 60.0], [1.0, 1.0]]))
    found = sift.estimate(queries, [blank])
    assert found.score.max() == 0 and found.uv.isfinite().all()
