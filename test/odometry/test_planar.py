"""The plane of a wheeled robot: drift of height and tilt, ramps, scale, a mounting that nobody gives, and what stays as it was."""

import math

import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.core.types import BAResult, BAStatus, TrackingState
from imatching_ros.offline.simulation.sequence import SimulatedSequence
from imatching_ros.odometry.planar import NO_MOUNTING, PlanarMotion
from imatching_ros.pipeline import Pipeline
from odometry_scenes import configure

# A level camera that looks along x of the base; the world of the drives below has z up.
T_BC = torch.tensor([0.2, 0.0, 0.5, -0.5, 0.5, -0.5, 0.5], dtype=torch.float64)
STEP_M, DEPTH_M = 0.1, 3.0
DRIFT_RAD, DRIFT_M = math.radians(0.1), 0.002  # of the vision, from keyframe to keyframe


def drive(slopes_deg: list[float]) -> torch.Tensor:
    """(N, 7) poses of the camera of a robot that drives ahead on ground of these slopes, in curves."""
    T_WB, poses = geometry.identity(), []
    for k, (before, slope) in enumerate(zip([0.0, *slopes_deg], slopes_deg)):
        pitch, yaw = -math.radians(slope - before), 0.03 * math.sin(k / 10)
        turn = geometry.exp(torch.tensor([0, 0, 0, 0, pitch, 0.0], dtype=torch.float64))
        ahead = geometry.exp(torch.tensor([STEP_M, 0, 0, 0, 0, yaw], dtype=torch.float64))
        T_WB = geometry.compose(geometry.compose(T_WB, turn), ahead)
        poses.append(geometry.compose(T_WB, T_BC))
    return torch.stack(poses)


def follow(truth: torch.Tensor, planar: PlanarMotion, seed: int = 0, unit: float = 1.0) -> torch.Tensor:
    """(N, 7) poses of a vision that drifts on a path (N, 7), in units of `unit` m, as the prior leaves them."""
    sigma = torch.tensor([DRIFT_M / unit] * 3 + [DRIFT_RAD] * 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    path = torch.cat([truth[:, :3] / unit, truth[:, 3:]], 1)
    T_WC, found = path[0], []
    for before, now in zip(path, path[1:]):
        oldest = T_WC
        noise = sigma * torch.randn(6, generator=generator, dtype=torch.float64)
        T_WC = geometry.retract(geometry.compose(T_WC, geometry.relative(before, now)), noise)
        nothing = torch.zeros(0)
        result = BAResult(
            torch.stack([oldest, T_WC]),
            nothing,
            nothing,
            nothing,
            1.0,
            1.0,
            1,
            BAStatus.CONVERGED,
            "",
            sigma.square().diag(),
        )
        T = planar.correct(result.T_WC, result, True, DEPTH_M / unit)
        T_WC = T_WC if T is None else geometry.compose(T, T_WC)
        found.append(T_WC)
    found = torch.stack(found)
    return torch.cat([found[:, :3] * unit, found[:, 3:]], 1)


def errors(found: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """RMS of height, m, and tilt, degrees."""
    up = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    tilt = geometry.angle(geometry.rotate(found[:, 3:], up), geometry.rotate(truth[1:, 3:], up))
    height = (found - truth[1:])[:, 2]
    return float(height.square().mean().sqrt()), math.degrees(float(tilt.square().mean().sqrt()))


def mounted() -> PlanarMotion:
    planar = PlanarMotion(enabled=True)
    planar.mount(T_BC)
    return planar


LEVEL, UP, DOWN = [0.0] * 40, [2.5, 5.0, 7.5] + [10.0] * 20, [7.5, 5.0, 2.5]
RAMP = [*LEVEL, *UP, *DOWN, *LEVEL, *[-s for s in UP], *[-s for s in DOWN], *LEVEL]


@pytest.mark.parametrize("unit", [1.0, 7.0])
def test_drift_of_height_and_tilt_is_removed_whatever_the_unit(unit):
    truth = drive([0.0] * 150)
    for seed in range(2):
        alone = errors(follow(truth, PlanarMotion(enabled=False), seed, unit), truth)
        height, tilt = errors(follow(truth, mounted(), seed, unit), truth)
        assert height < 0.4 * alone[0] and tilt < 0.6 * alone[1]


def test_a_ramp_is_followed():
    truth = drive(RAMP)
    top = int(truth[:, 2].argmax())
    assert truth[top, 2] > 0.5 + 0.3
    for seed in range(2):
        found = follow(truth, mounted(), seed)
        alone = errors(follow(truth, PlanarMotion(enabled=False), seed), truth)
        height, tilt = errors(found, truth)
        assert height < 1.1 * alone[0] and tilt < 1.1 * alone[1]
        assert abs(float(found[top - 1, 2] - truth[top, 2])) < 0.06


def test_after_a_ramp_level_is_what_it_was_at_the_start():
    truth = drive(RAMP)
    for seed in range(2):
        tilt = errors(follow(truth, mounted(), seed)[-20:], truth[-21:])[1]
        assert tilt < 0.65 * errors(follow(truth, PlanarMotion(enabled=False), seed)[-20:], truth[-21:])[1]


def test_positions_along_the_plane_and_the_heading_stay_those_of_the_vision():
    truth = drive([0.0] * 20)
    planar, found = mounted(), []
    for before, now in zip(truth, truth[1:]):
        tilted = geometry.retract(now, torch.tensor([0, 0, 0, 0.002, 0, 0.004], dtype=torch.float64))
        covariance = torch.full((6, 6), 1e-5, dtype=torch.float64) + 1e-5 * torch.eye(6, dtype=torch.float64)
        nothing = torch.zeros(0)
        result = BAResult(
            torch.stack([before, tilted]), nothing, nothing, nothing, 1.0, 1.0, 1, BAStatus.CONVERGED, "", covariance
        )
        T = planar.correct(result.T_WC, result, True, DEPTH_M)
        assert T is not None
        found.append(geometry.local(tilted, geometry.compose(T, tilted)))
    step = torch.stack(found)
    assert step[:, [3, 5]].abs().max() > 1e-4
    assert step[:, [0, 2]].abs().max() < 1e-4 and step[:, 4].abs().max() < 1e-5


def test_without_a_mounting_it_says_so_and_does_nothing():
    truth, planar = drive([0.0] * 5), PlanarMotion(enabled=True)
    assert planar.problem == NO_MOUNTING and planar.describe() == NO_MOUNTING
    alone = follow(truth, PlanarMotion(enabled=False))
    assert torch.equal(follow(truth, planar), alone)
    planar.mount(None, "no TF from base_link to camera")
    assert planar.describe() == "no TF from base_link to camera"
    planar.mount(T_BC)
    assert planar.problem == "" and planar.describe() == "used"
    assert PlanarMotion(enabled=False).describe() == "off"


@pytest.fixture(scope="module")
def floor():
    """A level camera on a floor, and a mounting that says it is nose-down: the prior has much to move."""
    sequence = SimulatedSequence(
        kind="clutter", frames=24, seed=1, width=320, height=240, supersample=1, speed_mps=0.8, motion="floor"
    )
    return [frame for frame, _ in sequence.read()]


def run(frames, T_BC, **values):
    events = []
    pipeline = Pipeline(configure(**values), on_event=events.append)
    pipeline.mount_camera(T_BC)
    return pipeline, [pipeline.process(frame) for frame in frames], events


@pytest.mark.parametrize("mode", ["mono", "rgbd"])
def test_the_map_moves_as_a_whole_and_no_residual_changes(floor, mode):
    values = {"odometry__mode": mode, "odometry__keyframe_parallax": 0.01, "odometry__window_keyframes": 3}
    plain, alone, _ = run(floor, T_BC, **values)
    pipeline, outputs, events = run(floor, T_BC, odometry__planar=True, **values)
    assert all(o.state is TrackingState.TRACKING for o in outputs[-10:])
    assert not [e for e in events if e["event"] == "planar"]
    moved = geometry.compose(pipeline.window.T_WC[-1], geometry.inverse(plain.window.T_WC[-1]))
    assert float(geometry.log(moved).norm()) > 1e-4
    for ours, theirs in zip(pipeline.window.T_WC, plain.window.T_WC):
        assert geometry.local(geometry.compose(moved, theirs), ours).norm() < 1e-3
    residual, depth = (pipeline.window.residuals(floor[-1].camera), plain.window.residuals(floor[-1].camera))
    assert abs(float(residual[0].nanmedian() - depth[0].nanmedian())) < 0.02
    heights = [torch.stack([o.T_WC for o in run_ if o.T_WC is not None])[:, 1].abs().max() for run_ in (outputs, alone)]
    assert heights[0] <= 1.05 * heights[1]


def test_the_pipeline_reports_a_missing_mounting_once(floor):
    pipeline, outputs, events = run(floor[:4], None, odometry__planar=True, odometry__mode="rgbd")
    told = [e for e in events if e["event"] == "planar"]
    assert [(e["used"], e["reason"]) for e in told] == [(False, NO_MOUNTING)]
    assert outputs[-1].T_WC is not None
