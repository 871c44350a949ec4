"""The pose that matches agree on: a rotation prior against similar things, and which poses are uncertain."""

import pytest
import torch

from imatching_ros.bundle import RotationPrior
from imatching_ros.core import geometry
from imatching_ros.odometry.pose_estimator import Correspondences, PoseEstimate, PoseEstimator, is_uncertain
from odometry_scenes import CAMERA, configure


@pytest.mark.parametrize("binding", (False, True))
def test_things_that_look_alike_do_not_turn_the_camera_against_a_binding_prior(binding):
    """25 matches are right, 40 agree on a pose that is turned by 15 degrees."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(65, 3, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 2.0, 2.0]) + torch.tensor(
        [-1.5, -1.0, 3.0]
    )
    wrong = geometry.exp(torch.tensor([0.2, 0, 0, 0, 0.26, 0], dtype=torch.float64))
    T = geometry.identity(65)
    T[25:] = wrong
    uv = geometry.project(CAMERA, geometry.act(geometry.inverse(T), points))
    uv = uv + 0.3 * torch.randn(65, 2, generator=generator, dtype=torch.float64)
    matches = Correspondences(CAMERA, uv, points, torch.full((65,), 0.5))
    prior = RotationPrior(geometry.identity()[3:], torch.eye(3, dtype=torch.float64) * 2e-3**2, binding)
    config = configure()
    found = PoseEstimator(config.odometry, config.bundle).estimate(matches, geometry.identity(), prior)
    turned = float(geometry.log_so3(found.T_WC[3:]).norm())
    assert turned < 0.02 and int(found.inlier.sum()) <= 30 if binding else turned == pytest.approx(0.26, abs=0.02)


def test_a_pose_of_few_clustered_matches_is_uncertain():
    """More inliers than `odometry.verified_inliers` asks for, in a corner of the image and off by pixels."""
    generator, config = torch.Generator().manual_seed(0), configure()

    def estimate(count: int, size_px: float, noise_px: float) -> PoseEstimate:
        uv = 20 + size_px * torch.rand(count, 2, generator=generator, dtype=torch.float64)
        points = geometry.back_project(
            CAMERA, uv, 2 + 0.3 * torch.rand(count, generator=generator, dtype=torch.float64)
        )
        uv = uv + noise_px * torch.randn(count, 2, generator=generator, dtype=torch.float64)
        seen = Correspondences(CAMERA, uv, points, torch.full((count,), 0.5))
        found = PoseEstimator(config.odometry, config.bundle).estimate(seen, geometry.identity())
        assert found is not None
        return found

    assert not is_uncertain(estimate(300, 200.0, 0.5), 2.0)
    assert is_uncertain(estimate(40, 60.0, 1.0), 2.0)
