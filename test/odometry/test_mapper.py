"""The keyframe rule: what makes one, and that a camera at rest makes none. The start of one camera with a rolling shutter."""

from dataclasses import replace

import pytest
import torch

from imatching_ros.camera import rolling_shutter
from imatching_ros.core import geometry
from imatching_ros.core.config import OdometryConfig
from imatching_ros.core.types import Frame
from imatching_ros.matching import create_matcher
from imatching_ros.odometry.front_end import FeatureFrame
from imatching_ros.odometry.initialization import InitialViews, View
from imatching_ros.odometry.mapper import KeyframeStatistics, Mapper, keyframe_reason
from odometry_scenes import CAMERA, STEP_NS, configure

CONFIG = OdometryConfig()
QUIET = dict(share=0.95, parallax_px=1.0, motion_px=1.0, time_s=0.1, width_px=640)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"parallax_px": 0.03 * 640 + 1}, "parallax"),
        ({"share": 0.3, "motion_px": 30.0}, "share"),
        ({"time_s": 1.5, "parallax_px": 7.0}, "time"),
        ({"time_s": 1.5}, ""),  # time alone is no reason
    ],
)
def test_reasons(change, reason):
    assert keyframe_reason(KeyframeStatistics(**{**QUIET, **change}), CONFIG) == reason


def test_a_camera_at_rest_makes_no_keyframe_however_long_and_however_much_is_hidden():
    assert (
        keyframe_reason(
            KeyframeStatistics(share=0.2, parallax_px=0.3, motion_px=0.4, time_s=600.0, width_px=640), CONFIG
        )
        == ""
    )


def test_a_view_that_shares_nothing_is_a_keyframe():
    assert keyframe_reason(KeyframeStatistics(0.0, float("inf"), float("inf"), 0.1, 640), CONFIG)


def test_the_first_views_of_a_rolling_shutter_are_undone_by_the_depths_of_their_points():
    """Two-view geometry makes the baseline 1, in which the scene is far away: 12 here, and the camera fast."""
    config = configure("klt", odometry__mode="mono")
    mapper = Mapper(config, create_matcher(config.matcher))
    camera = replace(CAMERA, readout_s=0.03)
    g = torch.Generator().manual_seed(0)
    twist = torch.tensor([5.0, 0, 0, 0, 0.1, 0], dtype=torch.float64)  # per second; the second view is 0.2 s later
    T_WC = torch.stack([geometry.identity(), geometry.exp(0.1 * twist), geometry.exp(0.2 * twist)])
    seen = torch.rand(400, 2, generator=g, dtype=torch.float64) * torch.tensor([250.0, 220.0]) + 10
    points = geometry.back_project(camera, seen, 9 + 6 * torch.rand(400, generator=g, dtype=torch.float64))
    image, views = torch.zeros(1, 240, 320, dtype=torch.uint8), []
    for k, T in enumerate(T_WC):
        uv, inside = rolling_shutter.see(camera, geometry.act(geometry.inverse(T), points), twist)
        current = FeatureFrame(Frame(k, k * STEP_NS, image, camera), image, None)
        views.append(View(current, uv.float(), inside, torch.full((400,), 0.3)))
    window = mapper.start_mono(InitialViews(tuple(views), T_WC, views[0].ok, points[views[0].ok], 1.0), None, 0)
    assert float(window.residuals(camera)[0].nanmedian()) < 0.001
    moved = float(window.T_WC[-1, :3].norm()) / window.median_depth(0)
    assert moved == pytest.approx(float(T_WC[-1, :3].norm() / points[:, 2].median()), rel=0.02)
