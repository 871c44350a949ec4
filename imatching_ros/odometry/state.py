"""The tracking state of odometry: one frozen value, the events that change it, and the table of transitions.

| state         | MapCreated | PoseVerified | PoseUnverified | PoseNotFound  |
|---------------|------------|--------------|----------------|---------------|
| Uninitialized | Tracking   |              |                | Uninitialized |
| Tracking      |            | Tracking *   | Unverified     | Lost          |
| Unverified    |            | Tracking *   | Unverified     | Lost          |
| Lost          | Tracking   | Tracking *   | Unverified     | Lost          |

* Unverified while the pose has few inliers, is uncertain, is that of a skewed image or keyframe, one camera turns in place or
has something on its lens, or the image shows two motions.
A map created when lost is a new map, at the last pose.
A frame whose image is blank changes nothing: it neither supports nor refutes the pose.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from ..core.types import TrackingState

# The windows of the frames right after a loss rest on few matches, so the learner does not get them.
RELOCALIZATION_COOLDOWN = 5  # frames


class Cause(Enum):
    """Why a pose is not verified; the value is the reason that is published."""

    FEW_INLIERS = "only {inliers} matches agree with the pose"
    LOW_INLIER_RATIO = "found again, but few landmarks are where this pose has them ({inliers} agree)"
    FROZEN = "the images have not changed for some seconds ({inliers} matches agree with the pose)"
    UNCERTAIN = "the matches leave the pose uncertain ({inliers} agree with it)"
    SKEWED = (
        "the camera turns fast, or did at the last keyframe, and how its rolling shutter bends the image is not known well: how long that "
        "takes (camera.readout_ms), or how the rate changes meanwhile"
    )
    TURNED = (
        "the camera has turned much and moved little, and the scale of one camera may have changed ({inliers} agree)"
    )
    TWO_MOTIONS = "two motions in the image: something large moves, and which of the two is the camera's is not certain ({inliers} agree)"
    STANDING = "matches that agree with the pose ({inliers}) stand still in the image while all around them moves: is something on the lens?"
    OCCLUSION = "most landmarks are not found; something may hide the image ({inliers} agree)"


WEAKNESSES = (Cause.FEW_INLIERS, Cause.UNCERTAIN, Cause.SKEWED, Cause.TURNED, Cause.TWO_MOTIONS, Cause.STANDING)
LEARNED_FROM = (Cause.FEW_INLIERS, Cause.TURNED)  # where the window itself decides (`learning/gate.py`)


# -- states -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What all states have in common.

    Attributes:
        failing_version: version of the weights in use when tracking began to fail; None while it does not fail. After a gap
            without images it is None as well, for the weights are not to blame then.
    """

    published: ClassVar[TrackingState]
    failing_version: int | None = None

    @property
    def healthy(self) -> bool:
        """Whether the window may be learned from."""
        return True


@dataclass(frozen=True)
class Uninitialized(State):
    """There has been no map yet."""

    published: ClassVar[TrackingState] = TrackingState.UNINITIALIZED


@dataclass(frozen=True)
class Tracking(State):
    """The last pose is verified: as large a share of the landmarks agrees with it as is usual in this scene."""

    published: ClassVar[TrackingState] = TrackingState.TRACKING
    relocalization_cooldown: int = 0  # frames for which the window is not learned from

    @property
    def healthy(self) -> bool:
        return self.relocalization_cooldown == 0


@dataclass(frozen=True)
class Unverified(State):
    """There is a pose, but it may be wrong."""

    published: ClassVar[TrackingState] = TrackingState.UNVERIFIED
    cause: Cause = Cause.FEW_INLIERS
    relocalization_cooldown: int = 0
    mapping_frozen: bool = False  # no keyframes: a map that grew from a wrong pose would confirm it ever after
    gap_covariance_added: bool = False  # the covariance has grown by the motion since the last verified pose

    @property
    def healthy(self) -> bool:
        return self.relocalization_cooldown == 0


@dataclass(frozen=True)
class Lost(State):
    """The last usable image gave no pose."""

    published: ClassVar[TrackingState] = TrackingState.LOST
    frames_without_pose: int = 1  # usable images in a row
    mapping_frozen: bool = False  # carried from an unverified pose to the next one

    @property
    def healthy(self) -> bool:
        return False


# -- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapCreated:
    """The first map, or a new one after a loss, begins with this frame."""


@dataclass(frozen=True)
class PoseVerified:
    """As many landmarks agree with the pose as is usual.

    Attributes:
        recovered: the pose does not continue the one before, for tracking was lost or interrupted.
        weakness: the pose is the right one, and less accurate than others.
    """

    recovered: bool = False
    weakness: Cause | None = None


@dataclass(frozen=True)
class PoseUnverified:
    """The pose may be wrong.

    Attributes:
        plausible: the camera could have moved so far since the last pose.
    """

    cause: Cause
    plausible: bool = True


@dataclass(frozen=True)
class PoseNotFound:
    """A usable image gave no pose."""


Event = MapCreated | PoseVerified | PoseUnverified | PoseNotFound


@dataclass(frozen=True)
class Context:
    """What transitions need of the frame.

    Attributes:
        weights_version: of the weights that made its features.
        gap_exceeded: no frame had a pose for so long that the camera may be anywhere.
    """

    weights_version: int
    gap_exceeded: bool = False


# -- transitions ------------------------------------------------------------------------------------------------------


def transition(state: State, event: Event, context: Context) -> State:
    """The state after a frame.

    Raises:
        ValueError: the event cannot happen in this state.
    """
    match event:
        case PoseNotFound() if isinstance(state, Uninitialized):
            return state
        case PoseNotFound():
            return Lost(_failing(state, context), frames_without_pose(state) + 1, mapping_frozen(state))
        case MapCreated() if isinstance(state, Uninitialized):
            return Tracking()
        case MapCreated() if isinstance(state, Lost):
            return Tracking(_failing(state, context), RELOCALIZATION_COOLDOWN)
        case PoseVerified(recovered, weakness) if not isinstance(state, Uninitialized):
            failing = _failing(state, context) if recovered else None
            cooldown = RELOCALIZATION_COOLDOWN if recovered else max(0, _cooldown(state) - 1)
            if weakness is not None:
                return Unverified(failing, weakness, cooldown if weakness in LEARNED_FROM else RELOCALIZATION_COOLDOWN)
            return Tracking(failing, cooldown)
        case PoseUnverified(cause, plausible) if not isinstance(state, Uninitialized):
            return Unverified(
                None if cause is Cause.FROZEN else _failing(state, context),
                cause,
                RELOCALIZATION_COOLDOWN,
                mapping_frozen=cause in (Cause.OCCLUSION, Cause.FROZEN) or not plausible or mapping_frozen(state),
                gap_covariance_added=cause is Cause.LOW_INLIER_RATIO or gap_covariance_added(state),
            )
    raise ValueError(f"{event} cannot happen in the state {state}")


def pose_unverified(state: State) -> bool:
    """Whether another pose could be meant; a weakness only makes it less accurate."""
    return isinstance(state, Unverified) and state.cause not in WEAKNESSES


def mapping_frozen(state: State) -> bool:
    return isinstance(state, (Unverified, Lost)) and state.mapping_frozen


def gap_covariance_added(state: State) -> bool:
    return isinstance(state, Unverified) and state.gap_covariance_added


def frames_without_pose(state: State) -> int:
    return state.frames_without_pose if isinstance(state, Lost) else 0


def _failing(state: State, context: Context) -> int | None:
    """The weights with which the failure began are to blame for it, not those promoted in the meantime."""
    if context.gap_exceeded:
        return None
    return context.weights_version if state.failing_version is None else state.failing_version


def _cooldown(state: State) -> int:
    return state.relocalization_cooldown if isinstance(state, (Tracking, Unverified)) else 0
