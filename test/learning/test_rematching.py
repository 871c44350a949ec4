"""The bundle adjustment problem of a rematch."""

import dataclasses

import torch

from imatching_ros.camera.model import Camera
from imatching_ros.core.config import LearningConfig
from imatching_ros.core.masks import is_masked
from imatching_ros.learning.rematching import extract, measurements, rematch
from imatching_ros.matching.expectation import ExpectationMatcher


def test_host_observations_keep_their_sigma_under_distortion(make_sample):
    sample = make_sample(landmarks=40)
    c = sample.window.camera
    fisheye = Camera(c.width, c.height, c.fx, c.fy, c.cx, c.cy, "equidistant", (0.01, 0.0, 0.0, 0.0))
    ideal, sigma = sample.window.obs[:, :2], sample.window.sigma.clone()
    sigma[:, :2] = (0.5 * fisheye.stretch(ideal))[:, None]
    assert float(sigma[:, 0].max()) > 0.65
    window = dataclasses.replace(sample.window, camera=fisheye, sigma=sigma)
    sample = dataclasses.replace(sample, window=window, uv_px=fisheye.distort(ideal).float())
    torch.manual_seed(0)
    matcher = ExpectationMatcher().eval()
    found = rematch(matcher, sample, extract(matcher, sample), LearningConfig())
    obs, seen = measurements(sample, found, sample.host_obs)
    torch.testing.assert_close(seen, sigma[sample.host_obs], rtol=1e-3, atol=0)
    torch.testing.assert_close(obs[:, :2], ideal[sample.host_obs], rtol=0, atol=1e-2)


def test_matches_under_a_mask_do_not_count(make_sample):
    sample = make_sample(landmarks=40)
    hidden = torch.ones(sample.window.camera.height, sample.window.camera.width, dtype=torch.bool)
    masked = dataclasses.replace(sample, masks=(hidden,) * len(sample.images))
    torch.manual_seed(0)
    matcher = ExpectationMatcher().eval()
    found = rematch(matcher, masked, extract(matcher, masked), LearningConfig())
    rest = torch.ones(len(found.score), dtype=torch.bool)
    rest[sample.host_obs] = False
    inside = is_masked(hidden, found.uv)
    assert inside.any() and not found.score[rest & inside].any() and found.score[~rest].all()
