"""Streets under a sky, and the clutter hall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import Scene, SceneBuilder, Shape
from .textures import ANY, choose


@dataclass(frozen=True)
class _Street:
    """A street along x. The order of the random draws defines the scene of a seed."""

    b: SceneBuilder
    length: float  # m to each side
    road: float  # half width, m
    walk: float  # width of each pavement, m

    def ground(self, grey: float) -> None:
        rng = self.b.rng
        soil = choose(rng, "asphalt", "grass", "concrete")
        self.b.add(Shape.BOX, (0, 0, -0.5), (400, 400, 0.5), soil, tint=grey)
        self.b.add(Shape.BOX, (0, 0, -0.09), (self.length * 1.5, self.road, 0.1), "asphalt", tint=grey)

    def side(self, side: int, grey: float) -> None:
        """Pavement, kerb and houses of the side -1 or 1."""
        rng, centre = self.b.rng, (0, side * (self.road + self.walk / 2), 0.0)
        half, family = (self.length * 1.5, self.walk / 2, 0.14), choose(rng, "tiles", "concrete", "grass")
        self.b.add(Shape.BOX, centre, half, family, tint=grey)
        if rng.random() < 0.5:
            kerb = (0, side * (self.road - 0.3), -0.08)
            self.b.add(Shape.BOX, kerb, (self.length, 0.07, 0.1), "plaster", tint=0.95)
        x = -self.length
        while x < self.length:
            width = self._house(x, side)
            x += width + (rng.uniform(1, 12) if rng.random() < 0.5 else 0.0)

    def _house(self, x: float, side: int) -> float:
        """A house that begins at x, sometimes with a porch or garage; returns its width, m."""
        rng = self.b.rng
        width, height, depth = rng.uniform(5, 16), rng.uniform(3.5, 16), rng.uniform(4, 8)
        setback = self.road + self.walk + rng.uniform(0.0, 5) + depth
        family = choose(rng, "facade", "facade", "facade", "facade", "bricks", "plaster", "photo")
        centre, half = (x + width / 2, side * setback, height / 2), (width / 2, depth, height / 2)
        self.b.add(Shape.BOX, centre, half, family, tint=rng.uniform(0.5, 1.0, 3), scale=rng.uniform(0.7, 1.3))
        if rng.random() < 0.4:
            centre = (x + width * rng.uniform(0.2, 0.8), side * (setback - depth - 0.5), 1.3)
            half, family = (rng.uniform(0.8, 2), 0.7, 1.3), choose(rng, "plaster", "planks", "door")
            self.b.add(Shape.BOX, centre, half, family, fit=rng.random() < 0.5)
        return width

    def middle_line(self) -> None:
        for k in range(6):
            self.b.add(Shape.BOX, ((k - 2.5) * self.length / 4, 0, -0.08), (1.5, 0.06, 0.1), "plaster", tint=0.95)

    def thing(self) -> None:
        """A tree, car, pole, hedge, sign or box at the side of the road."""
        rng = self.b.rng
        x, side = rng.uniform(-self.length, self.length), rng.choice([-1, 1])
        kind = rng.choice(["tree", "car", "pole", "hedge", "sign", "box"], p=[0.25, 0.3, 0.15, 0.1, 0.1, 0.1])
        y = side * (self.road + rng.uniform(0.3, self.walk))
        if kind == "tree":
            _tree(self.b, x, y)
        elif kind == "car":
            _car(self.b, x, side * (self.road - 1.1))
        elif kind == "pole":
            h = rng.uniform(2.5, 7)
            self.b.add(Shape.CYLINDER, (x, y, h / 2), (0.06, 0.06, h / 2), "concrete", tint=0.6)
        elif kind == "sign":
            _sign(self.b, x, y)
        elif kind == "hedge":
            centre = (x, side * (self.road + self.walk), 0.6)
            self.b.add(Shape.BOX, centre, (rng.uniform(1, 5), 0.4, 0.7), "foliage")
        else:
            half = rng.uniform(0.3, 0.8, 3)
            self.b.add(Shape.BOX, (x, y, half[2]), half, choose(rng, *ANY), yaw=rng.uniform(0, 3))


def outdoor(b: SceneBuilder) -> Scene:
    """A street along x: road, pavements, house fronts, trees, cars, poles, hedges, under a sky with a sun."""
    rng = b.rng
    street = _Street(b, rng.uniform(60, 120), rng.uniform(3, 6), rng.uniform(1.5, 4))
    grey = rng.uniform(0.6, 1.0)
    street.ground(grey)
    for side in (-1, 1):
        street.side(side, grey)
    street.middle_line()
    for _ in range(int(street.length / 6)):
        street.thing()
    heading, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.2)
    sun = 300 * np.array([np.cos(heading) * np.cos(height), np.sin(heading) * np.cos(height), np.sin(height)])
    b.light(sun, rng.uniform(0.2, 1.5) * np.array([1.0, 0.97, 0.9]), 1e4)
    low = np.array([-0.6 * street.length, 1.2 - street.road, 0.8])
    high = np.array([0.6 * street.length, street.road - 1.2, 2.2])
    return b.build(
        low,
        high,
        ambient=rng.uniform(0.2, 0.6) * np.array([0.97, 1.0, 1.05]),
        corner=rng.uniform(0.1, 0.4),
        fog_density=rng.uniform(0, 0.004),
        fog_colour=rng.uniform(0.7, 0.9),
        sky_tint=rng.uniform(0.8, 1.1),
    )


def _tree(b: SceneBuilder, x: float, y: float) -> None:
    rng = b.rng
    h, r = rng.uniform(1.5, 3.5), rng.uniform(0.8, 2.2)
    b.add(Shape.CYLINDER, (x, y, h / 2 + 0.5), (0.12, 0.12, h / 2 + 0.5), "planks", tint=0.5)
    tint = rng.uniform(0.7, 1.0, 3)
    for _ in range(rng.integers(4, 9)):  # many small crowns make an uneven outline
        centre = np.array([x, y, h + r * 0.9]) + rng.normal(0, 0.45, 3) * r
        half = r * rng.uniform(0.25, 0.6, 3)
        b.add(Shape.ELLIPSOID, centre, half, "foliage", yaw=rng.uniform(0, 3), tint=tint)


def _car(b: SceneBuilder, x: float, y: float) -> None:
    rng = b.rng
    tint = rng.uniform(0.1, 1, 3) if rng.random() < 0.4 else np.full(3, rng.uniform(0.1, 1))
    b.add(Shape.BOX, (x, y, 0.62), (2.1, 0.85, 0.38), "plaster", tint=tint, gloss=0.5)
    cabin, half = (x - 0.2, y, 1.2), (1.2, 0.75, 0.27)
    b.add(Shape.BOX, cabin, half, "window", fit=True, top="plaster", tint=tint * 0.4, gloss=0.5)
    for dx in (-1.3, 1.3):  # wheels
        b.add(Shape.BOX, (x + dx, y, 0.3), (0.3, 0.87, 0.3), "plaster", tint=0.12)
    b.add(Shape.BOX, (x, y, 0.7), (2.12, 0.6, 0.08), "plaster", tint=rng.uniform(0.2, 1), gloss=0.5)


def _sign(b: SceneBuilder, x: float, y: float) -> None:
    rng = b.rng
    h = rng.uniform(1.8, 2.8)
    b.add(Shape.CYLINDER, (x, y, h / 2), (0.035, 0.035, h / 2), "plaster", tint=0.5)
    half, family = (0.02, rng.uniform(0.25, 0.5), rng.uniform(0.2, 0.5)), choose(rng, "poster", "glyphs")
    b.add(Shape.BOX, (x, y, h), half, family, fit=True, plain="plaster", yaw=rng.uniform(-0.3, 0.3))


def clutter(b: SceneBuilder) -> Scene:
    """Boxes, balls and cylinders of every texture in a hall: not plausible, but rich in textures, edges and occlusions."""
    rng = b.rng
    size = rng.uniform(3, 7, 3)
    b.add(Shape.SHELL, (0, 0, size[2]), size, choose(rng, *ANY), top=choose(rng, *ANY), bottom=choose(rng, *ANY))
    for _ in range(rng.integers(15, 45)):
        shape = Shape(int(rng.choice([0, 0, 0, 0, 2, 3])))
        half = rng.uniform(0.1, 0.9, 3) * rng.uniform(0.3, 1)
        if rng.random() < 0.35:
            half[rng.integers(2)] = 0.02  # boards
        centre = rng.uniform(-0.9, 0.9, 3) * size + (0, 0, size[2])
        if rng.random() < 0.5:
            centre[2] = half[2]
        b.add(
            shape,
            centre,
            half,
            choose(rng, *ANY),
            yaw=rng.uniform(0, np.pi),
            fit=rng.random() < 0.5,
            gloss=rng.uniform(0, 0.3),
        )
    for _ in range(rng.integers(1, 4)):
        b.light(rng.uniform(-0.9, 0.9, 3) * size + (0, 0, size[2]), rng.uniform(0.3, 1.0, 3), rng.uniform(2, 8))
    low, high = np.array([*(-0.7 * size[:2]), 0.5]), np.array([*(0.7 * size[:2]), min(2.2, size[2])])
    return b.build(low, high, ambient=rng.uniform(0.3, 0.7), corner=rng.uniform(0, 0.4))
