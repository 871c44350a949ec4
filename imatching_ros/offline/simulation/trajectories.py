"""Smooth, seeded camera paths through a scene that stay clear of its surfaces: a robot with a camera, or a car."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from ...core.errors import ConfigError
from .scene import Scene, Shape

MOTIONS = ("tour", "sweep", "floor", "ramp", "pure_rotation", "still")
PATH_STEP_S = 0.02  # the path is planned at this resolution whatever the frame rate
SWEEP_DEG = 50.0  # from one side to the other
SWEEP_FIRST_S, SWEEP_EVERY_S = 1.5, 2.0
# Slope and length of ramps, up and down in turn, and of what is level between them.
RAMP_DEG, RAMP_M, LEVEL_M = 10.0, 1.5, 1.5
SPEED_MPS = {"room": 0.45, "corridor": 0.6, "outdoor": 5.0, "clutter": 0.45}  # a service robot, a car in a street
WHEELBASE_M = 0.4  # over which the slope under a robot changes


def make_trajectory(
    scene: Scene,
    kind: str,
    duration_s: float,
    stamps_s: np.ndarray,
    seed: int,
    motion: str = "tour",
    speed_mps: float | None = None,
    turn_deg_s: float = 120.0,
) -> Tensor:
    """Poses at the given times.

    Args:
        scene: one scene.
        kind: its kind; decides the speed and whether the path tours the place or goes up and down along x.
        duration_s: length of the whole path; the same seed and duration give the same path whatever the stamps are.
        stamps_s: (N,) times from 0 to duration_s.
        motion: "tour", "sweep" (a tour with fast turns), "floor" (on level wheels), "ramp" (the same with ramps of 10 degrees),
            "pure_rotation" (turns on the spot) or "still".
        speed_mps: mean speed; by kind if None.
        turn_deg_s: of the fast turns.

    Returns:
        (N, 7) float64 T_WC.
    """
    if motion not in MOTIONS:
        raise ConfigError(f"unknown motion '{motion}'; known are {', '.join(MOTIONS)}")
    rng = np.random.default_rng((seed, 23))
    count = max(int(np.ceil(duration_s / PATH_STEP_S)) + 2, 8)
    position = _tour(scene, rng, kind, count, duration_s, SPEED_MPS.get(kind, 0.5) if speed_mps is None else speed_mps)
    angles = _attitude(rng, position, kind)
    position[:, 2] += (0.015 if kind != "outdoor" else 0.03) * _drift(rng, count, 0.8)
    tilt = np.zeros((count, 3))
    if motion == "sweep":
        angles[0] += _sweeps(count, turn_deg_s)
    elif motion in ("floor", "ramp"):
        angles[1:] = 0.0
        position[:, 2], tilt = _on_wheels(position, RAMP_DEG if motion == "ramp" else 0.0)
    elif motion != "tour":
        position[:] = position[0]
    if motion == "still":
        angles[:] = angles[:, :1]
    elif motion == "pure_rotation":
        angles[0] = angles[0, 0] + np.radians(60) * _drift(rng, count, 3.0)
    return _sample(position, angles, tilt, np.asarray(stamps_s, float))


def _sample(position: np.ndarray, angles: np.ndarray, tilt: np.ndarray, stamps_s: np.ndarray) -> Tensor:
    """(N, 7) float64 poses at times (N,) on a path of positions (P, 3), angles (3, P) and tilts of the ground (P, 3)."""
    # Camera axes in the world for a heading of zero: z along +x, x along -y, y down.
    upright = Rotation.from_matrix(np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float))
    heading, pitch, roll = angles
    turned = Rotation.from_rotvec(tilt) * Rotation.from_euler("ZYX", np.stack([heading, -pitch, roll], 1)) * upright
    times = np.arange(len(position)) * PATH_STEP_S
    wanted = np.clip(stamps_s, 0, times[-1])
    place = np.stack([np.interp(wanted, times, position[:, i]) for i in range(3)], 1)
    quaternion = Slerp(times, turned)(wanted).as_quat()
    return torch.from_numpy(np.concatenate([place, quaternion], 1))


def _tour(scene: Scene, rng: np.random.Generator, kind: str, count: int, duration_s: float, speed: float) -> np.ndarray:
    """(count, 3) positions every PATH_STEP_S on a walk through the scene."""
    long_place = kind in ("corridor", "outdoor")
    path = _walk(scene, rng, speed * duration_s * 1.3 + 1.0, long_place, 1.2 if kind == "outdoor" else 0.45)
    return _at_speed(rng, path, speed, count, 2.5 if kind == "outdoor" else 0.35)


def _attitude(rng: np.random.Generator, position: np.ndarray, kind: str) -> np.ndarray:
    """Heading, pitch and roll (3, N) rad on a path (N, 3): the robot looks where it goes, later than it turns, and now and then aside."""
    count = len(position)
    ahead = np.gradient(position, axis=0)
    heading = np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))
    aside = np.radians(8 if kind == "outdoor" else 22) * _drift(rng, count, 4.0)
    heading = gaussian_filter1d(heading, 0.8 / PATH_STEP_S, mode="nearest") + aside
    nod = np.radians(0.5 if kind in ("corridor", "outdoor") else 2.0)
    pitch = np.radians(-3) + np.radians(1.5) * _drift(rng, count, 1.5) + nod * _drift(rng, count, 4.0)
    roll = np.radians(0.8) * _drift(rng, count, 1.5)
    return np.stack([heading, pitch, roll])


def _sweeps(count: int, turn_deg_s: float) -> np.ndarray:
    """(count,) rad: turns to one side and back, each from rest to `turn_deg_s` and to rest again, with pauses between."""
    times = np.arange(count) * PATH_STEP_S - SWEEP_FIRST_S
    number = np.floor(times / SWEEP_EVERY_S)
    length_s = min(SWEEP_DEG / max(turn_deg_s, 1e-9), SWEEP_EVERY_S / 2)
    turning = (number >= 0) & (times - number * SWEEP_EVERY_S < length_s)
    rate = np.where(turning, np.radians(turn_deg_s) * (-1) ** number, 0.0)
    return np.cumsum(gaussian_filter1d(rate, 0.04 / PATH_STEP_S)) * PATH_STEP_S


def _on_wheels(position: np.ndarray, ramp_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """Height (N,) and rotation vector (N, 3) of the ground under a path (N, 3): level, a ramp up, level, a ramp down, and again."""
    ahead = np.diff(position[:, :2], axis=0, append=position[-1:, :2])
    steps = np.linalg.norm(ahead, axis=1)
    phase = np.cumsum(steps) % (2 * (LEVEL_M + RAMP_M))
    up = (phase >= LEVEL_M) & (phase < LEVEL_M + RAMP_M)
    slope = np.radians(ramp_deg) * (up.astype(float) - (phase >= 2 * LEVEL_M + RAMP_M))
    slope = gaussian_filter1d(slope, WHEELBASE_M / 4 / max(steps.mean(), 1e-6), mode="nearest")
    direction = np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))
    axis = np.stack([np.sin(direction), -np.cos(direction), np.zeros(len(direction))], 1)  # to the right: nose up
    return position[0, 2] + np.cumsum(np.tan(slope) * steps), slope[:, None] * axis


def clearance(scene: Scene, points: np.ndarray) -> np.ndarray:
    """(N,) metres from points (N, 3) to the nearest solid primitive (its box), negative inside; shells do not count."""
    solid = ((scene.shape[0] >= 0) & (scene.shape[0] != Shape.SHELL)).numpy()
    if not solid.any():
        return np.full(len(points), np.inf)
    centre = scene.centre[0].numpy()[solid]
    rotation = scene.rotation[0].double().numpy()[solid]
    half = scene.half[0].double().numpy()[solid]
    local = np.einsum("pji,npj->npi", rotation, points[:, None] - centre[None])
    gap = np.abs(local) - half
    outside = np.linalg.norm(np.maximum(gap, 0), axis=-1)
    return (outside + np.minimum(gap.max(-1), 0)).min(1)


def _walk(scene: Scene, rng: np.random.Generator, length: float, long_place: bool, keep: float) -> np.ndarray:
    """Corner points of a walk of at least `length` metres; its straight parts keep as clear of everything as they can."""
    low, high = scene.low[0].numpy(), scene.high[0].numpy()
    span = high - low
    height = rng.uniform(low[2] + 0.2 * span[2], low[2] + 0.8 * span[2])

    def draw(n: int) -> np.ndarray:
        points = low + span * rng.random((n, 3))
        points[:, 2] = np.clip(height + rng.normal(0, 0.05, n), low[2], high[2])
        return points

    starts = draw(200)
    if long_place:
        starts = starts[starts[:, 0] < low[0] + 0.3 * span[0]]
    points = [starts[np.argmax(np.minimum(clearance(scene, starts), keep * 2))]]
    forward, travelled = 1.0, 0.0
    while travelled < length:
        last = points[-1]
        if long_place:
            stride = rng.uniform(0.08, 0.2) * span[0]
            if not low[0] <= last[0] + forward * stride <= high[0]:
                forward = -forward
            candidates = draw(24)
            candidates[:, 0] = np.clip(last[0] + forward * stride, low[0], high[0])
        else:
            candidates = draw(48)
            far = np.linalg.norm(candidates - last, axis=1) > 0.25 * np.linalg.norm(span[:2])
            candidates = candidates[far] if far.any() else candidates
        parts = np.linspace(0.1, 1, 12)[None, :, None]
        between = last + (candidates[:, None] - last) * parts
        clear = clearance(scene, between.reshape(-1, 3)).reshape(len(candidates), -1).min(1)
        # Do not go straight back if another way is as free.
        score = np.minimum(clear, keep)
        if len(points) > 1 and not long_place:
            before = (last - points[-2]) / (np.linalg.norm(last - points[-2]) + 1e-9)
            after = (candidates - last) / (np.linalg.norm(candidates - last, axis=1, keepdims=True) + 1e-9)
            score = score + 0.3 * keep * (after @ before)
        points.append(candidates[score.argmax()])
        travelled += float(np.linalg.norm(points[-1] - last))
    return np.array(points)


def _at_speed(rng: np.random.Generator, corners: np.ndarray, speed: float, count: int, smooth_m: float) -> np.ndarray:
    """(count, 3) positions every PATH_STEP_S along the rounded polyline, at a speed that varies gently."""
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    along = np.concatenate([[0], np.cumsum(lengths)])
    pitch = smooth_m / 10
    fine = np.arange(0, along[-1], pitch)
    line = np.stack([np.interp(fine, along, corners[:, i]) for i in range(3)], 1)
    line = gaussian_filter1d(line, smooth_m / pitch, axis=0, mode="nearest")
    rate = speed * (1 + 0.25 * _drift(rng, count, 3.0)).clip(0.4, 1.6)
    distance = np.concatenate([[0], np.cumsum(rate[:-1] * PATH_STEP_S)])
    travelled = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    distance = np.minimum(distance, travelled[-1])
    path = np.stack([np.interp(distance, travelled, line[:, i]) for i in range(3)], 1)
    return gaussian_filter1d(path, 0.3 / PATH_STEP_S, axis=0, mode="nearest")


def _drift(rng: np.random.Generator, count: int, period_s: float) -> np.ndarray:
    """(count,) smooth random wandering of about unit deviation that changes within `period_s`."""
    sigma = period_s / 2.5 / PATH_STEP_S
    margin = int(4 * sigma) + 1
    noise = gaussian_filter1d(rng.normal(0, 1, count + 2 * margin), sigma)[margin : margin + count]
    return noise * np.sqrt(2 * np.sqrt(np.pi) * sigma)
