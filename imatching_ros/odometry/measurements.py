"""Measurements in an image: corners, and depths from a depth image or a rectified stereo pair."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from ..core.config import OdometryConfig
from ..core.errors import CameraError, SourceError
from ..core.types import Frame, ObservationKind, as_grey
from ..matching.base import Features, Matcher

# -- corners ----------------------------------------------------------------------------------------------------------


def detect(
    matcher: Matcher,
    features: Features,
    image: Tensor,
    taken: Tensor,
    count: int,
    config: OdometryConfig,
    mask: Tensor | None = None,
) -> Tensor:
    """New points (N, 2) float32 raw px of an image (1, H, W) uint8, at most `count`, away from those already taken (K, 2) and from the mask.

    The matcher's own points where it has any, else corners by the smaller eigenvalue (Shi and Tomasi 1994).
    """
    height, width = image.shape[-2:]
    distance_px = config.corner_distance * width
    free = _free_mask(height, width, taken, distance_px, mask)
    own = matcher.points(features)
    if own is None:
        grey = np.ascontiguousarray(image[0].cpu().numpy())
        corners = cv2.goodFeaturesToTrack(grey, count, config.corner_quality, distance_px, mask=free)
        if corners is None:
            return torch.zeros(0, 2)
        # The gradient's window is symmetric only inside the image; OpenCV gives whole pixels.
        return _refine(image, torch.from_numpy(corners.reshape(-1, 2)))
    own = own.cpu().float()
    at = own.round().long()
    at = torch.minimum(at.clamp_min(0), torch.tensor([width - 1, height - 1]))
    own = own[torch.from_numpy(free)[at[:, 1], at[:, 0]] > 0]
    return own[spread_evenly(own, torch.arange(len(own), dtype=torch.float32), count, width, height)]


def _free_mask(height: int, width: int, taken: Tensor, distance_px: float, mask: Tensor | None) -> np.ndarray:
    """(H, W) uint8, 0 in the mask and within squares around the points taken (K, 2), else 255; the cost is the same for any number."""
    free = np.full((height, width), 255, np.uint8)
    if mask is not None:
        free[mask.numpy()] = 0
    if len(taken):
        marks = np.zeros((height, width), np.uint8)
        at = taken.round().long()
        inside = at[((at >= 0) & (at < torch.tensor([width, height]))).all(1)].numpy()
        marks[inside[:, 1], inside[:, 0]] = 255
        side = 2 * round(distance_px) + 1
        free[cv2.dilate(marks, np.ones((side, side), np.uint8)) > 0] = 0
    return free


def spread_evenly(
    uv: Tensor, rank: Tensor, count: int, width: int, height: int, cell_px: float | None = None
) -> Tensor:
    """Indices (at most `count`,) of points (N, 2) px, chosen evenly over the image; low `rank` (N,) first within a cell."""
    if len(uv) <= count:
        return torch.arange(len(uv))
    cell_px = cell_px or (width * height / count * 4) ** 0.5  # four points to a cell: even, yet free to prefer
    cell = (uv[:, 0] / cell_px).floor().long() * 4096 + (uv[:, 1] / cell_px).floor().long()
    order = rank.argsort(stable=True)
    order = order[cell[order].argsort(stable=True)]
    group = cell[order]
    start = torch.cat([torch.ones(1, dtype=torch.bool), group[1:] != group[:-1]])
    position = torch.arange(len(order))
    within = position - torch.where(start, position, 0).cummax(0).values
    return order[within.argsort(stable=True)[:count]]


def _refine(image: Tensor, corners: Tensor) -> Tensor:
    """Corners (N, 2) at whole pixels -> at fractions, kept where the refinement stays near."""
    moved = cv2.cornerSubPix(
        np.ascontiguousarray(image[0].cpu().numpy()),
        corners.numpy().copy(),
        (3, 3),
        (-1, -1),
        (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.03),
    )
    refined = torch.from_numpy(moved)
    return torch.where(((refined - corners).norm(dim=1, keepdim=True) < 2), refined, corners)


# -- depths -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DepthMeasurements:
    """What was measured at N points."""

    kind: ObservationKind
    measured: (
        Tensor  # (N,) float64: u in the right image (STEREO), inverse depth (DEPTH); NaN where nothing was measured
    )
    sigma: Tensor  # (N,) float64 of `measured`
    depth: Tensor  # (N,) float64, along the optical axis; NaN where nothing was measured


def resolve_mode(frame: Frame, mode: str) -> str:
    """mono, stereo or rgbd: the configured mode, checked against what the first frame carries."""
    if mode == "auto":
        if frame.depth is not None:
            return "rgbd"
        return "stereo" if frame.right is not None and frame.camera.baseline_m else "mono"
    missing = lacking(frame, mode)
    if missing:
        raise SourceError(
            f"odometry.mode is '{mode}', but the frame has no {missing} image; give a {missing} topic or folder, or set mode to "
            "'mono'"
        )
    if mode == "stereo" and not frame.camera.baseline_m:
        raise CameraError(
            "odometry.mode is 'stereo', but the camera has no baseline; it comes from P of the right CameraInfo"
        )
    return mode


def lacking(frame: Frame, mode: str) -> str:
    """Which image, `depth` or `right`, the mode measures by and the frame does not carry; empty when it carries all."""
    if mode == "rgbd" and frame.depth is None:
        return "depth"
    if mode == "stereo" and frame.right is None:
        return "right"
    return ""


def measure(frame: Frame, mode: str, uv: Tensor, config: OdometryConfig, far: bool = False) -> DepthMeasurements | None:
    """Depth of a frame at raw px (N, 2); None in mono, and for a frame that came without its depth or right image.

    In stereo, points beyond `stereo_far` baselines count as not measured unless `far`: there, a rectification that is wrong by
    a fraction of a pixel outweighs the measurement, and parallax from motion determines their depth better.
    """
    camera = frame.camera
    if mode == "rgbd" and frame.depth is not None:
        return _look_up(frame.depth, uv, config)
    if mode == "stereo" and frame.right is not None and camera.baseline_m is not None:
        farthest_m = torch.inf if far else config.stereo_far * camera.baseline_m
        return _match_row(frame.image, frame.right, uv, camera.fx * camera.baseline_m, farthest_m, config)
    return None


def explain_few(frame: Frame, mode: str, uv: Tensor, config: OdometryConfig) -> str:
    """Why few of the corners at raw px (N, 2) have a measured depth, where the images show it; else empty."""
    if mode == "rgbd" and frame.depth is not None:
        return _explain_depth(frame.depth, config)
    if mode == "stereo" and frame.right is not None:
        exchanged = replace(frame, image=frame.right, right=frame.image)
        here, there = (
            0 if found is None else int(torch.isfinite(found.depth).sum())
            for found in (measure(f, mode, uv, config, far=True) for f in (frame, exchanged))
        )
        if there >= config.start_landmarks and there > 2 * here:
            return f"with left and right exchanged there would be {there}: are the two topics?"
    return ""


def _explain_depth(depth: Tensor, config: OdometryConfig) -> str:
    """What is wrong with a depth image (H, W), m."""
    known = depth[depth > 0].float()
    if not len(known):
        return ""  # which `InputCheck` names
    for limit, outside in (("depth_max_m", known > config.depth_max_m), ("depth_min_m", known < config.depth_min_m)):
        share = float(outside.float().mean())
        if share > 0.5:
            return (
                f"{100 * share:.0f} % of the depths are beyond {limit} ({getattr(config, limit):g} m), their median is "
                f"{float(known.median()):.4g} m: is the unit right (16UC1 is mm, 32FC1 m)?"
            )
    share = len(known) / depth.numel()
    return f"{100 * share:.0f} % of the depth image is measured" if share < 0.5 else ""


def _look_up(depth_map: Tensor, uv: Tensor, config: OdometryConfig) -> DepthMeasurements:
    """Depths at the nearest pixels of a depth image (H, W), not at edges, where colour and depth disagree."""
    edge = 0.05  # neighbours differ by more than this share of the depth
    depth_map = depth_map.cpu()
    height, width = depth_map.shape
    at = uv.round().long()
    step = torch.tensor([-1, 0, 1])
    cols = (at[:, 0, None] + step).clamp(0, width - 1)[:, None, :]
    rows = (at[:, 1, None] + step).clamp(0, height - 1)[:, :, None]
    patch = depth_map[rows, cols].double().flatten(1)  # (N, 9)
    depth = patch[:, 4]
    patch = torch.where(torch.isfinite(patch) & (patch > 0), patch, torch.nan)
    flat = (patch - depth[:, None]).abs().nan_to_num(torch.inf).amax(1) < edge * depth
    good = flat & (depth >= config.depth_min_m) & (depth <= config.depth_max_m)
    depth = torch.where(good, depth, torch.nan)
    return DepthMeasurements(ObservationKind.DEPTH, 1 / depth, torch.full_like(depth, config.depth_sigma), depth)


def _match_row(
    image: Tensor, right_image: Tensor, uv: Tensor, focal_baseline: float, farthest_m: float, config: OdometryConfig
) -> DepthMeasurements:
    """Disparities of points (N, 2) of the left image, by matching along the rows of a rectified pair.

    `focal_baseline`: fx * baseline, px m.
    """
    sigma_px = 0.5  # of u in the right image, the tolerance of the check of Lucas-Kanade forwards and backwards
    left, right = (np.ascontiguousarray(as_grey(side)[0].cpu().numpy()) for side in (image, right_image))
    if left.shape != right.shape:
        raise SourceError(
            f"the right image is {right.shape[1]} x {right.shape[0]}, the left one {left.shape[1]} x {left.shape[0]}; "
            "a stereo pair must be rectified to one size"
        )
    u_right, found = _follow_row(left, right, uv, _coarse_disparity(left, right, uv, config))
    disparity = torch.from_numpy(np.ascontiguousarray(uv.float().numpy())[:, 0] - u_right).double()
    depth = focal_baseline / disparity.clamp_min(1e-3)
    good = torch.from_numpy(found) & (disparity > 0.5) & (depth >= config.depth_min_m) & (depth <= farthest_m)
    nothing = torch.full_like(depth, torch.nan)
    return DepthMeasurements(
        ObservationKind.STEREO,
        torch.where(good, torch.from_numpy(u_right).double(), nothing),
        torch.full_like(depth, sigma_px),
        torch.where(good, depth, nothing),
    )


def _coarse_disparity(left: np.ndarray, right: np.ndarray, uv: Tensor, config: OdometryConfig) -> np.ndarray:
    """Disparities (N,) float32 px to a pixel, by block matching at half the size, which costs an eighth; 0 or less where unknown."""
    height, width = left.shape
    steps = max(16, -(-int(config.max_disparity * width / 2) // 16) * 16)
    block = cv2.StereoBM_create(numDisparities=steps, blockSize=11)
    half = [cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA) for image in (left, right)]
    # Without the border, OpenCV leaves the leftmost columns empty.
    padded = [cv2.copyMakeBorder(image, 0, 0, steps, 0, cv2.BORDER_REPLICATE) for image in half]
    coarse = block.compute(*padded)[:, steps:]
    at = torch.minimum((uv / 2).floor().long().clamp_min(0), torch.tensor([width // 2 - 1, height // 2 - 1])).numpy()
    return coarse[at[:, 1], at[:, 0]].astype(np.float32) / 8  # 16 steps to a pixel of half the size


def _follow_row(
    left: np.ndarray, right: np.ndarray, uv: Tensor, disparity: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """u (N,) float32 in the right image to a fraction of a pixel by Lucas-Kanade, and whether it may be used (N,) bool.

    It must come back to where it started, stay near to the row, and near to the coarse disparity.
    """
    return_px, row_px, coarse_px = 0.5, 1.0, 3
    found = disparity > 0
    start = np.ascontiguousarray(uv.float().numpy())
    if not len(start):
        return start[:, 0], found
    guess = start - np.stack([np.maximum(disparity, 0), np.zeros_like(disparity)], 1)

    def follow(source: np.ndarray, target: np.ndarray, points: np.ndarray, at: np.ndarray):
        moved, ok, _ = cv2.calcOpticalFlowPyrLK(
            source, target, points, at.copy(), winSize=(15, 15), maxLevel=1, flags=cv2.OPTFLOW_USE_INITIAL_FLOW
        )
        return moved, ok[:, 0] > 0

    there, ok = follow(left, right, start, guess)
    back, ok_back = follow(right, left, there, start)
    found &= ok & ok_back & (np.linalg.norm(back - start, axis=1) < return_px)
    found &= (np.abs(there[:, 1] - start[:, 1]) < row_px) & (np.abs(there[:, 0] - guess[:, 0]) < coarse_px)
    return there[:, 0], found
