"""Something large that moves before the camera is set apart from the world."""

from dataclasses import replace

import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.core.types import Frame, TrackingState
from imatching_ros.pipeline import Pipeline
from odometry_scenes import CAMERA, configure, passing, render_walk, speckle

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


def small_thing(frame: Frame) -> Frame:
    """The frame with a textured thing 1 m before the camera that crosses a ninth of it."""
    place = ..., slice(60, 160), slice(20 + 8 * frame.id, 120 + 8 * frame.id)
    image, depth = frame.image.clone(), frame.depth.clone()
    image[place] = torch.from_numpy(speckle(7)[:100, : image[place].shape[2]].copy())
    depth[place] = 1.0
    return replace(frame, image=image, depth=depth)


@pytest.mark.parametrize("agrees", [True, False])
def test_external_odometry_decides_which_motion_is_the_cameras(agrees):
    """What moves as wheels say is TRACKING again; with wheels that contradict the images before, both motions stay in dispute."""
    pipeline = Pipeline(configure("expectation", odometry__mode="rgbd", external_odometry__use="'prediction'"))
    tracking = []
    for frame, T in render_walk():
        wheels = T.clone()
        wheels[:3] *= 1.02 if agrees else -3.0
        pipeline.add_external_odometry(frame.stamp_ns, wheels)
        output = pipeline.process(small_thing(frame) if frame.id >= BEGIN else frame)
        if output.state is TrackingState.TRACKING:
            tracking.append(float((output.T_WC[:3] - T[:3]).norm()))
    assert bool(pipeline.window.landmarks.moving.any())
    assert max(tracking) < 0.1 and (len(tracking) > 12 if agrees else len(tracking) < 8)
