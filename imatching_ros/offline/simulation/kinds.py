"""The kinds of scenes: room, corridor, outdoor (a street), clutter (boxes and balls in all textures). All seeded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...core.errors import ConfigError
from .exteriors import clutter, outdoor
from .interiors import corridor, room
from .scene import Scene, SceneBuilder
from .textures import TextureBank

INTERIORS: dict[str, Callable[[SceneBuilder, bool], Scene]] = {"room": room, "corridor": corridor}
EXTERIORS: dict[str, Callable[[SceneBuilder], Scene]] = {"outdoor": outdoor, "clutter": clutter}
KINDS = (*INTERIORS, *EXTERIORS)


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
    builder = SceneBuilder(bank, rng)
    return INTERIORS[kind](builder, low_texture) if kind in INTERIORS else EXTERIORS[kind](builder)
