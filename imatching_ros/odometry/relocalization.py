"""Relocalization: a bounded database of older keyframes, compared by thumbnails, and poses against the most similar ones."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from ..camera.model import Camera
from ..core import geometry
from ..core.config import Config
from ..matching.base import Matcher, Queries
from .front_end import CONFIRMED_INLIER_RATIO, FeatureFrame, FrontEnd, Localization
from .local_map import Keyframe, Window
from .motion import TrackedFrame


@dataclass(frozen=True)
class StoredKeyframe:
    """A keyframe that has left the window, and the landmarks it saw, as they were then."""

    id: int
    stamp_ns: int
    image: Tensor  # (1, H, W) uint8 grey
    T_WC: Tensor  # (7,) float64
    uv: Tensor  # (N, 2) float32 raw px
    points_W: Tensor  # (N, 3) float64
    thumbnail: Tensor  # (1200,) float32, unit length


class KeyframeDatabase:
    """At most `capacity` keyframes; of the two most similar neighbours the older one is dropped, so that they span the path."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._keyframes: deque[StoredKeyframe] = deque()

    def __len__(self) -> int:
        return len(self._keyframes)

    def clear(self) -> None:
        self._keyframes.clear()

    def add(self, stored: StoredKeyframe) -> None:
        """Appends a keyframe; an older one of the same id is replaced."""
        if self.capacity == 0:
            self._keyframes.clear()
            return
        self._keyframes = deque(k for k in self._keyframes if k.id != stored.id)
        self._keyframes.append(stored)
        while len(self._keyframes) > self.capacity:
            # Dropping the older of the most similar neighbours keeps the most different views.
            thumbnails = torch.stack([k.thumbnail for k in self._keyframes])
            del self._keyframes[int((thumbnails[1:] * thumbnails[:-1]).sum(1).argmax())]

    def rescale(self, factor: float, centre: Tensor) -> None:
        """Scales poses and landmarks about a point (3,)."""
        self._keyframes = deque(
            replace(
                k,
                T_WC=torch.cat([centre + (k.T_WC[:3] - centre) * factor, k.T_WC[3:]]),
                points_W=centre + (k.points_W - centre) * factor,
            )
            for k in self._keyframes
        )

    def move(self, T: Tensor) -> None:
        """Moves poses and landmarks by T (7,)."""
        self._keyframes = deque(
            replace(k, T_WC=geometry.compose(T, k.T_WC), points_W=geometry.act(T, k.points_W)) for k in self._keyframes
        )

    def most_similar(self, image: Tensor, count: int, window: Window) -> list[StoredKeyframe]:
        """At most `count` keyframes, those of the window included, whose thumbnails are most similar to that of `image`, best first.

        `image` is (1, H, W) uint8.
        """
        inside = {keyframe.id for keyframe in window.keyframes}  # their poses and landmarks are newer in the window
        keyframes = [
            *(k for k in self._keyframes if k.id not in inside),
            *(stored_keyframe(window, row) for row in range(len(window.keyframes))),
        ]
        if not keyframes:
            return []
        score = torch.stack([k.thumbnail for k in keyframes]) @ thumbnail(image)
        return [keyframes[i] for i in score.argsort(descending=True, stable=True)[:count].tolist()]


class Relocalizer:
    """Finds the pose of a frame near older keyframes, after tracking was lost.

    Attributes:
        database: keyframes that have left the window.
    """

    CANDIDATES = 2  # keyframes tried per frame: each costs a search in the whole image

    def __init__(self, config: Config, matcher: Matcher, front_end: FrontEnd) -> None:
        self._matcher, self._front_end = matcher, front_end
        self.database = KeyframeDatabase(config.odometry.stored_keyframes)
        self.configure(config)

    def configure(self, config: Config) -> None:
        self._config = config.odometry
        self.database.capacity = config.odometry.stored_keyframes

    def relocalize(self, window: Window, last: TrackedFrame, current: FeatureFrame) -> Localization | None:
        """The pose near one of the most similar keyframes; None without one.

        With a keyframe that has left the window, the result holds a window of this keyframe alone, and the keyframes of `window`
        go into the database.
        """
        for stored in self.database.most_similar(current.image, self.CANDIDATES, window):
            found = self._localize(window, last, current, stored)
            if found is None:
                continue
            if found.window is not window:
                for row in range(len(window.keyframes)):
                    self.database.add(stored_keyframe(window, row))
            return replace(found, recovered=True)
        return None

    def _localize(
        self, window: Window, last: TrackedFrame, current: FeatureFrame, stored: StoredKeyframe
    ) -> Localization | None:
        rows_inside = [row for row, keyframe in enumerate(window.keyframes) if keyframe.id == stored.id]
        if rows_inside:
            keyframe = window.keyframes[rows_inside[0]]
            rows = window.triangulated_in(rows_inside[0])
            queries = self._matcher.describe(keyframe.features, stored.uv.to(self._matcher.device))
        else:
            window, queries = restore_window(
                stored, current.camera, self._matcher, self._config.corner_sigma_px, window.next_id
            )
            rows = torch.arange(len(stored.uv))
        wide, front_end = self._matcher.wide_baseline, self._front_end
        matches = front_end.match(rows, queries, current, None if wide else stored.uv, None)
        estimate = front_end.estimate(window, current, matches, None)
        found = None if estimate is None else Localization(window, matches, estimate)
        if found is not None and wide:
            found = front_end.confirm(window, last, current, found.estimate.T_WC, CONFIRMED_INLIER_RATIO)
        enough = found is not None and int(found.estimate.inlier.sum()) >= self._config.verified_inliers
        return found if enough else None


def stored_keyframe(window: Window, row: int) -> StoredKeyframe:
    """The keyframe in this row of the window, with copies of its triangulated landmarks."""
    keyframe, rows = window.keyframes[row], window.triangulated_in(row)
    at = window.seen_at(row)
    return StoredKeyframe(
        keyframe.id,
        keyframe.stamp_ns,
        keyframe.image,
        window.T_WC[row].clone(),
        window.observations.uv[at[rows]].clone(),
        window.landmarks.points_W[rows].clone(),
        thumbnail(keyframe.image),
    )


def restore_window(
    stored: StoredKeyframe, camera: Camera, matcher: Matcher, sigma_px: float, next_id: int
) -> tuple[Window, Queries]:
    """A window that holds this keyframe alone, and the queries (N) of its landmarks, described by the current weights; landmark ids from `next_id` on."""
    window = Window(next_id)
    features = matcher.observe(stored.image)
    queries = matcher.describe(features, stored.uv.to(matcher.device))
    window.add_keyframe(Keyframe(stored.id, stored.stamp_ns, stored.image, features), stored.T_WC)
    rows = window.add_landmarks(0, stored.uv, queries if matcher.wide_baseline else None)
    window.observe(camera, 0, rows, stored.uv, torch.full((len(rows),), sigma_px))
    window.set_positions(rows, stored.points_W)
    window.remember_scale()
    return window, queries


def thumbnail(image: Tensor) -> Tensor:
    """An image (1, H, W) uint8 -> (1200,) float32: 40 x 30 px, blurred, independent of brightness and contrast."""
    small = cv2.resize(np.ascontiguousarray(image[0].cpu().numpy()), (40, 30), interpolation=cv2.INTER_AREA)
    blurred = torch.from_numpy(cv2.GaussianBlur(small, (0, 0), 1.0).astype(np.float32)).flatten()
    blurred = blurred - blurred.mean()
    return blurred / blurred.norm().clamp_min(1e-6)


def is_blank(image: Tensor) -> bool:
    """Whether an image (1, H, W) uint8 has no contrast: dark, covered or empty."""
    least = 4.0  # grey levels of standard deviation, which the noise of a dark image stays below
    return float(image[0, ::8, ::8].float().std()) < least
