"""A bounded memory of older keyframes, to recognise a place after tracking was lost."""

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

_THUMB = (40, 30)  # px, width and height
_DARK = 4.0  # grey levels of standard deviation below which an image shows nothing


@dataclass(frozen=True)
class Place:
    """A keyframe that has left the window, and the landmarks it saw, as they were then."""

    id: int
    stamp_ns: int
    image: Tensor  # (1, H, W) uint8 grey
    T_WC: Tensor  # (7,) float64
    uv: Tensor  # (N, 2) float32 raw px
    points_W: Tensor  # (N, 3) float64
    thumb: Tensor  # (1200,) float32, unit length


class Places:
    """At most `capacity` places; of two neighbours the older goes, so that the memory spans the whole way."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._places: deque[Place] = deque()

    def __len__(self) -> int:
        return len(self._places)

    def clear(self) -> None:
        self._places.clear()

    def remember(self, place: Place) -> None:
        if self.capacity == 0:
            self._places.clear()
            return
        self._places = deque(p for p in self._places if p.id != place.id)  # one that was recalled comes again
        self._places.append(place)
        while len(self._places) > self.capacity:
            # Dropping the older of the most alike neighbours keeps the most different views.
            thumbs = torch.stack([p.thumb for p in self._places])
            del self._places[int((thumbs[1:] * thumbs[:-1]).sum(1).argmax())]

    def rescale(self, factor: float, centre: Tensor) -> None:
        """Scales poses and landmarks about a point (3,)."""
        self._places = deque(
            replace(
                p,
                T_WC=torch.cat([centre + (p.T_WC[:3] - centre) * factor, p.T_WC[3:]]),
                points_W=centre + (p.points_W - centre) * factor,
            )
            for p in self._places
        )

    def most_alike(self, image: Tensor, count: int, window: Window) -> list[Place]:
        """The places, keyframes of the window included, whose image resembles this one (1, H, W) uint8 most, best first."""
        inside = {keyframe.id for keyframe in window.keyframes}  # a place that was recalled is known better there
        places = [
            *(p for p in self._places if p.id not in inside),
            *(place_of(window, row) for row in range(len(window.keyframes))),
        ]
        if not places:
            return []
        score = torch.stack([p.thumb for p in places]) @ thumbnail(image)
        return [places[i] for i in score.argsort(descending=True, stable=True)[:count].tolist()]


def place_of(window: Window, row: int) -> Place:
    """What is remembered of a keyframe."""
    keyframe, rows = window.keyframes[row], window.resolved_in(row)
    at, _ = window.seen_at(row)
    return Place(
        keyframe.id,
        keyframe.stamp_ns,
        keyframe.image,
        window.T_WC[row].clone(),
        window.observations.uv[at[rows]].clone(),
        window.landmarks.points_W[rows].clone(),
        thumbnail(keyframe.image),
    )


def recall(place: Place, camera: Camera, matcher: Matcher, sigma_px: float, next_id: int) -> tuple[Window, Queries]:
    """A window of this one keyframe with its landmarks where they were, and their queries by the weights of now; ids from `next_id` on."""
    window = Window(next_id)
    features = matcher.observe(place.image)
    queries = matcher.describe(features, place.uv.to(matcher.device))
    window.add_keyframe(Keyframe(place.id, place.stamp_ns, place.image, features), place.T_WC)
    rows = window.add_landmarks(0, place.uv, queries if matcher.wide_baseline else None)
    window.observe(camera, 0, rows, place.uv, torch.full((len(rows),), sigma_px))
    window.place(rows, place.points_W)
    window.remember_scale()
    return window, queries


def thumbnail(image: Tensor) -> Tensor:
    """An image (1, H, W) uint8 -> (1200,) float32: small, blurred, independent of brightness and contrast."""
    small = cv2.resize(np.ascontiguousarray(image[0].cpu().numpy()), _THUMB, interpolation=cv2.INTER_AREA)
    blurred = torch.from_numpy(cv2.GaussianBlur(small, (0, 0), 1.0).astype(np.float32)).flatten()
    blurred = blurred - blurred.mean()
    return blurred / blurred.norm().clamp_min(1e-6)


def shows_nothing(image: Tensor) -> str:
    """Why an image (1, H, W) uint8 cannot be used; empty when it can."""
    sample = image[0, ::8, ::8].float()
    if float(sample.std()) < _DARK:
        return "the image is dark, covered or empty"
    return ""
