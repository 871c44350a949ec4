"""The kinds of scenes: room, corridor, outdoor (a street), clutter (boxes and balls in all textures). All seeded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import ConfigError
from .exteriors import clutter, outdoor
from .interiors import corridor, room
from .scene import Scene, SceneBuilder
from .textures import TextureBank

KINDS: dict[str, Callable[[SceneBuilder, bool], Scene]] = {
    "room": room,
    "corridor": corridor,
    "outdoor": outdoor,
    "clutter": clutter,
}


def make_scene(kind: str, seed: int, bank: TextureBank, low_texture: bool | None = None) -> Scene:
    """One scene of a kind of `KINDS`.

    Args:
        low_texture: nearly white walls as in a hospital; drawn by lot if None (rooms and corridors only).
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of scene '{kind}'; known are {', '.join(KINDS)}")
    rng = np.random.default_rng((seed, sorted(KINDS).index(kind)))
    if low_texture is None:
        low_texture = bool(rng.random() < 0.5)
    return KINDS[kind](SceneBuilder(bank, rng), low_texture)
