"""Corners away from those taken, and an even choice."""

import torch

from imatching_ros.odometry.measurements import detect, spread
from imatching_ros.matching.klt import KltMatcher
from imatching_ros.matching.sift import SiftMatcher
from odometry_scenes import speckle


def test_new_corners_keep_their_distance():
    image = torch.from_numpy(speckle())[None]
    taken = torch.tensor([[100.0, 100.0], [320.0, 240.0], [600.0, 450.0], [-5.0, 9000.0]])
    for matcher in (KltMatcher(), SiftMatcher()):
        uv = detect(matcher, matcher.observe(image), image, taken, 200, 12.0, 0.005)
        assert 50 < len(uv) <= 200
        assert torch.cdist(uv, taken).min() > 11
    uv = detect(KltMatcher(), KltMatcher().observe(image), image, torch.zeros(0, 2), 200, 12.0, 0.005)
    apart = torch.cdist(uv, uv) + 1e6 * torch.eye(len(uv))
    assert apart.min() > 8


def test_a_blank_image_has_none():
    image = torch.full((1, 240, 320), 128, dtype=torch.uint8)
    assert detect(KltMatcher(), KltMatcher().observe(image), image, torch.zeros(0, 2), 50, 5.0, 0.01).shape == (0, 2)


def test_spread_is_even_and_prefers_low_rank():
    generator = torch.Generator().manual_seed(0)
    crowd = torch.rand(900, 2, generator=generator) * 60
    rest = torch.rand(100, 2, generator=generator) * torch.tensor([640.0, 480.0])
    uv = torch.cat([crowd, rest])
    rank = torch.arange(1000.0)
    chosen = spread(uv, rank, 120, 640, 480)
    assert len(chosen) == 120 == len(chosen.unique())
    assert (
        chosen >= 900
    ).float().mean() > 0.7  # nine tenths of the points are in one corner, most of the chosen are not
    in_crowd = chosen[chosen < 900]
    cell = (640 * 480 / 120 * 4) ** 0.5
    first = [int(c) for c in range(900) if (crowd[c] < cell).all()][:1]
    assert first[0] in in_crowd.tolist()
