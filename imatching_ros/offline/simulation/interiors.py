"""Rooms and corridors: walls and ceiling, things on the walls, furniture, lamps."""

from __future__ import annotations

import numpy as np

from .scene import Scene, SceneBuilder, Shape
from .textures import ANY, choose


def _wall_box(
    b: SceneBuilder,
    size: np.ndarray,
    wall: int,
    along: float,
    z: float,
    width: float,
    height: float,
    depth: float,
    family: str,
    **options,
) -> None:
    """A box that stands against wall 0..3 (-x +x -y +y) of a room of half extents `size`; `along` is -1..1."""
    axis = wall // 2
    other = 1 - axis
    sign = 1.0 if wall % 2 else -1.0
    centre, half = np.zeros(3), np.zeros(3)
    reach = max(size[other] - width / 2, 0.0)
    centre[axis], centre[other], centre[2] = sign * (size[axis] - depth / 2), along * reach, z
    half[axis], half[other], half[2] = depth / 2, width / 2, height / 2
    b.add(Shape.BOX, centre, half, family, **options)


def _trim(b: SceneBuilder, size: np.ndarray, z: float, height: float, depth: float, family: str, tint) -> None:
    for wall in range(4):
        _wall_box(b, size, wall, 0.0, z, 2 * size[1 - wall // 2], height, depth, family, tint=tint)


def _furniture(b: SceneBuilder, size: np.ndarray, count: int) -> None:
    """Tables, beds, chairs, trolleys, bins, boxes, balls, plants on the floor."""
    rng = b.rng
    for _ in range(count):
        x, y = rng.uniform(-0.85, 0.85, 2) * size[:2]
        yaw = rng.uniform(0, np.pi) if rng.random() < 0.4 else rng.integers(0, 2) * np.pi / 2
        c, s = np.cos(yaw), np.sin(yaw)
        kind = rng.integers(7)
        if kind <= 1:  # table, bed, bench: a board on four legs
            half, z = np.array([rng.uniform(0.3, 0.9), rng.uniform(0.2, 0.5)]), rng.uniform(0.35, 0.9)
            family = choose(rng, "planks", "plaster", "plaster", "carpet", "noise", "photo")
            b.add(Shape.BOX, (x, y, z), (*half, rng.uniform(0.015, 0.1)), family, yaw=yaw)
            tint = rng.uniform(0.2, 0.9, 3)
            for sx in (-1, 1):
                for sy in (-1, 1):
                    dx, dy = sx * half[0] * 0.92, sy * half[1] * 0.9
                    b.add(
                        Shape.BOX,
                        (x + c * dx - s * dy, y + s * dx + c * dy, z / 2),
                        (0.025, 0.025, z / 2),
                        "plaster",
                        yaw=yaw,
                        tint=tint,
                    )
            for _ in range(rng.integers(0, 4)):
                half_size = rng.uniform(0.03, 0.2, 3)
                dx, dy = rng.uniform(-0.8, 0.8, 2) * half
                shape = Shape(int(rng.choice([0, 0, 2, 3])))
                b.add(
                    shape,
                    (x + c * dx - s * dy, y + s * dx + c * dy, z + half_size[2] + 0.03),
                    half_size,
                    choose(rng, *ANY),
                    yaw=rng.uniform(0, 3),
                )
        elif kind == 2:  # chair
            z = rng.uniform(0.4, 0.5)
            tint, family = rng.uniform(0.2, 1, 3), choose(rng, "planks", "carpet", "plaster")
            b.add(Shape.BOX, (x, y, z), (0.23, 0.22, 0.03), family, yaw=yaw, tint=tint)
            b.add(Shape.BOX, (x + s * 0.22, y - c * 0.22, z + 0.27), (0.22, 0.025, 0.2), family, yaw=yaw, tint=tint)
            b.add(Shape.CYLINDER, (x, y, z / 2), (0.04, 0.04, z / 2), "plaster", tint=0.3, gloss=0.3)
        elif kind == 3:  # bin or column of a lamp
            r, tall = rng.uniform(0.1, 0.25), rng.uniform(0.15, 0.5)
            b.add(Shape.CYLINDER, (x, y, tall), (r, r, tall), choose(rng, *ANY), gloss=rng.uniform(0, 0.4))
        elif kind == 4:  # plant
            r = rng.uniform(0.2, 0.45)
            b.add(Shape.CYLINDER, (x, y, 0.2), (0.15, 0.15, 0.2), "plaster", tint=rng.uniform(0.2, 0.9, 3))
            b.add(Shape.ELLIPSOID, (x, y, 0.4 + r), (r, r, r * rng.uniform(1, 1.6)), "foliage", yaw=rng.uniform(0, 3))
        elif kind == 5:
            r = rng.uniform(0.08, 0.35)
            b.add(Shape.ELLIPSOID, (x, y, r), (r, r, r), choose(rng, *ANY), gloss=rng.uniform(0, 0.3))
        else:  # box, cupboard
            h = np.array([rng.uniform(0.15, 0.5), rng.uniform(0.15, 0.4), rng.uniform(0.15, 0.9)])
            if rng.random() < 0.6:
                b.add(Shape.BOX, (x, y, h[2]), h, choose(rng, "cabinet", "shelf"), fit=True, top="plaster", yaw=yaw)
            else:
                b.add(Shape.BOX, (x, y, h[2]), h, choose(rng, *ANY), yaw=yaw)


def _on_walls(
    b: SceneBuilder, size: np.ndarray, height: float, count: int, walls: tuple[int, ...], low_texture: bool
) -> None:
    """Doors, windows, images, boards, signs, switches, cupboards against the walls."""
    rng = b.rng
    # Evenly spread with a jitter, so that they seldom overlap.
    slots = rng.permutation(np.linspace(-0.95, 0.95, max(count, 2))) + rng.uniform(-0.5, 0.5, max(count, 2)) / max(
        count, 2
    )
    for i in range(count):
        wall, along = int(walls[rng.integers(len(walls))]), float(np.clip(slots[i], -1, 1))
        kind = rng.choice(
            ["door", "window", "image", "sign", "cupboard", "lamp"], p=[0.22, 0.12, 0.22, 0.18, 0.2, 0.06]
        )
        if kind == "door":
            w, h = rng.uniform(0.8, 1.5), rng.uniform(1.95, 2.25)
            frame = rng.uniform(0.3, 1.0, 3)
            depth = rng.uniform(0.02, 0.08)
            _wall_box(b, size, wall, along, h / 2, w, h, depth, "door", fit=True, plain="plaster")
            for side in (-1, 1):
                offset = side * (w + 0.08) / 2 / max(size[1 - wall // 2] - 0.04, 0.1)
                middle = along * (size[1 - wall // 2] - w / 2) / max(size[1 - wall // 2] - 0.04, 0.1)
                _wall_box(b, size, wall, middle + offset, h / 2, 0.08, h, depth + 0.03, "plaster", tint=frame)
            _wall_box(b, size, wall, along, h + 0.04, w + 0.16, 0.08, depth + 0.03, "plaster", tint=frame)
        elif kind == "window":
            w, h = rng.uniform(0.7, 2.0), rng.uniform(0.7, 1.5)
            z = rng.uniform(0.9, 1.2) + h / 2
            _wall_box(
                b,
                size,
                wall,
                along,
                min(z, height - h / 2 - 0.1),
                w,
                h,
                0.03,
                "window",
                fit=True,
                plain="plaster",
                glow=rng.uniform(0.5, 1.4),
            )
            _wall_box(b, size, wall, along, z - h / 2 - 0.03, w + 0.1, 0.05, 0.18, "plaster", tint=0.9)
        elif kind == "image":
            w, h = rng.uniform(0.25, 1.3), rng.uniform(0.25, 1.1)
            family = (
                "poster"
                if low_texture and rng.random() < 0.5
                else choose(rng, "poster", "photo", "photo", "glyphs", "noise")
            )
            _wall_box(
                b,
                size,
                wall,
                along,
                rng.uniform(1.2, 1.8),
                w,
                h,
                rng.uniform(0.01, 0.05),
                family,
                fit=True,
                plain="plaster",
                gloss=rng.uniform(0, 0.3),
            )
        elif kind == "sign":
            for _ in range(rng.integers(1, 3)):
                w, h = rng.uniform(0.06, 0.4), rng.uniform(0.06, 0.3)
                _wall_box(
                    b,
                    size,
                    wall,
                    along + rng.uniform(-0.1, 0.1),
                    rng.uniform(0.3, height - 0.3),
                    w,
                    h,
                    rng.uniform(0.01, 0.06),
                    choose(rng, "glyphs", "plaster", "poster"),
                    fit=True,
                    plain="plaster",
                    tint=rng.uniform(0.3, 1, 3),
                )
        elif kind == "cupboard":
            w, h, d = rng.uniform(0.4, 1.6), rng.uniform(0.5, 2.1), rng.uniform(0.2, 0.6)
            z = h / 2 if rng.random() < 0.7 else rng.uniform(1.2, 1.6) + h / 4
            _wall_box(
                b,
                size,
                wall,
                along,
                min(z, height - h / 2),
                w,
                h,
                d,
                choose(rng, "cabinet", "cabinet", "shelf", "plaster"),
                fit=True,
                top="plaster",
                gloss=rng.uniform(0, 0.2),
            )
        else:
            _wall_box(
                b,
                size,
                wall,
                along,
                rng.uniform(1.5, 2.2),
                0.2,
                0.15,
                0.12,
                "plaster",
                tint=1.0,
                glow=rng.uniform(0.8, 1.5),
            )


def _interior(
    b: SceneBuilder,
    size: np.ndarray,
    height: float,
    low_texture: bool,
    things: int,
    furniture: int,
    walls: tuple[int, ...],
) -> Scene:
    rng = b.rng
    wall = (
        choose(rng, "plaster", "plaster", "panels", "panels", "panels", "tiles") if low_texture else choose(rng, *ANY)
    )
    floor = (
        choose(rng, "tiles", "tiles", "tiles", "speckle", "plaster", "carpet", "planks", "concrete")
        if low_texture
        else choose(rng, *ANY, "planks", "tiles")
    )
    ceiling = choose(rng, "plaster", "ceiling", "ceiling")
    paint = rng.uniform(0.8, 1.0) * (1 + rng.uniform(-0.06, 0.06, 3))
    floor_gloss = rng.uniform(0, 0.5) if low_texture else rng.uniform(0, 0.2)
    b.add(
        Shape.SHELL,
        (0, 0, height / 2),
        (*size[:2], height / 2),
        wall,
        top=ceiling,
        bottom=floor,
        tint=paint,
        gloss=floor_gloss * 0.2,
    )
    if rng.random() < 0.8:
        _trim(b, size, 0.06, 0.12, 0.02, "plaster", rng.uniform(0.2, 1.0, 3) * rng.uniform(0.5, 1))
    if low_texture and rng.random() < 0.5:  # hand rail or coloured strip
        _trim(
            b,
            size,
            rng.uniform(0.8, 1.1),
            rng.uniform(0.05, 0.2),
            rng.uniform(0.01, 0.06),
            choose(rng, "plaster", "planks"),
            rng.uniform(0.3, 1, 3),
        )
    _on_walls(b, size, height, things, walls, low_texture)
    _furniture(b, size, furniture)
    for _ in range(rng.integers(0, 4)):  # pillars
        x, y = rng.uniform(-0.9, 0.9, 2) * size[:2]
        half = rng.uniform(0.1, 0.3)
        shape = Shape.BOX if rng.random() < 0.6 else Shape.CYLINDER
        b.add(
            shape, (x, y, height / 2), (half, half, height / 2), wall if rng.random() < 0.6 else "concrete", tint=paint
        )
    for _ in range(rng.integers(0, 3)):  # beams or pipes under the ceiling
        z = height - rng.uniform(0.1, 0.3)
        x = rng.uniform(-0.8, 0.8) * size[0]
        b.add(
            Shape.BOX,
            (x, 0, z),
            (rng.uniform(0.04, 0.15), size[1], 0.06),
            "plaster",
            tint=rng.uniform(0.4, 1, 3),
            gloss=0.2,
        )
    bright = rng.uniform(0.5, 1.0)
    rows = 1 if size.min() < 1.6 else 2
    columns = int(np.clip(2 * size.max() / 4, 1, 5))
    lamp = np.array([0.5, 0.12, 0.02]) if rng.random() < 0.5 else np.array([0.3, 0.3, 0.02])
    long_axis = int(size[1] > size[0])
    for i in range(columns):
        for j in range(rows):
            place = np.zeros(3)
            place[long_axis] = ((i + 0.5) / columns * 2 - 1) * size[long_axis]
            place[1 - long_axis] = 0.0 if rows == 1 else (j - 0.5) * size[1 - long_axis]
            place[2] = height - 0.02
            b.add(Shape.BOX, place, lamp, "plaster", tint=1.0, glow=rng.uniform(1.2, 2.5))
    warm = 1 + rng.uniform(-0.12, 0.12, 3)
    for _ in range(rng.integers(1, 5)):
        place = rng.uniform(-0.9, 0.9, 3) * (*size[:2], 0)
        place[2] = rng.uniform(0.6, 0.95) * height
        b.light(place, bright * rng.uniform(0.3, 1.0) * warm, rng.uniform(1.5, 5.0))
    margin = np.minimum(0.5, size[:2] * 0.3)
    low, high = np.array([*(margin - size[:2]), 0.4]), np.array([*(size[:2] - margin), min(height - 0.4, 2.0)])
    return b.build(low, high, ambient=rng.uniform(0.25, 0.6) * warm, corner=rng.uniform(0.15, 0.55))


def room(b: SceneBuilder, low_texture: bool) -> Scene:
    rng = b.rng
    size = np.array([rng.uniform(1.8, 4.5), rng.uniform(1.8, 6.0)])
    return _interior(
        b, size, rng.uniform(2.4, 3.6), low_texture, int(rng.integers(5, 14)), int(rng.integers(2, 8)), (0, 1, 2, 3)
    )


def corridor(b: SceneBuilder, low_texture: bool) -> Scene:
    rng = b.rng
    size = np.array([rng.uniform(7, 18), rng.uniform(0.9, 2.0)])
    return _interior(
        b,
        size,
        rng.uniform(2.3, 3.3),
        low_texture,
        int(rng.integers(10, 19)),
        int(rng.integers(1, 5)),
        (2, 3, 2, 3, 2, 3, 0, 1),
    )
