"""A ray caster in plain torch, the same on CPU and CUDA, with exact poses and exact depth.

A ray leaves the camera with z = 1 in the camera frame, so the ray parameter of its first hit IS the depth along the
optical axis. Each primitive is a unit cube, sphere or cylinder under an affine map, and a hit is an interval test in its
own coordinates.
Rays are handled in groups of neighbours; a group is tested only against primitives whose bounding sphere meets its cone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...core.geometry import rotation_matrix
from ...camera.model import Camera
from .scene import Scene, Shape
from .shading import Hits, shade


def render(
    scene: Scene,
    camera: Camera,
    T_WC: Tensor,
    device: torch.device | str = "cpu",
    supersample: int = 1,
    shadows: int = 1,
) -> tuple[Tensor, Tensor]:
    """Images of one scene.

    Args:
        scene: one scene.
        camera: its distortion is honoured.
        T_WC: (B, 7) float64 poses, or (B, H, 7), one for each row of a rolling shutter.
        device: where to compute; everything needed is moved there.
        supersample: n x n rays for pixels at the edge of a surface or shadow; depth is always that of the ray through the centre.
        shadows: the number of lights that cast shadows, first lights first.

    Returns:
        image (B, 3, H, W) float32 0..1 and depth (B, H, W) float32 in metres, 0 where nothing was hit.
    """
    scene = scene.to(device)
    images, depths = [], []
    for pose in T_WC.to(device).split(1):  # one view at a time bounds the memory
        image, depth = render_views(
            scene, camera, pose, torch.zeros(1, dtype=torch.int64, device=device), supersample, shadows
        )
        images.append(image)
        depths.append(depth)
    return torch.cat(images), torch.cat(depths)


def render_views(
    scenes: Scene,
    camera: Camera | tuple[Tensor, tuple[int, int]],
    T_WC: Tensor,
    scene_index: Tensor,
    supersample: int = 1,
    shadows: int = 1,
) -> tuple[Tensor, Tensor]:
    """Many views of many scenes at once, all on the device of `scenes`.

    Args:
        scenes: stacked scenes (`scene.stack`).
        camera: one Camera for all, or pinholes: (K (B, 4) fx fy cx cy, (height, width)).
        T_WC: (B, 7) float64, or (B, H, 7), one for each row. Rays of a tile share the mean of their rows' positions; rotations are exact.
        scene_index: (B,) int64, the scene that each view looks at.
        supersample, shadows: as in `render`.

    Returns:
        image (B, 3, H, W) float32, depth (B, H, W) float32.
    """
    B, device = len(T_WC), T_WC.device
    poses = T_WC.double().reshape(B, -1, 7)
    origin, rotation = poses[..., :3], quaternion_to_matrix(poses[..., 3:])
    rays_C, inside, pixel_size = camera_rays(camera, B, 0.0, 0.0, device)
    tiles, shape = _to_tiles(_rotate(rotation, rays_C))
    view = torch.arange(B, device=device).repeat_interleave(len(tiles) // B)
    rows, _ = _to_tiles(torch.arange(shape[1], device=device).view(1, -1, 1, 1).expand(B, -1, shape[2], 1))
    hits = _cast(scenes, scene_index[view], _mean_origin(origin, view, rows[..., 0]), tiles)
    colour, surface = _shade(scenes, hits, pixel_size[view], shadows)
    image = _from_tiles(colour, shape)
    if supersample > 1:
        _smooth_edges(
            image, _from_tiles(surface, shape), scenes, camera, scene_index, origin, rotation, supersample, shadows
        )
    image = torch.where(inside[..., None], image, 0.0).permute(0, 3, 1, 2).clamp(0, 1).contiguous()
    return image, _masked(_from_tiles(hits.t, shape), inside)


def _smooth_edges(
    image: Tensor,
    surface: Tensor,
    scenes: Scene,
    camera: Camera | tuple[Tensor, tuple[int, int]],
    scene_index: Tensor,
    origin: Tensor,
    rotation: Tensor,
    supersample: int,
    shadows: int,
) -> None:
    """Renders the pixels where two surfaces (or light and shadow) meet again, with supersample^2 rays, into `image` (B, H, W, 3).

    Only there: textures are filtered already.
    """
    B, H, W = surface.shape
    edge = torch.zeros_like(surface, dtype=torch.bool)
    for a, b in (
        (np.s_[:, :, 1:], np.s_[:, :, :-1]),
        (np.s_[:, 1:], np.s_[:, :-1]),
        (np.s_[:, 1:, 1:], np.s_[:, :-1, :-1]),
        (np.s_[:, 1:, :-1], np.s_[:, :-1, 1:]),
    ):
        differs = surface[a] != surface[b]
        edge[a] |= differs
        edge[b] |= differs
    # Pixels in the order of the tiles, cut into groups of neighbours; the last group of a view repeats its last pixel.
    numbers, _ = _to_tiles(torch.arange(H * W, device=edge.device).view(1, H, W, 1).expand(B, -1, -1, -1))
    within, _ = _to_tiles(edge[..., None])
    numbers, within = numbers[..., 0].view(B, -1), within[..., 0].view(B, -1)
    counts = within.sum(1)
    if not counts.any():
        return
    size = 64  # pixels of a group: supersample^2 rays each, so a group is no larger than a tile for 2 to 4
    groups = (counts + size - 1) // size
    view = torch.arange(B, device=edge.device).repeat_interleave(groups)
    rank = torch.arange(len(view), device=edge.device) - (groups.cumsum(0) - groups)[view]
    place = rank[:, None] * size + torch.arange(size, device=edge.device)
    place = torch.minimum(place, counts[view, None] - 1) + (counts.cumsum(0) - counts)[view, None]
    pixel = numbers[within][place]  # (G, size)
    rays = []
    offsets = [(i + 0.5) / supersample - 0.5 for i in range(supersample)]
    for dv in offsets:
        for du in offsets:
            rays_C, _, pixel_size = camera_rays(camera, B, du, dv, edge.device)
            rays.append(_rotate(rotation, rays_C).view(B, -1, 3)[view[:, None], pixel])
    hits = _cast(scenes, scene_index[view], _mean_origin(origin, view, pixel // W), torch.cat(rays, 1))
    colour, _ = _shade(scenes, hits, pixel_size[view] / supersample, shadows)
    image.view(B, -1, 3)[view[:, None], pixel] = colour.clamp(0, 1).view(len(view), supersample**2, size, 3).mean(1)


def render_depth(
    scenes: Scene, camera: Camera | tuple[Tensor, tuple[int, int]], T_WC: Tensor, scene_index: Tensor
) -> Tensor:
    """Depth alone, (B, H, W) float32; arguments as in `render_views`."""
    rotation = quaternion_to_matrix(T_WC[:, None, 3:].double())
    rays_C, inside, _ = camera_rays(camera, len(T_WC), 0.0, 0.0, T_WC.device)
    tiles, shape = _to_tiles(_rotate(rotation, rays_C))
    view = torch.arange(len(T_WC), device=T_WC.device).repeat_interleave(len(tiles) // len(T_WC))
    t, _ = nearest(scenes, scene_index[view], T_WC[view, :3].double(), tiles)
    return _masked(_from_tiles(t, shape), inside)


def _masked(t: Tensor, inside: Tensor) -> Tensor:
    return torch.where(torch.isfinite(t) & inside, t, 0.0)


def _rotate(rotation: Tensor, rays_C: Tensor) -> Tensor:
    """Rays (B, H, W, 3) by rotations (B, 1 or H, 3, 3), of whole images or of rows."""
    B, rows = rotation.shape[:2]
    turned = rays_C.reshape(B * rows, -1, 3) @ rotation.view(B * rows, 3, 3).transpose(1, 2)
    return turned.view(rays_C.shape).float()


def _mean_origin(origin: Tensor, view: Tensor, rows: Tensor) -> Tensor:
    """(G, 3) where groups of rays begin that lie in `rows` (G, n) of the views (G,); origin (B, 1 or H, 3)."""
    if origin.shape[1] == 1:
        return origin[view, 0]
    return origin[view[:, None], rows].mean(1)


def camera_rays(
    camera: Camera | tuple[Tensor, tuple[int, int]], views: int, du: float, dv: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Directions with z = 1 of the pixels (u + du, v + dv).

    Returns:
        rays_C (views, H, W, 3) float64; inside (views, H, W) bool, False where the distortion has no inverse;
        pixel_size (views,) float32, the width of a pixel at depth 1.
    """
    height, width = (camera.height, camera.width) if isinstance(camera, Camera) else camera[1]
    u = torch.arange(width, dtype=torch.float64, device=device) + du
    v = torch.arange(height, dtype=torch.float64, device=device) + dv
    uv = torch.stack(torch.meshgrid(u, v, indexing="xy"), -1)[None]
    if isinstance(camera, Camera):
        uv = camera.undistort(uv)
        K = torch.tensor([[camera.fx, camera.fy, camera.cx, camera.cy]], dtype=torch.float64, device=device)
    else:
        K = camera[0].double()
    K = K[:, None, None]
    xy = (uv - K[..., 2:]) / K[..., :2]
    inside = torch.isfinite(xy).all(-1)
    rays = torch.cat([xy.nan_to_num(0.0), torch.ones_like(xy[..., :1])], -1)
    pixel_size = 1 / K[:, 0, 0, :2].mean(-1).float()
    return (
        rays.expand(views, *rays.shape[1:]),
        inside.expand(views, *inside.shape[1:]),
        pixel_size.expand(views, *pixel_size.shape[1:]),
    )


def _cast(scenes: Scene, scene: Tensor, origin: Tensor, rays_W: Tensor) -> Hits:
    t, index = nearest(scenes, scene, origin, rays_W)
    return Hits(scene, origin, rays_W, t, index)


def _shade(scenes: Scene, hits: Hits, pixel_size: Tensor, shadows: int) -> tuple[Tensor, Tensor]:
    """Colour (G, n, 3), and a number (G, n) that differs between surfaces, and between light and shadow."""
    lights = scenes.light_position.shape[1]
    lit: list[Tensor | None] = [None] * lights
    points = hits.origin.float()[:, None] + hits.t.clamp_max(1e6)[..., None] * hits.rays_W
    surface = torch.zeros_like(hits.index)
    for light in range(min(shadows, lights)):
        source = scenes.light_position[hits.scene, light].double()
        towards = points - source.float()[:, None]
        t, _ = nearest(scenes, hits.scene, source, towards, skip_glowing=True)
        seen = (t > 1 - 0.01 / towards.norm(dim=-1).clamp_min(0.02)).float()
        lit[light] = seen
        surface = surface * 2 + seen.long()
    colour, face = shade(scenes, hits, pixel_size, lit)
    surface = (surface * scenes.shape.shape[1] + hits.index) * 6 + face
    return colour, torch.where(torch.isfinite(hits.t), surface, -1)


def nearest(
    scenes: Scene, scene_of_group: Tensor, origin: Tensor, directions: Tensor, skip_glowing: bool = False
) -> tuple[Tensor, Tensor]:
    """First hit of groups of rays with one origin each.

    Args:
        scene_of_group: (G,) int64.
        origin: (G, 3) float64.
        directions: (G, n, 3) float32, any length.
        skip_glowing: lamps do not shade.

    Returns:
        t (G, n) float32 in units of the direction's length, inf without a hit; index (G, n) int64 of the primitive.
    """
    best = torch.full(directions.shape[:2], torch.inf, device=directions.device)
    index = torch.zeros(directions.shape[:2], dtype=torch.int64, device=directions.device)
    for boxes in (True, False):
        member = (scenes.shape <= Shape.SHELL) == boxes
        member &= scenes.shape >= 0
        if skip_glowing:
            member &= scenes.glow <= 0
        columns = member.any(0).nonzero()[:, 0]
        if len(columns) == 0:
            continue
        for groups, primitives, valid in _culled(scenes, scene_of_group, origin, directions, columns, member):
            t = _intersect(scenes, scene_of_group[groups], primitives, origin[groups], directions[groups], boxes)
            t = torch.where(valid[..., None], t, torch.inf)
            t, winner = t.min(1)
            nearer = t < best[groups]
            best[groups] = torch.where(nearer, t, best[groups])
            index[groups] = torch.where(nearer, primitives.gather(1, winner), index[groups])
    return best, index


def _culled(
    scenes: Scene, scene_of_group: Tensor, origin: Tensor, directions: Tensor, columns: Tensor, member: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields (groups (m,), primitives (m, p), valid (m, p)): groups that meet about the same number of primitives, together."""
    unit = torch.nn.functional.normalize(directions, dim=-1)
    axis = torch.nn.functional.normalize(unit.mean(1), dim=-1)
    half_angle = torch.acos((unit * axis[:, None]).sum(-1).amin(1).clamp(-1, 1))
    away = (scenes.centre[:, columns][scene_of_group] - origin[:, None]).float()
    distance = away.norm(dim=-1)
    radius = scenes.half[:, columns].norm(dim=-1)[scene_of_group]
    angle = torch.acos(((away * axis[:, None]).sum(-1) / distance.clamp_min(1e-9)).clamp(-1, 1))
    reach = torch.asin((radius / distance.clamp_min(1e-9)).clamp(0, 1))
    visible = ((distance <= radius) | (angle <= half_angle[:, None] + reach + 2e-3)) & member[:, columns][
        scene_of_group
    ]
    counts, order = visible.sum(1).sort()
    # Visible primitives first, in their own order: the same winner of a tie on every device.
    ranking = torch.argsort((~visible).to(torch.uint8), dim=1, stable=True)
    budget = (1 << 24) if directions.is_cuda else (1 << 17)
    counts_list = counts.tolist()
    start = 0
    while start < len(counts_list):
        stop = start + 1
        while stop < len(counts_list) and (stop + 1 - start) * counts_list[stop] * directions.shape[1] <= budget:
            stop += 1
        most = counts_list[stop - 1]
        if most:
            groups = order[start:stop]
            chosen = ranking[groups, :most]
            yield groups, columns[chosen], visible[groups].gather(1, chosen)
        start = stop


def _intersect(
    scenes: Scene, scene: Tensor, primitives: Tensor, origin: Tensor, directions: Tensor, boxes: bool
) -> Tensor:
    """(m, p, n) ray parameter of the hit, inf without. scene (m,), primitives (m, p), origin (m, 3), directions (m, n, 3)."""
    scene = scene[:, None]
    half = scenes.half[scene, primitives].double()
    to_unit = scenes.rotation[scene, primitives].double().transpose(-1, -2) / half[..., None]
    start = (to_unit @ (origin[:, None] - scenes.centre[scene, primitives])[..., None])[..., 0]
    to_unit, start = to_unit.float()[..., None], start.float()[..., None]
    dx, dy, dz = (d[:, None] for d in directions.unbind(-1))
    # Written out instead of a matrix product: autocast and TF32 would round that to a few digits.
    d = [to_unit[:, :, i, 0] * dx + to_unit[:, :, i, 1] * dy + to_unit[:, :, i, 2] * dz for i in range(3)]
    o = [start[:, :, i] for i in range(3)]
    if boxes:
        near, far = _slab(o[0], d[0])
        for axis in (1, 2):
            low, high = _slab(o[axis], d[axis])
            near, far = torch.maximum(near, low), torch.minimum(far, high)
        inverted = (scenes.shape[scene, primitives] == Shape.SHELL)[..., None]
        t = torch.where(inverted, far, near)
    else:
        ball = (scenes.shape[scene, primitives] == Shape.ELLIPSOID)[..., None].float()  # a cylinder ignores z here
        a = (d[0] * d[0] + d[1] * d[1] + ball * d[2] * d[2]).clamp_min(1e-12)
        middle = -(o[0] * d[0] + o[1] * d[1] + ball * o[2] * d[2]) / a
        # Distance to the axis at the closest point: stable also for a small ball far away.
        off = [o[i] + middle * d[i] for i in range(3)]
        gap = 1 - (off[0] * off[0] + off[1] * off[1] + ball * off[2] * off[2])
        reach = (gap.clamp_min(0) / a).sqrt()
        low, high = _slab(o[2], d[2])
        near, far = torch.maximum(middle - reach, low), torch.minimum(middle + reach, high)
        t = torch.where(gap > 0, near, torch.inf)
    near_limit = 1e-3  # of the direction's length; a ray that starts on a surface does not hit it
    return torch.where((near <= far) & (t > near_limit), t, torch.inf)


def _slab(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    large = 1e9  # stands for infinity of a ray along the slab; infinity times 0 would be NaN
    inverse = (1 / d).clamp(-large, large)
    middle, reach = -o * inverse, inverse.abs()
    return middle - reach, middle + reach


TILE = 32  # pixels; edge of the square of rays that is culled together: small enough for a narrow cone


def _to_tiles(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """(B, H, W, C) -> (B * tiles, TILE * TILE, C); the margin repeats the last row and column."""
    B, H, W, C = x.shape
    ny, nx = -(-H // TILE), -(-W // TILE)
    rows = torch.arange(ny * TILE, device=x.device).clamp_max(H - 1)
    columns = torch.arange(nx * TILE, device=x.device).clamp_max(W - 1)
    x = x[:, rows][:, :, columns].view(B, ny, TILE, nx, TILE, C).transpose(2, 3)
    return x.reshape(B * ny * nx, TILE * TILE, C), (B, H, W, ny, nx)


def _from_tiles(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    B, H, W, ny, nx = shape
    rest = x.shape[2:]
    x = x.view(B, ny, nx, TILE, TILE, *rest).transpose(2, 3)
    return x.reshape(B, ny * TILE, nx * TILE, *rest)[:, :H, :W]


def quaternion_to_matrix(q: Tensor) -> Tensor:
    """(..., 4) xyzw, any length above zero -> (..., 3, 3)."""
    return rotation_matrix(q / q.norm(dim=-1, keepdim=True))
