"""The bundle adjustment problem of a rematch."""

import dataclasses

import numpy as np
import torch

from imatching_ros.bundle import RelativeRotations, solve
from imatching_ros.camera.model import Camera
from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig, LearningConfig
from imatching_ros.core.masks import is_masked
from imatching_ros.core.types import ObservationKind
from imatching_ros.learning.rematching import Rematch, extract, measurements, rematch, solve_again
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


def test_the_optimum_of_a_rematch_is_that_of_its_residual_alone_whatever_prior_odometry_had(make_sample):
    """Only then does the gradient of the residual hold no term through poses and landmarks."""
    sample, bundle = (
        make_sample(landmarks=80, kind=ObservationKind.DEPTH),
        BundleConfig(cost_tolerance=1e-10, max_iterations=100),
    )
    T, K = sample.result.T_WC, len(sample.result.T_WC) - 1
    turned = geometry.exp_so3(torch.tensor([3e-3, -2e-3, 1e-3], dtype=torch.float64))
    q = geometry.quaternion_multiply(geometry.relative(T[:-1], T[1:])[:, 3:], turned.expand(K, 4))
    rows, R = np.arange(K), geometry.rotation_matrix(q).numpy()
    prior = RelativeRotations(rows, rows + 1, R, np.eye(3 * K) / 3e-3**2, 1e4)
    result = solve(sample.window, bundle, prior)
    assert result.rotations_used and geometry.local(result.T_WC, T).abs().max() > 1e-3
    found = Rematch(
        sample.uv_px,
        torch.ones(len(sample.uv_px)),
        sample.window.sigma[:, 0].float(),
        torch.zeros(len(sample.uv_px)) > 0,
    )
    with_prior, without = (
        solve_again(s, found, LearningConfig(), bundle) for s in (dataclasses.replace(sample, result=result), sample)
    )
    assert not with_prior.result.rotations_used
    assert geometry.local(with_prior.T_WC, without.T_WC).abs().max() < 1e-5
