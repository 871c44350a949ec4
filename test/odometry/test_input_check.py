"""Faults of the images, each by name: frozen cameras, exchanged or identical partners, depth without content."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from imatching_ros.core.types import Frame, TrackingState
from imatching_ros.odometry.input_check import InputCheck
from imatching_ros.pipeline import Pipeline
from odometry_scenes import CAMERA, STEP_NS, configure, rotating, speckle

STEREO = replace(CAMERA, baseline_m=0.1)
DISPARITY_PX = 13  # 256 px * 0.1 m / 2 m


def pairs(count: int) -> list[Frame]:
    """A turning pair before a wall at 2 m."""
    return [
        replace(frame, camera=STEREO, right=torch.roll(frame.image, -DISPARITY_PX, 2)) for frame in rotating(count, 0.2)
    ]


def with_depth(count: int) -> list[Frame]:
    return [replace(frame, depth=torch.full((CAMERA.height, CAMERA.width), 2.0)) for frame in rotating(count, 0.3)]


def repeat(frame: Frame, count: int) -> list[Frame]:
    return [replace(frame, id=frame.id + k, stamp_ns=frame.stamp_ns + k * STEP_NS) for k in range(1, count + 1)]


def drive(frames: list[Frame], mode: str):
    pipeline = Pipeline(configure(odometry__mode=mode))
    return pipeline, [pipeline.process(frame) for frame in frames]


def test_a_frozen_camera_is_not_tracking_and_its_covariance_grows():
    moving = with_depth(12)
    frozen = repeat(moving[5], 60)
    after = [replace(f, id=f.id + 60, stamp_ns=f.stamp_ns + 60 * STEP_NS) for f in moving[6:]]
    pipeline, outputs = drive([*moving[:6], *frozen, *after], "rgbd")
    early, late, moved = outputs[6:34], outputs[37:66], outputs[66:]
    assert {o.state for o in early} == {TrackingState.TRACKING} and not any(o.fault for o in early)
    assert {o.state for o in late} == {TrackingState.UNVERIFIED} and all("bit-identical for" in o.fault for o in late)
    assert "the images have not changed for some seconds" in late[-1].reason
    variances = [float(o.covariance[:3, :3].trace()) for o in late]
    assert variances == sorted(variances) and variances[-1] > 0.1
    assert float(late[-1].covariance_in_map[5, 5]) > 0.01  # the twist across the gap is as uncertain
    assert not any(o.is_keyframe for o in late) and not pipeline.odometry.tracking_failed
    # What moves again is found in the same map, and nothing of it stays.
    assert moved[-1].state is TrackingState.TRACKING and moved[-1].map_id == outputs[0].map_id and not moved[-1].fault
    assert float(moved[-1].covariance[:3, :3].trace()) < 1e-2


def test_images_that_repeat_while_the_wheels_stand_still_are_of_a_simulated_camera_at_rest():
    still = repeat(with_depth(1)[0], 60)
    for speed, state in ((0.0, TrackingState.TRACKING), (0.05, TrackingState.UNVERIFIED)):
        pipeline = Pipeline(configure(odometry__mode="rgbd", external_odometry__use="prediction"))
        for frame in still:
            at = torch.tensor([0, 0, speed * frame.stamp_ns * 1e-9, 0, 0, 0, 1], dtype=torch.float64)
            pipeline.odometry.external.add(frame.stamp_ns, at)
            output = pipeline.process(frame)
        assert output.state is state and bool(output.fault) == (speed > 0)


def test_a_fault_is_an_event_once_for_each_time_that_it_begins():
    events = []
    pipeline = Pipeline(configure(odometry__mode="rgbd"), on_event=events.append)
    moving = with_depth(3)
    frozen = [repeat(moving[0], 45), repeat(replace(moving[1], id=46, stamp_ns=46 * STEP_NS), 45)]
    for frame in [moving[0], *frozen[0], replace(moving[1], id=46, stamp_ns=46 * STEP_NS), *frozen[1]]:
        pipeline.process(frame)
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert len(warnings) == 2 and all("bit-identical" in text for text in warnings)


def test_a_frozen_right_camera_is_named_and_not_measured_by():
    frames = pairs(8)
    stuck = [replace(frame, right=frames[3].right) if k > 3 else frame for k, frame in enumerate(frames)]
    check = InputCheck()
    checked = [check.check(frame) for frame in stuck]
    assert [frame.right is None for frame in checked] == [False] * 4 + [True] * 4
    _, outputs = drive(stuck, "stereo")
    assert "the right images have been bit-identical 4 times" in outputs[-1].fault and not outputs[3].fault


def test_one_camera_on_both_topics_is_named():
    _, outputs = drive([replace(frame, right=frame.image) for frame in pairs(2)], "stereo")
    assert all("left and right image are identical" in o.fault and o.fault in o.reason for o in outputs)


def test_exchanged_cameras_are_named():
    _, outputs = drive([replace(frame, image=frame.right, right=frame.image) for frame in pairs(2)], "stereo")
    assert outputs[-1].T_WC is None and "with left and right exchanged there would be" in outputs[-1].reason


def sinking(count: int) -> list[Frame]:
    """A pair that sinks before a wall at 2 m, by 5 px an image."""
    wide = torch.from_numpy(speckle(5, (480, 400)))[None]
    left = [wide[:, 5 * k : 5 * k + CAMERA.height, 40 : 40 + CAMERA.width] for k in range(count)]
    right = [
        wide[:, 5 * k : 5 * k + CAMERA.height, 40 + DISPARITY_PX : 40 + DISPARITY_PX + CAMERA.width]
        for k in range(count)
    ]
    return [
        Frame(k, k * STEP_NS, image.contiguous(), STEREO, right=other.contiguous())
        for k, (image, other) in enumerate(zip(left, right, strict=True))
    ]


@pytest.mark.parametrize(("shift", "word"), [(0, ""), (-1, "behind"), (1, "ahead of")])
def test_a_right_camera_of_another_instant_is_named(shift, word):
    frames = sinking(14)
    shifted = [replace(frame, right=frames[k + shift].right) for k, frame in enumerate(frames[1:13], 1)]
    pipeline = Pipeline(configure(odometry__mode="stereo", odometry__keyframe_parallax=0.001))
    # It begins well, standing still.
    outputs = [
        pipeline.process(frame)
        for frame in (frames[1], *(replace(f, id=f.id + 1, stamp_ns=f.stamp_ns + STEP_NS) for f in shifted))
    ]
    assert not any(o.fault for o in outputs[:3])
    expected = f"the right images are one image {word} the left ones" if word else ""
    assert outputs[-1].fault.startswith(expected) and bool(outputs[-1].fault) == bool(word)


@pytest.mark.parametrize(
    ("depth_m", "reason"),
    [(0.0, "the depth image is empty"), (2000.0, "beyond depth_max_m (20 m)"), (0.002, "beyond depth_min_m (0.2 m)")],
)
def test_depth_that_cannot_be_used_is_named(depth_m, reason):
    frames = [replace(frame, depth=torch.full_like(frame.depth, depth_m)) for frame in with_depth(2)]
    _, outputs = drive(frames, "rgbd")
    assert outputs[-1].T_WC is None and reason in outputs[-1].reason


def test_a_camera_at_half_the_rate_of_its_driver_is_no_fault():
    """Every image twice, with stamps of its own."""
    frames = [
        replace(f, id=2 * f.id + k, stamp_ns=2 * f.stamp_ns + k * STEP_NS) for f in with_depth(25) for k in range(2)
    ]
    _, outputs = drive(frames, "rgbd")
    assert {o.state for o in outputs} == {TrackingState.TRACKING} and not any(o.fault for o in outputs)
