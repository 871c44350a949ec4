"""Synthetic bundle adjustment windows with exact truth: a camera that drives past landmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core import geometry
from ...camera.model import Camera
from ...core.types import ObservationKind, WindowSnapshot


@dataclass(frozen=True)
class SyntheticWindow:
    """A window whose start is off the truth, and the truth."""

    window: WindowSnapshot
    T_WC: Tensor  # (M, 7) float64, true
    points_W: Tensor  # (P, 3) float64, true
    outlier: Tensor  # (O,) bool


def make_window(
    keyframes: int,
    landmarks: int,
    *,
    seed: int = 0,
    kind: ObservationKind = ObservationKind.MONO,
    track: float = 4.4,
    shortest_track: int = 3,
    noise_px: float = 1.0,
    outliers: float = 0.0,
    pose_noise: float = 0.02,
    point_noise: float = 0.05,
    motion: str = "sideways",
    step_m: float = 0.5,
) -> SyntheticWindow:
    """A window of a 640 x 480 camera with f = 500 px.

    Args:
        track: mean number of keyframes that see a landmark (consecutive ones). shortest_track: the least of them; landmarks seen
            twice, once wrongly, may have their best place at infinity or behind the cameras, where solvers disagree.
        noise_px: standard deviation of the pixels. outliers: part of the observations that are off by up to 50 px.
        pose_noise: start error of the free poses, in metres and, a quarter of it, radians. point_noise: relative to depth.
        step_m: way between keyframes; the landmarks are 2 to 10 m away.
        motion: sideways, forward or rotation (about the optical centre, no translation).
    """
    g = torch.Generator().manual_seed(seed)
    camera = Camera(640, 480, 500.0, 500.0, 319.5, 239.5, baseline_m=0.2)
    T = _path(g, keyframes, motion, step_m)
    # Every landmark is placed in the view of the middle keyframe of its track.
    first, length = _tracks(g, keyframes, landmarks, track, shortest_track)
    uv = _uniform(g, landmarks, 2) * torch.tensor([520.0, 360.0]) + 60
    depth = 2 + 8 * _uniform(g, landmarks)
    points = geometry.act(T[first + length // 2], geometry.back_project(camera, uv, depth))
    member = torch.arange(keyframes)[None] - first[:, None]
    pt_idx, kf_idx = torch.nonzero((member >= 0) & (member < length[:, None]), as_tuple=True)
    points_C = geometry.act(geometry.inverse(T)[kf_idx], points[pt_idx])
    seen = points_C[:, 2] > 0.3
    kf_idx, pt_idx = kf_idx[seen], pt_idx[seen]
    obs, sigma = _measure(g, camera, points_C[seen], kind, noise_px)
    outlier = _uniform(g, len(obs)) < outliers
    obs[:, :2] += torch.where(outlier[:, None], (_uniform(g, len(obs), 2) - 0.5) * 100, 0.0)

    fixed = torch.zeros(keyframes, dtype=torch.bool)
    fixed[0] = True
    shake = _normal(g, keyframes, 6) * pose_noise * torch.tensor([1, 1, 1, 0.25, 0.25, 0.25])
    shake[0] = 0
    start_T = geometry.retract(T, shake)
    away = _normal(g, landmarks, 3) * point_noise * depth[:, None]
    kinds = torch.full((len(obs),), int(kind))
    window = WindowSnapshot(camera, start_T, points + away, kf_idx, pt_idx, obs, kinds, sigma, fixed)
    return SyntheticWindow(window, T, points, outlier)


def _path(g: torch.Generator, keyframes: int, motion: str, step_m: float) -> Tensor:
    """(keyframes, 7) true poses T_WC with a little noise; the first is the identity."""
    step = torch.arange(keyframes, dtype=torch.float64)
    twist = torch.zeros(keyframes, 6, dtype=torch.float64)
    if motion == "sideways":
        twist[:, 0], twist[:, 2] = step_m * step, 0.2 * step_m * step
        twist[:, 4] = -0.02 * step
    elif motion == "forward":
        twist[:, 2] = step_m * step
    else:
        twist[:, 4] = 0.03 * step
    twist += _normal(g, keyframes, 6) * torch.tensor([0.02, 0.02, 0.02, 0.01, 0.01, 0.01])
    if motion == "rotation":
        twist[:, :3] = 0
    T = geometry.exp(twist)
    return geometry.compose(geometry.inverse(T[:1]), T)


def _tracks(g: torch.Generator, keyframes: int, landmarks: int, mean: float, least: int) -> tuple[Tensor, Tensor]:
    """First keyframe and number of keyframes of each landmark's track, (landmarks,) int64 each."""
    length = (_uniform(g, landmarks) * (2 * (mean - least)) + least).round().clamp(2, keyframes).long()
    return (_uniform(g, landmarks) * (keyframes - length + 1)).long(), length


def _measure(
    g: torch.Generator, camera: Camera, points_C: Tensor, kind: ObservationKind, noise_px: float
) -> tuple[Tensor, Tensor]:
    """Noisy observations of points (O, 3) in their camera, and their standard deviations, (O, 3) each."""
    count = len(points_C)
    obs = torch.zeros(count, 3, dtype=torch.float64)
    obs[:, :2] = geometry.project(camera, points_C)
    sigma = torch.full((count, 3), noise_px, dtype=torch.float64)
    if kind == ObservationKind.STEREO:
        obs[:, 2] = obs[:, 0] - camera.fx * camera.baseline_m / points_C[:, 2]
    elif kind == ObservationKind.DEPTH:
        obs[:, 2] = 1 / points_C[:, 2]
        sigma[:, 2] = noise_px / (camera.fx * camera.baseline_m)
    obs += _normal(g, count, 3) * sigma
    if kind == ObservationKind.MONO:
        obs[:, 2] = 0
    return obs, sigma


def _uniform(g: torch.Generator, *size: int) -> Tensor:
    return torch.rand(*size, generator=g, dtype=torch.float64)


def _normal(g: torch.Generator, *size: int) -> Tensor:
    return torch.randn(*size, generator=g, dtype=torch.float64)
