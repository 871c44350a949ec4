"""Motions of rigid bodies, from points whose depth is known in one image and which another image sees.

`two_motions` finds two of them by RANSAC, which takes milliseconds. `may_show_two` decides before, in a tenth of that, whether it is worth
looking: by motions that are linearized about the pose and begin with points that are near each other and move alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from ..camera.model import Camera
from ..core import geometry

SUPPORT_PX = 1.0  # distance within which a point supports a motion
# Of the second motion. Chosen on rendered clutter (seeds 211, 212) with a thing before it, where median distances are 8 px and more, and on
# recordings without (hospital, KITTI turn, fr1/rpy, desk sweep), where rolling shutters and noise leave at most 6.5.
MIN_SUPPORT = 12  # points
MIN_SUPPORT_SHARE = 0.35  # of what the first motion leaves over
MIN_CELLS = 4  # cells of the image in which a body has more points than the other one
FAR_PX = 8.0  # median distance by which one of the motions misses the support of the other
CELLS = (8, 6)
RANSAC_ITERATIONS = 100
# Of linearized motions: so many points at most, and so many of them from which motions begin. Of 838 comparisons of the recordings and renderings
# without a thing they let 26 through, and of 938 with one (seeds 211, 212) in which RANSAC finds two motions they hold 12 back.
LINEAR_POINTS, LINEAR_SEEDS = 64, 8
ALIKE_SHARE, ALIKE_PX = 0.3, 1.0  # residuals that differ from the seed's by at most this share of it and so many px
NEAR_SHARE = 1 / 3  # of the image's width, within which they are
LINEAR_PX = (2.5, 1.5)  # distances of support, wider at first
LINEAR_MIN_SUPPORT, LINEAR_MIN_SHARE, LINEAR_FAR_PX = 7, 0.3, 4.8  # in place of the above
RIDGE = 1e-3  # of the squared focal length; holds what a few points leave open near zero


def two_motions(camera: Camera, points: np.ndarray, uv: np.ndarray) -> tuple[Tensor, Tensor] | None:
    """Poses (7,) from which points (N, 3) of two bodies are seen at ideal px (N, 2); None where one explains them."""
    T_a = _ransac(camera, points, uv)
    if T_a is None:
        return None
    d_a = distances(camera, points, uv, T_a)
    rest = d_a > 1.5 * SUPPORT_PX
    T_b = _ransac(camera, points[rest], uv[rest])
    if T_b is None:
        return None
    d_b = distances(camera, points, uv, T_b)
    a, b = (d_a < SUPPORT_PX) & (d_a < d_b), (d_b < SUPPORT_PX) & (d_b < d_a)
    if b[rest].sum() < max(MIN_SUPPORT, MIN_SUPPORT_SHARE * rest.sum()):
        return None
    if min(count_cells(camera, uv[a], uv[b])) < MIN_CELLS:
        return None
    return (T_a, T_b) if max(np.median(d_a[b]), np.median(d_b[a])) >= FAR_PX else None


@dataclass(frozen=True)
class SeenPoints:
    """N points as an image shows them, and as a pose of the camera has them."""

    points_C: np.ndarray  # (N, 3) in the camera at that pose
    uv: np.ndarray  # (N, 2) ideal px at which they are seen
    residual: np.ndarray  # (N, 2) px from where the pose has them; not finite behind the camera
    outlier: np.ndarray  # (N,) bool

    def select(self, rows: np.ndarray | slice) -> SeenPoints:
        """Some of the points; `rows` (K, M) give K groups of M."""
        return SeenPoints(self.points_C[rows], self.uv[rows], self.residual[rows], self.outlier[rows])


def may_show_two(camera: Camera, seen: SeenPoints, parts: Sequence[slice]) -> list[bool]:
    """For each of several parts of points, all at once, whether the outliers of its pose may have a motion of their own."""
    rows, result = (seen.outlier & (seen.points_C[:, 2] > 0)).nonzero()[0], [False] * len(parts)
    ends = rows.searchsorted([end for part in parts for end in (part.start, part.stop)]).reshape(-1, 2)
    many = (ends[:, 1] - ends[:, 0] >= LINEAR_MIN_SUPPORT).nonzero()[0]
    if len(many) == 0:
        return result
    first, count = ends[many, :1], ends[many, 1:] - ends[many, :1]  # (K, 1)
    outliers = seen.select(rows[first + np.arange(LINEAR_POINTS) * count // LINEAR_POINTS])
    least = np.maximum(LINEAR_MIN_SHARE, LINEAR_MIN_SUPPORT / count[:, 0])
    motions, supports = _find_motions(camera, outliers, least)
    for k in (supports.mean(1) >= least).nonzero()[0]:
        body = SeenPoints(*(part[k, supports[k]] for part in vars(outliers).values()))
        if np.count_nonzero(_points_per_cell(camera, body.uv)) >= MIN_CELLS:
            result[many[k]] = _is_far(camera, seen.select(parts[many[k]]), body, motions[k])
    return result


def _find_motions(camera: Camera, seen: SeenPoints, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The small motions (K, 6) with the largest supports (K, N) bool in K groups of N points.

    They begin with what moves like one of the points nearby. Where no support is `least` (K,) of the points at the wider bound, it is left at that.
    """
    seeds = slice(0, None, LINEAR_POINTS // LINEAR_SEEDS)
    size = np.maximum(*abs(seen.residual[:, seeds]).transpose(2, 0, 1))
    differ, apart = (_gaps(part, seeds) for part in (seen.residual, seen.uv))
    supports = (differ < (ALIKE_SHARE * size + ALIKE_PX)[..., None]) & (apart < NEAR_SHARE * camera.width)  # (K, M, N)
    fit = _Linearized.of(camera, seen.points_C, seen.residual)
    motions, supports = fit.improve(supports, LINEAR_PX[0])
    if (supports.sum(2).max(1) >= least * LINEAR_POINTS).any():
        motions, supports = fit.improve(supports, LINEAR_PX[1])
    each, best = np.arange(len(supports)), supports.sum(2).argmax(1)
    return motions[each, best], supports[each, best]


def _gaps(px: np.ndarray, seeds: slice) -> np.ndarray:
    """Larger difference (K, M, N) in u or v between M of N pixels (K, N, 2) and all of them."""
    u, v = px[..., 0], px[..., 1]
    return np.maximum(abs(u[:, seeds, None] - u[:, None]), abs(v[:, seeds, None] - v[:, None]))


def _is_far(camera: Camera, seen: SeenPoints, body: SeenPoints, motion: np.ndarray) -> bool:
    """Whether the points that do not share the small motion (6,) of a body have one that differs from it by far."""
    seen = seen.select(seen.points_C[:, 2] > 0)
    left = seen.residual.T - _jacobian(camera, seen.points_C) @ motion
    rest = (_squares(left) > LINEAR_PX[0] ** 2).nonzero()[0]
    if len(rest) < MIN_SUPPORT // 2:
        return False
    others = seen.select(rest[:: -(-len(rest) // LINEAR_POINTS)])
    fit = _Linearized.of(camera, others.points_C[None], others.residual[None])
    # Begun by what the pose explains, or by all.
    supports = np.stack([~others.outlier, np.ones(len(others.uv), bool)])[None]
    for bound in LINEAR_PX:
        motions, supports = fit.improve(supports, bound)
    best = supports[0].sum(1).argmax()
    other, parts = motions[0, best], (part for part in (body, others.select(supports[0, best])) if len(part.uv))
    apart = [np.median(_squares(_jacobian(camera, part.points_C) @ (motion - other))) for part in parts]
    return bool(max(apart) >= LINEAR_FAR_PX**2)


@dataclass(frozen=True)
class _Linearized:
    """How residuals in K groups of N points change with a small motion."""

    jacobian: np.ndarray  # (K, 6, 2 * N)
    residual: np.ndarray  # (K, 1, 2 * N) px
    JJ: np.ndarray  # (K, N, 36), J^T J of every point
    Jr: np.ndarray  # (K, N, 6), J^T r
    unit: np.ndarray  # (K, 1, 6); translations count as the angles that they are at the mean depth
    ridge: np.ndarray  # (6, 6)

    @staticmethod
    def of(camera: Camera, points_C: np.ndarray, residual: np.ndarray) -> _Linearized:
        """From points (K, N, 3) in the camera and residuals (K, N, 2) px."""
        groups, count = points_C.shape[:2]
        unit = np.ones((groups, 1, 6))
        unit[..., :3] = points_C[..., 2].mean(1)[:, None, None]
        J = _jacobian(camera, points_C.reshape(-1, 3)).reshape(2, groups, count, 6) * unit
        J_u, J_v = J
        JJ = (J_u[..., None] * J_u[..., None, :] + J_v[..., None] * J_v[..., None, :]).reshape(groups, count, 36)
        Jr = J_u * residual[..., :1] + J_v * residual[..., 1:]
        flat = J.transpose(1, 3, 0, 2).reshape(groups, 6, -1)
        residual, ridge = residual.swapaxes(1, 2).reshape(groups, 1, -1), RIDGE * camera.fx**2 * np.eye(6)
        return _Linearized(flat, residual, JJ, Jr, unit, ridge)

    def improve(self, supports: np.ndarray, bound_px: float) -> tuple[np.ndarray, np.ndarray]:
        """The motions (K, M, 6) that M supports (K, M, N) bool have, and what those motions explain to within a bound (K, M, N)."""
        weight = supports.astype(float)
        A = (weight @ self.JJ).reshape(*supports.shape[:2], 6, 6) + self.ridge
        motions = np.linalg.solve(A, (weight @ self.Jr)[..., None])[..., 0]
        left = (motions @ self.jacobian - self.residual).reshape(*supports.shape[:2], 2, -1)
        return motions * self.unit, left[:, :, 0] ** 2 + left[:, :, 1] ** 2 < bound_px**2


def _jacobian(camera: Camera, points_C: np.ndarray) -> np.ndarray:
    """Derivatives (2, N, 6) of the pixels of points (N, 3) by a small motion of theirs: translation, rotation."""
    inverse = 1 / points_C[:, 2]
    x, y = points_C[:, 0] * inverse, points_C[:, 1] * inverse
    J = np.zeros((2, len(points_C), 6))
    J[0, :, 0] = J[1, :, 1] = inverse
    J[0, :, 2], J[1, :, 2] = -x * inverse, -y * inverse
    J[0, :, 3] = -x * y
    J[0, :, 4], J[1, :, 3] = 1 + x * x, -1 - y * y
    J[0, :, 5], J[1, :, 5], J[1, :, 4] = -y, x, x * y
    return J * np.array([camera.fx, camera.fy])[:, None, None]


def _squares(px: np.ndarray) -> np.ndarray:
    """Squared lengths (N,) of (2, N)."""
    return px[0] ** 2 + px[1] ** 2


def _ransac(camera: Camera, points: np.ndarray, uv: np.ndarray) -> Tensor | None:
    """The pose (7,) with the largest support, refined on it."""
    if len(points) < MIN_SUPPORT:
        return None
    K = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    ok, rvec, tvec, inliers = cv2.solvePnPRansac(
        points,
        uv,
        K,
        None,
        iterationsCount=RANSAC_ITERATIONS,
        reprojectionError=SUPPORT_PX,
        confidence=0.999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not ok or inliers is None or len(inliers) < MIN_SUPPORT or not np.isfinite(tvec).all():
        return None
    rows = inliers[:, 0]
    rvec, tvec = cv2.solvePnPRefineLM(points[rows], uv[rows], K, None, rvec, tvec)
    R = torch.from_numpy(cv2.Rodrigues(rvec)[0])
    return geometry.inverse(geometry.from_matrix(torch.cat([R, torch.from_numpy(tvec)], 1)))


def back_project(camera: Camera, uv: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Points (N, 3) in the camera, of ideal px (N, 2) and depths (N,)."""
    points_C = np.empty((len(uv), 3))
    points_C[:, 2] = depth
    points_C[:, :2] = (uv - (camera.cx, camera.cy)) / (camera.fx, camera.fy) * points_C[:, 2:]
    return points_C


def to_camera(T_WC: Tensor, points_W: np.ndarray) -> np.ndarray:
    """Points (N, 3) of the world in the camera at T_WC (7,)."""
    R, t = rotation_and_centre(T_WC)
    return (points_W - t) @ R


def rotation_and_centre(T: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) and (3,) of a pose (7,), in fewer operations than torch takes."""
    *t, x, y, z, w = T.tolist()
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + 2 * (w * cross + cross @ cross), np.array(t)


def distances(camera: Camera, points: np.ndarray, uv: np.ndarray, T: Tensor) -> np.ndarray:
    """px (N,) between where a camera at T (7,) sees points (N, 3) and uv (N, 2); inf behind it."""
    return np.linalg.norm(residuals(camera, to_camera(T, points), uv), axis=1)


def residuals(camera: Camera, points_C: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """px (N, 2) from where a camera sees points (N, 3) of its own frame to uv (N, 2); inf behind it."""
    front = points_C[:, 2:] > 0
    seen = points_C[:, :2] / np.where(front, points_C[:, 2:], 1.0) * (camera.fx, camera.fy)
    return np.where(front, uv - (seen + (camera.cx, camera.cy)), np.inf)


def spread(uv: np.ndarray) -> float:
    """Generalized variance of pixels (N, 2)."""
    return float(np.linalg.det(np.cov(uv.T))) if len(uv) > 2 else 0.0


def count_cells(camera: Camera, a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """How many cells of the image hold more of the pixels a (N, 2) than of b (M, 2), and the other way round."""
    in_a, in_b = _points_per_cell(camera, a), _points_per_cell(camera, b)
    return int(np.count_nonzero(in_a > in_b)), int(np.count_nonzero(in_b > in_a))


def _points_per_cell(camera: Camera, uv: np.ndarray) -> np.ndarray:
    """How many of the pixels (N, 2) each cell of the image holds, row by row."""
    size, last = (camera.width / CELLS[0], camera.height / CELLS[1]), np.array(CELLS) - 1
    column, row = np.minimum(np.maximum(uv / size, 0), last).astype(int).T
    return np.bincount(row * CELLS[0] + column, minlength=CELLS[0] * CELLS[1])
