"""Seeded procedural textures, and the mip-mapped bank in which the renderer looks them up.

Families are split: those of `TRAIN_FAMILIES` may be used for training weights, those of `HELD_OUT_FAMILIES` are never used
there, so that a scene dressed in them is really new to the shipped weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ...core.errors import ConfigError
from . import held_out_patterns, patterns

# family -> (painter, smallest and largest edge in metres of the world that one repeat covers)
TRAIN_FAMILIES: dict[str, tuple[Callable, float, float]] = {
    "plaster": (patterns.plaster, 2.0, 4.0),
    "concrete": (patterns.concrete, 2.0, 5.0),
    "noise": (patterns.noise, 1.0, 4.0),
    "bricks": (patterns.bricks, 1.2, 2.5),
    "tiles": (patterns.tiles, 1.2, 3.5),
    "panels": (patterns.panels, 1.5, 3.5),
    "planks": (patterns.planks, 1.2, 2.5),
    "checker": (patterns.checker, 0.8, 3.0),
    "stripes": (patterns.stripes, 0.8, 3.0),
    "speckle": (patterns.speckle, 1.0, 3.0),
    "glyphs": (patterns.glyphs, 0.8, 2.5),
    "poster": (patterns.poster, 1.0, 3.0),
    "facade": (patterns.facade, 8.0, 16.0),
    "grass": (patterns.grass, 2.0, 5.0),
    "asphalt": (patterns.asphalt, 3.0, 7.0),
    "foliage": (patterns.foliage, 1.5, 4.0),
    "carpet": (patterns.carpet, 1.0, 3.0),
    "ceiling": (patterns.ceiling, 1.8, 3.6),
    "door": (patterns.door, 1.0, 2.1),
    "cabinet": (patterns.cabinet, 0.8, 1.6),
    "shelf": (patterns.shelf, 1.0, 2.0),
    "window": (patterns.window, 1.2, 2.0),
    "sky": (patterns.sky, 1.0, 1.0),
}
HELD_OUT_FAMILIES: dict[str, tuple[Callable, float, float]] = {
    "marble": (held_out_patterns.marble, 1.5, 4.0),
    "weave": (held_out_patterns.weave, 0.8, 2.0),
    "hexagons": (held_out_patterns.hexagons, 1.0, 3.0),
    "cobbles": (held_out_patterns.cobbles, 1.5, 4.0),
    "zebra": (held_out_patterns.zebra, 1.0, 3.0),
    "mosaic": (held_out_patterns.mosaic, 1.0, 3.0),
}


# What furniture and rich walls are made of.
ANY = (
    "plaster",
    "panels",
    "noise",
    "bricks",
    "tiles",
    "planks",
    "checker",
    "stripes",
    "speckle",
    "glyphs",
    "poster",
    "concrete",
    "carpet",
    "photo",
    "photo",
    "photo",
)


@dataclass(frozen=True)
class TextureBank:
    """T square textures with their mip levels, flat, so that one gather reads any texel of any level.

    `texels` is (T * L, 3) float16, L the texels of all levels of one texture, level 0 first; colours are 0..1.
    """

    texels: Tensor
    size: int
    families: dict[str, tuple[int, ...]]  # family -> texture ids
    extent_m: tuple[tuple[float, float], ...]  # per texture id

    @property
    def levels(self) -> int:
        return self.size.bit_length()

    @property
    def stride(self) -> int:
        """Texels of all levels of one texture."""
        return sum((self.size >> level) ** 2 for level in range(self.levels))

    def to(self, device: torch.device | str) -> TextureBank:
        return TextureBank(self.texels.to(device), self.size, self.families, self.extent_m)

    def with_contrast(self, factor: float) -> TextureBank:
        """A copy in which every texture differs from its mean colour by so much less or more."""
        texels = self.texels.float().view(-1, self.stride, 3)
        faded = torch.lerp(texels[:, -1:], texels, factor).clamp(0, 1)  # the last level is the mean
        return TextureBank(faded.view(-1, 3).to(self.texels), self.size, self.families, self.extent_m)

    def pick(self, rng: np.random.Generator, family: str) -> tuple[int, float]:
        """A texture of the family and the metres that one repeat covers. A bank without the family gives any of its textures."""
        ids = list(self.families.get(family, ()))
        if not ids:
            ids = [i for name, members in self.families.items() if name != "sky" for i in members]
        chosen = int(ids[rng.integers(len(ids))])
        return chosen, float(rng.uniform(*self.extent_m[chosen]))

    def sample(self, texture: Tensor, uv: Tensor, footprint: Tensor) -> Tensor:
        """Trilinear lookup with repetition.

        Args:
            texture: (N,) int64 ids.
            uv: (N, 2) float32 in repeats; the texture spans 0..1, row 0 at v = 0.
            footprint: (N,) float32, the diameter of the pixel in repeats, which picks the mip level.

        Returns:
            (N, 3) float32 colours.
        """
        lod = torch.log2((footprint * self.size).clamp_min(1.0)).clamp_max(self.levels - 1.001)
        level = lod.floor()
        blend = (lod - level)[:, None]
        level = level.long()
        base = texture * self.stride
        uv = uv - uv.floor()
        return torch.lerp(self._bilinear(base, uv, level), self._bilinear(base, uv, level + 1), blend)

    def _bilinear(self, base: Tensor, uv: Tensor, level: Tensor) -> Tensor:
        edge = torch.tensor([self.size >> i for i in range(self.levels)], device=uv.device)
        start = torch.cat([edge.new_zeros(1), (edge * edge).cumsum(0)[:-1]])
        n = edge[level]
        xy = uv * n[:, None] - 0.5
        corner = xy.floor()
        fx, fy = (xy - corner).unbind(-1)
        x0, y0 = corner.long().unbind(-1)
        mask = n - 1  # sizes are powers of two: the mask wraps around
        x1, y1 = (x0 + 1) & mask, ((y0 + 1) & mask) * n
        x0, y0 = x0 & mask, (y0 & mask) * n
        base = base + start[level]
        texel = [self.texels[base + y + x].float() for y in (y0, y1) for x in (x0, x1)]
        fx, fy = fx[:, None], fy[:, None]
        return torch.lerp(torch.lerp(texel[0], texel[1], fx), torch.lerp(texel[2], texel[3], fx), fy)


def build_bank(
    seed: int,
    *,
    variants: int = 2,
    size: int = 512,
    held_out: bool = False,
    photos: Sequence[Tensor] | None = None,
    photo_crops: int = 4,
    device: torch.device | str = "cpu",
) -> TextureBank:
    """Paints `variants` textures of every family of one side of the split (the sky belongs to both) and builds their mip levels.

    `photos` are (3, H, W) or (1, H, W) images, uint8 or float 0..1; random crops of them become the family "photo".
    Painting is done on the CPU whatever `device` is, so that a seed means the same scene everywhere.
    """
    if size < 32 or size & (size - 1):
        raise ConfigError(f"texture size is {size}, expected a power of two from 32 on")
    families = dict(HELD_OUT_FAMILIES if held_out else TRAIN_FAMILIES)
    families.setdefault("sky", TRAIN_FAMILIES["sky"])
    images: list[Tensor] = []
    ids: dict[str, tuple[int, ...]] = {}
    extents: list[tuple[float, float]] = []
    for number, (name, (paint, low, high)) in enumerate(families.items()):
        ids[name] = tuple(range(len(images), len(images) + variants))
        for variant in range(variants):
            rng = np.random.default_rng((seed, number, variant, int(held_out)))
            images.append(_mip_levels(torch.from_numpy(paint(rng, size)).permute(2, 0, 1)))
            extents.append((low, high))
    if photos:
        rng = np.random.default_rng((seed, 1000))
        first = len(images)
        for photo in photos:
            for _ in range(photo_crops):
                images.append(_mip_levels(_tileable_crop(rng, photo, size)))
                extents.append((1.5, 5.0))
        ids["photo"] = tuple(range(first, len(images)))
    return TextureBank(torch.cat(images).to(device), size, ids, tuple(extents))


def _mip_levels(image: Tensor) -> Tensor:
    """(3, S, S) -> (L, 3) float16."""
    flat, level = [], image[None].float().clamp(0, 1)
    while True:
        flat.append(level[0].flatten(1).T)
        if level.shape[-1] == 1:
            return torch.cat(flat).to(torch.float16)
        level = avg_pool2d(level, 2)


def _tileable_crop(rng: np.random.Generator, photo: Tensor, size: int) -> Tensor:
    """A random square of the image, resized, its right and lower margins cross-faded into the left and upper ones."""
    image = photo.float() / 255 if photo.dtype == torch.uint8 else photo.float()
    image = image.expand(3, -1, -1)
    edge = min(image.shape[1:])
    edge = max(int(edge * rng.uniform(0.5, 1.0)), 16)
    top, left = (int(rng.integers(0, n - edge + 1)) for n in image.shape[1:])
    margin = size // 8
    crop = image[None, :, top : top + edge, left : left + edge]
    crop = interpolate(crop, (size + margin,) * 2, mode="bilinear", antialias=True, align_corners=False)[0]
    fade = torch.linspace(0, 1, margin)
    crop[:, :margin] = torch.lerp(crop[:, size:], crop[:, :margin], fade[:, None])
    crop[:, :, :margin] = torch.lerp(crop[:, :, size:], crop[:, :, :margin], fade)
    return crop[:, :size, :size].clamp(0, 1)


def choose(rng: np.random.Generator, *families: str) -> str:
    """One of the families; name one twice to make it likelier."""
    return families[rng.integers(len(families))]
