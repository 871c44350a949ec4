"""Drops and dirt on the lens: they stand still in the image while all around them moves, and one camera can take them for landmarks."""

from __future__ import annotations

from collections import deque

import numpy as np

# Both shares were chosen on rendered rain (clutter, seeds 231, 234 and 237, mono: .009 to .033 at most) and on recordings without: .0018 at most in two
# rendered clutters, where things are at all distances, and none in a rendered room, the hospital, KITTI turn and drive.
MAX_STANDING_SHARE = 0.003
FRAMES_BACK = 5  # over which landmarks move
MEMORY = 0.9  # of the running mean, a frame
NEIGHBOURS = 8  # whose median motion a landmark is compared with
SLOW_SHARE = 0.1  # of it: slower is standing; far things between near ones are faster
MIN_MOTION_SHARE = 0.016  # of the image's width, of the neighbours: below it nothing tells
MIN_LANDMARKS = 20  # that both frames show


class StandingLandmarks:
    """Which share of the landmarks that support poses stand still in the image while those next to them move.

    What is far away moves less than what is near, but rarely by a tenth. With measured depth a drop contradicts the pose; one camera places it so
    that it does not.

    Attributes:
        share: its running mean.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._frames: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=FRAMES_BACK)

    @property
    def suspected(self) -> bool:
        """Whether so many support the poses that these may be wrong."""
        return self.share > MAX_STANDING_SHARE

    def add(self, id: np.ndarray, uv: np.ndarray, width: int) -> None:
        """Takes the landmarks (N,) that support the pose of a frame, at px uv (N, 2) of an image of a width."""
        if len(self._frames) == FRAMES_BACK:
            _, now, before = np.intersect1d(id, self._frames[0][0], return_indices=True)
            if len(now) >= MIN_LANDMARKS:
                at, motion = uv[now], np.linalg.norm(uv[now] - self._frames[0][1][before], axis=1)
                standing = float(_stand_still(at, motion, MIN_MOTION_SHARE * width).mean())
                self.share = MEMORY * self.share + (1 - MEMORY) * standing
        self._frames.append((id, uv))


def _stand_still(uv: np.ndarray, motion_px: np.ndarray, least_px: float) -> np.ndarray:
    """(N,) bool: landmarks at uv (N, 2) that have moved much less than those next to them, which have moved by more than `least_px`."""
    slow = (motion_px < SLOW_SHARE * motion_px.max()).nonzero()[0]  # few; others are not slower than their neighbours
    at = uv.astype(np.float32)
    squares = (at**2).sum(1) - 2 * at[slow] @ at.T  # of the distance, but for what is equal in a row
    squares[np.arange(len(slow)), slow] = np.inf
    nearest = np.argpartition(squares, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    around_px = np.median(motion_px[nearest], axis=1)
    standing = np.zeros(len(uv), bool)
    standing[slow] = (around_px > least_px) & (motion_px[slow] < SLOW_SHARE * around_px)
    return standing
