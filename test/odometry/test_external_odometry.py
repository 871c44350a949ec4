"""External odometry: what it is at a time, how it guides tracking, how it gives one camera its scale, and that it never harms."""

import math
from dataclasses import replace

import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.core.config import ExternalOdometryConfig
from imatching_ros.core.types import Frame, TrackingState
from imatching_ros.core.errors import SourceError
from imatching_ros.odometry.external_odometry import ExternalOdometry, PoseBuffer, metres_per_unit
from imatching_ros.pipeline import Pipeline
from imatching_ros.offline.simulation.sequence import SimulatedSequence
from odometry_scenes import STEP_NS, configure, rotating

MS = 1_000_000
REACH = 250 * MS


def pose(x=0.0, y=0.0, z=0.0, yaw=0.0):
    return geometry.exp(torch.tensor([x, y, z, 0, yaw, 0], dtype=torch.float64))


# -- the buffer -----------------------------------------------------------------------------------------------------------


def test_between_two_poses_it_follows_the_screw_motion():
    buffer = PoseBuffer()
    step = torch.tensor([0.3, 0.0, 0.1, 0.0, 0.4, 0.0], dtype=torch.float64)
    buffer.add(0, geometry.identity())
    buffer.add(100 * MS, geometry.exp(step))
    found, inside = buffer.at(25 * MS, REACH)
    assert inside and torch.allclose(found, geometry.exp(step / 4))
    assert torch.equal(buffer.at(100 * MS, REACH)[0], geometry.exp(step))


def test_after_the_newest_it_goes_on_for_a_stated_time_only():
    buffer = PoseBuffer()
    for k in range(20):
        buffer.add(k * 10 * MS, pose(x=0.01 * k))  # 1 m/s
    found, inside = buffer.at(290 * MS, REACH)
    assert not inside and float(found[0]) == pytest.approx(0.29)
    assert buffer.at(190 * MS + REACH + 1, REACH) is None
    assert buffer.at(-1, REACH) is None


def test_a_hole_is_not_bridged():
    buffer = PoseBuffer()
    buffer.add(0, pose())
    buffer.add(REACH + 1, pose(x=1))
    assert buffer.at(100 * MS, REACH) is None
    assert PoseBuffer().at(0, REACH) is None


def test_the_buffer_is_bounded():
    buffer = PoseBuffer()
    for k in range(20_000):
        buffer.add(k * MS, pose())
    assert len(buffer) <= 8000 and buffer.newest_ns == 19_999 * MS


def test_late_poses_are_left_out_and_time_that_starts_again_begins_anew():
    given = ExternalOdometry(ExternalOdometryConfig(use="both"))
    for k in range(100):
        given.add(k * 10 * MS, pose(x=k))
    given.add(500 * MS, pose(x=-1))
    assert float(given.motion(400 * MS, 500 * MS)[0]) == pytest.approx(10)
    given.add(0, pose(x=3))
    assert given.motion(400 * MS, 500 * MS) is None
    for bad in (pose(x=math.nan), torch.zeros(7)):
        with pytest.raises(SourceError, match="expected finite numbers and a quaternion"):
            given.add(2000 * MS, bad)


# -- the scale of a set of poses ------------------------------------------------------------------------------------------


def path(count=6):
    return torch.stack([pose(x=0.2 * k, z=0.05 * k * k, yaw=0.05 * k) for k in range(count)])


def test_scale_of_two_trajectories_in_different_frames():
    truth = path()
    shrunk = torch.cat([truth[:, :3] / 7.0, truth[:, 3:]], 1)
    moved = geometry.compose(pose(5, 2, 1, 1.0).expand(6, 7), truth)
    assert metres_per_unit(shrunk, moved, 0.1) == pytest.approx(7.0)


def test_scale_survives_one_bad_pose():
    truth = path(8)
    moved = truth.clone()
    moved[3, :3] += torch.tensor([0.5, 0.0, 0.3], dtype=torch.float64)
    assert metres_per_unit(truth, moved, 0.1) == pytest.approx(1.0, rel=0.05)


def test_too_short_a_way_says_nothing():
    assert "0.050 m between keyframes, 0.1 m are needed" in metres_per_unit(
        path(2) * 1.0, torch.stack([pose(), pose(x=0.05)]), 0.1
    )


def test_contradicting_motions_say_nothing():
    sideways = torch.stack([pose(z=-0.2 * k) for k in range(6)])
    assert "different directions" in metres_per_unit(path(), sideways, 0.1)
    slipping = torch.stack([pose(x=x) for x in (0.0, 0.2, 1.4, 1.5, 3.5, 3.7)])
    straight = torch.stack([pose(x=0.2 * k) for k in range(6)])
    assert "disagree on how far" in metres_per_unit(straight, slipping, 0.1)


# -- odometry that is given to the pipeline -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> list[tuple[Frame, torch.Tensor]]:
    """Images without depth of a rendered walk, and the true poses."""
    rendered = SimulatedSequence(
        kind="clutter", frames=22, seed=1, width=320, height=240, supersample=1, speed_mps=0.6
    ).read()
    return [(replace(frame, depth=None), T) for frame, T in rendered]


def wheels(clip, seed=0, scale=1.0, noise_m=0.001):
    """(stamp, pose) at 50 Hz along the true path, in a frame of its own, with noise."""
    generator = torch.Generator().manual_seed(seed)
    origin = pose(3, 1, -2, 0.7)
    out = []
    for (a, T_a), (b, T_b) in zip(clip, clip[1:]):
        for k in range(5):
            T = geometry.retract(T_a, geometry.local(T_a, T_b) * k / 5)
            T = geometry.compose(origin, torch.cat([T[:3] * scale, T[3:]]))
            jitter = torch.cat(
                [
                    torch.randn(3, generator=generator, dtype=torch.float64) * noise_m,
                    torch.zeros(3, dtype=torch.float64),
                ]
            )
            out.append((a.stamp_ns + (b.stamp_ns - a.stamp_ns) * k // 5, geometry.retract(T, jitter)))
    return out


def drive(clip, odometry, matcher="klt", delay_ns=30 * MS, events=None, **values):
    """Processes the images; odometry arrives `delay_ns` late."""
    pipeline = Pipeline(configure(matcher, **values), on_event=None if events is None else events.append)
    waiting, outputs = list(odometry), []
    for frame, _ in clip:
        while waiting and waiting[0][0] + delay_ns <= frame.stamp_ns:
            pipeline.add_external_odometry(*waiting.pop(0))
        outputs.append(pipeline.process(frame))
    return pipeline, outputs


def scale_of(outputs, clip) -> float:
    """Least-squares metres per unit of the published path, and how far it is from the true one then."""
    rows = [k for k, o in enumerate(outputs) if o.T_WC is not None]
    a = torch.stack([outputs[k].T_WC[:3] for k in rows])
    b = torch.stack([clip[k][1][:3] for k in rows])
    a, b = a - a.mean(0), b - b.mean(0)
    return float(torch.linalg.svdvals(b.T @ a).sum() / a.square().sum())


def test_mono_gets_its_metres_at_the_start(clip):
    pipeline, outputs = drive(clip, wheels(clip), external_odometry__use="both")
    tracked = [o for o in outputs if o.T_WC is not None]
    assert len(tracked) > 10 and all(o.metric and o.scale == "odometry" for o in tracked)
    assert not outputs[0].metric and outputs[0].scale.startswith("unknown: ")
    assert scale_of(outputs, clip) == pytest.approx(1.0, abs=0.03)
    assert pipeline.odometry.external.problem == ""


def test_metres_are_those_of_the_odometry(clip):
    _, outputs = drive(clip, wheels(clip, scale=2.5), external_odometry__use="scale")
    assert scale_of(outputs, clip) == pytest.approx(1 / 2.5, rel=0.03)


def test_without_odometry_mono_goes_on_unscaled_and_says_why(clip):
    pipeline, outputs = drive(clip, [], external_odometry__use="both")
    _, plain = drive(clip, [])
    for a, b in zip(outputs, plain, strict=True):
        assert a.state is b.state and not a.metric and (a.T_WC is None or torch.equal(a.T_WC, b.T_WC))
        assert a.scale == "unknown: no odometry has arrived" and b.scale == "unknown"
    assert pipeline.odometry.external.problem == "no odometry has arrived"


def test_scale_that_comes_late_makes_no_jump(clip):
    """The map begins in arbitrary units and becomes metric around the camera; keyframes follow."""
    events = []
    first = next(k for k, o in enumerate(drive(clip, [])[1]) if o.T_WC is not None)
    late = [(stamp, T) for stamp, T in wheels(clip) if stamp > clip[first + 1][0].stamp_ns]
    pipeline, outputs = drive(
        clip, late, external_odometry__use="scale", odometry__keyframe_parallax=0.01, events=events
    )
    metric = [o.metric for o in outputs]
    since = metric.index(True)
    assert since > first + 1 and all(metric[since:]) and outputs[first].scale.startswith("unknown: ")
    scaled = [e for e in events if e["event"] == "scale"]
    assert scaled[0]["stamp_ns"] == outputs[since - 1].stamp_ns
    assert all(e["factor"] == pytest.approx(1.0, abs=0.1) for e in scaled[1:])  # once metric, it only drifts
    # The image after the change is one step in metres away from the one before, whose pose was in other units.
    step = float((outputs[since].T_WC[:3] - outputs[since - 1].T_WC[:3]).norm())
    true_step = float((clip[since][1][:3] - clip[since - 1][1][:3]).norm())
    assert step == pytest.approx(true_step, rel=0.2)
    assert scale_of(outputs[since:], clip[since:]) == pytest.approx(1.0, abs=0.05)
    keyframes = pipeline.keyframes()
    truth = {frame.stamp_ns: T for frame, T in clip}
    whole = float((keyframes[-1][1][:3] - keyframes[0][1][:3]).norm())
    true = float((truth[keyframes[-1][0]][:3] - truth[keyframes[0][0]][:3]).norm())
    assert whole == pytest.approx(true, rel=0.06)


def test_prediction_needs_no_scale(clip):
    pipeline, outputs = drive(clip, wheels(clip), external_odometry__use="prediction")
    tracked = [o for o in outputs if o.T_WC is not None]
    assert tracked and not any(o.metric for o in outputs) and tracked[-1].scale == "unknown"
    # It is measured all the same, so that its translation can be used.
    assert pipeline.odometry.external.unit_m == pytest.approx(scale_of(outputs, clip), rel=0.05)


def test_prediction_bridges_a_change_of_speed(clip):
    """After images are left out, constant velocity is a bad guess and odometry a good one."""
    given = ExternalOdometry(ExternalOdometryConfig(use="both"))
    for stamp, T in wheels(clip):
        given.add(stamp, T)
    given.unit_m = 1.0
    (a, T_a), (b, T_b) = clip[3], clip[15]
    predicted = given.predict(T_a, a.stamp_ns, b.stamp_ns, T_a)
    assert float(geometry.local(predicted, T_b).norm()) < 0.01 < 0.2 * float(geometry.local(T_a, T_b).norm())


@pytest.mark.parametrize("matcher", ["klt", "sift"])
def test_wrong_odometry_does_not_break_tracking(clip, matcher):
    """Turned by a quarter and ten times too fast, as with a wrong frame: tracking goes on by constant velocity, and says so."""
    quarter = pose(yaw=math.pi / 2)
    wrong = [
        (
            s,
            geometry.compose(
                geometry.compose(quarter, torch.cat([T[:3] * 10, T[3:]])),
                geometry.exp(torch.tensor([0, 0, 0, 0, 0, 0.2 * math.sin(k)], dtype=torch.float64)),
            ),
        )
        for k, (s, T) in enumerate(wheels(clip))
    ]
    pipeline, outputs = drive(clip, wrong, matcher, external_odometry__use="prediction")
    _, plain = drive(clip, [], matcher)
    # The first frames of a map may find few landmarks around a wrong prediction, and are UNVERIFIED then.
    assert [o.T_WC is None for o in outputs] == [o.T_WC is None for o in plain]
    assert all(o.state is TrackingState.TRACKING for o in outputs[-6:])
    assert "contradicts the images" in pipeline.odometry.external.problem
    for a, b in list(zip(outputs, plain))[-3:]:
        assert float((a.T_WC[:3] - b.T_WC[:3]).norm()) < 0.03 * float(b.T_WC[:3].norm())


def test_holes_in_odometry_are_told_and_survived(clip):
    holed = [(stamp, T) for stamp, T in wheels(clip) if not 8 * STEP_NS < stamp - clip[0][0].stamp_ns < 15 * STEP_NS]
    pipeline = Pipeline(configure(external_odometry__use="both"))
    problems, outputs = [], []
    for frame, _ in clip:
        while holed and holed[0][0] <= frame.stamp_ns:
            pipeline.add_external_odometry(*holed.pop(0))
        outputs.append(pipeline.process(frame))
        problems.append(pipeline.odometry.external.problem)
    first = next(k for k, o in enumerate(outputs) if o.T_WC is not None)
    assert all(o.state is TrackingState.TRACKING for o in outputs[first:])
    assert "older than the image" in problems[13] and problems[-1] == ""
    assert scale_of(outputs, clip) == pytest.approx(1.0, abs=0.03)


def test_scale_is_put_right_when_the_map_drifts(clip):
    pipeline, outputs = drive(
        clip[:16], wheels(clip), external_odometry__use="scale", odometry__keyframe_parallax=0.005
    )
    assert outputs[-1].metric
    pipeline.window.rescale(1.2)  # what a drift of scale would have made of it
    pipeline.odometry.last = replace(
        pipeline.odometry.last, T_WC=pipeline.window.T_WC[-1].clone(), depth=pipeline.odometry.last.depth * 1.2
    )
    after = []
    for frame, _ in clip[16:]:
        for stamp, T in wheels(clip):
            if frame.stamp_ns - STEP_NS < stamp <= frame.stamp_ns:
                pipeline.add_external_odometry(stamp, T)
        after.append(pipeline.process(frame))
    assert any(o.is_keyframe for o in after)
    assert math.log(
        pipeline.odometry.external.measure([k.stamp_ns for k in pipeline.window.keyframes], pipeline.window.T_WC)
    ) == pytest.approx(0, abs=0.05)


def test_a_new_map_lies_where_odometry_has_carried_the_camera():
    """Lost among other things, 0.5 m further by the wheels: the new map begins there, not at the last pose."""
    frames = [
        frame
        for frame, _ in SimulatedSequence(kind="clutter", frames=4, seed=1, width=320, height=240, supersample=1).read()
    ]
    elsewhere = [
        replace(frame, id=100 + k, stamp_ns=frames[-1].stamp_ns + (k + 1) * STEP_NS, depth=torch.full((240, 320), 3.0))
        for k, frame in enumerate(rotating(3, 0.3))
    ]
    moved = pose(x=0.5, yaw=0.3)
    pipeline = Pipeline(configure(external_odometry__use="prediction", odometry__restart_frames=2))
    for frame in frames:
        pipeline.add_external_odometry(frame.stamp_ns, geometry.identity())
        last = pipeline.process(frame)
    outputs = []
    for frame in elsewhere:
        pipeline.add_external_odometry(frame.stamp_ns, moved)
        outputs.append(pipeline.process(frame))
    restarted = next(o for o in outputs if o.T_WC is not None)
    assert last.T_WC is not None and outputs[0].state is TrackingState.LOST and restarted.map_id == 1
    assert float(geometry.local(geometry.compose(last.T_WC, moved), restarted.T_WC).norm()) < 0.02
