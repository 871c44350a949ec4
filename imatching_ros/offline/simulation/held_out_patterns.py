"""Painters of the families that training never uses; the same signature as in `patterns`."""

from __future__ import annotations

import numpy as np

from .patterns import blend, cells, colour, finish, fractal, grid


def marble(rng, size):
    warp = fractal(rng, size, 1.8)
    veins = 1 - np.abs(np.sin(np.pi * (fractal(rng, size, 2.0) * 1.5 + warp)))
    return finish(blend(veins**4, colour(rng, 0.5, 0.95, 0.3) + 0.05 * warp[..., None], colour(rng, 0.05, 0.4)))


def weave(rng, size):
    n = 2 * int(rng.integers(4, 12))
    u, v, column, row = cells(size, n, n)
    over = (column + row) % 2 == 0
    height = np.where(over, np.sin(np.pi * v), np.sin(np.pi * u))
    threads = blend(over.astype(np.float32), colour(rng, 0.1, 0.9, 0.8), colour(rng, 0.1, 0.9, 0.8))
    tone = rng.uniform(0.7, 1.2, (n, n)).astype(np.float32)[row, column]
    return finish(threads * ((0.35 + 0.65 * height) * tone * (1 + 0.08 * fractal(rng, size, 0.5)))[..., None])


def _voronoi(rng, size, count):
    """Distance to the nearest and second nearest of `count` periodic random points (in parts of the image), and its index."""
    points = rng.uniform(0, 1, (count, 2)).astype(np.float32)
    x, y = grid(size)
    first = np.full((size, size), 9.0, np.float32)
    second, index = first.copy(), np.zeros((size, size), int)
    for i, (px, py) in enumerate(points):
        d = np.hypot((x - px + 0.5) % 1 - 0.5, (y - py + 0.5) % 1 - 0.5)
        nearer = d < first
        second = np.where(nearer, first, np.minimum(second, d))
        index[nearer] = i
        first = np.where(nearer, d, first)
    return first, second, index


def cobbles(rng, size):
    count = int(rng.integers(40, 140))
    first, second, index = _voronoi(rng, size, count)
    tone = rng.uniform(0.5, 1.1, count).astype(np.float32)[index]
    stone = (
        colour(rng, 0.35, 0.7, 0.2)
        * (tone * (1 + 0.1 * fractal(rng, size, 0.5, low=10)) * (1 - first * np.sqrt(count) * 0.3))[..., None]
    )
    return finish(blend((0.008 - (second - first)) * 200, stone, colour(rng, 0.05, 0.25, 0.1)))


def mosaic(rng, size):
    count = int(rng.integers(60, 200))
    first, second, index = _voronoi(rng, size, count)
    shades = np.stack([colour(rng, 0.1, 0.95, 1.0) for _ in range(count)])
    return finish(blend((0.004 - (second - first)) * 250, shades[index], colour(rng, 0.7, 0.95, 0.1)))


def hexagons(rng, size):
    n = 2 * int(rng.integers(3, 8))
    x, y = grid(size)
    best = np.full((size, size), 9.0, np.float32)
    second, index = best.copy(), np.zeros((size, size), int)
    for shift in (0, 1):  # two interleaved grids make the hexagonal lattice
        u, v = x * n + 0.5 * shift, y * n * 0.5 + 0.5 * shift
        d = np.hypot(u % 1 - 0.5, (v % 1 - 0.5) * 1.732)
        cell = (np.floor(u).astype(int) % n) + n * (np.floor(v).astype(int) % n) + shift * n * n
        second, index = np.where(d < best, best, np.minimum(second, d)), np.where(d < best, cell, index)
        best = np.minimum(d, best)
    shades = np.stack([colour(rng, 0.2, 0.9, 0.2) for _ in range(3)])[rng.integers(0, 3, 2 * n * n)]
    return finish(
        blend(
            (0.06 - (second - best)) * 20,
            shades[index] * (1 + 0.04 * fractal(rng, size, 1))[..., None],
            colour(rng, 0.1, 0.9, 0.1),
        )
    )


def zebra(rng, size):
    bands = np.sin(fractal(rng, size, 2.0, low=2, high=30) * rng.uniform(4, 9))
    return finish(
        blend(bands * 3 + 0.5, colour(rng, 0.02, 0.4, 0.4), colour(rng, 0.6, 1.0, 0.4))
        * (1 + 0.03 * fractal(rng, size, 0.5))[..., None]
    )
