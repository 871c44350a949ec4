"""The level and the line of /diagnostics."""

from __future__ import annotations

import re

import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from imatching_ros.ros import params
from imatching_ros.ros.diagnostics import SCALE_REMEDY, Snapshot, judge

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
    conflict="",
    callback_errors=0,
)
UNSCALED = {"metric": False, "scale": "unknown"}
OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE


@pytest.mark.parametrize(
    ("changes", "hz", "level", "text"),
    [
        ({}, 10.0, OK, "tracking"),
        ({"lifecycle": "inactive"}, 0.0, OK, "node is inactive"),
        ({}, 0.0, STALE, "no images arrive"),
        ({"problem": "no such encoding"}, 10.0, ERROR, "no such encoding"),
        ({"tracking": "", "input_problem": "no CameraInfo"}, 10.0, ERROR, "no CameraInfo"),
        ({"input_problem": "without one on /right"}, 10.0, WARN, "tracking, without one on /right"),
        (
            {"tracking": "lost", "reason": "for 3 frames", "input_problem": "without one on /right"},
            10.0,
            ERROR,
            "lost: for 3 frames",
        ),
        ({"tracking": "unverified", "reason": "few matches"}, 10.0, WARN, "unverified: few matches"),
        ({"mounting_problem": "no TF"}, 10.0, WARN, "tracking, pose of the camera on the robot unknown: no TF"),
        ({"external_odometry": "no TF"}, 10.0, WARN, "tracking, without external odometry: no TF"),
        ({"conflict": "two clocks"}, 10.0, WARN, "tracking, two clocks"),
        (UNSCALED, 10.0, WARN, f"tracking, scale unknown: the unit of length is arbitrary; {SCALE_REMEDY}"),
        ({**UNSCALED, "tracking": "unverified", "reason": "few matches"}, 10.0, WARN, "unverified: few matches"),
        ({**UNSCALED, "external_odometry": "no TF"}, 10.0, WARN, "tracking, without external odometry: no TF"),
    ],
)
def test_the_worst_is_said_first(changes, hz, level, text):
    assert judge(Snapshot(**{**WELL, **changes}), hz) == (level, text)


def test_the_remedies_for_a_missing_scale_are_settings():
    known = {name for name, _, _ in params.settings()}
    assert set(re.findall(r"\w+\.\w+", SCALE_REMEDY)) == {"external_odometry.use", "odometry.first_baseline_m"} <= known
