"""Rigid transforms as (4, 4) float64 matrices in the conventions of ROS: REP-103 axes, fixed-axis covariances.

`T_AB` maps points of B to A. A perturbation of a pose is T * Exp([rho, phi]), translation first, as in the core. numpy and not
`core.geometry`: a message takes one pose, and a small operation of torch costs several times as much.
"""

from __future__ import annotations

import math

import numpy as np

# The optical frame (x right, y down, z forward) in a camera body frame (x forward, y left, z up), as REP-103 names them.
T_BODY_OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])

# The largest coordinate. The Earth's own frame needs 7e6; doubles resolve 1e-8 m at 1e8, and covariances do not overflow.
MAX_POSITION_M = 1e8


def from_pose(pose: np.ndarray) -> np.ndarray:
    """[tx ty tz qx qy qz qw] -> (4, 4).

    Raises:
        ValueError: a position that is not finite or beyond MAX_POSITION_M, or a quaternion far from unit length.
    """
    pose = np.asarray(pose, float)
    x, y, z, w = pose[3:]
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    if not (np.abs(pose[:3]) <= MAX_POSITION_M).all() or not 0.9 < norm < 1.1:
        raise ValueError(
            f"{pose.tolist()} is no pose; expected x y z qx qy qz qw, within {MAX_POSITION_M:g} m, with a quaternion of length 1"
        )
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    T = np.eye(4)
    T[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    T[:3, 3] = pose[:3]
    return T


def quaternion(R: np.ndarray) -> tuple[float, float, float, float]:
    """(3, 3) -> x, y, z, w with w >= 0, by the largest of the four numbers (stable at every angle)."""
    trace = R[0, 0] + R[1, 1] + R[2, 2]
    squares = np.array([1 + 2 * R[0, 0] - trace, 1 + 2 * R[1, 1] - trace, 1 + 2 * R[2, 2] - trace, 1 + trace]) / 4
    i = int(squares.argmax())
    largest = math.sqrt(squares[i])
    xw, yw, zw = R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]
    xy, xz, yz = R[0, 1] + R[1, 0], R[0, 2] + R[2, 0], R[1, 2] + R[2, 1]
    q = np.array([(0.0, xy, xz, xw), (xy, 0.0, yz, yw), (xz, yz, 0.0, zw), (xw, yw, zw, 0.0)][i]) / (4 * largest)
    q[i] = largest
    x, y, z, w = (float(v) for v in (q if q[3] >= 0 else -q))
    return x, y, z, w


def inverse(T: np.ndarray) -> np.ndarray:
    """T_AB -> T_BA."""
    out = np.eye(4)
    out[:3, :3] = T[:3, :3].T
    out[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return out


def interpolate(T_a: np.ndarray, T_b: np.ndarray, share: float) -> np.ndarray:
    """From T_a (share 0) to T_b (share 1), and beyond: the position on a line, the rotation about one axis."""
    out = np.eye(4)
    turn = share * rotation_vector(T_a[:3, :3].T @ T_b[:3, :3])
    angle = float(np.linalg.norm(turn))
    K = skew(turn / angle) if angle > 0 else np.zeros((3, 3))
    out[:3, :3] = T_a[:3, :3] @ (np.eye(3) + math.sin(angle) * K + (1 - math.cos(angle)) * K @ K)
    out[:3, 3] = (1 - share) * T_a[:3, 3] + share * T_b[:3, 3]
    return out


def adjoint(T: np.ndarray) -> np.ndarray:
    """(6, 6) for [rho, phi]: T Exp(x) T^-1 = Exp(adjoint(T) x)."""
    R, t = T[:3, :3], T[:3, 3]
    out = np.zeros((6, 6))
    out[:3, :3] = out[3:, 3:] = R
    out[:3, 3:] = skew(t) @ R
    return out


def skew(v: np.ndarray) -> np.ndarray:
    return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0.0]])


def rotation_vector(R: np.ndarray) -> np.ndarray:
    """(3, 3) -> axis * angle, rad."""
    x, y, z, w = quaternion(R)
    length = math.sqrt(x * x + y * y + z * z)
    scale = 2.0 / w if length < 1e-9 else 2.0 * math.atan2(length, w) / length
    return np.array([x, y, z]) * scale


def body_covariance(covariance_C: np.ndarray, T_BC: np.ndarray) -> np.ndarray:
    """Covariance (6, 6) of T_WC * Exp(x) -> that of T_WB * Exp(y), camera C mounted on body B at T_BC."""
    A = adjoint(T_BC)
    return A @ covariance_C @ A.T


def fixed_axis_covariance(covariance_B: np.ndarray, R_OB: np.ndarray) -> np.ndarray:
    """Covariance (6, 6) of T_OB * Exp(y) -> that of PoseWithCovariance: position and rotation about the axes of O."""
    A = np.zeros((6, 6))
    A[:3, :3] = A[3:, 3:] = R_OB
    return A @ covariance_B @ A.T
