"""Poses that users give, as messages."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_msgs.msg import PoseWithCovarianceStamped

from imatching_ros.core.errors import SourceError
from imatching_ros.ros.convert import read_start

pytestmark = pytest.mark.ros


def given(covariance: np.ndarray, x: float = 0.0) -> PoseWithCovarianceStamped:
    message = PoseWithCovarianceStamped()
    message.pose.pose.position.x = x
    message.pose.covariance = covariance.ravel()
    return message


@pytest.mark.parametrize("x", [1e9, 1e300, np.inf, np.nan])
def test_a_start_beyond_any_robot_is_refused(x):
    with pytest.raises(SourceError, match="the pose cannot be used: .* expected x y z qx qy qz qw, within 1e.08 m"):
        read_start(given(np.eye(6), x), "odom")


@pytest.mark.parametrize("variance", [-1e-3, 1e13, 1e300, np.inf, np.nan])
def test_a_covariance_that_is_none_is_refused(variance):
    with pytest.raises(SourceError, match="the covariance cannot be used: expected numbers of at most 1e.12"):
        read_start(given(np.diag([0.1, variance, 0.1, 0.1, 0.1, 0.1])), "odom")


def test_a_large_covariance_of_correlated_errors_is_taken():
    """Its smallest eigenvalue is zero but for the rounding of doubles."""
    direction = np.random.default_rng(0).normal(size=(6, 1)) * 1e4
    covariance = direction @ direction.T
    assert np.linalg.eigvalsh(covariance).min() < -1e-9
    np.testing.assert_array_equal(read_start(given(covariance, 5e6), "odom").covariance, covariance)
