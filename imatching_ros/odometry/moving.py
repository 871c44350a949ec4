"""Whether an image shows two bodies that move otherwise than each other: the world, and something large before the camera.

A robust pose lies between the two where both have many landmarks, and bundle adjustment then moves the landmarks until they agree with it. So
the test leaves the map aside. It compares where landmarks were some frames ago with where they are now: pixel and depth there, pixel here.
Errors of the map are the same in both and cancel, as in the zero-motion update. There are two bodies where the motion with the largest
support leaves landmarks over that agree on another one (sequential RANSAC, as Torr, Geometric motion segmentation and model
selection, 1998).

A camera that moves sideways sees near things move as it would see a near thing walk. Each motion therefore explains a part of the other body,
too, and only one of the two has to miss the other body's landmarks by far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from ..camera.model import Camera
from ..core import geometry

FRAMES_BACK = (8, 3, 1)  # from far back slow things are seen to move, from near those that are seen for a short time
SUPPORT_PX = 1.0  # distance within which a landmark supports a motion
FEW_SHARE = (
    0.08  # of landmarks that the pose leaves over: so few are noise, unless they have a part of the image to themselves
)
# Of the second motion. Chosen on rendered clutter (seeds 211, 212) with a thing before it, where median distances are 8 px and more, and on
# recordings without (hospital, KITTI turn, fr1/rpy, desk sweep), where rolling shutters and noise leave at most 6.5.
MIN_SUPPORT = 12  # landmarks
MIN_SUPPORT_SHARE = 0.35  # of what the first motion leaves over
MIN_CELLS = 4  # cells of the image in which a body has more landmarks than the other one
FAR_PX = 8.0  # median distance by which one of the motions misses the support of the other
CLEAR_PX = 1.8  # by which the other motion has to miss a landmark, for it to be of a body
# So many landmarks that the pose leaves over differ from their two neighbours by less than this share of their residual, before two motions are
# looked for. With a thing before rendered clutter (seeds 211, 212) 8 to 180 mostly do, without one on KITTI 1 at most in nine of ten frames.
MIN_COHERENT, COHERENT_SHARE = 4, 0.3
# What is on the lens or a part of the robot moves in the image by less than this share of the world's motion (drops bend light, and move a
# little), and that world is seen in all of the image: its landmarks have this share of the generalized variance of all pixels.
ATTACHED_SHARE, WHOLE_SHARE = 0.35, 0.25
CELLS = (8, 6)
RANSAC_ITERATIONS = 100
# It is over after so many frames in which one motion explains as much of the image as both did, or so many that do not show two.
QUIET_FRAMES, PATIENCE_FRAMES = 10, 50
QUIET_SHARE = 0.8  # of the cells in which landmarks supported one of the two


@dataclass(frozen=True)
class SeenFrame:
    """N landmarks as a frame with a pose saw them."""

    id: np.ndarray  # (N,) int64
    uv: np.ndarray  # (N, 2) float64 ideal px
    depth: np.ndarray  # (N,) float64
    moving: np.ndarray  # (N,) bool, taken to be of a body that moves
    T_WC: Tensor  # (7,) float64
    skew_px: float = 0.0  # by which a rolling shutter may have moved the outermost rows

    def select(self, rows: np.ndarray) -> SeenFrame:
        """Some of the landmarks, by indices or a mask."""
        return replace(self, id=self.id[rows], uv=self.uv[rows], depth=self.depth[rows], moving=self.moving[rows])


@dataclass(frozen=True)
class TwoMotions:
    """Two motions of the camera since an earlier frame: relative to the world and to a body that moves, or the other way round.

    At first what is spread farther over the image is taken for the world, then what continues the poses.
    """

    T_first: Tensor  # (7,) T_before_now, relative to the world
    T_second: Tensor  # (7,) relative to the other body
    first: Tensor  # (A,) int64, ids of landmarks that clearly move as the world does
    second: Tensor  # (B,) as the other body
    T_WC: Tensor  # (7,) the pose now, from that of the earlier frame
    frames: int  # since then
    cells: int  # of the image with landmarks of either body
    attached: bool  # the other body stands still in the image, as what is on the lens or a part of the robot

    def difference(self) -> Tensor:
        """The twist (6,) a frame by which the two differ."""
        return geometry.local(self.T_first, self.T_second) / self.frames


class MotionSegmentation:
    """Compares each frame with earlier ones.

    Attributes:
        last: two motions as they were seen last; None while one explains the images.
        disputed: either may be that of the camera.
    """

    def __init__(self) -> None:
        self._frames: deque[SeenFrame] = deque(maxlen=max(FRAMES_BACK))
        self.last: TwoMotions | None = None
        self.disputed = False
        self._compared: SeenFrame | None = None
        self._cells = 0  # of the image in which the two explained most landmarks, at most
        self._quiet = self._since = 0  # frames since `last` was seen: with one motion for as many cells, and all

    def forget_frames(self) -> None:
        """What follows is of another scale or camera, or does not continue the last pose; what was in dispute stays so."""
        self._frames.clear()

    def move(self, T: Tensor) -> None:
        """The map is moved by T (7,)."""
        moved = [replace(frame, T_WC=geometry.compose(T, frame.T_WC)) for frame in self._frames]
        self._frames = deque(moved, self._frames.maxlen)

    def compare(self, camera: Camera, now: SeenFrame) -> TwoMotions | None:
        """Two motions that a frame shows; `last` is updated."""
        self._compared = now = now.select(np.isfinite(now.uv).all(1))
        found = self._find(camera, now)
        self._since += 1
        if found is not None:
            self.last, self._quiet, self._since = found, 0, 0
            self.disputed |= not found.attached
            self._cells = max(self._cells, found.cells)
        elif self.last is not None:
            agreeing = min((c.agreeing_cells() for c in self._comparisons(camera, now)), default=0)
            self._quiet += agreeing >= QUIET_SHARE * self._cells
            if self._quiet >= QUIET_FRAMES or self._since >= PATIENCE_FRAMES:
                self.last, self.disputed, self._cells = None, False, 0
        return found

    def keep(self, now: SeenFrame | None = None) -> None:
        """Keeps a frame for later ones; by default that which was compared last."""
        now = self._compared if now is None else now
        if now is None:
            return
        good = ((now.depth > 0) & np.isfinite(now.uv).all(1)).nonzero()[0]
        if len(good):
            self._frames.append(now.select(good[now.id[good].argsort()]))

    def add_landmarks(self, id: np.ndarray, uv: np.ndarray, depth: np.ndarray) -> None:
        """Landmarks (N,) that were found in the frame kept last, at ideal px (N, 2)."""
        if self._frames:
            last = self._frames.pop()
            ids, uv, depth = (np.concatenate(pair) for pair in ((last.id, id), (last.uv, uv), (last.depth, depth)))
            moving = np.concatenate([last.moving, np.zeros(len(id), bool)])
            self.keep(SeenFrame(ids, uv, depth, moving, last.T_WC, last.skew_px))

    def _comparisons(self, camera: Camera, now: SeenFrame) -> Iterator[_Comparison]:
        return (_Comparison.of(camera, self._frames[-n], now, n) for n in FRAMES_BACK if n <= len(self._frames))

    def _find(self, camera: Camera, now: SeenFrame) -> TwoMotions | None:
        known, comparisons = self.last is not None, list(self._comparisons(camera, now))
        if not known:  # nearly always; to look for motions takes milliseconds
            comparisons = [comparison for comparison in comparisons if comparison.coherent() >= MIN_COHERENT]
        found = (comparison.segment(known) for comparison in comparisons)
        return next((two for two in found if two is not None), None)


@dataclass(frozen=True)
class _Comparison:
    """N landmarks that an earlier frame and this one have seen."""

    camera: Camera
    frames: int  # between the two
    before: SeenFrame
    now: SeenFrame
    points: np.ndarray  # (N, 3) in the camera of the earlier frame
    residual: np.ndarray  # (N, 2) px from where the poses of the two frames have it; not finite behind the camera
    outlier: np.ndarray  # (N,) bool: by more than a landmark that stands still

    @staticmethod
    def of(camera: Camera, before: SeenFrame, now: SeenFrame, frames: int) -> _Comparison:
        at = np.searchsorted(before.id, now.id).clip(max=len(before.id) - 1)
        both = before.id[at] == now.id
        before, now = before.select(at[both]), now.select(both)
        focal, centre = (camera.fx, camera.fy), (camera.cx, camera.cy)
        points = np.column_stack([(before.uv - centre) / focal, np.ones(len(before.uv))]) * before.depth[:, None]
        R, t = _rotation_and_centre(before.T_WC)
        residual = _residuals(camera, points @ R.T + t, now.uv, now.T_WC)
        outlier = np.linalg.norm(residual, axis=1) > 2 * SUPPORT_PX
        return _Comparison(camera, frames, before, now, points, residual, outlier)

    def agreeing_cells(self) -> int:
        """Cells of the image in which most landmarks move as the poses say."""
        return _cells(self.camera, self.now.uv[~self.outlier], self.now.uv[self.outlier])[0]

    def segment(self, known: bool) -> TwoMotions | None:
        """Two motions that explain the landmarks; None where one does. `known`: two were seen before."""
        if not self._leaves_landmarks_over():
            return None
        uv, ids = self.now.uv, torch.from_numpy(self.now.id)
        motions = two_motions(self.camera, self.points, uv)
        if motions is None:
            return None
        d_a, d_b = (_distances(self.camera, self.points, uv, T) for T in motions)
        a, b = (d_a < SUPPORT_PX) & (d_b > CLEAR_PX), (d_b < SUPPORT_PX) & (d_a > CLEAR_PX)
        if min(a.sum(), b.sum()) < MIN_SUPPORT // 2:
            return None
        if min(np.median(d_b[a]), np.median(d_a[b])) < max(self.before.skew_px, self.now.skew_px):
            return None  # the rows of a rolling shutter see one body move in several ways
        if not self._is_world(a, b, known):
            motions, a, b = motions[::-1], b, a
        T_WC, cells = geometry.compose(self.before.T_WC, motions[0]), sum(_cells(self.camera, uv[a], uv[b]))
        return TwoMotions(*motions, ids[a], ids[b], T_WC, self.frames, cells, self._is_attached(a, b))

    def _leaves_landmarks_over(self) -> bool:
        """Whether the poses leave enough over for another body."""
        outliers, count, uv = int(self.outlier.sum()), len(self.outlier), self.now.uv
        if outliers < MIN_SUPPORT or count - outliers < MIN_SUPPORT:
            return False
        if outliers >= FEW_SHARE * count:
            return True
        return _cells(self.camera, uv[self.outlier], uv[~self.outlier])[0] >= MIN_CELLS

    def coherent(self) -> int:
        """How many landmarks that the poses leave over move as those next to them do, as a body does and wrong matches do not."""
        rows = self.outlier & np.isfinite(self.residual).all(1)
        uv, residual = self.now.uv[rows], self.residual[rows]
        if len(uv) < MIN_SUPPORT:
            return 0
        apart = np.linalg.norm(uv[:, None] - uv[None], axis=2)
        np.fill_diagonal(apart, np.inf)
        beside = residual[np.argpartition(apart, 1, axis=1)[:, :2]]  # (N, 2, 2) of the two nearest
        differ = np.linalg.norm(residual[:, None] - beside, axis=2).max(1)
        return int((differ < COHERENT_SHARE * np.linalg.norm(residual, axis=1)).sum())

    def _is_world(self, a: np.ndarray, b: np.ndarray, known: bool) -> bool:
        """Whether the landmarks a (N,) bool are rather of the world than b.

        At first what is spread farther is the world: what surrounds something has the larger generalized variance, however few landmarks it
        has. From then on it is what continues the poses so far.
        """
        if known:
            strange = self.now.moving.astype(float) + self.outlier
            if abs(strange[a].mean() - strange[b].mean()) > 0.3:
                return bool(strange[a].mean() < strange[b].mean())
        return _spread(self.now.uv[a]) >= _spread(self.now.uv[b])

    def _is_attached(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether the landmarks b (N,) hardly move in the image, while what is seen all around them, a (N,), does."""
        flow = np.linalg.norm(self.now.uv - self.before.uv, axis=1)
        whole = (self.camera.width * self.camera.height) ** 2 / 144
        return bool(
            np.median(flow[b]) < ATTACHED_SHARE * np.median(flow[a]) and _spread(self.now.uv[a]) > WHOLE_SHARE * whole
        )


def two_motions(camera: Camera, points: np.ndarray, uv: np.ndarray) -> tuple[Tensor, Tensor] | None:
    """Poses (7,) from which points (N, 3) of two bodies are seen at ideal px (N, 2); None where one explains them."""
    T_a = _ransac(camera, points, uv)
    if T_a is None:
        return None
    d_a = _distances(camera, points, uv, T_a)
    rest = d_a > 1.5 * SUPPORT_PX
    T_b = _ransac(camera, points[rest], uv[rest])
    if T_b is None:
        return None
    d_b = _distances(camera, points, uv, T_b)
    a, b = (d_a < SUPPORT_PX) & (d_a < d_b), (d_b < SUPPORT_PX) & (d_b < d_a)
    if b[rest].sum() < max(MIN_SUPPORT, MIN_SUPPORT_SHARE * rest.sum()):
        return None
    if min(_cells(camera, uv[a], uv[b])) < MIN_CELLS:
        return None
    return (T_a, T_b) if max(np.median(d_a[b]), np.median(d_b[a])) >= FAR_PX else None


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


def to_camera(T_WC: Tensor, points_W: np.ndarray) -> np.ndarray:
    """Points (N, 3) of the world in the camera at T_WC (7,)."""
    R, t = _rotation_and_centre(T_WC)
    return (points_W - t) @ R


def _rotation_and_centre(T: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) and (3,) of a pose (7,), in fewer operations than torch takes."""
    *t, x, y, z, w = T.tolist()
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + 2 * (w * cross + cross @ cross), np.array(t)


def _distances(camera: Camera, points: np.ndarray, uv: np.ndarray, T: Tensor) -> np.ndarray:
    """px (N,) between where a camera at T (7,) sees points (N, 3) and uv (N, 2); inf behind it."""
    return np.linalg.norm(_residuals(camera, points, uv, T), axis=1)


def _residuals(camera: Camera, points: np.ndarray, uv: np.ndarray, T: Tensor) -> np.ndarray:
    """px (N, 2) from where a camera at T (7,) sees points (N, 3) to uv (N, 2); inf behind it."""
    points_C = to_camera(T, points)
    front = points_C[:, 2:] > 0
    seen = points_C[:, :2] / np.where(front, points_C[:, 2:], 1.0) * (camera.fx, camera.fy)
    return np.where(front, uv - (seen + (camera.cx, camera.cy)), np.inf)


def _spread(uv: np.ndarray) -> float:
    """Generalized variance of pixels (N, 2)."""
    return float(np.linalg.det(np.cov(uv.T))) if len(uv) > 2 else 0.0


def _cells(camera: Camera, a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """How many cells of the image hold more of the pixels a (N, 2) than of b (M, 2), and the other way round."""
    size, last = (camera.width / CELLS[0], camera.height / CELLS[1]), np.array(CELLS) - 1
    counts = []
    for uv in (a, b):
        column, row = np.clip(uv / size, 0, last).astype(int).T
        counts.append(np.bincount(row * CELLS[0] + column, minlength=CELLS[0] * CELLS[1]))
    return int((counts[0] > counts[1]).sum()), int((counts[1] > counts[0]).sum())
