"""Training pairs with exact depth and poses, and the exact correspondence between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...learning.augmentation import augment
from .kinds import make_scene
from .renderer import quaternion_to_matrix, render_depth, render_views
from .scene import Scene, stack
from .textures import TextureBank, build_bank

KIND_SHARES = {"room": 0.3, "corridor": 0.2, "outdoor": 0.25, "clutter": 0.25}
# Share, metres indoors, turn in degrees (yaw, pitch, roll), least overlap, share that turns back to look at the same place.
DIFFICULTIES = {
    "small": (0.50, (0.0, 0.15), (4.0, 2.5, 2.5), 0.6, 0.0),
    "medium": (0.35, (0.05, 0.5), (12.0, 6.0, 7.0), 0.35, 0.4),
    "wide": (0.15, (0.3, 1.5), (20.0, 8.0, 15.0), 0.2, 0.7),
}
TRAINING_SCENES = 10_000_000  # seeds of training scenes start here; tests and learning experiments use seeds below


class PairRenderer:
    """Renders training pairs; keeps the textures on the device between calls."""

    def __init__(
        self,
        device: torch.device | str = "cpu",
        photos: Sequence[Tensor] | None = None,
        *,
        variants: int = 8,
        texture_size: int = 512,
        held_out: bool = False,
        seed: int = 0,
    ) -> None:
        """
        Args:
            photos: (3 or 1, H, W) images, uint8 or float 0..1, used as textures too.
            variants: textures per family.
            held_out: scenes and texture families that training never uses, for validation.
        """
        self.device = torch.device(device)
        self.held_out = held_out
        self.bank: TextureBank = build_bank(
            seed, variants=variants, size=texture_size, held_out=held_out, photos=photos, device=self.device
        )

    def pairs(
        self,
        seed: int,
        count: int,
        size: tuple[int, int] = (240, 320),
        *,
        supersample: int = 1,
        pairs_per_scene: int = 8,
        effects: bool = True,
    ) -> dict[str, Tensor]:
        """`count` pairs of images of (height, width) `size`; the same seed gives the same pairs.

        Returns:
            image_A, image_B (N, 1, H, W) float32 grey 0..1, each with its own photometric effects;
            depth_A, depth_B (N, H, W) float32 metres, 0 = none; K (N, 4) float32 fx fy cx cy, of both;
            T_WA, T_WB (N, 7) float64 camera to world; difficulty (N,) int64, row of DIFFICULTIES.
        """
        rng = np.random.default_rng((seed, 11))
        scenes, is_outdoor = self._scenes(rng, max(1, -(-count // pairs_per_scene)))
        K, T_WA, T_WB, scene, difficulty = self._views(rng, scenes, is_outdoor, count, size)
        T = torch.cat([T_WA, T_WB])
        views = list(
            zip(*(x.split(64 if self.device.type == "cuda" else 4) for x in (T, K.repeat(2, 1), scene.repeat(2))))
        )
        images, depths = zip(*(render_views(scenes, (k, size), t, s, supersample) for t, k, s in views))
        luma = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in OpenCV
        grey = (torch.cat(images) * torch.tensor(luma, device=self.device).view(3, 1, 1)).sum(1, keepdim=True)
        # An automatic exposure common to both, so that what the effects add is the only difference.
        mean = (grey[:count] + grey[count:]).mean((1, 2, 3)).repeat(2).clamp_min(0.02) / 2
        target = torch.as_tensor(rng.uniform(0.25, 0.65, count), dtype=torch.float32, device=self.device).repeat(2)
        grey = grey * (target / mean).clamp(0.3, 4.0)[:, None, None, None]
        grey = augment(grey, seed) if effects else grey.clamp(0, 1)
        depth = torch.cat(depths)
        return {
            "image_A": grey[:count],
            "image_B": grey[count:],
            "depth_A": depth[:count],
            "depth_B": depth[count:],
            "K": K.float(),
            "T_WA": T_WA,
            "T_WB": T_WB,
            "difficulty": difficulty,
        }

    def _scenes(self, rng: np.random.Generator, count: int) -> tuple[Scene, np.ndarray]:
        kinds = rng.choice(list(KIND_SHARES), count, p=list(KIND_SHARES.values()))
        first = 0 if self.held_out else TRAINING_SCENES
        seeds = first + rng.integers(0, TRAINING_SCENES, count)
        scenes = stack([make_scene(str(kind), int(s), self.bank) for kind, s in zip(kinds, seeds)])
        return scenes.to(self.device), kinds == "outdoor"

    def _views(
        self, rng: np.random.Generator, scenes: Scene, is_outdoor: np.ndarray, count: int, size: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Draws more candidates than needed and keeps those that look at enough of the same surfaces, none of them too near."""
        tries = 4
        level = np.repeat(rng.choice(len(DIFFICULTIES), count, p=[row[0] for row in DIFFICULTIES.values()]), tries)
        scene = np.repeat(np.arange(count) * len(is_outdoor) // count, tries)
        n = count * tries
        height, width = size
        view = np.radians(np.repeat(rng.uniform(45, 95, count), tries))  # horizontal angle of view
        focal = 0.5 * width / np.tan(view / 2)
        K = np.stack([focal, focal, np.full(n, (width - 1) / 2), np.full(n, (height - 1) / 2)], 1)
        outdoor = is_outdoor[scene]
        low, high = scenes.low.cpu().numpy()[scene], scenes.high.cpu().numpy()[scene]
        position = low + (high - low) * rng.random((n, 3))
        R_A = _look(rng, outdoor)
        move, R_turn = _draw_motion(rng, R_A, level, outdoor)

        def tensor(x):
            return torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float64, device=self.device)

        small = (max(height // 8, 8), max(width // 8, 8))
        K_small = tensor(K) / 8
        scene_t = torch.as_tensor(scene, device=self.device)
        T_A = torch.cat([tensor(position), tensor(matrix_to_quaternion(R_A))], 1)
        depth_A = _depth_in_parts(scenes, (K_small, small), T_A, scene_t)
        middle = depth_A[:, small[0] // 2, small[1] // 2].clamp(0.3, 60).double().cpu().numpy()
        R_B = R_A @ _turn_back(rng, R_A, move, middle, level) @ R_turn
        T_B = torch.cat([tensor(position + move), tensor(matrix_to_quaternion(R_B))], 1)
        depth_B = _depth_in_parts(scenes, (K_small, small), T_B, scene_t)
        overlap = _overlap(depth_A, depth_B, K_small, T_A, T_B)
        nearest = torch.minimum(_nearest(depth_A), _nearest(depth_B))
        least = torch.as_tensor(_column(3)[level], device=self.device)
        good = (overlap >= least).float() * 2 + (nearest > 0.35).float() * 4 + overlap * 0.5
        best = good.view(count, tries).argmax(1) + torch.arange(count, device=self.device) * tries
        return tensor(K)[best], T_A[best], T_B[best], scene_t[best], torch.as_tensor(level, device=self.device)[best]


def _column(index: int) -> np.ndarray:
    """One value of every difficulty."""
    return np.array([row[index] for row in DIFFICULTIES.values()])


def _look(rng: np.random.Generator, outdoor: np.ndarray) -> np.ndarray:
    """(N, 3, 3) rotations of first views; of those outdoors most look along the street."""
    n = len(outdoor)
    heading = rng.uniform(0, 2 * np.pi, n)
    along_road = outdoor & (rng.random(n) < 0.75)
    heading = np.where(along_road, rng.choice([0, np.pi], n) + rng.normal(0, 0.35, n), heading)
    free = rng.random(n) < 0.35  # hand-held and flying cameras tilt; those of robots and cars hardly
    pitch = np.where(free, rng.normal(-0.05, 0.4, n), rng.normal(0, 0.1, n))
    roll = np.where(free, rng.normal(0, 0.3, n), rng.normal(0, 0.03, n))
    return look_along(heading, np.clip(pitch, -1.2, 1.2), roll)


def _draw_motion(
    rng: np.random.Generator, R_A: np.ndarray, level: np.ndarray, outdoor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Translations (N, 3) in the world and rotations (N, 3, 3) from first to second views, of difficulties (N,)."""
    n = len(level)
    reach = _column(1)[level]
    outdoor_scale = 8.0  # a street is driven, a room is walked
    distance = (reach[:, 0] + (reach[:, 1] - reach[:, 0]) * rng.random(n)) * np.where(outdoor, outdoor_scale, 1.0)
    direction = rng.normal(0, 1, (n, 3)) * (1.0, 0.35, 1.3)  # camera axes: little up and down, more forward
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    move = (R_A @ (direction * distance[:, None])[..., None])[..., 0]
    turn = rng.normal(0, 1, (n, 3)) * np.radians(_column(2)[level])
    return move, _rotation_y(turn[:, 0]) @ _rotation_x(turn[:, 1]) @ _rotation_z(turn[:, 2])


def _turn_back(
    rng: np.random.Generator, R_A: np.ndarray, move: np.ndarray, depth: np.ndarray, level: np.ndarray
) -> np.ndarray:
    """(N, 3, 3): some second views turn back to the place that the first one looks at, `depth` (N,) m before it.

    Scale and viewpoint change, overlap stays.
    """
    n = len(level)
    returns = rng.random(n) < _column(4)[level]
    offset = (R_A.transpose(0, 2, 1) @ move[..., None])[..., 0]
    towards = np.stack([np.zeros(n), np.zeros(n), depth], 1) - offset
    back = _rotation_y(np.arctan2(towards[:, 0], towards[:, 2])) @ _rotation_x(
        -np.arctan2(towards[:, 1], np.hypot(towards[:, 0], towards[:, 2]))
    )
    return np.where(returns[:, None, None], back, np.eye(3))


def warp(
    uv_A: Tensor,
    depth_A: Tensor,
    K_A: Tensor,
    T_WA: Tensor,
    T_WB: Tensor,
    depth_B: Tensor,
    K_B: Tensor | None = None,
    tolerance: float = 0.02,
) -> tuple[Tensor, Tensor]:
    """Where points of A are in B, by depth and poses (undistorted cameras).

    Args:
        uv_A: (N, M, 2) px.
        depth_A, depth_B: (N, H, W) metres, 0 = none.
        K_A, K_B: (N, 4); K_B is K_A if None.
        T_WA, T_WB: (N, 7).
        tolerance: relative difference of depth in B above which a point counts as occluded.

    Returns:
        uv_B (N, M, 2) float32 px; visible (N, M) bool: has depth in A away from a depth edge, lies in the image B and
        is not occluded.
    """
    K_B = K_A if K_B is None else K_B
    z_A, smooth = sample_depth(depth_A, uv_A)
    K_A, K_B = K_A.double()[:, None], K_B.double()[:, None]
    xy = (uv_A.double() - K_A[..., 2:]) / K_A[..., :2]
    points_A = torch.cat([xy, torch.ones_like(xy[..., :1])], -1) * z_A.double()[..., None]
    R_A, R_B = (quaternion_to_matrix(T[:, 3:].double()) for T in (T_WA, T_WB))
    points_W = points_A @ R_A.transpose(1, 2) + T_WA[:, None, :3].double()
    points_B = (points_W - T_WB[:, None, :3].double()) @ R_B
    z_B = points_B[..., 2]
    uv_B = points_B[..., :2] / z_B.clamp_min(1e-6)[..., None] * K_B[..., :2] + K_B[..., 2:]
    H, W = depth_B.shape[1:]
    inside = (uv_B >= 0).all(-1) & (uv_B[..., 0] <= W - 1) & (uv_B[..., 1] <= H - 1) & (z_B > 1e-3)
    # At a silhouette of B the four depths around differ: one of them has to be the point's. Elsewhere the interpolated one.
    interpolated, smooth_B = sample_depth(depth_B, uv_B)
    gaps = (_corners(depth_B, uv_B) - z_B[..., None]).abs().amin(-1)
    gap = torch.where(smooth_B, (interpolated - z_B).abs(), gaps)
    return uv_B.float(), smooth & inside & (gap <= tolerance * z_B + 0.005)


def sample_depth(depth: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
    """Depth between pixels; depth (N, H, W), uv (N, M, 2).

    Inverse depth is interpolated, because a plane's is linear in the image, so the result is exact on planes.

    Returns:
        z (N, M), and smooth (N, M) bool, False without depth or across a depth edge (where z means nothing).
    """
    corners = _corners(depth, uv)
    frac = (uv - uv.floor()).to(depth.dtype)
    fx, fy = frac.unbind(-1)
    weights = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], -1)
    inverse = 1 / corners.clamp_min(1e-6)
    z = 1 / (weights * inverse).sum(-1)
    # On a plane the four inverse depths lie on a parallelogram; this also holds at grazing angles, where they differ much.
    twist = (inverse[..., 0] - inverse[..., 1] - inverse[..., 2] + inverse[..., 3]).abs()
    ratio = corners.amax(-1) / corners.amin(-1).clamp_min(1e-6)
    smooth = (corners.amin(-1) > 0) & (ratio < 1.3) & (twist < 0.01 * inverse.amax(-1))
    exact = (frac == 0).all(-1) & (corners[..., 0] > 0)
    return torch.where(exact, corners[..., 0], z), smooth | exact


def _corners(depth: Tensor, uv: Tensor) -> Tensor:
    """(N, M, 4) the depths of the four pixels around uv: upper left, upper right, lower left, lower right."""
    N, H, W = depth.shape
    corner = uv.nan_to_num(0.0).floor()
    u = corner[..., 0].clamp(0, W - 1).long()
    v = corner[..., 1].clamp(0, H - 1).long()
    u1, v1 = (u + 1).clamp_max(W - 1), (v + 1).clamp_max(H - 1)
    flat = depth.flatten(1)
    return torch.stack([flat.gather(1, y * W + x) for y in (v, v1) for x in (u, u1)], -1)


def look_along(heading: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """(n, 3, 3) camera-to-world rotations of cameras that look along a heading (rad, from x towards y), pitched up, rolled."""
    forward = np.stack([np.cos(heading) * np.cos(pitch), np.sin(heading) * np.cos(pitch), np.sin(pitch)], -1)
    right = np.stack([np.sin(heading), -np.cos(heading), np.zeros_like(heading)], -1)
    return np.stack([right, np.cross(forward, right), forward], -1) @ _rotation_z(roll)


def matrix_to_quaternion(R: np.ndarray) -> np.ndarray:
    """(n, 3, 3) -> (n, 4) xyzw."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(R).as_quat()


def _rotation_x(a: np.ndarray) -> np.ndarray:
    o, i, c, s = np.zeros_like(a), np.ones_like(a), np.cos(a), np.sin(a)
    return np.stack([i, o, o, o, c, -s, o, s, c], -1).reshape(-1, 3, 3)


def _rotation_y(a: np.ndarray) -> np.ndarray:
    o, i, c, s = np.zeros_like(a), np.ones_like(a), np.cos(a), np.sin(a)
    return np.stack([c, o, s, o, i, o, -s, o, c], -1).reshape(-1, 3, 3)


def _rotation_z(a: np.ndarray) -> np.ndarray:
    o, i, c, s = np.zeros_like(a), np.ones_like(a), np.cos(a), np.sin(a)
    return np.stack([c, -s, o, s, c, o, o, o, i], -1).reshape(-1, 3, 3)


def _depth_in_parts(scenes: Scene, camera: tuple[Tensor, tuple[int, int]], T: Tensor, scene: Tensor) -> Tensor:
    K, size = camera
    return torch.cat(
        [render_depth(scenes, (k, size), t, s) for k, t, s in zip(K.split(512), T.split(512), scene.split(512))]
    )


def _overlap(depth_A: Tensor, depth_B: Tensor, K: Tensor, T_A: Tensor, T_B: Tensor) -> Tensor:
    """(N,) share of the pixels of A that have depth and are seen in B."""
    N, H, W = depth_A.shape
    v, u = torch.meshgrid(torch.arange(H, device=K.device), torch.arange(W, device=K.device), indexing="ij")
    uv = torch.stack([u, v], -1).reshape(1, -1, 2).expand(N, -1, -1).float()
    _, visible = warp(uv, depth_A, K, T_A, T_B, depth_B, tolerance=0.1)
    return visible.float().mean(1)


def _nearest(depth: Tensor) -> Tensor:
    """(N,) the smallest depth of each image, ignoring pixels without depth."""
    return torch.where(depth > 0, depth, torch.inf).flatten(1).amin(1)
