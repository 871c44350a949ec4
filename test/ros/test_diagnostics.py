"""The level and the line of /diagnostics."""

from __future__ import annotations

import re

import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from imatching_ros.learning.learner import LearningStatus
from imatching_ros.ros import params
from imatching_ros.ros.diagnostics import LEARNING_FAILED, SCALE_REMEDY, Snapshot, describe_drops, judge
from imatching_ros.ros.rate import Rate

pytestmark = pytest.mark.ros

WELL = dict(
    lifecycle="active",
    received=10,
    dropped=0,
    processed=10,
    tracked=10,
    lost=0,
    rejected=0,
    tracking="tracking",
    reason="",
    metric=True,
    scale="stereo baseline",
    latency_ms=30.0,
    processing_ms=25.0,
    problem="",
    input_problem="",
    mounting_problem="",
    learning=None,
    external_odometry="off",
    imu="off",
    planar="off",
    start="as the base stood",
    fault="",
    conflict="",
    callback_errors=0,
    rate=Rate(1, 10.0, 10.0, 0.04),
    silent=False,
    remedies="set matcher.max_width to 320",
    matcher="expectation on cpu in float32, 1 thread",
    camera="/image",
)
UNSCALED = {"metric": False, "scale": "unknown"}
OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({}, OK, "tracking"),
        ({"lifecycle": "inactive", "silent": True}, OK, "node is inactive"),
        ({"silent": True}, STALE, "no images arrive"),
        ({"problem": "no such encoding"}, ERROR, "no such encoding"),
        ({"tracking": "", "input_problem": "no CameraInfo"}, ERROR, "no CameraInfo"),
        ({"input_problem": "without one on /right"}, WARN, "tracking, without one on /right"),
        (
            {"tracking": "lost", "reason": "for 3 frames", "input_problem": "without one on /right"},
            ERROR,
            "lost: for 3 frames",
        ),
        ({"tracking": "unverified", "reason": "few matches"}, WARN, "unverified: few matches"),
        ({"mounting_problem": "no TF"}, WARN, "tracking, pose of the camera on the robot unknown: no TF"),
        ({"external_odometry": "no TF"}, WARN, "tracking, without external odometry: no TF"),
        ({"fault": "no depth", "conflict": "two clocks"}, WARN, "tracking, no depth"),
        ({"conflict": "two clocks"}, WARN, "tracking, two clocks"),
        ({"learning": LearningStatus(state="failed")}, WARN, f"tracking, {LEARNING_FAILED}"),
        (UNSCALED, WARN, f"tracking, scale unknown: the unit of length is arbitrary; {SCALE_REMEDY}"),
        ({**UNSCALED, "tracking": "unverified", "reason": "few matches"}, WARN, "unverified: few matches"),
        ({**UNSCALED, "external_odometry": "no TF"}, WARN, "tracking, without external odometry: no TF"),
    ],
)
def test_the_worst_is_said_first(changes, level, text):
    assert judge(Snapshot(**{**WELL, **changes}), "") == (level, text)


HALF = {"rate": Rate(2, 20.0, 10.0, 0.08)}
HALF_TEXT = "every 2nd image is processed, for one takes 80 ms (90th percentile) and one arrives every 50 ms"


@pytest.mark.parametrize(
    ("changes", "dropped", "level", "text"),
    [
        ({}, 0, OK, "tracking"),
        ({}, 2, OK, "tracking"),  # a hiccup
        (HALF, 10, WARN, f"tracking; {HALF_TEXT}; set matcher.max_width to 320"),
        (
            {**HALF, "tracking": "lost", "reason": "for 3 frames"},
            10,
            ERROR,
            f"lost: for 3 frames; {HALF_TEXT}; set matcher.max_width to 320",
        ),
        (
            {"tracking": ""},
            14,
            WARN,
            "no image is processed yet; 14 of the last 16 images dropped; set matcher.max_width to 320",
        ),
        ({"tracking": ""}, 0, OK, "no image is processed yet"),
    ],
)
def test_a_computer_that_is_too_slow_is_told_with_the_remedy(changes, dropped, level, text):
    now = Snapshot(**{**WELL, **changes})
    assert judge(now, describe_drops(now, 16, dropped)) == (level, text)


def test_the_remedies_for_a_missing_scale_are_settings():
    known = {name for name, _, _ in params.settings()}
    assert set(re.findall(r"\w+\.\w+", SCALE_REMEDY)) == {"external_odometry.use", "odometry.first_baseline_m"} <= known
