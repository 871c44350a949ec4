"""The keyframe rule: what makes one, and that a camera at rest makes none."""

import pytest

from imatching_ros.core.config import OdometryConfig
from imatching_ros.odometry.mapper import KeyframeStatistics, keyframe_reason

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
