"""Sigma is refitted, and nothing else."""

import copy
import dataclasses

import cv2
import numpy as np
import pytest
import torch

from imatching_ros.core.config import Config
from imatching_ros.learning.confidence import refit_sigma
from imatching_ros.learning.pseudo_truth import draw_warp
from imatching_ros.matching import create_matcher
from imatching_ros.matching.klt import KltMatcher


@pytest.fixture(scope="module")
def matcher():
    return create_matcher(Config().with_values({"matcher.name": "expectation_fast"}).matcher)


@pytest.fixture
def sample(make_sample):
    made = make_sample(4, 120)
    size = (made.window.camera.width, made.window.camera.height)
    images = []
    for k in range(4):
        coarse = np.random.default_rng(k).uniform(20, 230, (size[1] // 6, size[0] // 6)).astype(np.float32)
        image = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
        images.append(torch.from_numpy(image)[None])
    return dataclasses.replace(made, images=tuple(images))


def within_sigma(matcher, sample):
    shares = []
    for seed in range(6):
        pair = draw_warp(sample, torch.Generator().manual_seed(100 + seed))
        a, b = (matcher.observe((image * 255).round().to(torch.uint8)) for image in (pair.image_a, pair.image_b))
        found = matcher.estimate(matcher.describe(a, pair.uv_a), [b])
        error = found.uv[0] - pair.uv_b
        right = error.norm(dim=-1) < 3
        shares.append((error[right].abs() < found.sigma_px[0, right, None]).float().mean())
    return float(torch.stack(shares).mean())


def test_sigma_fits_moved_features_as_it_fitted_the_pretrained_ones(matcher, sample):
    moved = copy.deepcopy(matcher)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in moved.named_parameters():
            if name.startswith("backbone"):
                value += 0.1 * value.std(unbiased=False) * torch.randn(value.shape, generator=generator)
        moved.log_sigma_bias().add_(1.5)
    wanted = within_sigma(matcher, sample)
    assert within_sigma(moved, sample) > wanted + 0.1
    before = {k: v.clone() for k, v in moved.state_dict().items()}
    refit_sigma(moved, matcher, [sample], torch.Generator().manual_seed(0))
    assert within_sigma(moved, sample) == pytest.approx(wanted, abs=0.03)
    with torch.no_grad():
        moved.log_sigma_bias().copy_(matcher.log_sigma_bias() + 1.5)
    for name, value in moved.state_dict().items():  # nothing else has changed, the score neither
        assert torch.equal(value, before[name]), name


def test_sigma_is_the_pretrained_one_where_no_match_is_right(matcher, sample):
    moved = copy.deepcopy(matcher)
    with torch.no_grad():
        moved.log_sigma_bias().add_(1.5)
        for head in (moved.backbone.coarse_head, moved.backbone.fine_head):  # all places look alike
            head.weight.zero_()
    refit_sigma(moved, matcher, [sample], torch.Generator().manual_seed(0))
    assert moved.log_sigma_bias() == matcher.log_sigma_bias()


def test_matcher_without_a_sigma_to_scale_stays_as_it_is(sample):
    klt = KltMatcher(Config().matcher)
    refit_sigma(klt, klt, [sample], torch.Generator())
