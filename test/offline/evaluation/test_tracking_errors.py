"""Each of the three errors is found, in the frames that it concerns, and a right trajectory has none."""

import numpy as np
import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.core.types import OdometryOutput, TrackingState
from imatching_ros.offline.evaluation.tracking_errors import FRAMES, find_tracking_errors
from imatching_ros.offline.recordings.truth import Trajectory

N = 60
STEP_NS = 100_000_000


def walk(steps_m):
    """Poses (N, 7) that go along x by the given steps and turn slowly."""
    twist = torch.zeros(N, 6, dtype=torch.float64)
    twist[:, 0], twist[:, 4] = torch.as_tensor(steps_m).cumsum(0), 0.005 * torch.arange(N)
    return geometry.exp(twist)


def outputs_of(T_WC, metric=False, state=lambda i: TrackingState.TRACKING, map_id=lambda i: 0, sigma=0.01):
    own = sigma**2 * torch.eye(6, dtype=torch.float64)
    return [
        OdometryOutput(
            i, STEP_NS * (i + 1), state(i), "", T, own, 50, False, metric, map_id(i), None, covariance_in_map=own
        )
        for i, T in enumerate(T_WC)
    ]


TRUE = walk(np.full(N, 0.1))
TRUTH = Trajectory(STEP_NS * np.arange(1, N + 1), TRUE.numpy())


def find(T_WC, **options):
    return find_tracking_errors(outputs_of(T_WC, **options), [4.0] * N, TRUTH)


@pytest.mark.parametrize("metric", (False, True))
def test_the_truth_is_right_in_any_scale_of_one_camera(metric):
    T_WC = TRUE.clone()
    if not metric:
        T_WC[:, :3] *= 0.3
    found = find(T_WC, metric=metric)
    assert found.judged == tuple(range(FRAMES, N)) and not found.wrong


def test_another_scale_is_wrong_where_the_scale_is_known():
    T_WC = TRUE.clone()
    T_WC[:, :3] *= 1.5
    assert find(T_WC, metric=True).wrong == tuple(range(FRAMES, N))


def test_a_jump_of_the_rotation_is_wrong_for_ten_frames():
    T_WC = TRUE.clone()
    T_WC[30:] = geometry.retract(T_WC[30:], torch.tensor([[0, 0, 0, 0, 0.1, 0]], dtype=torch.float64))
    assert set(range(30, 40)) <= set(find(T_WC, metric=True).wrong)


def test_a_change_of_scale_is_wrong_once_ten_frames_show_it():
    steps = np.full(N, 0.1)
    steps[30:] *= 1.6
    wrong = find(walk(steps)).wrong
    assert 36 in wrong and 39 in wrong and not {29, 30, 55} & set(wrong)


def test_an_error_that_is_noise_in_a_short_motion_does_not_refute_the_long_one_after_it():
    short = (np.arange(N) >= 15) & (np.arange(N) < 35)  # a little more than 2 % of the depth in ten frames
    truth = Trajectory(TRUTH.stamps_ns, walk(np.where(short, 0.009, 0.1)).numpy())
    seen = np.where(short, 0.006, 0.1)
    assert not find_tracking_errors(outputs_of(walk(seen)), [4.0] * N, truth).wrong
    seen[45:] *= 1.6  # against the long motion before
    assert 54 in find_tracking_errors(outputs_of(walk(seen)), [4.0] * N, truth).wrong


def test_motion_that_never_was_is_wrong():
    still = walk(np.where(np.arange(N) < 30, 0.1, 0.0))
    truth = Trajectory(TRUTH.stamps_ns, still.numpy())
    assert not find_tracking_errors(outputs_of(still), [4.0] * N, truth).wrong
    assert 45 in find_tracking_errors(outputs_of(TRUE), [4.0] * N, truth).wrong


def test_the_largest_errors_are_measured_of_the_judged_or_of_every_frame():
    T_WC = walk(np.where((np.arange(N) >= 30) & (np.arange(N) < 45), 0.16, 0.1))
    T_WC[30:] = geometry.retract(T_WC[30:], torch.tensor([[0, 0, 0, 0, 0.1, 0]], dtype=torch.float64))
    outputs = outputs_of(T_WC, state=lambda i: TrackingState.UNVERIFIED if 30 <= i < 50 else TrackingState.TRACKING)
    judged, every = (find_tracking_errors(outputs, [4.0] * N, TRUTH, every=e) for e in (False, True))
    assert judged.rotation_deg == pytest.approx(0, abs=1e-6) and judged.scale_change == 1.0
    assert every.rotation_deg == pytest.approx(np.rad2deg(0.1), rel=1e-6)
    assert 1.4 < every.scale_change < 1.7 and every.judged == tuple(range(FRAMES, N))


def test_a_wrong_motion_is_covered_where_its_covariance_contains_the_error():
    T_WC = TRUE.clone()
    T_WC[30:] = geometry.retract(T_WC[30:], torch.tensor([[0, 0, 0, 0, 0.1, 0]], dtype=torch.float64))
    assert set(range(30, 40)) <= set(find(T_WC, metric=True).uncovered)
    certain = find(T_WC, metric=True, sigma=0.1)
    assert set(range(30, 40)) <= set(certain.wrong) and not certain.uncovered
    once = find(T_WC)  # one camera, in its own scale
    assert set(once.uncovered) <= set(once.wrong) and once.uncovered


def test_an_error_that_is_noise_of_the_motion_that_the_scale_is_of_is_covered():
    short = (np.arange(N) >= 15) & (np.arange(N) < 35)  # a little more than 2 % of the depth in ten frames
    truth = Trajectory(TRUTH.stamps_ns, walk(np.where(short, 0.009, 0.1)).numpy())
    for factor, covered in ((1.6, True), (1.9, False)):
        seen = np.where(short, 0.006, 0.1)
        seen[40:] *= factor
        found = find_tracking_errors(outputs_of(walk(seen)), [4.0] * N, truth)
        assert 50 in found.wrong and (50 not in found.uncovered) == covered


def test_frames_that_do_not_claim_to_be_tracking_and_other_maps_are_not_judged():
    T_WC = TRUE.clone()
    T_WC[30:, 1] += 3.0
    lost = find(T_WC, state=lambda i: TrackingState.UNVERIFIED if 30 <= i < 40 else TrackingState.TRACKING)
    assert not lost.wrong and not set(range(30, 50)) & set(lost.judged)
    assert not find(T_WC, map_id=lambda i: int(i >= 30)).wrong
