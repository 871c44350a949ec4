"""Colour of the points that rays hit: texture, lamps with shadows, soft darkening in corners, gloss, sky and fog."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from .scene import Scene, Shape


@dataclass(frozen=True)
class Hits:
    """First hits of G groups of n rays; a group's rays start at one point and look at one scene."""

    scene: Tensor  # (G,) int64
    origin: Tensor  # (G, 3) float64
    rays_W: Tensor  # (G, n, 3) float32, direction; its length is that of the ray at depth 1
    t: Tensor  # (G, n) float32, ray parameter, inf where the sky is seen
    index: Tensor  # (G, n) int64, primitive


def shade(scenes: Scene, hits: Hits, pixel_size: Tensor, lit: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Colour of hits.

    Args:
        pixel_size: (G,) float32, width of a ray's footprint at depth 1.
        lit: for every light (G, n) float32, 1 where it is seen from the hit, or None: it casts no shadows.

    Returns:
        colour (G, n, 3) float32 before clipping; face (G, n) int64, 0..5.
    """
    G, n = hits.t.shape
    group = torch.arange(G, device=hits.t.device).repeat_interleave(n)
    t, index, rays = hits.t.flatten(), hits.index.flatten(), hits.rays_W.reshape(-1, 3)
    origin = hits.origin.float()
    lit = [None if seen is None else seen.flatten() for seen in lit]
    colour, face = torch.empty_like(rays), torch.empty_like(index)
    # Rays shaded at once: few enough for the caches of a CPU, enough to fill a GPU.
    step = {"cpu": 1 << 15, "cuda": 1 << 20}[hits.t.device.type]
    for begin in range(0, len(t), step):
        part = slice(begin, begin + step)
        seen = [None if one is None else one[part] for one in lit]
        of = group[part]
        colour[part], face[part] = _shade_flat(
            scenes, hits.scene[of], origin[of], t[part], index[part], rays[part], pixel_size[of], seen
        )
    return colour.view(G, n, 3), face.view(G, n)


def _shade_flat(
    scenes: Scene,
    s: Tensor,
    origin: Tensor,
    t: Tensor,
    index: Tensor,
    ray: Tensor,
    pixel_size: Tensor,
    lit: list[Tensor | None],
) -> tuple[Tensor, Tensor]:
    hit = torch.isfinite(t)
    depth = torch.where(hit, t, 1.0)
    point = origin + depth[:, None] * ray
    shape, half = scenes.shape[s, index], scenes.half[s, index]
    rotation = scenes.rotation[s, index]
    local = (rotation * (point - scenes.centre[s, index]).float()[:, :, None]).sum(1)
    face, normal, flat = _surface(shape, local, half)
    normal = (rotation * normal[:, None]).sum(-1)
    view_length = ray.norm(dim=-1)
    towards_eye = -ray / view_length[:, None]
    incidence = (normal * towards_eye).sum(-1).abs().clamp_min(0.02)
    uv = flat * scenes.repeat[s, index, face] + scenes.offset[s, index, face]
    # A slanted surface is seen through a long footprint; an isotropic lookup has to settle between its two diameters.
    across = depth * pixel_size * view_length * incidence**-0.75
    albedo = scenes.bank.sample(scenes.texture[s, index, face], uv, across * scenes.repeat[s, index, face].amax(-1))
    albedo = albedo * scenes.tint[s, index]

    light = scenes.ambient[s] * _corner_darkening(scenes, s, index, point, normal)[:, None]
    light = light * (0.85 + 0.15 * normal[:, 2:])  # a little more light from above
    gloss = scenes.gloss[s, index]
    glossy = ((gloss > 0) & hit).nonzero()[:, 0]
    shine = torch.zeros_like(light[glossy])
    for number, seen in enumerate(lit):
        to_light = scenes.light_position[s, number] - point
        distance = to_light.norm(dim=-1).clamp_min(1e-3)
        strength = (normal * to_light).sum(-1).clamp_min(0) / distance
        power = 1 / (1 + (distance / scenes.light_range[s, number]) ** 2)
        if seen is not None:
            power = power * (0.12 + 0.88 * seen)  # bounced light reaches the shadow too
        colour = scenes.light_colour[s, number]
        light = light + colour * (power * strength)[:, None]
        halfway = normalize(to_light[glossy] / distance[glossy, None] + towards_eye[glossy], dim=-1)
        highlight = (normal[glossy] * halfway).sum(-1).clamp_min(0) ** 40 * gloss[glossy] * power[glossy]
        shine = shine + colour[glossy] * highlight[:, None]
    colour = albedo * torch.maximum(light, scenes.glow[s, index][:, None])
    colour[glossy] += shine
    fog = torch.exp(-scenes.fog_density[s] * depth * view_length)[:, None]
    colour = torch.lerp(scenes.fog_colour[s], colour, fog)
    above = (~hit).nonzero()[:, 0]
    if len(above):
        colour[above] = _sky(scenes, s[above], ray[above], view_length[above], pixel_size[above])
    return colour * scenes.exposure[s][:, None], face


def _sky(scenes: Scene, s: Tensor, ray: Tensor, length: Tensor, pixel_size: Tensor) -> Tensor:
    """(N, 3) clouds on a dome, hazy towards the horizon."""
    uv = ray[:, :2] / (ray[:, 2:].abs() + 0.3 * length[:, None]) * 0.5
    clouds = scenes.bank.sample(scenes.sky_texture[s], uv, pixel_size * length * 0.5) * scenes.sky_tint[s]
    return torch.lerp(scenes.fog_colour[s], clouds, (ray[:, 2] / length).clamp(0, 1)[:, None].sqrt())


def _surface(shape: Tensor, local: Tensor, half: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Face number (0..5 = -x +x -y +y -z +z), normal in the primitive's frame and metric position on the face."""
    unit = local / half
    box = shape <= Shape.SHELL
    ball_normal = normalize(unit / half, dim=-1)
    round_distance = unit[:, :2].norm(dim=-1)
    cap = unit[:, 2].abs() > round_distance
    side = torch.cat([unit[:, :2] / half[:, :2], torch.zeros_like(unit[:, :1])], -1)
    upright = torch.cat([torch.zeros_like(unit[:, :2]), unit[:, 2:].sign()], -1)
    tube_normal = torch.where(cap[:, None], upright, normalize(side, dim=-1))
    round_normal = torch.where((shape == Shape.ELLIPSOID)[:, None], ball_normal, tube_normal)
    axis = torch.where(box[:, None], unit, round_normal).abs().argmax(-1)
    sign = torch.where(box[:, None], unit, round_normal).gather(1, axis[:, None])[:, 0] > 0
    box_normal = one_hot(axis, 3) * (sign.float() * 2 - 1)[:, None]
    box_normal = torch.where((shape == Shape.SHELL)[:, None], -box_normal, box_normal)
    normal = torch.where(box[:, None], box_normal, round_normal)
    x, y, z = (local + half).unbind(-1)
    down = 2 * half[:, 2] - z  # rows of a texture count downwards
    # Seen from outside, and in a shell from inside, writing runs from left to right.
    mirrored = (torch.where(axis == 0, ~sign, sign) & (axis < 2)) ^ ((shape == Shape.SHELL) & (axis < 2))
    along, width = torch.where(axis == 0, y, x), 2 * torch.where(axis == 0, half[:, 1], half[:, 0])
    from_above = sign ^ (shape == Shape.SHELL)
    across = torch.where(from_above, 2 * half[:, 1] - y, y)
    flat = torch.stack([torch.where(mirrored, width - along, along), torch.where(axis == 2, across, down)], -1)
    tube = (shape == Shape.CYLINDER) & ~cap
    around = torch.atan2(unit[:, 1], unit[:, 0]) * half[:, 0]
    flat = torch.where(tube[:, None], torch.stack([around, down], -1), flat)
    face = torch.where(tube, 0, axis * 2 + sign.long())
    return face, normal, flat


def _corner_darkening(scenes: Scene, s: Tensor, index: Tensor, point: Tensor, normal: Tensor) -> Tensor:
    """Less ambient light near the edges of the room (primitive 0 when it is a shell) and near the ground."""
    shell = scenes.shape[s, 0] == Shape.SHELL
    unit = (scenes.rotation[s, 0] * (point - scenes.centre[s, 0]).float()[:, :, None]).sum(1)
    gap = (scenes.half[s, 0] - unit.abs()).clamp_min(0)
    own = (scenes.rotation[s, 0] * normal[:, :, None]).sum(1).abs() > 0.9
    gap = torch.where(own & (index == 0)[:, None], torch.inf, gap)
    inside = 1 - scenes.corner[s][:, None] * torch.exp(-gap / 0.35)
    outside = 1 - scenes.corner[s] * torch.exp(-point[:, 2].clamp_min(0) / 0.5) * (normal[:, 2] < 0.9)
    return torch.where(shell, inside.prod(-1), outside)
