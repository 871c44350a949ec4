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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..camera.model import Camera
from ..core import geometry
from .rigid_motions import (
    MIN_CELLS,
    MIN_SUPPORT,
    SUPPORT_PX,
    SeenPoints,
    count_cells,
    distances,
    may_show_two,
    residuals,
    rotation_and_centre,
    spread,
    two_motions,
)

FRAMES_BACK = (8, 3, 1)  # from far back slow things are seen to move, from near those that are seen for a short time
# Of the landmarks; when the pose leaves fewer over they are noise, unless they have a part of the image to themselves.
FEW_SHARE = 0.08
CLEAR_PX = 1.8  # by which the other motion has to miss a landmark, for it to be of a body; chosen with those of `rigid_motions`
# What is on the lens or a part of the robot moves in the image by less than this share of the world's motion (drops bend light, and move a
# little), and that world is seen in all of the image: its landmarks have this share of the generalized variance of all pixels.
ATTACHED_SHARE, WHOLE_SHARE = 0.35, 0.25
# It is over after so many frames in which one motion explains as much of the image as both did, or so many that do not show two.
QUIET_FRAMES, PATIENCE_FRAMES = 10, 50
QUIET_SHARE = 0.8  # of the cells in which landmarks supported one of the two


@dataclass(frozen=True)
class SeenFrame:
    """N landmarks as a frame with a pose saw them."""

    id: np.ndarray  # (N,) int64
    uv: np.ndarray  # (N, 2) float64 ideal px
    points_C: np.ndarray  # (N, 3) float64, where its camera sees them, as far away as the map has them
    moving: np.ndarray  # (N,) bool, taken to be of a body that moves
    T_WC: Tensor  # (7,) float64
    skew_px: float = 0.0  # by which a rolling shutter may have moved the outermost rows
    stamp_ns: int = 0

    @cached_property
    def points_W(self) -> np.ndarray:
        """(N, 3)."""
        R, t = rotation_and_centre(self.T_WC)
        return self.points_C @ R.T + t

    def select(self, rows: np.ndarray) -> SeenFrame:
        """Some of the landmarks, by indices or a mask."""
        id, uv, points_C, moving = (part[rows] for part in (self.id, self.uv, self.points_C, self.moving))
        return SeenFrame(id, uv, points_C, moving, self.T_WC, self.skew_px, self.stamp_ns)


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
    since_ns: int  # its stamp
    cells: int  # of the image with landmarks of either body
    attached: bool  # the other body stands still in the image, as what is on the lens or a part of the robot

    def swapped(self) -> TwoMotions:
        """The same with the other body for the world."""
        T_WC = geometry.compose(self.T_WC, geometry.relative(self.T_first, self.T_second))
        return replace(
            self,
            T_first=self.T_second,
            T_second=self.T_first,
            first=self.second,
            second=self.first,
            T_WC=T_WC,
            attached=False,
        )

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

    @property
    def oldest(self) -> SeenFrame | None:
        """Of the frames that are kept."""
        return self._frames[0] if self._frames else None

    def forget_frames(self) -> None:
        """What follows is of another scale or camera, or does not continue the last pose; what was in dispute stays so."""
        self._frames.clear()

    def move(self, T: Tensor) -> None:
        """The map is moved by T (7,)."""
        moved = [replace(frame, T_WC=geometry.compose(T, frame.T_WC)) for frame in self._frames]
        self._frames = deque(moved, self._frames.maxlen)

    def compare(self, camera: Camera, now: SeenFrame) -> TwoMotions | None:
        """Two motions that a frame shows; `last` is updated."""
        finite = np.isfinite(now.uv).all(1)
        self._compared = now = now if finite.all() else now.select(finite)
        comparisons = _Comparison.of(camera, self._frames, now)
        found = self._find(camera, comparisons)
        self._since += 1
        if found is not None:
            self.last, self._quiet, self._since = found, 0, 0
            self.disputed |= not found.attached
            self._cells = max(self._cells, found.cells)
        elif self.last is not None:
            agreeing = min((c.agreeing_cells() for c in comparisons), default=0)
            self._quiet += agreeing >= QUIET_SHARE * self._cells
            if self._quiet >= QUIET_FRAMES or self._since >= PATIENCE_FRAMES:
                self.last, self.disputed, self._cells = None, False, 0
        return found

    def keep(self, now: SeenFrame | None = None) -> None:
        """Keeps a frame for later ones; by default that which was compared last."""
        now = self._compared if now is None else now
        if now is None:
            return
        good = ((now.points_C[:, 2] > 0) & np.isfinite(now.uv).all(1)).nonzero()[0]
        if len(good):
            self._frames.append(now.select(good[now.id[good].argsort()]))

    def add_landmarks(self, id: np.ndarray, uv: np.ndarray, points_C: np.ndarray) -> None:
        """Landmarks (N,) that were found in the frame kept last, at ideal px (N, 2) and (N, 3) in its camera."""
        if self._frames:
            last, moving = self._frames.pop(), np.zeros(len(id), bool)
            pairs = (last.id, id), (last.uv, uv), (last.points_C, points_C), (last.moving, moving)
            ids, uvs, points, both = (np.concatenate(pair) for pair in pairs)
            self.keep(SeenFrame(ids, uvs, points, both, last.T_WC, last.skew_px, last.stamp_ns))

    def _find(self, camera: Camera, comparisons: list[_Comparison]) -> TwoMotions | None:
        known = self.last is not None
        if not known:  # nearly always; to look for motions takes milliseconds
            comparisons = [comparison for comparison in comparisons if comparison.leaves_landmarks_over()]
            if not comparisons:
                return None
            worth = may_show_two(camera, comparisons[0].all_seen, [comparison.part for comparison in comparisons])
            comparisons = [comparison for comparison, may in zip(comparisons, worth) if may]
        found = (comparison.segment(known) for comparison in comparisons)
        return next((two for two in found if two is not None), None)


@dataclass(frozen=True)
class _Comparison:
    """N landmarks that an earlier frame and this one have seen."""

    camera: Camera
    frames: int  # between the two
    before: SeenFrame
    now: SeenFrame
    at_before: np.ndarray  # (N,) their rows in the earlier frame
    at_now: np.ndarray  # (N,) and in this one
    all_seen: SeenPoints  # of all comparisons: in this frame, and where the poses have them; outlier: by more than what stands still
    part: slice  # of this one

    @staticmethod
    def of(camera: Camera, frames: Sequence[SeenFrame], now: SeenFrame) -> list[_Comparison]:
        """Of a frame with those of the earlier `frames` that are `FRAMES_BACK`, all at once."""
        backs = [n for n in FRAMES_BACK if n <= len(frames)]
        if not backs:
            return []
        earlier, count = [frames[-n] for n in backs], len(now.id)
        ids = np.concatenate([before.id + (k << 40) for k, before in enumerate(earlier)])  # ascending
        wanted = np.concatenate([now.id + (k << 40) for k in range(len(earlier))])
        at = np.minimum(ids.searchsorted(wanted), len(ids) - 1)
        found = (ids[at] == wanted).nonzero()[0]
        at_before, at_now = at[found], found % max(count, 1)
        (R, t), points_W = rotation_and_centre(now.T_WC), np.concatenate([before.points_W for before in earlier])
        points_C, uv = (points_W[at_before] - t) @ R, now.uv[at_now]
        residual = residuals(camera, points_C, uv)
        outlier = residual[:, 0] ** 2 + residual[:, 1] ** 2 > (2 * SUPPORT_PX) ** 2
        seen, comparisons, offset = SeenPoints(points_C, uv, residual, outlier), [], 0
        ends = [0, *found.searchsorted(np.arange(1, len(earlier) + 1) * count).tolist()]
        for n, before, *part in zip(backs, earlier, ends, ends[1:]):
            of = slice(*part)
            comparisons.append(_Comparison(camera, n, before, now, at_before[of] - offset, at_now[of], seen, of))
            offset += len(before.id)
        return comparisons

    @property
    def uv(self) -> np.ndarray:
        """(N, 2) ideal px in this frame."""
        return self.all_seen.uv[self.part]

    @property
    def outlier(self) -> np.ndarray:
        """(N,) bool, of the poses of the two frames."""
        return self.all_seen.outlier[self.part]

    def agreeing_cells(self) -> int:
        """Cells of the image in which most landmarks move as the poses say."""
        uv, outlier = self.uv, self.outlier
        return count_cells(self.camera, uv[~outlier], uv[outlier])[0]

    def segment(self, known: bool) -> TwoMotions | None:
        """Two motions that explain the landmarks; None where one does. `known`: two were seen before."""
        if not self.leaves_landmarks_over():
            return None
        uv, points = self.uv, self.before.points_C[self.at_before]
        motions = two_motions(self.camera, points, uv)
        if motions is None:
            return None
        d_a, d_b = (distances(self.camera, points, uv, T) for T in motions)
        a, b = (d_a < SUPPORT_PX) & (d_b > CLEAR_PX), (d_b < SUPPORT_PX) & (d_a > CLEAR_PX)
        if min(a.sum(), b.sum()) < MIN_SUPPORT // 2:
            return None
        if min(np.median(d_b[a]), np.median(d_a[b])) < max(self.before.skew_px, self.now.skew_px):
            return None  # the rows of a rolling shutter see one body move in several ways
        if not self._is_world(a, b, known):
            motions, a, b = motions[::-1], b, a
        T_WC, cells = geometry.compose(self.before.T_WC, motions[0]), sum(count_cells(self.camera, uv[a], uv[b]))
        ids = torch.from_numpy(self.now.id[self.at_now])
        return TwoMotions(
            *motions, ids[a], ids[b], T_WC, self.frames, self.before.stamp_ns, cells, self._is_attached(a, b)
        )

    def leaves_landmarks_over(self) -> bool:
        """Whether the poses leave enough over for another body."""
        uv, outlier = self.uv, self.outlier
        count, outliers = len(outlier), int(np.count_nonzero(outlier))
        if outliers < MIN_SUPPORT or count - outliers < MIN_SUPPORT:
            return False
        return outliers >= FEW_SHARE * count or count_cells(self.camera, uv[outlier], uv[~outlier])[0] >= MIN_CELLS

    def _is_world(self, a: np.ndarray, b: np.ndarray, known: bool) -> bool:
        """Whether the landmarks a (N,) bool are rather of the world than b.

        At first what is spread farther is the world: what surrounds something has the larger generalized variance, however few landmarks it
        has. From then on it is what continues the poses so far.
        """
        if known:
            strange = self.now.moving[self.at_now].astype(float) + self.outlier
            if abs(strange[a].mean() - strange[b].mean()) > 0.3:
                return bool(strange[a].mean() < strange[b].mean())
        return spread(self.uv[a]) >= spread(self.uv[b])

    def _is_attached(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether the landmarks b (N,) hardly move in the image, while what is seen all around them, a (N,), does."""
        flow = np.linalg.norm(self.uv - self.before.uv[self.at_before], axis=1)
        whole = (self.camera.width * self.camera.height) ** 2 / 144
        return bool(
            np.median(flow[b]) < ATTACHED_SHARE * np.median(flow[a]) and spread(self.uv[a]) > WHOLE_SHARE * whole
        )
