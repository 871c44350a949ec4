"""Every event in every state: the table of transitions, and what each state carries on."""

import pytest

from imatching_ros.core.types import TrackingState
from imatching_ros.odometry.state import (
    RELOCALIZATION_COOLDOWN,
    Cause,
    Context,
    Lost,
    MapCreated,
    PoseUnverified,
    PoseNotFound,
    PoseVerified,
    Tracking,
    Uninitialized,
    Unverified,
    transition,
)

COOLDOWN = RELOCALIZATION_COOLDOWN
NOW = Context(weights_version=7)
VERIFIED, FEW, RECOVERED = PoseVerified(), PoseVerified(weakness=Cause.FEW_INLIERS), PoseVerified(recovered=True)
SKEWED = PoseVerified(weakness=Cause.SKEWED)
LOW, FAR = PoseUnverified(Cause.LOW_INLIER_RATIO), PoseUnverified(Cause.LOW_INLIER_RATIO, plausible=False)
HIDDEN = PoseUnverified(Cause.OCCLUSION)

TRACKING, COOLING = Tracking(), Tracking(failing_version=6, relocalization_cooldown=3)
UNSUPPORTED = Unverified(None, Cause.FEW_INLIERS, 2)
UNVERIFIED = Unverified(6, Cause.LOW_INLIER_RATIO, COOLDOWN, mapping_frozen=True, gap_covariance_added=True)
LOST = Lost(6, frames_without_pose=2, mapping_frozen=True)


@pytest.mark.parametrize(
    ("state", "event", "after"),
    [
        (Uninitialized(), PoseNotFound(), Uninitialized()),
        (Uninitialized(), MapCreated(), Tracking()),
        (TRACKING, VERIFIED, Tracking()),
        (TRACKING, FEW, Unverified(None, Cause.FEW_INLIERS)),
        (TRACKING, PoseVerified(weakness=Cause.UNCERTAIN), Unverified(None, Cause.UNCERTAIN, COOLDOWN)),
        (COOLING, PoseVerified(weakness=Cause.TURNED), Unverified(None, Cause.TURNED, 2)),
        (TRACKING, SKEWED, Unverified(None, Cause.SKEWED, COOLDOWN)),
        (Unverified(None, Cause.SKEWED, COOLDOWN), VERIFIED, Tracking(None, COOLDOWN - 1)),
        (TRACKING, RECOVERED, Tracking(7, COOLDOWN)),
        (TRACKING, LOW, Unverified(7, Cause.LOW_INLIER_RATIO, COOLDOWN, gap_covariance_added=True)),
        (TRACKING, FAR, Unverified(7, Cause.LOW_INLIER_RATIO, COOLDOWN, True, True)),
        (TRACKING, HIDDEN, Unverified(7, Cause.OCCLUSION, COOLDOWN, mapping_frozen=True)),
        (TRACKING, PoseNotFound(), Lost(7, 1)),
        (COOLING, VERIFIED, Tracking(None, 2)),
        (COOLING, FEW, Unverified(None, Cause.FEW_INLIERS, 2)),
        (COOLING, PoseNotFound(), Lost(6, 1)),
        (UNSUPPORTED, VERIFIED, Tracking(None, 1)),
        (UNSUPPORTED, FEW, Unverified(None, Cause.FEW_INLIERS, 1)),
        (UNSUPPORTED, LOW, Unverified(7, Cause.LOW_INLIER_RATIO, COOLDOWN, gap_covariance_added=True)),
        (UNSUPPORTED, PoseNotFound(), Lost(7, 1)),
        (UNVERIFIED, VERIFIED, Tracking(None, COOLDOWN - 1)),
        (UNVERIFIED, RECOVERED, Tracking(6, COOLDOWN)),
        (UNVERIFIED, LOW, UNVERIFIED),
        (UNVERIFIED, HIDDEN, Unverified(6, Cause.OCCLUSION, COOLDOWN, True, True)),
        (UNVERIFIED, PoseNotFound(), Lost(6, 1, mapping_frozen=True)),
        (LOST, PoseNotFound(), Lost(6, 3, mapping_frozen=True)),
        (LOST, RECOVERED, Tracking(6, COOLDOWN)),
        (LOST, PoseVerified(True, Cause.FEW_INLIERS), Unverified(6, Cause.FEW_INLIERS, COOLDOWN)),
        (LOST, LOW, Unverified(6, Cause.LOW_INLIER_RATIO, COOLDOWN, True, True)),
        (LOST, MapCreated(), Tracking(6, COOLDOWN)),
    ],
)
def test_transitions(state, event, after):
    assert transition(state, event, NOW) == after


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (Uninitialized(), VERIFIED),
        (Uninitialized(), LOW),
        (TRACKING, MapCreated()),
        (UNSUPPORTED, MapCreated()),
        (UNVERIFIED, MapCreated()),
    ],
)
def test_impossible_events_are_refused(state, event):
    with pytest.raises(ValueError, match="cannot happen"):
        transition(state, event, NOW)


def test_nobody_is_to_blame_after_a_gap():
    gap = Context(7, gap_exceeded=True)
    for event in (RECOVERED, LOW, PoseNotFound()):
        assert transition(COOLING, event, gap).failing_version is None
    assert transition(LOST, MapCreated(), gap).failing_version is None


def test_the_window_is_learned_from_only_after_the_cooldown():
    state = transition(LOST, RECOVERED, NOW)
    for _ in range(COOLDOWN):
        assert not state.healthy
        state = transition(state, VERIFIED, NOW)
    assert state == Tracking() and state.healthy
    assert not LOST.healthy and not UNVERIFIED.healthy


def test_every_state_is_published_under_its_own_name():
    states = (Uninitialized(), TRACKING, UNVERIFIED, LOST)
    assert [state.published for state in states] == list(TrackingState)
