"""A scene as flat arrays of primitives, and the builder with which the scene kinds are written.

World axes: x, y horizontal, z up, metres. A primitive is a unit cube (seen from outside, or from inside: a shell), a unit
ball or a unit cylinder along z, scaled by `half`, rotated, moved.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .textures import TextureBank


class Shape(IntEnum):
    """Order matters: flat shapes first. A padding row has the shape -1."""

    BOX = 0
    SHELL = 1
    ELLIPSOID = 2
    CYLINDER = 3


@dataclass(frozen=True)
class Scene:
    """S scenes padded to P primitives and L lights, float32 unless noted, all on one device."""

    bank: TextureBank
    shape: Tensor  # (S, P) int64
    centre: Tensor  # (S, P, 3) float64, metres
    rotation: Tensor  # (S, P, 3, 3) primitive to world
    half: Tensor  # (S, P, 3) half edges, metres
    texture: Tensor  # (S, P, 6) int64, per face -x +x -y +y -z +z
    repeat: Tensor  # (S, P, 6, 2) repeats per metre
    offset: Tensor  # (S, P, 6, 2) repeats
    tint: Tensor  # (S, P, 3)
    glow: Tensor  # (S, P) light that the surface sends out itself
    gloss: Tensor  # (S, P)
    light_position: Tensor  # (S, L, 3) metres; the sun is a light far away
    light_colour: Tensor  # (S, L, 3)
    light_range: Tensor  # (S, L) metres at which the light has fallen to one half
    ambient: Tensor  # (S, 3)
    corner: Tensor  # (S,) ambient light lost in corners, 0..1
    sky_texture: Tensor  # (S,) int64
    sky_tint: Tensor  # (S, 3)
    fog_colour: Tensor  # (S, 3)
    fog_density: Tensor  # (S,) 1/m
    exposure: Tensor  # (S,)
    low: Tensor  # (S, 3) float64, corner of the space in which a camera may be
    high: Tensor  # (S, 3) float64

    def to(self, device: torch.device | str) -> Scene:
        if self.shape.device == torch.device(device):
            return self
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def with_values(self, **values) -> Scene:
        """A copy with some fields replaced (numbers or tensors that broadcast to the field)."""
        tensors: dict[str, Any] = {
            name: torch.as_tensor(v).to(getattr(self, name)).expand_as(getattr(self, name)).clone()
            for name, v in values.items()
        }
        return replace(self, **tensors)


def stack(scenes: list[Scene]) -> Scene:
    """Scenes of one bank, padded to the same number of primitives and lights (a padding light is black)."""
    # -1 is no shape, so nothing hits it; ranges and edges are divided by, so they must not be 0.
    padding = {"shape": -1, "half": 1e-3, "light_range": 1.0}
    columns = {}
    for f in fields(Scene):
        if f.name == "bank":
            continue
        values = [getattr(scene, f.name) for scene in scenes]
        if values[0].ndim > 1 and f.name not in ("ambient", "sky_tint", "fog_colour", "low", "high"):
            width = max(v.shape[1] for v in values)
            fill = padding.get(f.name, 0.0)
            values = [
                torch.cat([v, v.new_full((v.shape[0], width - v.shape[1], *v.shape[2:]), fill)], 1) for v in values
            ]
        columns[f.name] = torch.cat(values)
    return Scene(bank=scenes[0].bank, **columns)


class SceneBuilder:
    """Collects primitives and lights; `build` makes the Scene."""

    def __init__(self, bank: TextureBank, rng: np.random.Generator) -> None:
        self.bank, self.rng = bank, rng
        self._rows: list[tuple] = []
        self._lights: list[tuple] = []

    def add(
        self,
        shape: Shape,
        centre,
        half,
        family: str,
        *,
        yaw: float = 0.0,
        fit: bool = False,
        top: str | None = None,
        bottom: str | None = None,
        tint=None,
        glow: float = 0.0,
        gloss: float = 0.0,
        scale: float = 1.0,
        plain: str | None = None,
    ) -> None:
        """One primitive.

        Args:
            centre, half: (3,) metres.
            family: texture family of the sides.
            yaw: turn about z, radians.
            fit: the texture covers a side exactly once (doors, posters) instead of repeating at its natural size.
            top, bottom: families of the other faces, `family` if None.
            tint: (3,) or number that multiplies the texture; a random one if None.
            glow: own light. gloss: strength of highlights. scale: enlarges the texture.
            plain: with `fit`, the family of all but the two largest faces.
        """
        rng = self.rng
        half = np.maximum(np.asarray(half, float), 1e-3)
        texture, repeat, offset = np.zeros(6, int), np.zeros((6, 2)), np.zeros((6, 2))
        side_id, side_extent = self.bank.pick(rng, family)
        narrow = self.bank.pick(rng, plain) if plain else (side_id, side_extent)
        shift = rng.uniform(0, 1, 2)
        along = [(1, 2), (1, 2), (0, 2), (0, 2), (0, 1), (0, 1)]
        for face, (a, b) in enumerate(along):
            size = 2 * half[[a, b]]
            other = {4: bottom, 5: top}.get(face)
            if other is not None:
                chosen, extent = self.bank.pick(rng, other)
                texture[face], repeat[face], offset[face] = chosen, 1 / (extent * scale), shift
            elif fit and (plain is None or face // 2 == half.argmin()):
                texture[face], repeat[face] = side_id, 1 / size
            else:
                chosen, extent = narrow
                texture[face], repeat[face], offset[face] = chosen, 1 / (extent * scale), shift
        c, s = np.cos(yaw), np.sin(yaw)
        rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        if tint is None:
            tint = rng.uniform(0.75, 1.0) * (1 + rng.uniform(-0.08, 0.08, 3))
        tint = np.broadcast_to(np.asarray(tint, float), (3,))
        self._rows.append(
            (int(shape), np.asarray(centre, float), rotation, half, texture, repeat, offset, tint, glow, gloss)
        )

    def light(self, position, colour, reach: float) -> None:
        """A lamp at `position` (3,), of a colour (3,) or number, whose light falls to one half at `reach` metres."""
        self._lights.append((np.asarray(position, float), np.broadcast_to(np.asarray(colour, float), (3,)), reach))

    def build(
        self,
        low,
        high,
        *,
        ambient=0.4,
        corner: float = 0.3,
        fog_density: float = 0.0,
        fog_colour=0.8,
        sky_tint=1.0,
        exposure: float = 1.0,
    ) -> Scene:
        """The scene; `low` and `high` (3,) bound the space for cameras."""
        if not self._lights:
            self.light((0, 0, 3), 0.0, 1.0)
        rows = [np.stack([np.asarray(row[i]) for row in self._rows]) for i in range(len(self._rows[0]))]
        lights = [np.stack([np.asarray(one[i]) for one in self._lights]) for i in range(3)]

        def tensor(x, dtype=torch.float32):
            return torch.as_tensor(np.array(x), dtype=dtype)[None]

        def triple(x):
            return tensor(np.broadcast_to(np.asarray(x, float), (3,)))

        kinds = (torch.int64, torch.float64, torch.float32, torch.float32, torch.int64) + (torch.float32,) * 5
        names = ("shape", "centre", "rotation", "half", "texture", "repeat", "offset", "tint", "glow", "gloss")
        return Scene(
            bank=self.bank,
            **{name: tensor(row, dtype) for name, row, dtype in zip(names, rows, kinds)},
            light_position=tensor(lights[0]),
            light_colour=tensor(lights[1]),
            light_range=tensor(lights[2]),
            ambient=triple(ambient),
            corner=tensor(corner),
            sky_texture=tensor(self.bank.pick(self.rng, "sky")[0], torch.int64),
            sky_tint=triple(sky_tint),
            fog_colour=triple(fog_colour),
            fog_density=tensor(fog_density),
            exposure=tensor(exposure),
            low=tensor(low, torch.float64),
            high=tensor(high, torch.float64),
        )
