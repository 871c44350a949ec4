"""True correspondences from depth and poses."""

from dataclasses import replace

import torch

from imatching_ros.core import geometry
from imatching_ros.camera.model import Camera
from imatching_ros.core.types import Frame
from imatching_ros.offline.evaluation.pairs import find_truth, sample_depth, sample_queries

H, W = 60, 80
CAMERA = Camera(W, H, 60.0, 60.0, 39.5, 29.5)
DISTORTED = Camera(W, H, 60.0, 60.0, 39.5, 29.5, "plumb_bob", (-0.1, 0.02, 0.001, 0.0))


def frame(depth, camera=CAMERA):
    return Frame(0, 0, torch.zeros(1, H, W, dtype=torch.uint8), camera, depth)


def shifted(x):
    T = geometry.identity()
    T[0] = x
    return T


def test_a_wall_seen_from_the_side():
    """A camera 0.1 m to the right sees a wall 2 m away moved left by f b / z = 3 px."""
    wall = frame(torch.full((H, W), 2.0))
    uv = torch.tensor([[40.0, 30.0], [10.5, 20.25], [1.0, 30.0]])
    truth = find_truth(wall, wall, geometry.identity(), shifted(0.1), uv)
    torch.testing.assert_close(truth.uv_j[:2], uv[:2].double() - torch.tensor([3.0, 0.0]))
    assert truth.visible.tolist() == [True, True, False]  # the last one leaves the image
    assert abs(truth.baseline - 0.05) < 1e-6 and truth.baseline_is_relative


def test_distortion_is_honoured_on_both_sides():
    wall = frame(torch.full((H, W), 2.0), DISTORTED)
    uv = torch.tensor([[60.0, 45.0]])
    truth = find_truth(wall, wall, geometry.identity(), shifted(0.1), uv)
    expected = DISTORTED.distort(DISTORTED.undistort(uv.double()) - torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(truth.uv_j, expected)


def test_a_point_behind_something_nearer_is_not_visible():
    near = torch.full((H, W), 4.0)
    near[:, 20:40] = 1.0
    uv = torch.tensor([[33.0, 30.0], [70.0, 30.0]])
    truth = find_truth(frame(torch.full((H, W), 4.0)), frame(near), geometry.identity(), geometry.identity(), uv)
    assert truth.visible.tolist() == [False, True]


def test_depth_edges_and_holes_have_no_truth():
    depth = torch.full((H, W), 2.0)
    depth[:, 40:] = 3.0
    depth[10:20, 10:20] = 0.0
    uv = torch.tensor([[39.5, 30.0], [15.0, 15.0], [20.0, 30.0]])
    truth = find_truth(frame(depth), frame(depth), geometry.identity(), geometry.identity(), uv)
    assert truth.visible.tolist() == [False, False, True]


def test_without_poses_or_depth_nothing_is_visible():
    uv = torch.zeros(3, 2)
    assert find_truth(frame(None), frame(None), None, shifted(1.0), uv).T_ij is None
    truth = find_truth(frame(None), frame(None), geometry.identity(), shifted(1.0), uv)
    assert truth.T_ij is not None and not truth.visible.any() and not truth.baseline_is_relative


def test_depth_between_pixels_is_exact_on_a_slanted_plane():
    x = torch.arange(W, dtype=torch.float64)
    depth = (1 / (0.5 - 0.002 * x)).expand(H, W)
    value, smooth = sample_depth(depth, torch.tensor([[20.3, 10.7]], dtype=torch.float64))
    torch.testing.assert_close(value, 1 / (0.5 - 0.002 * torch.tensor([20.3], dtype=torch.float64)))
    assert smooth.all()


def test_queries_are_corners():
    image = torch.zeros(1, H, W, dtype=torch.uint8)
    image[:, 20:40, 20:50] = 255
    uv = sample_queries(image)
    corners = torch.tensor([[20.0, 20], [49, 20], [20, 39], [49, 39]])
    assert (torch.cdist(corners, uv).min(1).values < 2).all()
    assert sample_queries(torch.zeros(1, H, W, dtype=torch.uint8)).shape == (0, 2)


def test_masks_leave_queries_and_their_targets_out():
    image = torch.zeros(1, H, W, dtype=torch.uint8)
    image[:, 20:40, 20:50] = 255
    mask = torch.zeros(H, W, dtype=torch.bool)
    mask[:, :30] = True
    uv = sample_queries(image, mask=mask)
    assert len(uv) and float(uv[:, 0].min()) >= 30
    there = replace(frame(torch.full((H, W), 2.0)), mask=mask)
    points = torch.tensor([[10.0, 20.0], [60.0, 20.0]])
    pose = geometry.identity()
    assert find_truth(frame(torch.full((H, W), 2.0)), there, pose, pose, points).visible.tolist() == [False, True]
