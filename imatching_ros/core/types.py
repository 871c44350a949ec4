"""The types that flow between the packages: frozen, and safe to hand to another thread once their tensors are cloned.

Conventions. `T_WC` (…, 7) maps camera to world: translation in metres (or map units in mono), then a quaternion xyzw, the data layout of
`pypose.SE3`; `pose` and `poses` give the same numbers as one. Arithmetic inside the package is on plain tensors: slices and products of
a LieTensor warn or raise, and a slice takes 30 us instead of 2. Camera axes are OpenCV optical (x right, y down, z forward). Pixels are
(u, v), the centre of the top-left pixel is (0, 0). `raw` pixels are those of the image as the camera delivered it; `ideal` pixels are
those of the undistorted pinhole camera with the same fx, fy, cx, cy. Matches are raw, bundle adjustment is ideal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

import pypose
from torch import Tensor

if TYPE_CHECKING:
    from ..camera.model import Camera


class ObservationKind(IntEnum):
    """The meaning of an observation's three numbers."""

    MONO = 0  # u, v, unused
    STEREO = 1  # u, v, u in the rectified right image
    DEPTH = 2  # u, v, inverse depth in 1/m


class BAStatus(Enum):
    CONVERGED = "converged"
    MAX_ITER = "max_iter"
    DEGENERATE = "degenerate"


class TrackingState(Enum):
    UNINITIALIZED = "uninitialized"  # there has been no map yet
    TRACKING = "tracking"  # the pose is verified
    UNVERIFIED = "unverified"  # there is a pose, but it may be wrong
    LOST = "lost"  # there is no pose


@dataclass(frozen=True)
class Frame:
    """One image with what is needed to use it."""

    id: int
    stamp_ns: int
    image: Tensor  # (3 or 1, H, W) uint8, RGB or grey, raw
    camera: Camera
    depth: Tensor | None = None  # (H, W) float32, metres along the optical axis, registered to the image; 0 = unknown
    right: Tensor | None = None  # (3 or 1, H, W) uint8, rectified right image of a stereo pair
    mask: Tensor | None = None  # (H, W) bool, true where the image is not used


@dataclass(frozen=True)
class Matches:
    """Pixel correspondences between two frames, raw pixels."""

    id_i: int
    id_j: int
    stamp_i_ns: int
    stamp_j_ns: int
    uv_i: Tensor  # (N, 2) float32 px
    uv_j: Tensor  # (N, 2) float32 px
    score: Tensor  # (N,) float32, probability that the match is right, 0..1
    sigma_px: Tensor  # (N,) float32, standard deviation per coordinate
    residual_px: Tensor  # (N,) float32, distance between uv_j and the reprojected landmark, NaN where there is none
    inlier: Tensor  # (N,) bool, used for the pose of frame j
    landmark_id: Tensor  # (N,) int64, never given twice until odometry is reset
    weights_version: int


@dataclass(frozen=True)
class WindowSnapshot:
    """A bundle adjustment problem as flat arrays: M keyframes, P landmarks, O observations. All on one device."""

    camera: Camera
    T_WC: Tensor  # (M, 7) float64
    points_W: Tensor  # (P, 3) float64
    kf_idx: Tensor  # (O,) int64
    pt_idx: Tensor  # (O,) int64
    obs: Tensor  # (O, 3) float64, ideal px, and 1/m where a DEPTH observation holds inverse depth
    kind: Tensor  # (O,) int64, ObservationKind
    sigma: Tensor  # (O, 3) float64, standard deviation of each number of obs
    fixed: Tensor  # (M,) bool, poses held constant
    # Its depths are what their surroundings suggest, no measurements: the window is mono (depth_prior).
    expected_depth: bool = False


@dataclass(frozen=True)
class BAResult:
    """The optimum of a WindowSnapshot and how it was reached."""

    T_WC: Tensor  # (M, 7) float64
    points_W: Tensor  # (P, 3) float64
    residual_px: (
        Tensor  # (O, 2) float64, observed minus reprojected, ideal px; NaN without a reprojection (behind the camera)
    )
    weight: Tensor  # (O,) float64, the kernel's weight at the optimum, 0..1; 0 for excluded observations
    cost_before: float  # robust cost: sum of rho(|whitened residual|^2) / 2
    cost_after: float
    iterations: int
    status: BAStatus
    reason: str  # why DEGENERATE or MAX_ITER, and how many observations were excluded, if any
    # (6, 6) float64 of T_WC[-1], perturbation T_WC * Exp([rho, phi]); None when degenerate.
    covariance_newest: Tensor | None
    # Design effect of shared errors: covariance_newest over that for independent observations.
    covariance_scale: float = 1.0
    residual_scale: float = 1.0  # variance of the residuals over that of the assumed sigmas
    # Where a prior of K rotations between keyframes is part of it:
    rotation_errors: Tensor | None = None  # (K, 3) float64 rad, by how much they differ from the prior's
    # (3K, 3K) of these, as observations alone know the rotations; None when degenerate.
    rotation_covariance: Tensor | None = None

    @property
    def rotations_used(self) -> bool:
        """Whether a prior of the rotations between keyframes is part of it."""
        return self.rotation_errors is not None

    @property
    def poses(self) -> pypose.LieTensor:
        """T_WC as `pypose.SE3` (M,); shares its memory."""
        return pypose.SE3(self.T_WC)


@dataclass(frozen=True)
class LearningSample:
    """A converged window, enough to match it again with other weights and to solve it again."""

    stamp_ns: int  # of the newest keyframe
    keyframe_ids: tuple[int, ...]  # frame ids, one per row of window.T_WC
    images: tuple[Tensor, ...]  # M x (1, H, W) uint8 grey, raw
    window: WindowSnapshot
    result: BAResult
    uv_px: Tensor  # (O, 2) float32 raw px: by the matcher or, at the host observation, by the detector
    twist: Tensor  # (M, 6) float64 per second, as of `Keyframe`: the pose of every row of a rolling shutter follows from it
    host_obs: Tensor  # (P,) int64: index of the observation at which the landmark was detected, the matcher's query
    held_out: Tensor  # (O,) bool: left out of bundle adjustment, to validate weights by; nothing in a window that is trained on
    weights_version: int
    tracking_healthy: bool = True  # False while lost or just recovered
    skew_px: float = 0.0  # by how much rows may be off, as the readout time is not known better
    masks: tuple[Tensor | None, ...] = ()  # of the images, as in `Frame`; empty where none has one

    @property
    def poses(self) -> pypose.LieTensor:
        """The poses of the window's solution as `pypose.SE3` (M,): a view of `result.T_WC`, perturbed by T * Exp([rho, phi])."""
        return self.result.poses


@dataclass(frozen=True)
class WeightsSnapshot:
    """A set of weights and where it came from."""

    version: int
    hash: str
    state: dict[str, Tensor]  # cloned
    validation_before: float = float("nan")  # held-out score of the weights it replaces
    validation_after: float = float("nan")
    steps: int = 0


@dataclass(frozen=True)
class OdometryOutput:
    """What is published for one frame."""

    frame_id: int
    stamp_ns: int
    state: TrackingState
    reason: str  # why not TRACKING; empty otherwise
    T_WC: Tensor | None  # (7,) float64; None when this frame's own matches do not support a pose
    covariance: Tensor | None  # (6, 6) float64 of T_WC * Exp([rho, phi]); metres and radians
    inliers: int  # matches of this frame that support its pose
    is_keyframe: bool
    metric: bool  # False in mono without a scale source
    map_id: int  # counts up when odometry had to start again
    matches: Matches | None
    bundle: BAResult | None = None
    weights_version: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)
    scale: str = ""  # what gives the unit of length; `unknown`, and why, where nothing does
    fault: str = ""  # what is wrong with the images although they were used; empty when nothing is
    # (6, 6) as covariance, landmarks taken as exact: what neighbouring poses do not share.
    covariance_in_map: Tensor | None = None
    # (6, 6) as covariance: the errors of the motion since the last pose that leave no residual.
    covariance_of_step: Tensor | None = None

    @property
    def pose(self) -> pypose.LieTensor | None:
        """T_WC as `pypose.SE3`; shares its memory."""
        return None if self.T_WC is None else pypose.SE3(self.T_WC)


Record = TypeVar("Record", "OdometryOutput", Matches, BAResult)

ROWS_AT_ONCE = 120


def as_grey(image: Tensor) -> Tensor:
    """(3 or 1, H, W) uint8 -> (1, H, W) uint8 luma by ITU-R BT.601."""
    if image.shape[0] == 1:
        return image
    grey = image.new_empty(image.shape[1:])
    for start in range(0, len(grey), ROWS_AT_ONCE):
        # Channel by channel: a third of the time of a product and a sum. A few rows at once: their sums stay in a CPU's cache.
        red, green, blue = image[:, start : start + ROWS_AT_ONCE]
        grey[start : start + ROWS_AT_ONCE] = (red * 0.299).add_(green * 0.587).add_(blue * 0.114).round_()
    return grey[None]


def ordinary(record: Record) -> Record:
    """A dataclass with copies of its tensors that were made in inference mode, which cannot take part in gradients; called outside of it."""

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone() if value.is_inference() else value
        return ordinary(value) if type(value) in (Matches, BAResult) else value

    return replace(record, **{name: copy(value) for name, value in vars(record).items()})


def to_json_value(value: Any) -> Any:
    """Numbers, strings, lists and dictionaries that JSON can hold, from values of any kind; what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(k): to_json_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [to_json_value(v) for v in value]
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes)):
        return to_json_value(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.value if hasattr(value, "value") else str(value)
