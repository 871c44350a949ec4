"""Rooms and corridors: walls and ceiling, things on the walls, furniture, lamps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import Scene, SceneBuilder, Shape
from .textures import ANY, choose


def room(b: SceneBuilder, low_texture: bool) -> Scene:
    rng = b.rng
    size = np.array([rng.uniform(1.8, 4.5), rng.uniform(1.8, 6.0)])
    interior = _Interior(b, size, rng.uniform(2.4, 3.6), low_texture)
    return interior.furnish(int(rng.integers(5, 14)), int(rng.integers(2, 8)), (0, 1, 2, 3))


def corridor(b: SceneBuilder, low_texture: bool) -> Scene:
    rng = b.rng
    size = np.array([rng.uniform(7, 18), rng.uniform(0.9, 2.0)])
    interior = _Interior(b, size, rng.uniform(2.3, 3.3), low_texture)
    return interior.furnish(int(rng.integers(10, 19)), int(rng.integers(1, 5)), (2, 3, 2, 3, 2, 3, 0, 1))


@dataclass(frozen=True)
class _Interior:
    """Walls, ceiling and what is fixed to them. The order of the random draws defines the scene of a seed."""

    b: SceneBuilder
    size: np.ndarray  # (2,) half extents of the floor, m
    height: float  # m
    low_texture: bool

    def furnish(self, things: int, furniture: int, walls: tuple[int, ...]) -> Scene:
        """The whole scene; `things` hang on the `walls`, from which each draws one (twice listed is twice as likely)."""
        rng = self.b.rng
        wall, paint = self._shell()
        self._trims()
        self._on_walls(things, walls)
        for _ in range(furniture):
            _add_furniture(self.b, self.size)
        self._pillars(wall, paint)
        self._beams()
        bright = rng.uniform(0.5, 1.0)
        self._lamps()
        warm = 1 + rng.uniform(-0.12, 0.12, 3)
        self._lights(bright, warm)
        margin = np.minimum(0.5, self.size * 0.3)
        low = np.array([*(margin - self.size), 0.4])
        high = np.array([*(self.size - margin), min(self.height - 0.4, 2.0)])
        return self.b.build(low, high, ambient=rng.uniform(0.25, 0.6) * warm, corner=rng.uniform(0.15, 0.55))

    def _shell(self) -> tuple[str, np.ndarray]:
        """Walls, floor and ceiling; returns the texture family and the colour of the walls."""
        rng, height = self.b.rng, self.height
        plain_walls = ("plaster", "plaster", "panels", "panels", "panels", "tiles")
        plain_floors = ("tiles", "tiles", "tiles", "speckle", "plaster", "carpet", "planks", "concrete")
        wall = choose(rng, *(plain_walls if self.low_texture else ANY))
        floor = choose(rng, *(plain_floors if self.low_texture else (*ANY, "planks", "tiles")))
        ceiling = choose(rng, "plaster", "ceiling", "ceiling")
        paint = rng.uniform(0.8, 1.0) * (1 + rng.uniform(-0.06, 0.06, 3))
        gloss = rng.uniform(0, 0.5 if self.low_texture else 0.2) * 0.2
        centre, half = (0, 0, height / 2), (*self.size, height / 2)
        self.b.add(Shape.SHELL, centre, half, wall, top=ceiling, bottom=floor, tint=paint, gloss=gloss)
        return wall, paint

    def _trims(self) -> None:
        """Skirting board; a hand rail or coloured strip."""
        rng = self.b.rng
        if rng.random() < 0.8:
            self._trim((0.06, 0.12, 0.02), "plaster", rng.uniform(0.2, 1.0, 3) * rng.uniform(0.5, 1))
        if self.low_texture and rng.random() < 0.5:
            profile = (rng.uniform(0.8, 1.1), rng.uniform(0.05, 0.2), rng.uniform(0.01, 0.06))
            self._trim(profile, choose(rng, "plaster", "planks"), rng.uniform(0.3, 1, 3))

    def _trim(self, profile: tuple[float, float, float], family: str, tint: np.ndarray) -> None:
        """A strip around all walls; `profile` is the height of its centre, its height and its depth, m."""
        z, height, depth = profile
        for wall in range(4):
            self._wall_box((wall, 0.0, z), (2 * self.size[1 - wall // 2], height, depth), family, tint=tint)

    def _wall_box(
        self, place: tuple[int, float, float], size: tuple[float, float, float], family: str, **options
    ) -> None:
        """A box that stands against a wall.

        Args:
            place: wall 0..3 (-x +x -y +y), position along it -1..1, height of the centre in m.
            size: width, height, depth, m.
        """
        (wall, along, z), (width, height, depth) = place, size
        axis = wall // 2
        other = 1 - axis
        sign = 1.0 if wall % 2 else -1.0
        centre, half = np.zeros(3), np.zeros(3)
        reach = max(self.size[other] - width / 2, 0.0)
        centre[axis], centre[other], centre[2] = sign * (self.size[axis] - depth / 2), along * reach, z
        half[axis], half[other], half[2] = depth / 2, width / 2, height / 2
        self.b.add(Shape.BOX, centre, half, family, **options)

    def _on_walls(self, count: int, walls: tuple[int, ...]) -> None:
        """Doors, windows, images, signs, cupboards and lamps against the walls."""
        rng = self.b.rng
        # Evenly spread with a jitter, so that they seldom overlap.
        n = max(count, 2)
        slots = rng.permutation(np.linspace(-0.95, 0.95, n)) + rng.uniform(-0.5, 0.5, n) / n
        add = {
            "door": self._door,
            "window": self._window,
            "image": self._image,
            "sign": self._signs,
            "cupboard": self._cupboard,
            "lamp": self._wall_lamp,
        }
        for i in range(count):
            wall, along = int(walls[rng.integers(len(walls))]), float(np.clip(slots[i], -1, 1))
            add[str(rng.choice(list(add), p=[0.22, 0.12, 0.22, 0.18, 0.2, 0.06]))](wall, along)

    def _door(self, wall: int, along: float) -> None:
        rng, half_wall = self.b.rng, self.size[1 - wall // 2]
        w, h = rng.uniform(0.8, 1.5), rng.uniform(1.95, 2.25)
        frame = rng.uniform(0.3, 1.0, 3)
        depth = rng.uniform(0.02, 0.08)
        self._wall_box((wall, along, h / 2), (w, h, depth), "door", fit=True, plain="plaster")
        for side in (-1, 1):
            offset = side * (w + 0.08) / 2 / max(half_wall - 0.04, 0.1)
            middle = along * (half_wall - w / 2) / max(half_wall - 0.04, 0.1)
            self._wall_box((wall, middle + offset, h / 2), (0.08, h, depth + 0.03), "plaster", tint=frame)
        self._wall_box((wall, along, h + 0.04), (w + 0.16, 0.08, depth + 0.03), "plaster", tint=frame)

    def _window(self, wall: int, along: float) -> None:
        rng = self.b.rng
        w, h = rng.uniform(0.7, 2.0), rng.uniform(0.7, 1.5)
        z = rng.uniform(0.9, 1.2) + h / 2
        pane = (wall, along, min(z, self.height - h / 2 - 0.1))
        self._wall_box(pane, (w, h, 0.03), "window", fit=True, plain="plaster", glow=rng.uniform(0.5, 1.4))
        self._wall_box((wall, along, z - h / 2 - 0.03), (w + 0.1, 0.05, 0.18), "plaster", tint=0.9)

    def _image(self, wall: int, along: float) -> None:
        rng = self.b.rng
        w, h = rng.uniform(0.25, 1.3), rng.uniform(0.25, 1.1)
        if self.low_texture and rng.random() < 0.5:
            family = "poster"
        else:
            family = choose(rng, "poster", "photo", "photo", "glyphs", "noise")
        place, size = (wall, along, rng.uniform(1.2, 1.8)), (w, h, rng.uniform(0.01, 0.05))
        self._wall_box(place, size, family, fit=True, plain="plaster", gloss=rng.uniform(0, 0.3))

    def _signs(self, wall: int, along: float) -> None:
        rng = self.b.rng
        for _ in range(rng.integers(1, 3)):
            w, h = rng.uniform(0.06, 0.4), rng.uniform(0.06, 0.3)
            place = (wall, along + rng.uniform(-0.1, 0.1), rng.uniform(0.3, self.height - 0.3))
            size = (w, h, rng.uniform(0.01, 0.06))
            family = choose(rng, "glyphs", "plaster", "poster")
            self._wall_box(place, size, family, fit=True, plain="plaster", tint=rng.uniform(0.3, 1, 3))

    def _cupboard(self, wall: int, along: float) -> None:
        rng = self.b.rng
        w, h, d = rng.uniform(0.4, 1.6), rng.uniform(0.5, 2.1), rng.uniform(0.2, 0.6)
        z = h / 2 if rng.random() < 0.7 else rng.uniform(1.2, 1.6) + h / 4
        place = (wall, along, min(z, self.height - h / 2))
        family = choose(rng, "cabinet", "cabinet", "shelf", "plaster")
        self._wall_box(place, (w, h, d), family, fit=True, top="plaster", gloss=rng.uniform(0, 0.2))

    def _wall_lamp(self, wall: int, along: float) -> None:
        rng = self.b.rng
        place = (wall, along, rng.uniform(1.5, 2.2))
        self._wall_box(place, (0.2, 0.15, 0.12), "plaster", tint=1.0, glow=rng.uniform(0.8, 1.5))

    def _pillars(self, wall: str, paint: np.ndarray) -> None:
        rng, middle = self.b.rng, self.height / 2
        for _ in range(rng.integers(0, 4)):
            x, y = rng.uniform(-0.9, 0.9, 2) * self.size
            half = rng.uniform(0.1, 0.3)
            shape = Shape.BOX if rng.random() < 0.6 else Shape.CYLINDER
            family = wall if rng.random() < 0.6 else "concrete"
            self.b.add(shape, (x, y, middle), (half, half, middle), family, tint=paint)

    def _beams(self) -> None:
        """Beams or pipes under the ceiling."""
        rng = self.b.rng
        for _ in range(rng.integers(0, 3)):
            z = self.height - rng.uniform(0.1, 0.3)
            x = rng.uniform(-0.8, 0.8) * self.size[0]
            half = (rng.uniform(0.04, 0.15), self.size[1], 0.06)
            self.b.add(Shape.BOX, (x, 0, z), half, "plaster", tint=rng.uniform(0.4, 1, 3), gloss=0.2)

    def _lamps(self) -> None:
        """One or two rows of glowing boxes along the ceiling; they send out no light that casts shadows."""
        rng, size = self.b.rng, self.size
        rows = 1 if size.min() < 1.6 else 2
        columns = int(np.clip(2 * size.max() / 4, 1, 5))
        half = np.array([0.5, 0.12, 0.02]) if rng.random() < 0.5 else np.array([0.3, 0.3, 0.02])
        long_axis = int(size[1] > size[0])
        for i in range(columns):
            for j in range(rows):
                place = np.zeros(3)
                place[long_axis] = ((i + 0.5) / columns * 2 - 1) * size[long_axis]
                place[1 - long_axis] = 0.0 if rows == 1 else (j - 0.5) * size[1 - long_axis]
                place[2] = self.height - 0.02
                self.b.add(Shape.BOX, place, half, "plaster", tint=1.0, glow=rng.uniform(1.2, 2.5))

    def _lights(self, bright: float, colour: np.ndarray) -> None:
        rng = self.b.rng
        for _ in range(rng.integers(1, 5)):
            place = rng.uniform(-0.9, 0.9, 3) * (*self.size, 0)
            place[2] = rng.uniform(0.6, 0.95) * self.height
            self.b.light(place, bright * rng.uniform(0.3, 1.0) * colour, rng.uniform(1.5, 5.0))


@dataclass(frozen=True)
class _Spot:
    """Where a piece of furniture stands and how it is turned."""

    x: float
    y: float
    yaw: float

    def at(self, dx: float, dy: float, z: float) -> tuple[float, float, float]:
        """World coordinates of a point of the piece, m."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return self.x + c * dx - s * dy, self.y + s * dx + c * dy, z


def _add_furniture(b: SceneBuilder, size: np.ndarray) -> None:
    """One of tables (beds, trolleys), chairs, bins, plants, balls, boxes, anywhere on the floor."""
    rng = b.rng
    x, y = rng.uniform(-0.85, 0.85, 2) * size
    yaw = rng.uniform(0, np.pi) if rng.random() < 0.4 else rng.integers(0, 2) * np.pi / 2
    pieces = (_table, _table, _chair, _bin, _plant, _ball, _cabinet)
    pieces[rng.integers(len(pieces))](b, _Spot(x, y, yaw))


def _table(b: SceneBuilder, spot: _Spot) -> None:
    """Table, bed or bench: a board on four legs, with things on it."""
    rng = b.rng
    half, z = np.array([rng.uniform(0.3, 0.9), rng.uniform(0.2, 0.5)]), rng.uniform(0.35, 0.9)
    family = choose(rng, "planks", "plaster", "plaster", "carpet", "noise", "photo")
    b.add(Shape.BOX, spot.at(0, 0, z), (*half, rng.uniform(0.015, 0.1)), family, yaw=spot.yaw)
    tint = rng.uniform(0.2, 0.9, 3)
    for sx in (-1, 1):
        for sy in (-1, 1):
            centre = spot.at(sx * half[0] * 0.92, sy * half[1] * 0.9, z / 2)
            b.add(Shape.BOX, centre, (0.025, 0.025, z / 2), "plaster", yaw=spot.yaw, tint=tint)
    for _ in range(rng.integers(0, 4)):
        half_size = rng.uniform(0.03, 0.2, 3)
        dx, dy = rng.uniform(-0.8, 0.8, 2) * half
        shape = Shape(int(rng.choice([0, 0, 2, 3])))
        centre = spot.at(dx, dy, z + half_size[2] + 0.03)
        b.add(shape, centre, half_size, choose(rng, *ANY), yaw=rng.uniform(0, 3))


def _chair(b: SceneBuilder, spot: _Spot) -> None:
    rng = b.rng
    z = rng.uniform(0.4, 0.5)
    tint, family = rng.uniform(0.2, 1, 3), choose(rng, "planks", "carpet", "plaster")
    b.add(Shape.BOX, spot.at(0, 0, z), (0.23, 0.22, 0.03), family, yaw=spot.yaw, tint=tint)
    b.add(Shape.BOX, spot.at(0, -0.22, z + 0.27), (0.22, 0.025, 0.2), family, yaw=spot.yaw, tint=tint)
    b.add(Shape.CYLINDER, spot.at(0, 0, z / 2), (0.04, 0.04, z / 2), "plaster", tint=0.3, gloss=0.3)


def _bin(b: SceneBuilder, spot: _Spot) -> None:
    """A bin, or the column of a lamp."""
    rng = b.rng
    r, tall = rng.uniform(0.1, 0.25), rng.uniform(0.15, 0.5)
    b.add(Shape.CYLINDER, spot.at(0, 0, tall), (r, r, tall), choose(rng, *ANY), gloss=rng.uniform(0, 0.4))


def _plant(b: SceneBuilder, spot: _Spot) -> None:
    rng = b.rng
    r = rng.uniform(0.2, 0.45)
    b.add(Shape.CYLINDER, spot.at(0, 0, 0.2), (0.15, 0.15, 0.2), "plaster", tint=rng.uniform(0.2, 0.9, 3))
    b.add(Shape.ELLIPSOID, spot.at(0, 0, 0.4 + r), (r, r, r * rng.uniform(1, 1.6)), "foliage", yaw=rng.uniform(0, 3))


def _ball(b: SceneBuilder, spot: _Spot) -> None:
    rng = b.rng
    r = rng.uniform(0.08, 0.35)
    b.add(Shape.ELLIPSOID, spot.at(0, 0, r), (r, r, r), choose(rng, *ANY), gloss=rng.uniform(0, 0.3))


def _cabinet(b: SceneBuilder, spot: _Spot) -> None:
    rng = b.rng
    half = np.array([rng.uniform(0.15, 0.5), rng.uniform(0.15, 0.4), rng.uniform(0.15, 0.9)])
    centre = spot.at(0, 0, half[2])
    if rng.random() < 0.6:
        b.add(Shape.BOX, centre, half, choose(rng, "cabinet", "shelf"), fit=True, top="plaster", yaw=spot.yaw)
    else:
        b.add(Shape.BOX, centre, half, choose(rng, *ANY), yaw=spot.yaw)
