"""Trajectory scores against what is known by construction."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from imatching_ros.offline.evaluation.trajectory import TrajectoryScore, score_trajectory
from imatching_ros.offline.recordings.truth import Trajectory, from_matrices


def helix(count=50):
    k = np.arange(count)
    T = np.tile(np.eye(4), (count, 1, 1))
    T[:, :3, 3] = np.stack([np.cos(k / 10), np.sin(k / 10), 0.05 * k], 1)
    T[:, :3, :3] = Rotation.from_rotvec(np.stack([0 * k, 0.1 * k, 0 * k], 1)).as_matrix()
    return from_matrices(k * 100_000_000, T)


def moved(trajectory, scale=1.0):
    """The same motion in another world, of another scale."""
    T_NW = np.eye(4)
    T_NW[:3, :3] = Rotation.from_rotvec([0.3, -0.2, 1.0]).as_matrix()
    T_NW[:3, 3] = 5, -3, 2
    T = T_NW @ trajectory.matrices()
    T[:, :3, 3] *= scale
    return from_matrices(trajectory.stamps_ns, T)


@pytest.mark.parametrize("metric, scale", [(True, 1.0), (False, 0.2)])
def test_another_world_is_no_error(metric, scale):
    score = score_trajectory(moved(helix(), scale), helix(), metric)
    assert (
        score.ate["rmse"] < 1e-9
        and score.rpe["frame"]["trans_rmse_m"] < 1e-9
        and score.rpe["frame"]["rot_rmse_deg"] < 1e-5
    )
    assert score.scale == pytest.approx(1 / scale) and score.alignment == ("se3" if metric else "sim3")


def test_metric_estimates_answer_for_their_scale():
    assert score_trajectory(moved(helix(), 0.9), helix(), True).ate["rmse"] > 0.05


def test_rmse_is_what_noise_puts_in():
    rng = np.random.default_rng(0)
    truth = helix(400)
    noisy = Trajectory(truth.stamps_ns, truth.T_WC.copy())
    noisy.T_WC[:, :3] += rng.normal(0, 0.01, (400, 3))
    score = score_trajectory(noisy, truth, True)
    assert score.ate["rmse"] == pytest.approx(0.01 * np.sqrt(3), rel=0.1)
    assert score.rpe["frame"]["trans_rmse_m"] == pytest.approx(0.01 * np.sqrt(6), rel=0.1)
    assert len(score.error_m) == len(score.estimate) == len(score.truth) == 400
    assert score.ate["percent_of_path"] == pytest.approx(100 * score.ate["rmse"] / truth.path_length_m, rel=1e-6)


def test_only_common_times_count():
    truth = helix(50)
    part = Trajectory(truth.stamps_ns[10:20] + 3_000_000, truth.T_WC[10:20])
    score = score_trajectory(part, truth, True)
    assert score.ate["poses"] == 10


@pytest.mark.parametrize(
    "estimate, reason",
    [
        (Trajectory(np.zeros(0, np.int64), np.zeros((0, 7))), "0 poses"),
        (Trajectory(helix().stamps_ns + 10**12, helix().T_WC), "clock"),
    ],
)
def test_no_score_says_why(estimate, reason):
    score = score_trajectory(estimate, helix(), False)
    assert not isinstance(score, TrajectoryScore) and reason in score


def test_a_camera_that_stands_still_fixes_no_alignment():
    still = Trajectory(helix().stamps_ns, np.tile([0, 0, 0, 0, 0, 0, 1.0], (50, 1)))
    assert isinstance(score_trajectory(still, still, False), str)


@pytest.mark.parametrize("metric, scale", [(True, 1.0), (False, 0.25)])
def test_motion_along_a_line_has_a_score(metric, scale):
    line = Trajectory(helix().stamps_ns, np.tile([0, 0, 0, 0, 0, 0, 1.0], (50, 1)))
    line.T_WC[:, 0] = 0.1 * np.arange(50)
    estimate = moved(line, scale)
    score = score_trajectory(estimate, line, metric)
    assert score.ate["rmse"] < 1e-9 and score.scale == pytest.approx(1 / scale)
    bent = Trajectory(estimate.stamps_ns, estimate.T_WC.copy())
    bent.T_WC[25:, :3] += 0.1 * scale
    assert score_trajectory(bent, line, metric).ate["rmse"] > 0.03
