"""Relocalization: a bounded database of older keyframes, compared by a small image."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from ..camera.model import Camera
from ..matching.base import Matcher, Queries
from .local_map import Keyframe, Window

_THUMBNAIL = (40, 30)  # px, width and height
_DARK = 4.0  # grey levels of standard deviation below which an image shows nothing


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
    """At most `capacity` keyframes; of the two most similar neighbours the older one is dropped, so that they span the whole path."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._keyframes: deque[StoredKeyframe] = deque()

    def __len__(self) -> int:
        return len(self._keyframes)

    def clear(self) -> None:
        self._keyframes.clear()

    def add(self, stored: StoredKeyframe) -> None:
        if self.capacity == 0:
            self._keyframes.clear()
            return
        self._keyframes = deque(p for p in self._keyframes if p.id != stored.id)  # a restored one comes again
        self._keyframes.append(stored)
        while len(self._keyframes) > self.capacity:
            # Dropping the older of the most alike neighbours keeps the most different views.
            thumbnails = torch.stack([p.thumbnail for p in self._keyframes])
            del self._keyframes[int((thumbnails[1:] * thumbnails[:-1]).sum(1).argmax())]

    def rescale(self, factor: float, centre: Tensor) -> None:
        """Scales poses and landmarks about a point (3,)."""
        self._keyframes = deque(
            replace(
                p,
                T_WC=torch.cat([centre + (p.T_WC[:3] - centre) * factor, p.T_WC[3:]]),
                points_W=centre + (p.points_W - centre) * factor,
            )
            for p in self._keyframes
        )

    def most_similar(self, image: Tensor, count: int, window: Window) -> list[StoredKeyframe]:
        """At most `count` keyframes whose thumbnails are most similar to that of `image` (1, H, W) uint8, best first; those of the window included."""
        inside = {keyframe.id for keyframe in window.keyframes}  # their poses and landmarks are newer there
        stored = [
            *(p for p in self._keyframes if p.id not in inside),
            *(stored_keyframe(window, row) for row in range(len(window.keyframes))),
        ]
        if not stored:
            return []
        score = torch.stack([p.thumbnail for p in stored]) @ thumbnail(image)
        return [stored[i] for i in score.argsort(descending=True, stable=True)[:count].tolist()]


def stored_keyframe(window: Window, row: int) -> StoredKeyframe:
    """The keyframe in this row of the window, with copies of its triangulated landmarks."""
    keyframe, rows = window.keyframes[row], window.triangulated_in(row)
    at, _ = window.seen_at(row)
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
    """An image (1, H, W) uint8 -> (1200,) float32: small, blurred, independent of brightness and contrast."""
    small = cv2.resize(np.ascontiguousarray(image[0].cpu().numpy()), _THUMBNAIL, interpolation=cv2.INTER_AREA)
    blurred = torch.from_numpy(cv2.GaussianBlur(small, (0, 0), 1.0).astype(np.float32)).flatten()
    blurred = blurred - blurred.mean()
    return blurred / blurred.norm().clamp_min(1e-6)


def is_blank(image: Tensor) -> bool:
    """Whether an image (1, H, W) uint8 has no contrast: dark, covered or empty."""
    sample = image[0, ::8, ::8].float()
    return float(sample.std()) < _DARK
