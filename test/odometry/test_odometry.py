"""Odometry on images with known truth: accuracy, honesty when it cannot know, recovery, and a bounded memory."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from imatching_ros.core import geometry
from imatching_ros.core.config import Config, walk
from imatching_ros.core.errors import ConfigError, SourceError
from imatching_ros.core.masks import is_masked
from imatching_ros.core.types import Frame, ObservationKind, OdometryOutput, TrackingState, WeightsSnapshot
from imatching_ros.learning.learner import Learner
from imatching_ros.matching import create_matcher
from imatching_ros.matching.expectation import ExpectationMatcher
from imatching_ros.odometry.front_end import CONFIRMED_INLIER_RATIO
from imatching_ros.odometry.odometry import Odometry
from imatching_ros.odometry.state import Cause, Unverified
from imatching_ros.offline.simulation.sequence import SimulatedSequence
from imatching_ros.pipeline import Pipeline
from odometry_scenes import CAMERA, STEP_NS, configure, noisy, passing, render_walk, rotating, speckle


@pytest.fixture(scope="module")
def clip() -> list[tuple[Frame, torch.Tensor]]:
    return render_walk()


def drive(frames, matcher="klt", pipeline=None, **values):
    pipeline = pipeline or Pipeline(configure(matcher, **values))
    return pipeline, [pipeline.process(frame) for frame in frames]


def position_error(output, T) -> float:
    return float((output.T_WC[:3] - T[:3]).norm())


def test_rgbd_is_metric_from_the_first_frame(clip):
    pipeline, outputs = drive([frame for frame, _ in clip])
    assert [o.state for o in outputs] == [TrackingState.TRACKING] * len(clip)
    path = sum(float((b[:3] - a[:3]).norm()) for (_, a), (_, b) in zip(clip, clip[1:]))
    assert path > 0.5
    errors = [position_error(o, T) for o, (_, T) in zip(outputs, clip)]
    assert max(errors) < 0.03 * path
    assert all(o.metric and o.inliers >= 15 and o.T_WC is not None for o in outputs)
    assert outputs[0].is_keyframe and outputs[0].covariance.shape == (6, 6)
    covariance = outputs[-1].covariance
    assert torch.allclose(covariance, covariance.T) and (torch.linalg.eigvalsh(covariance) > 0).all()


def test_each_image_is_used_with_its_own_calibration():
    """A zoom that breathes by 3 %, 5 px at the border: the map is carried over, and stays."""
    frames = []
    for k, frame in enumerate(rotating(10, 0.5)):
        zoom = 1 + 0.03 * np.sin(k)
        camera = replace(CAMERA, fx=CAMERA.fx * zoom, fy=CAMERA.fy * zoom)
        warp = np.array([[zoom, 0, (1 - zoom) * CAMERA.cx], [0, zoom, (1 - zoom) * CAMERA.cy]])
        image = cv2.warpAffine(
            frame.image[0].numpy(), warp, (CAMERA.width, CAMERA.height), borderMode=cv2.BORDER_REFLECT
        )
        depth = torch.full((CAMERA.height, CAMERA.width), 2.0)
        frames.append(replace(frame, image=torch.from_numpy(image)[None], camera=camera, depth=depth))
    _, outputs = drive(frames, odometry__mode="rgbd", odometry__keyframe_parallax=0.001)
    turned_deg = [float(geometry.log(o.T_WC)[3:].norm().rad2deg()) for o in outputs]
    assert [o.state for o in outputs] == [TrackingState.TRACKING] * 10
    assert turned_deg == pytest.approx([0.5 * k for k in range(10)], abs=0.15)
    assert max(float(o.T_WC[:3].norm()) for o in outputs) < 0.02


class CountOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_a_frame_takes_few_operations(clip):
    """Of torch: on a few hundred numbers each costs microseconds however small it is, several milliseconds a frame."""
    config = configure("expectation", odometry__mode="rgbd")
    odometry, counts = Odometry(config, create_matcher(config.matcher)), []
    for frame, _ in clip[:8]:
        with CountOperations() as operations:
            output = odometry.track(frame)
        odometry.extend()
        counts.append(operations.count)
    assert output.state is TrackingState.TRACKING
    assert sorted(counts[2:])[3] < 1600  # about 1500, of which the network takes 70


def test_what_leaves_odometry_may_take_part_in_gradients(clip):
    mask = torch.zeros(240, 320, dtype=torch.bool)
    frames = [replace(frame, mask=mask) for frame, _ in clip[:3]]
    assert len(frames[0].image) == 3, "colour, which is turned to grey"
    pipeline, outputs = drive(frames, odometry__mode="rgbd", odometry__keyframe_parallax=0.001)
    last, keyframe = outputs[-1], pipeline.window.keyframes[-1]
    assert last.matches is not None and last.bundle is not None
    assert not keyframe.image.is_inference() and not keyframe.mask.is_inference(), "the learner's samples share them"
    for value in (last.T_WC, last.covariance, last.matches.uv_j, last.bundle.points_W):
        scale = torch.ones((), dtype=value.dtype, requires_grad=True)
        (scale * value).sum().backward()  # for which it is kept


def without_depth(frame: Frame) -> Frame:
    return replace(frame, depth=None)


def test_a_frame_without_its_depth_is_tracked_by_what_was_seen_before(clip):
    frames = [frame for frame, _ in clip[:8]]
    frames[4] = without_depth(frames[4])
    # Nearly every frame becomes a keyframe, this one too.
    values = dict(odometry__mode="rgbd", odometry__keyframe_parallax=0.001)
    pipeline, outputs = drive(frames, **values)
    assert (
        [o.state for o in outputs] == [TrackingState.TRACKING] * 8
        and outputs[4].is_keyframe
        and all(o.metric for o in outputs)
    )
    assert max(position_error(o, T) for o, (_, T) in zip(outputs, clip)) < 0.02
    o = pipeline.window.observations
    measured = [bool((o.kind[o.kf == k] == ObservationKind.DEPTH).any()) for k in range(len(pipeline.window.keyframes))]
    assert measured == [keyframe.id != 4 for keyframe in pipeline.window.keyframes] and not all(measured)


def test_a_stereo_frame_without_its_right_image_is_tracked(clip):
    camera = replace(CAMERA, baseline_m=0.1)
    # Right images of a wall: the left one shifted by its disparity, 256 px * 0.1 m / 2 m.
    flat = [replace(frame, camera=camera, right=torch.roll(frame.image, -13, 2)) for frame in rotating(8, 0.2)]
    flat[5] = replace(flat[5], right=None)
    _, outputs = drive(flat, odometry__mode="stereo")
    assert [o.state for o in outputs] == [TrackingState.TRACKING] * 8


def test_a_map_in_metres_waits_for_a_frame_with_depth(clip):
    blind = replace(clip[0][0], image=torch.zeros_like(clip[0][0].image))  # settles the mode, and begins no map
    frames = [blind, without_depth(clip[1][0]), *(frame for frame, _ in clip[2:6])]
    _, outputs = drive(frames)
    assert [o.state for o in outputs] == [TrackingState.UNINITIALIZED] * 2 + [TrackingState.TRACKING] * 4
    assert "no depth image" in outputs[1].reason
    assert position_error(outputs[-1], geometry.relative(clip[2][1], clip[5][1])) < 0.02
    with pytest.raises(SourceError, match="odometry.mode is 'rgbd'"):
        drive([without_depth(clip[0][0])], odometry__mode="rgbd")


def test_matches_agree_with_the_truth(clip):
    _, outputs = drive([frame for frame, _ in clip])
    depth = {frame.id: frame.depth for frame, _ in clip}
    pose = {frame.id: T for frame, T in clip}
    errors = []
    for output in outputs[1:]:
        m = output.matches
        assert (
            m.id_j == output.frame_id
            and m.id_i < m.id_j
            and len(m.uv_i) == len(m.uv_j) == len(m.inlier) == len(m.landmark_id)
        )
        at = m.uv_i.round().long().clamp_min(0)
        z = depth[m.id_i][at[:, 1].clamp_max(239), at[:, 0].clamp_max(319)].double()
        points = geometry.act(pose[m.id_i], geometry.back_project(CAMERA, m.uv_i.double(), z))
        seen = geometry.project(CAMERA, geometry.act(geometry.inverse(pose[m.id_j]), points))
        errors.append((seen - m.uv_j).norm(dim=1)[m.inlier & (z > 0)])
    errors = torch.cat(errors)
    assert len(errors) > 500 and errors.median() < 1.0 and (errors < 3).float().mean() > 0.85


def test_mono_starts_from_parallax_and_says_that_it_has_no_scale(clip):
    _, outputs = drive([replace(frame, depth=None) for frame, _ in clip])
    states = [o.state for o in outputs]
    first = states.index(TrackingState.TRACKING)
    assert 0 < first < 14 and states[:first] == [TrackingState.UNINITIALIZED] * first
    assert all(o.T_WC is None and o.reason for o in outputs[:first]) and not any(o.metric for o in outputs)
    tracked = outputs[first:]
    assert all(o.T_WC is not None for o in tracked)
    estimate, truth = torch.stack([o.T_WC[:3] for o in tracked]), torch.stack([T[:3] for _, T in clip[first:]])
    scale = (truth * estimate).sum() / estimate.square().sum()
    assert ((scale * estimate - truth).norm(dim=1) < 0.1 * truth.norm(dim=1).max()).all()


def test_a_known_first_baseline_gives_mono_its_scale(clip):
    _, outputs = drive([replace(frame, depth=None) for frame, _ in clip], odometry__first_baseline_m=0.5)
    first = next(o for o in outputs if o.T_WC is not None)
    assert first.metric and abs(float(first.T_WC[:3].norm()) - 0.5) < 1e-6


def test_pure_rotation_invents_no_translation():
    pipeline, outputs = drive(rotating(14, 0.8))
    assert all(o.T_WC is None and o.state is TrackingState.UNINITIALIZED for o in outputs)
    assert "parallax" in outputs[-1].reason
    assert pipeline.window.keyframes == []


def test_rotation_in_a_running_rgbd_map_stays_in_place():
    flat = [replace(frame, depth=None) for frame in rotating(10, 0.8)]
    # A wall at 3 m that faces the first camera, seen by a camera that turns.
    uv = torch.stack(torch.meshgrid(torch.arange(320.0), torch.arange(240.0), indexing="xy"), -1).double()
    frames, angles = [], []
    for i, frame in enumerate(flat):
        turn = geometry.exp(torch.tensor([0, 0, 0, 0, 0.8 * i * torch.pi / 180, 0], dtype=torch.float64))
        rays = geometry.rays(CAMERA, uv)
        depth = 3.0 / geometry.rotate(turn[3:], rays)[..., 2]
        frames.append(replace(frame, depth=depth.float()))
        angles.append(turn)
    _, outputs = drive(frames)
    assert max(float(o.T_WC[:3].norm()) for o in outputs) < 0.005
    assert max(float(geometry.relative(o.T_WC, T)[3:6].norm()) for o, T in zip(outputs, angles)) < 0.003


def test_standing_still_neither_drifts_nor_fills_the_window(clip):
    pipeline, _ = drive([frame for frame, _ in clip[:4]])
    base, keyframes = clip[4][0], len(pipeline.window.keyframes)
    still = [noisy(base, k, id=base.id + k, stamp_ns=base.stamp_ns + k * STEP_NS) for k in range(31)]
    _, outputs = drive(still, pipeline=pipeline)
    positions = torch.stack([o.T_WC[:3] for o in outputs])
    early, late = positions[1:6].mean(0), positions[-5:].mean(0)
    assert float((late - early).norm()) < 0.0025  # metres in 2.5 s
    assert float((positions[-5:] - late).norm(dim=1).max()) < 0.003
    assert len(pipeline.window.keyframes) <= keyframes + 1


@pytest.mark.parametrize("matcher", ["klt", "sift"])
def test_a_black_spell_is_told_and_survived(clip, matcher):
    pipeline, _ = drive([frame for frame, _ in clip[:6]], matcher)
    dark = [replace(frame, image=torch.zeros_like(frame.image)) for frame, _ in clip[6:9]]
    _, lost = drive(dark, pipeline=pipeline)
    assert all(o.state is TrackingState.LOST and o.T_WC is None and "dark" in o.reason for o in lost)
    _, back = drive([frame for frame, _ in clip[9:12]], pipeline=pipeline)
    assert back[0].T_WC is not None and back[0].map_id == 0
    assert position_error(back[0], clip[9][1]) < 0.05


def test_an_unknown_place_starts_a_new_map_where_the_last_pose_was(clip):
    events = []
    pipeline = Pipeline(configure(odometry__restart_frames=2), on_event=events.append)
    _, before = drive([frame for frame, _ in clip[:6]], pipeline=pipeline)
    elsewhere = [
        replace(frame, id=100 + k, stamp_ns=clip[6][0].stamp_ns + k * STEP_NS, depth=torch.full((240, 320), 3.0))
        for k, frame in enumerate(rotating(4, 0.3))
    ]
    _, after = drive(elsewhere, pipeline=pipeline)
    assert after[0].state is TrackingState.LOST and after[0].T_WC is None
    restarted = next(o for o in after if o.T_WC is not None)
    assert restarted.map_id == 1 and position_error(restarted, before[-1].T_WC) < 0.01  # adjusted since
    assert restarted.covariance[0, 0] > 10 * before[-1].covariance[0, 0]
    assert [e["event"] for e in events if e["event"] != "keyframe"] == ["tracking", "lost", "restart", "tracking"]


@pytest.fixture(scope="module")
def room() -> list[tuple[Frame, torch.Tensor]]:
    return list(
        SimulatedSequence(kind="room", frames=44, seed=1, width=320, height=240, supersample=1, speed_mps=1.0).read()
    )


def after(room, order, **values):
    """Outputs of the frames `order` after the first 20, which are a walk, and the errors of their poses in m, seen from the last of these."""
    _, outputs = drive(
        [replace(room[i][0], id=k, stamp_ns=k * STEP_NS) for k, i in enumerate(order)], matcher="expectation", **values
    )
    assert outputs[19].state is TrackingState.TRACKING
    started = next(k for k, output in enumerate(outputs) if output.T_WC is not None)
    scale = float((room[19][1] - room[started][1])[:3].norm() / (outputs[19].T_WC - outputs[started].T_WC)[:3].norm())
    errors = [
        float("nan")
        if o.T_WC is None or o.map_id > 0
        else float(
            (scale * geometry.relative(outputs[19].T_WC, o.T_WC) - geometry.relative(room[19][1], room[i][1]))[
                :3
            ].norm()
        )
        for o, i in zip(outputs, order)
    ]
    return outputs[20:], errors[20:]


@pytest.mark.parametrize("jump", [34, 38, 42])
def test_a_place_that_looks_alike_is_not_called_tracking(room, jump):
    """Three dozen matches agree on a pose that is metres away from where the camera is."""
    outputs, errors = after(room, [*range(20), jump, jump + 1], odometry__mode="mono")
    assert all(o.state is not TrackingState.TRACKING or error < 0.1 for o, error in zip(outputs, errors))


def test_after_two_frames_elsewhere_the_place_is_known_again(room):
    outputs, errors = after(room, [*range(20), 42, 42, *range(21, 25)], odometry__mode="rgbd")
    assert [o.state for o in outputs[:2]] == [TrackingState.LOST] * 2
    assert all(o.state is TrackingState.TRACKING and o.map_id == 0 for o in outputs[2:]) and max(errors[2:]) < 0.2


def test_after_a_long_time_without_images_a_pose_has_to_be_firm(room):
    def resumed(pause_s: float) -> OdometryOutput:
        pipeline = Pipeline(configure("expectation", odometry__mode="rgbd"))
        for frame, _ in room[:12]:
            pipeline.process(frame)
        pipeline.odometry.front_end.usual_inlier_ratio *= 2.5  # as if two fifths of the usual share agreed
        return pipeline.process(replace(room[12][0], stamp_ns=room[12][0].stamp_ns + round(pause_s * 1e9)))

    assert resumed(0.0).state is TrackingState.TRACKING
    assert resumed(60.0).state is not TrackingState.TRACKING


@pytest.mark.parametrize("agreeing", (1.0, 0.4))
def test_a_pose_that_the_camera_could_hardly_have_moved_to_is_looked_at_closer(room, monkeypatch, agreeing):
    pipeline = Pipeline(configure("expectation", odometry__mode="rgbd"))
    for frame, _ in room[:12]:
        before = pipeline.process(frame)
    pipeline.odometry.front_end.usual_inlier_ratio /= agreeing
    monkeypatch.setattr(pipeline.odometry.motion, "is_plausible", lambda *_: False)
    output = pipeline.process(room[12][0])
    if agreeing < CONFIRMED_INLIER_RATIO:
        assert output.state is TrackingState.UNVERIFIED
    else:
        assert output.state is TrackingState.TRACKING
        moved = geometry.relative(before.T_WC, output.T_WC)
        assert float((moved - geometry.relative(room[11][1], room[12][1]))[:3].norm()) < 0.02


@pytest.mark.parametrize("mode", ["rgbd", "mono"])
def test_what_follows_a_look_alike_is_not_called_tracking_either(room, mode):
    """A map that grew from the first pose would agree with it."""
    outputs, errors = after(room, [*range(20), *range(32, 37)], odometry__mode=mode)
    assert all(
        o.state is not TrackingState.TRACKING or o.map_id > 0 or error < 0.2 for o, error in zip(outputs, errors)
    )


def test_a_pose_with_which_little_agrees_says_so_and_builds_no_map(room):
    pipeline = Pipeline(configure("expectation", odometry__mode="rgbd"))
    for frame, _ in room[:20]:
        pipeline.process(frame)
    usual = pipeline.odometry.front_end.usual_inlier_ratio
    # As if two fifths of the usual share agreed, after a pose far from the way.
    pipeline.odometry.front_end.usual_inlier_ratio = 2.5 * usual
    pipeline.odometry.state = Unverified(cause=Cause.LOW_INLIER_RATIO, mapping_frozen=True)
    reference = pipeline.odometry.motion.zero_motion.reference
    misses, unverified = int(pipeline.window.landmarks.misses.sum()), []
    for frame, _ in room[20:23]:
        unverified.append(pipeline.process(frame))
    assert all(o.state is TrackingState.UNVERIFIED and not o.is_keyframe for o in unverified)
    held = pipeline.odometry.motion.zero_motion.reference
    assert held is None or held is reference, "a camera that stands would be held at an unverified pose"
    assert pipeline.odometry.tracking_failed and int(pipeline.window.landmarks.misses.sum()) <= misses
    pipeline.odometry.front_end.usual_inlier_ratio = usual
    firm = [pipeline.process(frame) for frame, _ in room[23:27]]
    assert (
        all(o.state is TrackingState.TRACKING for o in firm)
        and any(o.is_keyframe for o in firm)
        and not pipeline.odometry.tracking_failed
    )


def test_weights_are_blamed_only_for_losses_that_began_with_them(room):
    odometry = Odometry(configure("expectation", odometry__mode="rgbd"), ExpectationMatcher())
    odometry.matcher.weights_version = 1

    def see(i: int, now: int, image=None) -> bool:
        frame = replace(room[i][0], id=now, stamp_ns=now * STEP_NS, image=room[i][0].image if image is None else image)
        odometry.track(frame)
        odometry.extend()
        return odometry.tracking_failed

    elsewhere = torch.from_numpy(speckle(9, (240, 320)))[None].expand(3, -1, -1)
    told = [see(0, 0), see(1, 1), see(1, 2, elsewhere), see(1, 3, elsewhere)]
    odometry.adopt(WeightsSnapshot(2, "", odometry.matcher.state_dict()), {})
    told += [see(1, 4, elsewhere)]
    assert told == [False, False, True, True, False]
    assert not see(1, 90), "after a long time without images nobody is to blame"


def test_something_that_hides_most_of_the_image_does_not_end_tracking(room):
    def hidden(frame: Frame) -> Frame:
        image = frame.image.clone()
        image[:, :, :208] = torch.from_numpy(speckle(7)[:240, :208].copy())
        return replace(frame, image=image)

    frames = [replace(hidden(f) if k == 20 else f, id=k, stamp_ns=k * STEP_NS) for k, (f, _) in enumerate(room[:22])]
    _, outputs = drive(frames, matcher="expectation", odometry__mode="rgbd")
    assert all(o.map_id == 0 and o.T_WC is not None for o in outputs)
    for k in (20, 21):
        moved = (
            geometry.relative(outputs[19].T_WC, outputs[k].T_WC)[:3] - geometry.relative(room[19][1], room[k][1])[:3]
        )
        assert float(moved.norm()) < 0.1


def test_no_map_begins_with_the_noise_of_the_dark(clip):
    """Noise has corners with a depth as well, but never the same ones again; what is seen after it is found in the same map."""
    frames = [frame for frame, _ in clip]
    rng = np.random.default_rng(0)
    dark = [
        replace(frames[8], image=torch.from_numpy(rng.normal(60, 12, (1, 240, 320)).clip(0, 255).astype(np.uint8)))
        for _ in range(8)
    ]
    after = [*frames[8:12]]
    sequence = [replace(f, id=k, stamp_ns=k * STEP_NS) for k, f in enumerate([*frames[:8], *dark, *after])]
    _, outputs = drive(sequence, "expectation", odometry__mode="rgbd")
    assert {o.state for o in outputs[:8]} == {TrackingState.TRACKING}
    assert {o.state for o in outputs[8:16]} == {TrackingState.LOST}
    assert outputs[-1].state is TrackingState.TRACKING and {o.map_id for o in outputs} == {0}


@pytest.mark.parametrize("matcher", ("klt", "expectation"))
@pytest.mark.parametrize("mode", ("mono", "rgbd"))
def test_what_moves_under_a_mask_changes_nothing(clip, mode, matcher):
    def follow(frames):
        pipeline, outputs = drive(frames, matcher, odometry__mode=mode)
        return pipeline, [o for o in outputs if o.T_WC is not None]

    def error(outputs) -> float:
        found, true = (
            torch.stack([o.T_WC[:3] for o in outputs]),
            torch.stack([clip[o.frame_id][1][:3] for o in outputs]),
        )
        found, true = found - found[0], true - true[0]
        scale = 1.0 if mode == "rgbd" else float((found * true).sum() / (found * found).sum())
        return float((scale * found - true).norm(dim=1).max())

    _, alone = follow([frame for frame, _ in clip])
    pipeline, masked = follow([passing(frame) for frame, _ in clip])
    _, empty = follow([passing(frame, there=False) for frame, _ in clip])
    assert [o.frame_id for o in masked] == [o.frame_id for o in empty]
    assert all(torch.equal(a.T_WC, b.T_WC) for a, b in zip(masked, empty, strict=True))
    # metres, on a path of one; of 60 % of the image the pose is known less well
    assert error(masked) < 3 * error(alone) + 0.01 and masked[0].frame_id <= alone[0].frame_id + 2
    o = pipeline.window.observations
    for row, keyframe in enumerate(pipeline.window.keyframes):
        mask = passing(clip[keyframe.id][0]).mask
        assert not is_masked(mask, o.uv[o.kf == row]).any()


def test_no_landmark_id_is_given_twice(clip):
    def ids(outputs) -> set[int]:
        return {i for o in outputs if o.matches is not None for i in o.matches.landmark_id.tolist()} | set(
            pipeline.window.landmarks.id.tolist()
        )

    # A search radius too small to find anything again after the jump, and a window that the first place has left.
    values = dict(
        odometry__restart_frames=2,
        odometry__search_radius=0.02,
        odometry__window_keyframes=3,
        odometry__keyframe_parallax=0.005,
    )
    pipeline, before = drive([frame for frame, _ in clip[:14]], **values)
    old, walked = ids(before), pipeline.window
    # Back to the first place at once: its keyframe is found in the database, and a window of it alone begins.
    jumped = replace(clip[0][0], id=100, stamp_ns=clip[14][0].stamp_ns)
    _, back = drive([jumped], pipeline=pipeline)
    recognized = ids([]) - old
    assert back[0].T_WC is not None and back[0].map_id == 0 and pipeline.window is not walked
    assert len(recognized) == len(pipeline.window.landmarks)
    # Somewhere else: another map begins.
    elsewhere = [
        replace(frame, id=200 + k, stamp_ns=clip[15][0].stamp_ns + k * STEP_NS, depth=torch.full((240, 320), 3.0))
        for k, frame in enumerate(rotating(4, 0.3))
    ]
    _, after = drive(elsewhere, pipeline=pipeline)
    assert after[-1].map_id == 1 and ids(after[-1:]).isdisjoint(old | recognized)


def test_dropped_frames_are_bridged(clip):
    kept = clip[:7] + clip[12:]
    _, outputs = drive([frame for frame, _ in kept], "sift")
    assert all(o.T_WC is not None and o.map_id == 0 for o in outputs)
    assert position_error(outputs[7], clip[12][1]) < 0.05


def test_memory_is_bounded(clip):
    there_and_back = clip + clip[-2::-1] + clip[1:]
    frames = [replace(frame, id=k, stamp_ns=k * STEP_NS) for k, (frame, _) in enumerate(there_and_back)]
    values = dict(odometry__window_keyframes=4, odometry__stored_keyframes=3, odometry__keyframe_parallax=0.005)
    pipeline, outputs = drive(frames, **values)
    assert sum(o.is_keyframe for o in outputs) > 8  # more than the window and the memory hold
    window = pipeline.window
    assert len(window.keyframes) == 4 and len(pipeline.odometry.relocalizer.database) == 3
    assert len(window.landmarks) < 4 * 400 and len(window.observations) < 16 * 400
    assert position_error(outputs[-1], clip[-1][1]) < 0.05


def test_the_same_frames_give_the_same_poses_and_reset_forgets_everything(clip):
    frames = [replace(frame, depth=None) for frame, _ in clip]
    pipeline, first = drive(frames)
    pipeline.reset()
    _, again = drive(frames, pipeline=pipeline)
    _, other = drive(frames)
    for a, b, c in zip(first, again, other):
        assert (a.T_WC is None) == (b.T_WC is None) == (c.T_WC is None)
        if a.T_WC is not None:
            assert torch.equal(a.T_WC, b.T_WC) and torch.equal(a.T_WC, c.T_WC)


def test_time_that_goes_backwards_is_refused(clip):
    pipeline, _ = drive([clip[1][0]])
    with pytest.raises(SourceError, match="not after the one before"):
        pipeline.process(clip[0][0])
    assert pipeline.process(clip[2][0]).T_WC is not None


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "mode", "bound"), [("kitti_mono_turn", "mono", 0.02), ("tartanair_hospital", "rgbd", 0.01)]
)
def test_real_sequences(data_folder, name, mode, bound):
    from imatching_ros.offline.recordings.base import SourceOptions
    from imatching_ros.offline.recordings import open_source

    source = open_source(data_folder / name, SourceOptions(mode=mode, duration_s=3.0))
    truth = source.groundtruth().T_WC
    _, outputs = drive(source)
    tracked = [o for o in outputs if o.T_WC is not None]
    assert len(tracked) >= len(outputs) - (15 if mode == "mono" else 0)
    estimate = torch.stack([o.T_WC[:3] for o in tracked])
    truth = torch.as_tensor(truth)[[i for i, o in enumerate(outputs) if o.T_WC is not None], :3].double()
    estimate, truth = estimate - estimate.mean(0), truth - truth.mean(0)
    U, S, Vt = torch.linalg.svd(truth.T @ estimate)
    scale = S.sum() / estimate.square().sum() if mode == "mono" else 1.0
    error = (scale * estimate @ (U @ Vt).T - truth).norm(dim=1)
    assert error.square().mean().sqrt() < bound * (truth[1:] - truth[:-1]).norm(dim=1).sum()


@pytest.fixture(scope="module")
def brisk_walk():
    sequence = SimulatedSequence(kind="clutter", frames=18, seed=1, width=320, height=240, supersample=1, speed_mps=1.2)
    return [frame for frame, _ in sequence.read()]


def test_settings_act_from_the_next_frame_on(brisk_walk):
    config = configure(odometry__keyframe_parallax=0.002)
    pipeline = Pipeline(config)
    for frame in brisk_walk[:12]:
        assert pipeline.process(frame).state is TrackingState.TRACKING
    assert len(pipeline.window.keyframes) > 4
    pipeline.configure(
        config.with_values(
            {"odometry.window_keyframes": 4, "odometry.verified_inliers": 1000, "odometry.stored_keyframes": 1}
        )
    )
    after = [pipeline.process(frame) for frame in brisk_walk[12:15]]
    assert all(o.state is TrackingState.UNVERIFIED and o.T_WC is not None for o in after) and any(
        o.is_keyframe for o in after
    )
    assert len(pipeline.window.keyframes) == 4 and len(pipeline.odometry.relocalizer.database) == 1
    pipeline.configure(config.with_values({"odometry.min_inliers": 1000}))
    assert pipeline.process(brisk_walk[15]).state is TrackingState.LOST
    pipeline.configure(config)
    assert pipeline.process(brisk_walk[16]).state is TrackingState.TRACKING


def test_the_same_settings_change_nothing(brisk_walk):
    config = configure()
    one, other = Pipeline(config), Pipeline(config)
    for frame in brisk_walk:
        other.configure(Config.from_dict(config.to_dict()))
        assert torch.equal(one.process(frame).T_WC, other.process(frame).T_WC)


def test_a_mono_start_keeps_its_views(brisk_walk):
    config = configure()
    pipeline, plain = Pipeline(config), Pipeline(config)
    states = []
    for frame in brisk_walk:
        frame = replace(frame, depth=None)
        pipeline.configure(config)
        states.append((pipeline.process(frame).state, plain.process(frame).state))
    assert states[-1][0] is TrackingState.TRACKING and all(a is b for a, b in states)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("matcher.name", "sift"),
        ("bundle.kernel", "cauchy"),
        ("odometry.first_baseline_m", 1.0),
        ("external_odometry.use", "both"),
        ("learning.confidence", 0.9),
        ("seed", 3),
    ],
)
def test_what_cannot_change_is_refused_with_the_reason(brisk_walk, key, value):
    config = configure()
    pipeline = Pipeline(config)
    changed = config.with_values({key: value, "odometry.min_inliers": 30})
    with pytest.raises(ConfigError, match=f"{key} is .* and cannot become .* while running"):
        pipeline.configure(changed)
    assert pipeline.config is config and pipeline.odometry.config is config


def test_the_learner_takes_settings_over():
    config = Config()
    learner = Learner(create_matcher(config.matcher), config, lambda _: None)
    learner.configure(config.with_values({"learning.clip_norm": 0.5, "bundle.max_iterations": 7}))
    assert learner.stepper.config.clip_norm == 0.5 and learner.stepper.bundle.max_iterations == 21


def test_most_settings_of_odometry_may_change():
    may = {path for path, _, meta in walk(Config()) if meta["live"]}
    odometry = {path for path, _, _ in walk(Config()) if path.startswith("odometry.")}
    assert odometry - may == {"odometry.mode", "odometry.planar", "odometry.first_baseline_m"}
    # What defines the residual that both levels share, and the rules of a validation, stay for the whole run.
    assert not may & {
        "bundle.kernel",
        "bundle.kernel_width",
        "bundle.precision",
        "learning.validation_windows",
        "learning.confidence",
    }
