"""The NEES of motion is 6 for a run whose covariances are true, and shows one that is too certain."""

import numpy as np
import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.core.types import OdometryOutput, TrackingState
from imatching_ros.offline.evaluation.motion_consistency import measure_motion_consistency
from imatching_ros.offline.recordings.truth import Trajectory

N = 600
STEP_NS = 100_000_000
DRIFT = torch.tensor([0.02, 0.01, 0.03, 0.002, 0.004, 0.003], dtype=torch.float64)  # of a step, standard deviations
IN_MAP = torch.tensor([0.03, 0.02, 0.05, 0.004, 0.002, 0.003], dtype=torch.float64)


def simulate():
    """Poses (N, 7) of a drive in a circle, true and published, and their drift (N, 6, 6): errors are a random walk and one of each pose."""
    noise = torch.randn(2, N, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = geometry.exp(torch.tensor([0.0, 0.0, 0.5, 0.0, 0.01, 0.0], dtype=torch.float64))
    true, drifted = [geometry.identity()], [geometry.identity()]
    for i in range(1, N):
        true.append(geometry.compose(true[-1], step))
        drifted.append(geometry.retract(geometry.compose(drifted[-1], step), noise[0, i] * DRIFT))
    published = geometry.retract(torch.stack(drifted), noise[1] * IN_MAP)
    back = geometry.adjoint(geometry.relative(published[1:], published[:-1]))
    drift = [torch.zeros(6, 6, dtype=torch.float64)]
    for adjoint in back:
        drift.append(adjoint @ drift[-1] @ adjoint.T + torch.diag(DRIFT**2))
    return torch.stack(true), published, torch.stack(drift)


TRUE, PUBLISHED, DRIFTS = simulate()


def measure(claimed=1.0, unit_m=1.0, metric=True, state=lambda i: TrackingState.TRACKING, map_id=lambda i: 0, count=N):
    """`claimed`: share of the standard deviations that the covariances hold. `unit_m`: of the map."""
    in_map, outputs = torch.diag((claimed * IN_MAP) ** 2), []
    for i in range(count):
        covariance = claimed**2 * DRIFTS[i] + in_map
        known = (STEP_NS * i, state(i), "", PUBLISHED[i], covariance, 50, False, metric, map_id(i), None)
        outputs.append(OdometryOutput(i, *known, covariance_in_map=in_map))
    scale = TRUE.new_tensor([unit_m] * 3 + [1] * 4)
    return measure_motion_consistency(outputs, Trajectory(np.arange(N) * STEP_NS, (TRUE * scale).numpy()))


def test_true_covariances_have_a_nees_of_six():
    found = measure()
    assert found.pairs == N - 10
    assert found.nees == pytest.approx(6, rel=0.2)
    assert found.nees_rotation == pytest.approx(3, rel=0.2) and found.nees_position == pytest.approx(3, rel=0.15)


def test_overconfidence_shows_by_its_square():
    assert measure(claimed=0.25).nees == pytest.approx(16 * measure().nees)


def test_one_camera_is_compared_in_one_scale():
    assert measure(metric=False, unit_m=3.0).nees == pytest.approx(6, rel=0.2)
    assert measure(metric=True, unit_m=3.0).nees > 100


def test_only_pairs_within_a_map_that_claim_to_be_tracking_count():
    found = measure(
        state=lambda i: TrackingState.UNVERIFIED if 100 <= i < 120 else TrackingState.TRACKING,
        map_id=lambda i: int(i >= 500),
    )
    assert found.pairs == N - 10 - 30 - 10
    assert measure(count=10) is None
