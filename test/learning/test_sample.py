"""Learning samples: complete, cloned, and refused where the window does not determine the motion."""

from dataclasses import replace

import pytest
import torch

from imatching_ros.bundle import solve
from imatching_ros.core.config import BundleConfig, LearningConfig
from imatching_ros.core.types import BAStatus
from imatching_ros.learning.gate import refuse
from imatching_ros.learning.sample import take_sample
from imatching_ros.odometry.mapper import SolvedWindow
from local_map_windows import build, turning_window
from odometry_scenes import CAMERA


@pytest.mark.parametrize("noise_px", [0.0, 0.3])
def test_a_learning_sample_is_complete_and_cloned(noise_px):
    window, _, _ = build(noise_px=noise_px)
    window.triangulate(CAMERA, 3.0, 3.0)
    snapshot, used, rows = window.snapshot(CAMERA)
    result = solve(snapshot, BundleConfig())
    assert result.status is BAStatus.CONVERGED
    solved = SolvedWindow.of(window, snapshot, result, used)
    sample = take_sample(solved, 0, 3, True)
    w = sample.window
    assert torch.equal(sample.poses.tensor(), result.T_WC)
    assert sample.keyframe_ids == (0, 10, 20, 30, 40) and len(sample.images) == 5 and sample.weights_version == 3
    assert (w.pt_idx[sample.host_obs] == torch.arange(len(w.points_W))).all() and (w.kf_idx[sample.host_obs] == 0).all()
    assert not sample.held_out[sample.host_obs].any()
    share = sample.held_out.float().mean()
    assert 0.08 < share < 0.3
    remaining = torch.bincount(w.pt_idx[~sample.held_out], minlength=len(w.points_W))
    assert remaining.min() >= 3
    assert torch.equal(sample.held_out, take_sample(solved, 0, 3, True).held_out)
    assert not torch.equal(sample.held_out, take_sample(solved, 1, 3, True).held_out)
    sample.images[0].zero_(), w.T_WC.zero_(), w.obs.zero_()
    assert (
        window.keyframes[0].image.any() and window.T_WC.any() and window.observations.obs.any() and snapshot.T_WC.any()
    )


def test_the_gate_refuses_a_turn_on_the_spot_whatever_bundle_adjustment_says_of_it():
    window = turning_window()
    snapshot, used, _ = window.snapshot(CAMERA)
    result = solve(snapshot, BundleConfig())
    sample = take_sample(SolvedWindow.of(window, snapshot, result, used), 0, 0, True)
    assert sample.window.expected_depth
    assert refuse(sample, LearningConfig()) == "bundle adjustment degenerate"
    believed = replace(sample, result=replace(sample.result, status=BAStatus.CONVERGED))
    assert refuse(believed, LearningConfig()) == "no translation"
