"""KLT against known shifts: it follows what is there, from the prediction, through a jump of the exposure, and says what it lost."""

import cv2
import numpy as np
import torch

from imatching_ros.matching.klt import KltMatcher
from odometry_scenes import speckle


def shifted(dx: float, dy: float) -> tuple[torch.Tensor, torch.Tensor]:
    image = speckle()
    moved = cv2.warpAffine(
        image, np.float32([[1, 0, dx], [0, 1, dy]]), image.shape[::-1], borderMode=cv2.BORDER_REPLICATE
    )
    return torch.from_numpy(image)[None], torch.from_numpy(moved)[None]


def grid() -> torch.Tensor:
    corners = cv2.goodFeaturesToTrack(speckle(), 100, 0.01, 20).reshape(-1, 2)
    inside = ((corners > 150) & (corners < (490, 330))).all(1)
    return torch.from_numpy(corners[inside])


def test_follows_a_small_shift_to_a_tenth_of_a_pixel():
    klt, (a, b), uv = KltMatcher(), shifted(3.4, -2.3), grid()
    found = klt.estimate(klt.describe(klt.observe(a), uv), [klt.observe(b)])
    good = found.score[0] > 0.3
    assert good.float().mean() > 0.9
    assert (found.uv[0] - uv - torch.tensor([3.4, -2.3])).norm(dim=1)[good].max() < 0.15


def test_a_prediction_carries_it_over_a_large_shift():
    klt, (a, b), uv = KltMatcher(), shifted(95.0, 40.0), grid()
    queries, target = klt.describe(klt.observe(a), uv), klt.observe(b)
    predicted = (uv + torch.tensor([90.0, 43.0]))[None]
    found = klt.estimate(queries, [target], predicted, 20.0)
    good = found.score[0] > 0.3
    assert good.float().mean() > 0.85
    assert (found.uv[0] - uv - torch.tensor([95.0, 40.0])).norm(dim=1)[good].median() < 0.1
    assert (klt.estimate(queries, [target], predicted, 2.0).score[0] > 0.3).float().mean() < 0.1  # outside the radius


def test_a_jump_of_the_exposure_is_no_loss():
    klt, (a, b), uv = KltMatcher(), shifted(3.0, 0.0), grid()
    dark = (b.float() * 0.5 + 5).round().to(torch.uint8)
    found = klt.estimate(klt.describe(klt.observe(a), uv), [klt.observe(dark)])
    good = found.score[0] > 0.3
    assert good.float().mean() > 0.9
    assert (found.uv[0] - uv - torch.tensor([3.0, 0.0])).norm(dim=1)[good].max() < 0.3


def test_unrelated_images_give_no_matches_and_finite_coordinates():
    klt, uv = KltMatcher(), grid()
    a, b = (torch.from_numpy(speckle(seed))[None] for seed in (0, 9))
    found = klt.estimate(klt.describe(klt.observe(a), uv), [klt.observe(b)])
    assert (found.score[0] > 0.3).float().mean() < 0.15 and found.uv.isfinite().all()


def test_both_ways_to_features_agree():
    klt, (a, _) = KltMatcher(), shifted(0, 0)
    assert torch.equal(klt.observe(a).maps["image"], klt.extract(a[None].float() / 255)[0].maps["image"])
