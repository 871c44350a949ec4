"""Learning samples: complete, independent of the window, and refused where the window does not determine the motion."""

from dataclasses import replace

import pytest
import torch

from imatching_ros.bundle import solve
from imatching_ros.core.config import BundleConfig, LearningConfig
from imatching_ros.core.types import BAStatus
from imatching_ros.learning.gate import refuse
from imatching_ros.learning.sample import hold_out, take_sample
from imatching_ros.odometry.mapper import SolvedWindow
from local_map_windows import build, turning_window
from odometry_scenes import CAMERA


@pytest.mark.parametrize("noise_px", [0.0, 0.3])
def test_a_learning_sample_is_complete_and_only_images_are_shared(noise_px):
    window, _, _ = build(noise_px=noise_px)
    window.triangulate(CAMERA, 3.0, 3.0)
    snapshot, used, rows = window.snapshot(CAMERA)
    result = solve(snapshot, BundleConfig())
    assert result.status is BAStatus.CONVERGED
    solved = SolvedWindow.of(window, snapshot, result, used)
    sample = take_sample(solved, 3, True)
    w = sample.window
    assert torch.equal(sample.poses.tensor(), result.T_WC)
    assert sample.keyframe_ids == (0, 10, 20, 30, 40) and len(sample.images) == 5 and sample.weights_version == 3
    assert (w.pt_idx[sample.host_obs] == torch.arange(len(w.points_W))).all() and (w.kf_idx[sample.host_obs] == 0).all()
    assert not sample.held_out.any(), "only windows that validate hold something out"
    assert sample.images[0] is window.keyframes[0].image
    w.T_WC.zero_(), w.obs.zero_()
    assert window.T_WC.any() and window.observations.obs.any() and snapshot.T_WC.any()


def test_what_is_held_out_leaves_every_landmark_determined(make_sample):
    sample = make_sample(8, 300)
    judging = hold_out(sample, 0)
    assert not judging.held_out[sample.host_obs].any()
    assert 0.08 < judging.held_out.float().mean() < 0.3
    held_of = torch.bincount(sample.window.pt_idx[judging.held_out], minlength=300)
    views = torch.bincount(sample.window.pt_idx, minlength=300)
    assert held_of.max() == 1 and (views - held_of)[held_of > 0].min() >= 3
    assert torch.equal(judging.held_out, hold_out(sample, 0).held_out)
    assert not torch.equal(judging.held_out, hold_out(sample, 1).held_out)


def test_the_gate_refuses_a_turn_on_the_spot_whatever_bundle_adjustment_says_of_it():
    window = turning_window()
    snapshot, used, _ = window.snapshot(CAMERA)
    result = solve(snapshot, BundleConfig())
    sample = take_sample(SolvedWindow.of(window, snapshot, result, used), 0, True)
    assert sample.window.expected_depth
    assert refuse(sample, LearningConfig()) == "bundle adjustment degenerate"
    believed = replace(sample, result=replace(sample.result, status=BAStatus.CONVERGED))
    assert refuse(believed, LearningConfig()) == "no translation"
