"""Uncertainty only grows, grows with the distance through what a turn leaves open, and rests when nothing happens."""

import torch

from imatching_ros.core import geometry
from imatching_ros.core.types import BAResult, BAStatus
from imatching_ros.odometry.motion import PoseCovariance

SMALL = torch.diag(torch.tensor([1e-4, 1e-4, 1e-4, 1e-6, 1e-6, 1e-6], dtype=torch.float64))


def pose(x: float) -> torch.Tensor:
    return torch.tensor([x, 0, 0, 0, 0, 0, 1.0], dtype=torch.float64)


def solved(x: float, covariance=SMALL) -> BAResult:
    poses = torch.stack([pose(x - 1), pose(x - 0.5), pose(x)])
    return BAResult(
        poses, torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(0), 0.0, 0.0, 1, BAStatus.CONVERGED, "", covariance
    )


def test_a_window_that_slides_adds_up_and_one_that_rests_does_not():
    covariance = PoseCovariance()
    assert covariance.at(pose(0)).abs().max() == 0
    covariance.propagate(solved(1.0), keyframe_dropped=False)
    assert torch.allclose(covariance.at(pose(1.0)), SMALL)
    sizes = []
    for k in range(10):
        covariance.propagate(solved(2.0 + k), keyframe_dropped=True)
        sizes.append(float(covariance.at(pose(2.0 + k)).trace()))
    assert all(b > a for a, b in zip(sizes, sizes[1:]))
    assert float(covariance.at(pose(11.0)).trace()) == sizes[-1]  # asking changes nothing


def test_an_error_of_direction_becomes_one_of_position_with_distance():
    covariance = PoseCovariance()
    yaw = torch.zeros(6, 6, dtype=torch.float64)
    yaw[5, 5] = 1e-4  # 0.01 rad about z
    covariance.add(yaw, pose(0.0))
    far = covariance.at(pose(100.0))
    assert abs(float(far[1, 1].sqrt()) - 1.0) < 1e-6 and float(far[0, 0]) < 1e-12
    moved = geometry.retract(pose(0.0), torch.tensor([0, 0, 0, 0, 0, 0.01], dtype=torch.float64))
    assert abs(float(geometry.compose(moved, pose(100.0))[1]) - 1.0) < 1e-3


def test_a_degenerate_window_keeps_what_was_known_and_grows_as_it_slides():
    covariance = PoseCovariance()
    covariance.propagate(solved(1.0), keyframe_dropped=False)
    before = covariance.at(pose(2.0))
    covariance.propagate(solved(2.0, None), keyframe_dropped=False)
    assert torch.allclose(covariance.at(pose(2.0)), before)
    sizes = [float(before.trace())]
    for k in range(5):
        covariance.propagate(solved(2.0 + k, None), keyframe_dropped=True)
        sizes.append(float(covariance.at(pose(2.0 + k)).trace()))
    assert all(b > a + 0.9 * float(SMALL.trace()) for a, b in zip(sizes, sizes[1:]))
