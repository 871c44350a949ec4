"""Something large that moves before the camera is set apart from the world."""

from dataclasses import replace

import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.core.types import TrackingState
from imatching_ros.pipeline import Pipeline
from odometry_scenes import CAMERA, configure, passing, render_walk

BEGIN = 4  # frame in which a thing appears that fills 40 % of the image


@pytest.fixture(scope="module")
def run():
    frames = [replace(passing(frame), mask=None) if frame.id >= BEGIN else frame for frame, _ in render_walk()]
    pipeline = Pipeline(configure("expectation", odometry__mode="rgbd"))
    return pipeline, [pipeline.process(frame) for frame in frames]


def test_what_is_tracking_is_right_and_the_rest_unverified_with_a_covariance_that_grows(run):
    pipeline, outputs = run
    disputed = [o for o in outputs if o.state is TrackingState.UNVERIFIED]
    assert all(o.frame_id > BEGIN for o in disputed) and len(disputed) >= len(outputs) - BEGIN - 5
    assert all("two motions" in o.reason for o in disputed) and not pipeline.odometry.healthy
    assert disputed[-1].covariance[:3, :3].trace() > 4 * outputs[BEGIN - 1].covariance[:3, :3].trace()
    tracking = [(o, render_walk()[o.frame_id][1]) for o in outputs if o.state is TrackingState.TRACKING]
    assert max(float((o.T_WC[:3] - T[:3]).norm()) for o, T in tracking) < 0.1


def test_landmarks_of_the_thing_are_set_apart_and_placed_where_the_image_shows_it(run):
    pipeline, outputs = run
    landmarks, mask = pipeline.window.landmarks, passing(render_walk()[-1][0]).mask
    last_px = torch.tensor([CAMERA.width - 1, CAMERA.height - 1])
    on_it = mask[tuple(landmarks.uv_last.round().long().clamp_min(0).minimum(last_px).flip(1).T)]
    seen = landmarks.seen == outputs[-1].frame_id
    assert landmarks.moving[on_it & seen].double().mean() > 0.8
    rows = landmarks.moving & on_it & seen
    points_C = geometry.act(geometry.inverse(outputs[-1].T_WC), landmarks.points_W[rows])
    assert points_C[:, 2].median() == pytest.approx(0.5, abs=0.02)
    u, v = geometry.project(CAMERA, points_C).sub(landmarks.uv_last[rows]).abs().median(0).values.tolist()
    assert max(u, v) < 1
