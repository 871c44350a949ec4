"""A camera that turns on the spot is told from one that walks sideways; what odometry says about it."""

import dataclasses

import pytest
import torch

from imatching_ros.bundle import solve
from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig, Config
from imatching_ros.core.types import BAResult, ObservationKind, TrackingState, WindowSnapshot
from imatching_ros.odometry.state import Cause
from imatching_ros.odometry.turning import is_narrow, least_moved, measure_motion, turned_in_place
from imatching_ros.offline.experiments.ba_windows import make_window
from imatching_ros.offline.recordings import open_source
from imatching_ros.offline.recordings.base import SourceOptions
from imatching_ros.pipeline import Pipeline

KEYFRAMES = 6
DEPTH_M = 4.0
TURNED = Cause.TURNED.value.partition("(")[0]


def solved_window(step_deg: float, step_m: float) -> tuple[WindowSnapshot, BAResult]:
    """A window along x that turns about y, by so much from keyframe to keyframe; landmarks are at DEPTH_M where they are seen first."""
    window = make_window(KEYFRAMES, 60).window
    steps = torch.arange(KEYFRAMES, dtype=torch.float64)
    zero = torch.zeros_like(steps)
    turn = geometry.exp(torch.stack([zero, zero, zero, zero, steps * step_deg * torch.pi / 180, zero], 1))
    T_WC = torch.cat([torch.stack([steps * step_m, zero, zero], 1), turn[:, 3:]], 1)
    first = torch.full((60,), KEYFRAMES).scatter_reduce(0, window.pt_idx, window.kf_idx, "amin")
    points_W = geometry.act(T_WC[first], torch.tensor([0, 0, DEPTH_M], dtype=torch.float64).expand(60, 3))
    return window, dataclasses.replace(solve(window, BundleConfig()), T_WC=T_WC, points_W=points_W)


def test_motion_is_the_widest_turn_and_the_longest_way_in_depths():
    turned, moved = measure_motion(*solved_window(0.0, 0.1))
    assert turned < 1e-6 and moved == pytest.approx(0.5 / DEPTH_M)
    assert measure_motion(*solved_window(5.0, 0.1))[0] == pytest.approx(25 * torch.pi / 180)


@pytest.mark.parametrize(
    ("step_deg", "step_m", "flagged"),
    [(5.0, 0.02, True), (5.0, 0.0, True), (0.5, 0.04, False), (5.0, 0.2, False), (2.0, 0.0, False)],
)
def test_turns_on_the_spot_and_walks(step_deg, step_m, flagged):
    assert turned_in_place(*solved_window(step_deg, step_m)) == flagged


def test_a_window_that_measures_depth_is_never_flagged_one_that_expects_it_is():
    window, result = solved_window(5.0, 0.02)
    measured = dataclasses.replace(window, kind=torch.full_like(window.kind, int(ObservationKind.DEPTH)))
    assert not turned_in_place(measured, result)
    assert turned_in_place(dataclasses.replace(measured, expected_depth=True), result)


def test_the_newest_keyframes_may_have_turned_in_place_where_the_oldest_have_moved():
    window, result = solved_window(5.0, 0.02)
    T_WC = result.T_WC.clone()
    T_WC[:2, 0] -= 1.0
    moved = dataclasses.replace(result, T_WC=T_WC)
    assert not turned_in_place(window, moved) and turned_in_place(window, moved, newest=4)


def test_a_window_of_one_camera_that_has_moved_little_is_narrow():
    window, result = solved_window(0.0, 0.1)
    assert is_narrow(window, result) and not is_narrow(*solved_window(0.0, 0.4))
    measured = dataclasses.replace(window, kind=torch.full_like(window.kind, int(ObservationKind.DEPTH)))
    assert not is_narrow(measured, result)
    assert is_narrow(dataclasses.replace(measured, expected_depth=True), result)


def test_the_keyframe_that_adds_least_parallax_leaves_never_a_held_or_a_new_one():
    T_WC = geometry.identity(7)
    T_WC[:, 0] = torch.tensor([0.0, 0.0, 1.0, 1.1, 2.0, 2.0, 2.0])
    assert least_moved(T_WC) == 3
    assert least_moved(T_WC[:4]) == 0


@pytest.mark.data
def test_a_real_turn_of_one_camera_is_unverified_and_keeps_the_keyframes_of_its_scale(data_folder):
    config = Config().with_values({"learning.mode": "'off'", "camera.readout_ms": "20"})
    pipeline, kept, turned = Pipeline(config), [], []
    before, held = False, []
    for frame in open_source(data_folder / "tum_fr1_rpy", SourceOptions(mode="mono")):
        output = pipeline.process(frame)
        oldest = [k.id for k in pipeline.window.keyframes[:2]]
        if before and output.is_keyframe and len(pipeline.window.keyframes) == config.odometry.window_keyframes:
            kept.append(oldest == held)
        before, held = output.reason.startswith(TURNED), oldest
        turned += [output] if before else []
    assert len(turned) > 10 and all(o.state is TrackingState.UNVERIFIED for o in turned)
    assert len(kept) >= 3 and all(kept)
