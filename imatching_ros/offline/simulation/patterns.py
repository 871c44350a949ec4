"""Painters of procedural patterns: (rng, size) -> (size, size, 3) float32 image, 0..1, that repeats without a seam."""

from __future__ import annotations

import cv2
import numpy as np

Array = np.ndarray


def fractal(
    rng: np.random.Generator, size: int, slope: float, low: float = 1.0, high: float = 1e9, stretch: float = 1.0
) -> Array:
    """Periodic noise (size, size), zero mean, unit deviation, amplitude falling as frequency ** -slope between low and high.

    `stretch` above 1 draws it out along the rows (wood grain, brushed metal).
    """
    fy = np.fft.fftfreq(size, 1 / size)[:, None]
    fx = np.fft.rfftfreq(size, 1 / size)[None] * stretch
    f = np.hypot(fx, fy)
    amplitude = np.where((f >= low) & (f <= high), np.maximum(f, 1.0) ** -slope, 0.0)
    phase = rng.uniform(0, 2 * np.pi, amplitude.shape)
    field = np.fft.irfft2(amplitude * np.exp(1j * phase), (size, size))
    return (field / (field.std() + 1e-12)).astype(np.float32)


def colour(rng: np.random.Generator, low: float = 0.1, high: float = 0.9, saturation: float = 0.5) -> Array:
    """A random colour (3,); saturation 0 is grey."""
    grey = rng.uniform(low, high)
    return np.clip(grey + saturation * rng.uniform(-0.5, 0.5, 3) * min(grey, 1 - grey) * 2, 0, 1).astype(np.float32)


def blend(mask: Array, below: Array, above: Array) -> Array:
    """Where mask is 1 shows `above`; mask (S, S), images (S, S, 3) or colours (3,)."""
    mask = np.clip(mask, 0, 1)[..., None].astype(np.float32)
    return (below * (1 - mask) + above * mask).astype(np.float32)


def finish(image: Array) -> Array:
    return np.clip(image, 0, 1).astype(np.float32)


def grid(size: int) -> tuple[Array, Array]:
    x = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.broadcast_to(x[None], (size, size)), np.broadcast_to(x[:, None], (size, size))


def cells(size: int, nx: int, ny: int, shift: float = 0.0) -> tuple[Array, Array, Array, Array]:
    """Position inside the cell (0..1) and the integer cell of every pixel; odd rows are moved by `shift` cells."""
    x, y = grid(size)
    row = np.floor(y * ny).astype(int)
    cx = x * nx + shift * (row % 2)
    return cx % 1, (y * ny) % 1, np.floor(cx).astype(int) % nx, row % ny


def _joint(u: Array, v: Array, nx: int, ny: int, width: float) -> Array:
    """1 on the joint between cells, 0 inside; width in parts of the image."""
    distance = np.minimum(np.minimum(u, 1 - u) / nx, np.minimum(v, 1 - v) / ny)
    return np.clip((width - distance) / (0.004) + 0.5, 0, 1)


def _stains(rng: np.random.Generator, image: Array, strength: float) -> Array:
    size = image.shape[0]
    blotch = np.clip(fractal(rng, size, 1.6, high=12) - rng.uniform(0.8, 1.8), 0, None)
    return image * (1 - strength * np.clip(blotch, 0, 1.5))[..., None]


def plaster(rng, size):
    """A painted wall: nearly uniform, faint roller marks, few scuffs and stains."""
    base = colour(rng, 0.55, 0.97, 0.18)
    fine = rng.uniform(0.001, 0.012) * fractal(rng, size, 0.4, low=20)
    soft = rng.uniform(0.003, 0.03) * fractal(rng, size, 1.5, high=24)
    image = base + (fine + soft)[..., None]
    if rng.random() < 0.6:
        image = _stains(rng, image, rng.uniform(0.01, 0.12))
    marks = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(0, 12)):
        x, y = rng.integers(8, size - 8, 2)
        angle, length = rng.uniform(0, np.pi), rng.uniform(2, 30)
        end = (
            int(np.clip(x + length * np.cos(angle), 2, size - 3)),
            int(np.clip(y + length * np.sin(angle), 2, size - 3)),
        )
        cv2.line(marks, (int(x), int(y)), end, float(rng.uniform(0.05, 0.4)), int(rng.integers(1, 3)), cv2.LINE_AA)
    return finish(blend(marks, image, colour(rng, 0.1, 0.5, 0.2)))


def concrete(rng, size):
    nx, ny = rng.integers(1, 4, 2)
    u, v, _, _ = cells(size, nx, ny)
    base = colour(rng, 0.35, 0.75, 0.1)
    image = base + (0.04 * fractal(rng, size, 1.2) + 0.02 * fractal(rng, size, 0.2))[..., None]
    image = blend(_joint(u, v, nx, ny, 0.003) * rng.uniform(0, 0.8), image, base * 0.5)
    return finish(_stains(rng, image, rng.uniform(0.1, 0.5)))


def noise(rng, size):
    mask = 0.5 + rng.uniform(0.15, 0.5) * fractal(rng, size, rng.uniform(0.6, 2.0), low=rng.integers(1, 6))
    image = blend(mask, colour(rng, 0.05, 0.5), colour(rng, 0.4, 0.95))
    return finish(image + 0.03 * fractal(rng, size, 0.2)[..., None])


def bricks(rng, size):
    nx, ny = int(rng.integers(3, 9)), 2 * int(rng.integers(4, 10))
    u, v, column, row = cells(size, nx, ny, 0.5)
    tone = rng.uniform(-1, 1, (ny, nx)).astype(np.float32)[row, column]
    base = colour(rng, 0.2, 0.7, 0.8)
    image = base * (1 + rng.uniform(0.05, 0.35) * tone + 0.12 * fractal(rng, size, 0.7, low=8))[..., None]
    image = blend(_joint(u, v, nx, ny, rng.uniform(0.004, 0.008)), image, colour(rng, 0.4, 0.85, 0.1))
    return finish(_stains(rng, image, rng.uniform(0, 0.4)))


def tiles(rng, size):
    nx = int(rng.integers(2, 9))
    ny = nx if rng.random() < 0.7 else int(rng.integers(2, 9))
    u, v, column, row = cells(size, nx, ny, float(rng.choice([0, 0, 0.5])) if ny % 2 == 0 else 0.0)
    tone = rng.uniform(-1, 1, (ny, nx)).astype(np.float32)[row, column]
    base = colour(rng, 0.3, 0.95, 0.25)
    veins = rng.uniform(0, 0.06) * fractal(rng, size, 1.3) + rng.uniform(0, 0.03) * fractal(rng, size, 0.3, low=10)
    image = base * (1 + rng.uniform(0, 0.08) * tone + veins)[..., None]
    joint = _joint(u, v, nx, ny, rng.uniform(0.002, 0.006))
    image = blend(joint * rng.uniform(0.3, 1), image, colour(rng, 0.1, 0.8, 0.1))
    return finish(_stains(rng, image, rng.uniform(0, 0.25)) if rng.random() < 0.5 else image)


def panels(rng, size):
    """Smooth wall boards with thin dark joints in an irregular grid: hospitals, offices."""
    base = colour(rng, 0.6, 0.97, 0.1)
    image = np.ones((size, size, 3), np.float32) * base + (rng.uniform(0, 0.004) * fractal(rng, size, 0.8))[..., None]
    x, y = grid(size)
    width = rng.uniform(0.0015, 0.006)
    depth = rng.uniform(0.15, 0.8)
    for axis in (x, y):
        for line in (np.arange(rng.integers(1, 4)) + rng.uniform(0, 1)) / 3 + rng.uniform(-0.08, 0.08):
            away = (axis - line + 0.5) % 1 - 0.5
            groove = np.clip((width / 2 - np.abs(away)) * size + 0.5, 0, 1)
            bevel = np.clip(1 - np.abs(away - width) / width, 0, 1) * rng.uniform(0, 0.08)  # the lit edge of the board
            image = blend(groove * depth, image, base * 0.3) + bevel[..., None]
    return finish(image)


def planks(rng, size):
    nx, ny = int(rng.integers(1, 4)), int(rng.integers(4, 12))
    u, v, column, row = cells(size, nx, ny, 0.5 if ny % 2 == 0 else 0.0)
    tone = rng.uniform(-1, 1, (ny, nx)).astype(np.float32)[row, column]
    grain = fractal(rng, size, 0.9, low=6, stretch=rng.uniform(6, 20))
    base = colour(rng, 0.2, 0.7, 0.1) * np.array([1.15, 1.0, 0.75], np.float32)
    image = base * (1 + 0.18 * tone + rng.uniform(0.05, 0.15) * grain)[..., None]
    return finish(blend(_joint(u, v, nx, ny, 0.002), image, base * 0.4))


def checker(rng, size):
    n = 2 * int(rng.integers(1, 5))
    _, _, column, row = cells(size, n, n)
    image = blend(((column + row) % 2).astype(np.float32), colour(rng, 0.05, 0.5), colour(rng, 0.5, 0.95))
    return finish(image * (1 + 0.06 * fractal(rng, size, 0.9))[..., None])


def stripes(rng, size):
    edges = np.sort(rng.uniform(0, 1, rng.integers(4, 20)))
    shades = np.stack([colour(rng) for _ in range(len(edges) + 1)])
    x, y = grid(size)
    image = shades[np.searchsorted(edges, x if rng.random() < 0.6 else y)]
    return finish(image * (1 + 0.05 * fractal(rng, size, 0.8))[..., None])


def speckle(rng, size):
    """Terrazzo, granite: blots of several colours and sizes."""
    image = np.broadcast_to(colour(rng, 0.2, 0.9, 0.2), (size, size, 3))
    for _ in range(rng.integers(2, 5)):
        peak = rng.uniform(15, 60)
        blots = fractal(rng, size, 0.0, low=peak * 0.5, high=peak)
        image = blend((blots - rng.uniform(1.0, 1.8)) * 6, image, colour(rng))
    return finish(image)


def glyphs(rng, size):
    """Lines of writing in several sizes."""
    return finish(
        _write(rng, np.ones((size, size, 3), np.float32) * colour(rng, 0.5, 1.0, 0.3), int(rng.integers(6, 30)))
    )


def _write(rng, image, lines):
    size = image.shape[0]
    image = np.ascontiguousarray(image, dtype=np.float32)
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .:-!?  "))
    for _ in range(lines):
        text = "".join(rng.choice(letters, rng.integers(2, 24)))
        height = rng.uniform(0.25, 2.2) if rng.random() < 0.85 else rng.uniform(2.5, 6)
        ink = [float(c) for c in colour(rng, 0.0, 0.45, 0.8)]
        where = (int(rng.integers(0, size * 3 // 4)), int(rng.integers(10, size)))
        cv2.putText(
            image,
            text,
            where,
            int(rng.integers(0, 8)),
            height,
            ink,
            max(1, int(height * rng.uniform(1, 3))),
            cv2.LINE_AA,
        )
    return image


def poster(rng, size):
    """Shapes, gradients and writing: images, signs, boards."""
    x, y = grid(size)
    image = np.ascontiguousarray(
        blend(rng.uniform(0, 1) * x + rng.uniform(0, 1) * y, colour(rng, 0.2, 1), colour(rng, 0.1, 0.9))
    )
    if rng.random() < 0.4:
        image += 0.15 * fractal(rng, size, 1.5)[..., None] * colour(rng)
    image = np.ascontiguousarray(image, np.float32)
    for _ in range(rng.integers(5, 45)):
        shade = [float(c) for c in colour(rng, 0, 1, 1)]
        centre = rng.integers(0, size, 2)
        reach = size * rng.uniform(0.02, 0.3)
        kind = rng.integers(4)
        thickness = -1 if rng.random() < 0.7 else int(rng.integers(1, 10))
        if kind == 0:
            cv2.circle(image, [int(c) for c in centre], int(reach), shade, thickness, cv2.LINE_AA)
        elif kind == 1:
            axes = [int(reach), int(reach * rng.uniform(0.2, 1))]
            cv2.ellipse(
                image, [int(c) for c in centre], axes, float(rng.uniform(0, 180)), 0, 360, shade, thickness, cv2.LINE_AA
            )
        else:
            corners = (centre + reach * rng.uniform(-1, 1, (3 + kind, 2))).astype(np.int32)
            cv2.fillPoly(image, [cv2.convexHull(corners)], shade, cv2.LINE_AA)
    if rng.random() < 0.7:
        image = _write(rng, image, int(rng.integers(1, 10)))
    return finish(image + 0.01 * fractal(rng, size, 0.3)[..., None])


def facade(rng, size):
    """A house front: windows in a grid, each with its own curtain and reflection, sills, a cornice."""
    nx, ny = (int(n) for n in rng.integers(2, 6, 2))
    u, v, column, row = cells(size, nx, ny)
    wall = [plaster, concrete, bricks][rng.integers(3)](rng, size) * rng.uniform(0.6, 1.0)
    half_w, half_h = rng.uniform(0.18, 0.36), rng.uniform(0.2, 0.38)
    inside = np.minimum((half_w - np.abs(u - 0.5)) / nx, (half_h - np.abs(v - 0.5)) / ny) * size
    glass_tone = rng.uniform(0.05, 0.45, (ny, nx)).astype(np.float32)[row, column]
    reflection = 0.2 * fractal(rng, size, 1.6, high=30) * rng.uniform(0.2, 1)
    glass = (glass_tone + 0.15 * (0.5 - v) + 0.3 * reflection)[..., None] * colour(rng, 0.8, 1.0, 0.1)
    curtain = rng.uniform(0, 0.9, (ny, nx))[row, column] > v
    glass = blend(curtain * rng.uniform(0, 0.8, (ny, nx))[row, column], glass, colour(rng, 0.5, 0.95, 0.3))
    frame = colour(rng, 0.2, 0.95, 0.2)
    bars = np.abs((u - 0.5) / half_w * rng.integers(1, 3)) < 0.05
    glass = blend(np.maximum(np.clip(3.5 - inside, 0, 1), bars), glass, frame)
    image = blend(np.clip(inside + 0.5, 0, 1), wall, glass)
    sill = (np.abs(v - 0.5 - half_h - 0.03) < 0.02) & (np.abs(u - 0.5) < half_w + 0.05)
    return finish(_stains(rng, blend(sill.astype(np.float32), image, frame * 0.9), rng.uniform(0, 0.3)))


def grass(rng, size):
    base = colour(rng, 0.2, 0.45, 0.0) * np.array([0.85, 1.1, 0.55], np.float32)
    field = 0.25 * fractal(rng, size, 0.3, low=20) + 0.15 * fractal(rng, size, 1.4, high=30)
    return finish(base * (1 + field)[..., None])


def asphalt(rng, size):
    base = colour(rng, 0.2, 0.5, 0.05)
    image = (
        base
        * (1 + rng.uniform(0.08, 0.2) * fractal(rng, size, 0.1, low=30) + 0.08 * fractal(rng, size, 1.3, high=40))[
            ..., None
        ]
    )
    for thickness in (rng.uniform(25, 60), rng.uniform(8, 20)):  # cracks, and seams of tar
        cracks = np.clip(1.3 - np.abs(fractal(rng, size, 1.7)) * thickness, 0, 1) * (
            fractal(rng, size, 2, high=4) > rng.uniform(0, 1.2)
        )
        image = blend(cracks * rng.uniform(0.3, 0.9), image, base * 0.4)
    if rng.random() < 0.3:  # the dappled shade of trees
        shade = np.clip(fractal(rng, size, 1.1, low=2, high=40) * 2 + rng.uniform(-1, 1.5), 0, 1)
        image = image * (1 - rng.uniform(0.3, 0.6) * shade)[..., None]
    return finish(_stains(rng, image, rng.uniform(0.1, 0.5)))


def foliage(rng, size):
    """Leaves in three layers of brightness, each with sharp outlines, and dark gaps."""
    green = np.array([0.8, 1.1, 0.5], np.float32) if rng.random() < 0.8 else np.array([1.0, 0.9, 0.5], np.float32)
    base = colour(rng, 0.15, 0.4, 0.0) * green
    image = np.ones((size, size, 3), np.float32) * base * rng.uniform(0.1, 0.4)
    for brightness in (0.6, 1.0, rng.uniform(1.3, 2.2)):
        peak = rng.uniform(10, 45)
        leaves = fractal(rng, size, 0.2, low=peak * 0.4, high=peak * 1.5) + 0.5 * fractal(rng, size, 1.0, high=10)
        image = blend(leaves * 4 - rng.uniform(0, 2), image, base * brightness)
    return finish(image * (1 + 0.15 * fractal(rng, size, 0.1, low=40))[..., None])


def carpet(rng, size):
    base = colour(rng, 0.15, 0.75, 0.6)
    return finish(
        base
        * (1 + 0.15 * fractal(rng, size, 0.0, low=40) + rng.uniform(0, 0.12) * fractal(rng, size, 1.2, high=30))[
            ..., None
        ]
    )


def ceiling(rng, size):
    """Suspended ceiling: panels with pin holes."""
    n = int(rng.integers(2, 5))
    u, v, column, row = cells(size, n, n)
    base = colour(rng, 0.7, 0.98, 0.05)
    tone = rng.uniform(-0.02, 0.02, (n, n)).astype(np.float32)[row, column]
    holes = np.clip(fractal(rng, size, 0.0, low=30) - rng.uniform(1.2, 2.2), 0, 1) * rng.uniform(0, 0.5)
    image = blend(holes, base + tone[..., None], base * 0.6)
    return finish(blend(_joint(u, v, n, n, rng.uniform(0.002, 0.006)), image, base * rng.uniform(0.5, 0.9)))


def _panel(image, x0, y0, x1, y1, shade, thickness):
    cv2.rectangle(image, (int(x0), int(y0)), (int(x1), int(y1)), [float(c) for c in shade], thickness, cv2.LINE_AA)


def door(rng, size):
    base = colour(rng, 0.25, 0.95, 0.4)
    image = np.ascontiguousarray(base * (1 + 0.03 * fractal(rng, size, 1.0, stretch=1.0))[..., None], np.float32)
    _panel(image, 0, 0, size - 1, size - 1, base * rng.uniform(0.4, 0.9), int(size * rng.uniform(0.03, 0.1)))
    for _ in range(rng.integers(0, 4)):
        x0, y0 = rng.uniform(0.12, 0.4, 2) * size
        x1, y1 = rng.uniform(0.55, 0.88, 2) * size
        _panel(
            image, x0, y0, x1, y1, base * rng.uniform(0.5, 1.2), -1 if rng.random() < 0.4 else int(rng.integers(2, 8))
        )
    x = rng.choice([0.14, 0.86]) * size
    _panel(image, x - 14, size * 0.5, x + 14, size * 0.53, colour(rng, 0.1, 0.9, 0.1), -1)
    _panel(image, x - 7, size * 0.47, x + 7, size * 0.57, colour(rng, 0.1, 0.9, 0.1), 2)
    if rng.random() < 0.4:
        _panel(image, size * 0.4, size * 0.22, size * 0.6, size * 0.27, colour(rng, 0.0, 1.0, 0.8), -1)
    return finish(image)


def cabinet(rng, size):
    nx, ny = (int(n) for n in rng.integers(1, 5, 2))
    base = colour(rng, 0.2, 0.95, 0.4)
    u, v, column, row = cells(size, nx, ny)
    tone = rng.uniform(-0.04, 0.04, (ny, nx)).astype(np.float32)[row, column]
    image = base + tone[..., None] + (0.01 * fractal(rng, size, 1.0))[..., None]
    image = blend(_joint(u, v, nx, ny, 0.006), image, base * 0.4)
    hx, hy = (0.5, 0.2) if rng.random() < 0.5 else (0.85, 0.5)
    handle = (np.abs(u - hx) < (0.2 if hx == 0.5 else 0.03)) & (np.abs(v - hy) < (0.03 if hx == 0.5 else 0.2))
    return finish(blend(handle.astype(np.float32), image, colour(rng, 0.1, 0.9, 0.1)))


def shelf(rng, size):
    """Books and boxes on boards."""
    image = np.zeros((size, size, 3), np.float32)
    rows = int(rng.integers(2, 6))
    pitch = size // rows
    for row in range(rows):
        x = 0
        image[row * pitch : (row + 1) * pitch] = colour(rng, 0.02, 0.2)
        while x < size:
            width = int(rng.uniform(0.012, 0.07) * size)
            top = row * pitch + int(pitch * rng.uniform(0.05, 0.45))
            _panel(image, x, top, x + width - 1, (row + 1) * pitch, colour(rng, 0.1, 0.9, 1.0), -1)
            if rng.random() < 0.6:
                _panel(
                    image,
                    x + 2,
                    top + 8,
                    x + width - 3,
                    top + 8 + int(rng.uniform(4, 25)),
                    colour(rng, 0.1, 1, 0.8),
                    -1,
                )
            x += width + int(rng.random() < 0.2) * 6
        _panel(image, 0, (row + 1) * pitch - 10, size, (row + 1) * pitch, colour(rng, 0.3, 0.9, 0.2), -1)
    return finish(image)


def window(rng, size):
    """A window with something blurred outside."""
    view = cv2.GaussianBlur(noise(rng, size), (0, 0), rng.uniform(2, 12), borderType=cv2.BORDER_REFLECT)
    image = np.ascontiguousarray(view * 0.5 + 0.5 * colour(rng, 0.6, 1.0, 0.1), np.float32)
    frame = colour(rng, 0.4, 1.0, 0.1)
    _panel(image, 0, 0, size - 1, size - 1, frame, size // 14)
    for k in range(1, int(rng.integers(1, 4))):
        cv2.line(image, (size * k // 3, 0), (size * k // 3, size), [float(c) for c in frame], size // 30)
    if rng.random() < 0.5:
        _, y = grid(size)
        blind = (y % 0.04 < 0.026) & (y < rng.uniform(0.2, 1))
        image = blend(blind.astype(np.float32), image, frame * 0.95)
    return finish(image)


def sky(rng, size):
    cover = 0.5 + 0.5 * np.tanh(fractal(rng, size, 1.7) * rng.uniform(0.5, 2) + rng.uniform(-1, 1))
    blue = np.array([0.55, 0.72, 0.95], np.float32) * rng.uniform(0.7, 1.0)
    return finish(blend(cover, np.broadcast_to(blue, (size, size, 3)), np.float32(rng.uniform(0.8, 1.0))))
