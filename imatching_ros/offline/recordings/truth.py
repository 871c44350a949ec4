"""Trajectories and the files that hold them: TUM, KITTI and EuRoC formats."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ...core.errors import SourceError
from .text_files import Row, read_rows, read_stamps

log = logging.getLogger(__name__)

UNUSABLE_POSE = "not finite, or a quaternion that is not of unit length"


@dataclass(frozen=True)
class Trajectory:
    """Poses of a camera over time."""

    stamps_ns: np.ndarray  # (N,) int64, ascending
    T_WC: np.ndarray  # (N, 7) float64 [tx ty tz qx qy qz qw], camera to world, OpenCV optical axes

    def __post_init__(self) -> None:
        assert self.T_WC.shape == (len(self.stamps_ns), 7), (self.stamps_ns.shape, self.T_WC.shape)

    def __len__(self) -> int:
        return len(self.stamps_ns)

    @property
    def path_length_m(self) -> float:
        return float(np.linalg.norm(np.diff(self.T_WC[:, :3], axis=0), axis=1).sum()) if len(self) > 1 else 0.0

    def matrices(self) -> np.ndarray:
        """(N, 4, 4) float64."""
        T = np.tile(np.eye(4), (len(self), 1, 1))
        T[:, :3, 3] = self.T_WC[:, :3]
        if len(self):
            T[:, :3, :3] = Rotation.from_quat(self.T_WC[:, 3:]).as_matrix()
        return T

    def at(self, stamps_ns: np.ndarray, max_gap_ns: int = 200_000_000) -> tuple[np.ndarray, np.ndarray]:
        """Poses at other times: linear in translation, slerp in rotation.

        Returns:
            (M, 4, 4) float64 and (M,) bool: which of them are known. Unknown are times outside the trajectory by more than
            a microsecond, and times inside a hole longer than `max_gap_ns`.
        """
        stamps_ns = np.asarray(stamps_ns, np.int64)
        T = np.tile(np.eye(4), (len(stamps_ns), 1, 1))
        if not len(self):
            return T, np.zeros(len(stamps_ns), bool)
        known = (stamps_ns >= self.stamps_ns[0] - 1000) & (stamps_ns <= self.stamps_ns[-1] + 1000)
        clipped = np.clip(stamps_ns, self.stamps_ns[0], self.stamps_ns[-1])
        right = np.clip(np.searchsorted(self.stamps_ns, clipped), 0, len(self) - 1)
        left = np.where(self.stamps_ns[right] == clipped, right, np.maximum(right - 1, 0))
        span = self.stamps_ns[right] - self.stamps_ns[left]
        share = np.where(span > 0, (clipped - self.stamps_ns[left]) / np.maximum(span, 1), 0.0)[:, None]
        near = np.minimum(clipped - self.stamps_ns[left], self.stamps_ns[right] - clipped)
        known &= (span <= max_gap_ns) | (near <= 1000)
        T[:, :3, 3] = (1 - share) * self.T_WC[left, :3] + share * self.T_WC[right, :3]
        a, b = Rotation.from_quat(self.T_WC[left, 3:]), Rotation.from_quat(self.T_WC[right, 3:])
        T[:, :3, :3] = (a * Rotation.from_rotvec(share * (a.inv() * b).as_rotvec())).as_matrix()
        return T, known

    def transformed(self, T_CX: np.ndarray) -> Trajectory:
        """The trajectory of a frame X fixed to the camera: T_WX = T_WC @ T_CX, (4, 4)."""
        return from_matrices(self.stamps_ns, self.matrices() @ T_CX)


def from_matrices(stamps_ns: np.ndarray, T: np.ndarray) -> Trajectory:
    """(N,) int64 and (N, 4, 4) -> Trajectory."""
    T = np.asarray(T, float)
    quaternions = Rotation.from_matrix(T[:, :3, :3]).as_quat() if len(T) else np.zeros((0, 4))
    return Trajectory(np.asarray(stamps_ns, np.int64), np.concatenate([T[:, :3, 3], quaternions], 1))


def format_stamp(stamp_ns: int) -> str:
    """ns -> seconds with nine decimals."""
    sign = "-" if stamp_ns < 0 else ""
    return f"{sign}{abs(stamp_ns) // 1_000_000_000}.{abs(stamp_ns) % 1_000_000_000:09d}"


def write_tum(path: str | Path, trajectory: Trajectory) -> None:
    """`t tx ty tz qx qy qz qw` per line."""
    with Path(path).open("w") as file:
        file.write("# timestamp tx ty tz qx qy qz qw\n")
        for stamp, pose in zip(trajectory.stamps_ns.tolist(), trajectory.T_WC.tolist()):
            file.write(tum_line(stamp, pose))


def tum_line(stamp_ns: int, T_WC) -> str:
    """One line of a TUM trajectory with its line end."""
    return f"{format_stamp(int(stamp_ns))} " + " ".join(f"{float(x):.9g}" for x in T_WC) + "\n"


def read_trajectory(
    path: str | Path,
    stamps_ns: np.ndarray | None = None,
    T_body_camera: np.ndarray | None = None,
    warn: Callable[[str], None] = log.warning,
) -> Trajectory:
    """Reads a trajectory file of a camera; TUM (8 columns), EuRoC csv (8 or more, ns, qw first) and KITTI (12) are distinguished by their form.

    Args:
        stamps_ns: the frames' times, needed by KITTI, whose files carry none. They also decide the unit of a file's stamps.
        T_body_camera: (4, 4), needed by EuRoC, whose files hold poses of the body (its inertial sensor).
        warn: called with the number of poses that cannot be used.

    Raises:
        SourceError: missing file, other columns, something that is not a number (with its line), no pose that can be used;
            EuRoC's form where it is not known how the camera sits in the body.
    """
    path = Path(path)
    rows = read_rows(path)
    if not rows:
        raise SourceError(f"the trajectory {path} holds no poses")
    width = len(rows[0].fields)
    for row in rows:
        if len(row.fields) != width:
            raise SourceError(f"{path}, line {row.line}: {len(row.fields)} columns, the lines before it have {width}")
    euroc = _is_euroc(rows[0])
    if width < 8 or (width not in (8, 12) and not rows[0].has_commas and not euroc):
        raise SourceError(
            f"the trajectory {path} has {width} columns in its first line; expected TUM (t tx ty tz qx qy qz qw), "
            "EuRoC csv (ns, x, y, z, qw, qx, qy, qz, ...) or KITTI (12 numbers of a 3x4 matrix)"
        )
    if width == 12 and not euroc:
        result = _read_kitti(path, rows, stamps_ns)
    else:
        result = _read_stamped(rows, stamps_ns, euroc)
    if euroc and T_body_camera is None:
        raise SourceError(
            f"the trajectory {path} is an EuRoC csv, which holds poses of the body and not of the camera, and this recording does "
            "not say how the camera sits in it; use EuRoC's folder (mav0), or give poses of the camera in TUM format"
        )
    if not len(result):
        raise SourceError(f"the trajectory {path} holds no usable pose: each is {UNUSABLE_POSE}")
    if len(result) < len(rows):
        warn(f"{len(rows) - len(result)} of {len(rows)} poses in {path} are skipped: {UNUSABLE_POSE}")
    return result.transformed(T_body_camera) if euroc and T_body_camera is not None else result


def are_poses(T_WC: np.ndarray) -> np.ndarray:
    """(N, 7) -> (N,) bool: finite, with a quaternion of unit length.

    Files with two decimals and drivers in single precision stay within 0.1 of it; what is farther off is no rotation.
    """
    return np.isfinite(T_WC).all(1) & (np.abs(np.linalg.norm(T_WC[:, 3:], axis=1) - 1) < 0.1)


def _is_euroc(row: Row) -> bool:
    """Whether the first row counts whole ns as EuRoC does. A comma alone does not decide: TUM is sometimes saved with commas."""
    stamp, width = row.fields[0], len(row.fields)
    epoch_ns_digits = 18  # fewer are ms or us, or ns since a start
    return stamp.isdigit() and (
        (width > 8 and width != 12 and len(stamp) > 12) or (row.has_commas and len(stamp) >= epoch_ns_digits)
    )


def _read_kitti(path: Path, rows: list[Row], stamps_ns: np.ndarray | None) -> Trajectory:
    if stamps_ns is None or len(stamps_ns) < len(rows):
        raise SourceError(
            f"the KITTI trajectory {path} has {len(rows)} poses and no times; the source has "
            f"{0 if stamps_ns is None else len(stamps_ns)} frames to take them from"
        )
    T = np.tile(np.eye(4), (len(rows), 1, 1))
    T[:, :3] = np.array([[row.number(i) for i in range(12)] for row in rows]).reshape(-1, 3, 4)
    finite = np.isfinite(T).all(axis=(1, 2), keepdims=True)
    usable = np.abs(np.linalg.det(np.where(finite, T, 0.0)[:, :3, :3]) - 1) < 0.1
    return from_matrices(np.asarray(stamps_ns)[: len(rows)][usable], T[usable])


def _read_stamped(rows: list[Row], frames_ns: np.ndarray | None, euroc: bool) -> Trajectory:
    """The usable poses of TUM's or EuRoC's form, by time."""
    order = [1, 2, 3, 5, 6, 7, 4] if euroc else [1, 2, 3, 4, 5, 6, 7]
    T_WC = np.array([[row.number(i) for i in order] for row in rows])
    usable = are_poses(T_WC) & np.array([row.decimal(0).is_finite() for row in rows])
    T_WC = T_WC[usable]
    T_WC[:, 3:] /= np.linalg.norm(T_WC[:, 3:], axis=1, keepdims=True)
    stamps_ns = read_stamps([row for row, use in zip(rows, usable) if use], frames_ns, 1 if euroc else None)
    by_time = np.argsort(stamps_ns, kind="stable")
    return Trajectory(stamps_ns[by_time], T_WC[by_time])
