"""The fault catalogue does what it says, and its verdicts follow from the outputs."""

import torch

from imatching_ros.bench.odometry.command import timings
from imatching_ros.bench.odometry.faults import judge, make_faults
from imatching_ros.datatypes import Frame, OdometryOutput, TrackingState
from odometry_scenes import CAMERA, speckle


def output(i: int, tracked: bool, map_id: int = 0) -> OdometryOutput:
    state = TrackingState.TRACKING if tracked else TrackingState.LOST
    pose = torch.tensor([0, 0, 0, 0, 0, 0, 1.0], dtype=torch.float64) if tracked else None
    return OdometryOutput(i, i, state, "", pose, None, 20 * tracked, False, True, map_id, None, timings_ms={"match": 1.0 + i, "keyframe": 5.0})


def test_faults_change_exactly_their_frames():
    image = torch.from_numpy(speckle(0, (240, 320)))[None]
    faults = {fault.name: fault for fault in make_faults(3)}
    frame = Frame(0, 0, image, CAMERA)
    assert [faults["5 dropped"].apply(i, frame) is None for i in range(9)] == [False] * 3 + [True] * 5 + [False]
    assert faults["10 black"].apply(3, frame).image.max() == 0 and faults["10 black"].apply(13, frame) is frame
    assert faults["exposure x 0.4"].apply(99, frame).image.float().mean() < 0.5 * image.float().mean()
    covered = faults["10 covered"]
    assert covered.apply(4, frame).image.float().mean() < 20 and covered.end == 13


def test_verdicts():
    faults = {fault.name: fault for fault in make_faults(2)}
    outputs = [output(i, True) for i in range(2)] + [None] * 5 + [output(7, False), output(8, False)] + [output(i, True, 1) for i in range(9, 12)]
    verdict = judge(faults["5 dropped"], outputs)
    assert (verdict.frames, verdict.lost_after, verdict.maps) == (3, 2, 2)
    never = judge(faults["5 dropped"], outputs[:7] + [output(7, False)])
    assert never.frames is None and never.lost_after == 1
    black = [output(i, i < 2 or i == 5 or i >= 12) for i in range(14)]
    assert judge(faults["10 black"], black).invented == 1


def test_front_end_time_leaves_keyframe_work_out():
    times = timings([output(i, True) for i in range(3)])
    assert times["front_p50"] == 2.0 and times["keyframe_p50"] == 5.0
