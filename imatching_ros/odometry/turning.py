"""How far the camera of a solved window has turned and moved, and whether its scale rests on too little motion."""

from __future__ import annotations

from torch import Tensor

from ..core import geometry
from ..core.types import BAResult, ObservationKind, WindowSnapshot

# Chosen on rendered sweeps, mono, 60 to 180 degrees/s: 35 of their 54 windows are beyond both. Of 401 windows of five recordings that move
# (KITTI turn and drive, hospital, desk sweep, fr1/xyz) none is, nor with 0.25; half of those of fr1/rpy, which turns on the spot, are.
MIN_TURN_RAD = 0.26  # 15 degrees
MAX_MOTION_SHARE = 0.2  # of a translation in median depths, of the rotation in rad: by so much less it moves the image

# Chosen with a gyroscope on two dark rooms, two fogs and two dark sweeps, mono: .2 gains less, and so do .3 and .5 of windows that hardly turn.
NARROW = 0.3  # median depths
NEWEST = 5  # keyframes that are judged as well where older ones have stayed for that


def least_moved(T_WC: Tensor) -> int:
    """Which of the keyframes (M, 7) adds least parallax: the one nearest to its predecessor, of those between the two that are held
    and the two newest; the oldest where there are none.

    While a camera turns in place, or a window with known rotations is narrow, this one leaves. The oldest two carry the scale.
    """
    steps = (T_WC[2:-2, :3] - T_WC[1:-3, :3]).norm(dim=1)
    return 2 + int(steps.argmin()) if len(steps) else 0


def measure_motion(window: WindowSnapshot, result: BAResult, newest: int = 0) -> tuple[float, float]:
    """The widest rotation in rad between any two keyframes, and the longest way between any two in median depths.

    `newest`: of so many keyframes; 0: of all.
    """
    t, q = result.T_WC[-newest:, :3], result.T_WC[-newest:, 3:]
    turned = 2 * (q @ q.T).abs().clamp(max=1.0).acos().max()
    T_CW = geometry.inverse(result.T_WC)
    depth = geometry.act(T_CW[window.kf_idx], result.points_W[window.pt_idx])[:, 2].median()
    moved = (t[:, None] - t[None, :]).norm(dim=-1).max() / depth
    return float(turned), float(moved)


def turned_in_place(window: WindowSnapshot, result: BAResult, newest: int = 0) -> bool:
    """Whether one camera without measured depth has turned much and moved little: its scale is passed on by hardly any parallax.

    `newest`: as of `measure_motion`.
    """
    if _measures_depth(window):
        return False
    turned, moved = measure_motion(window, result, newest)
    return turned > MIN_TURN_RAD and moved < MAX_MOTION_SHARE * turned


def is_narrow(window: WindowSnapshot, result: BAResult) -> bool:
    """Whether the scale of one camera rests on less motion than `NARROW`: the noise of few pixels passes it on."""
    return not _measures_depth(window) and measure_motion(window, result)[1] < NARROW


def _measures_depth(window: WindowSnapshot) -> bool:
    return not window.expected_depth and bool((window.kind != int(ObservationKind.MONO)).any())
