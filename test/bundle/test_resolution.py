"""What is degenerate follows from the scene and the motion, not from how many pixels the camera has."""

import cv2
import pytest
import torch

from imatching_ros import bundle
from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig, MatcherConfig, OdometryConfig
from imatching_ros.odometry.measurements import detect
from imatching_ros.core.types import BAStatus, WindowSnapshot, as_grey
from imatching_ros.matching import create_matcher
from imatching_ros.offline.simulation.sequence import SimulatedSequence

SIGMA_PX = 1.0  # as a matcher says of itself in poor light

DETECTION = OdometryConfig(corner_distance=0.02, corner_quality=0.01)


def tracked_window(width: int, height: int, speed_mps: float) -> WindowSnapshot:
    """Corners of the first frame of one rendered walk, tracked by KLT through five frames; poses and depths start at the truth."""
    sequence = SimulatedSequence(
        kind="clutter", frames=5, seed=1, width=width, height=height, supersample=1, speed_mps=speed_mps
    )
    frames, poses = zip(*sequence.read())
    T_WC = geometry.relative(poses[0], torch.stack(poses))
    matcher = create_matcher(MatcherConfig(name="klt"))
    camera, images = frames[0].camera, [as_grey(frame.image) for frame in frames]
    features = [matcher.observe(image) for image in images]
    uv = detect(matcher, features[0], images[0], torch.zeros(0, 2), 200, DETECTION)
    found = matcher.estimate(matcher.describe(features[0], uv), features[1:], uv.expand(4, -1, 2), 0.2 * width)
    at = uv.round().long()
    depth = torch.from_numpy(cv2.medianBlur(frames[0].depth.numpy(), 3))[at[:, 1], at[:, 0]].double()
    good = (found.score > 0.5).all(0) & (depth > 0)
    seen = torch.cat([uv[None], found.uv])[:, good].double()
    points = geometry.back_project(camera, seen[0], depth[good])
    near = (geometry.project(camera, geometry.act(geometry.inverse(T_WC)[:, None], points)) - seen).norm(dim=2).amax(
        0
    ) < 2
    seen, points = seen[:, near], points[near]
    M, P = seen.shape[:2]
    obs = torch.cat([seen.reshape(-1, 2), torch.zeros(M * P, 1, dtype=torch.float64)], 1)
    return WindowSnapshot(
        camera,
        T_WC,
        points,
        torch.arange(M).repeat_interleave(P),
        torch.arange(P).repeat(M),
        obs,
        torch.zeros(M * P, dtype=torch.int64),
        torch.full_like(obs, SIGMA_PX),
        torch.arange(M) == 0,
    )


@pytest.mark.parametrize("speed_mps, status", [(1.5, BAStatus.CONVERGED), (0.1, BAStatus.DEGENERATE)])
def test_two_resolutions_of_one_scene_are_gated_alike(speed_mps, status):
    medians = []
    for width, height in ((320, 240), (640, 480)):
        window = tracked_window(width, height, speed_mps)
        assert len(window.points_W) > 60
        result = bundle.solve(window, BundleConfig())
        assert result.status is status and ("parallax" in result.reason) == (status is BAStatus.DEGENERATE), (
            result.reason
        )
        medians.append(
            float(torch.rad2deg(geometry.parallax(window.T_WC, window.points_W, window.kf_idx, window.pt_idx).median()))
        )
    assert abs(medians[0] - medians[1]) < 0.3 * medians[1]
