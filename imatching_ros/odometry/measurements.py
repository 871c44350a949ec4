"""Where to look: corners of an image, and an even choice among points."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from ..matching.base import Features, Matcher
from dataclasses import dataclass
from ..core.config import OdometryConfig
from ..core.types import Frame, ObservationKind, as_grey
from ..core.errors import CameraError, SourceError


def detect(
    matcher: Matcher, features: Features, image: Tensor, taken: Tensor, count: int, distance_px: float, quality: float
) -> Tensor:
    """New points (N, 2) float32 raw px of an image (1, H, W) uint8, at most `count`, away from those already taken (K, 2).

    The matcher's own points where it has any, else corners by the smaller eigenvalue (Shi and Tomasi 1994).
    """
    height, width = image.shape[-2:]
    free = np.full((height, width), 255, np.uint8)
    if len(taken):
        # Stamping squares by a dilation costs the same for any number of points.
        marks = np.zeros((height, width), np.uint8)
        at = taken.round().long()
        inside = at[((at >= 0) & (at < torch.tensor([width, height]))).all(1)].numpy()
        marks[inside[:, 1], inside[:, 0]] = 255
        side = 2 * round(distance_px) + 1
        free[cv2.dilate(marks, np.ones((side, side), np.uint8)) > 0] = 0
    own = matcher.points(features)
    if own is None:
        corners = cv2.goodFeaturesToTrack(
            np.ascontiguousarray(image[0].cpu().numpy()), count, quality, distance_px, mask=free
        )
        if corners is None:
            return torch.zeros(0, 2)
        # The gradient's window is symmetric only inside the image; OpenCV gives whole pixels.
        return _refine(image, torch.from_numpy(corners.reshape(-1, 2)))
    own = own.cpu().float()
    at = own.round().long()
    at = torch.minimum(at.clamp_min(0), torch.tensor([width - 1, height - 1]))
    own = own[torch.from_numpy(free)[at[:, 1], at[:, 0]] > 0]
    return own[spread(own, torch.arange(len(own), dtype=torch.float32), count, width, height)]


def spread(uv: Tensor, rank: Tensor, count: int, width: int, height: int, cell_px: float | None = None) -> Tensor:
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


# Measured depth at points of an image: looked up in a depth image, or matched along the row of a rectified pair.


_EDGE = 0.05  # neighbours differ by more than this share of the depth: an edge, where colour and depth disagree
_STEREO_SIGMA_PX = 0.5
_ROW_PX = 1.0  # a match in the right image must stay this near to the row


@dataclass(frozen=True)
class DepthMeasurements:
    """What was measured at N points."""

    kind: ObservationKind
    measured: (
        Tensor  # (N,) float64, u in the right image (STEREO) or inverse depth (DEPTH); NaN where nothing was measured
    )
    sigma: Tensor  # (N,) float64
    depth: Tensor  # (N,) float64, along the optical axis; NaN where nothing was measured


def resolve_mode(frame: Frame, mode: str) -> str:
    """mono, stereo or rgbd: the configured mode, checked against what the first frame carries."""
    if mode == "auto":
        return (
            "rgbd"
            if frame.depth is not None
            else "stereo"
            if frame.right is not None and frame.camera.baseline_m
            else "mono"
        )
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
    a fraction of a pixel outweighs the measurement, and motion tells their depth better.
    """
    if mode == "mono" or lacking(frame, mode):
        return None
    if mode == "rgbd":
        return _look_up(frame, uv, config)
    return _match_row(frame, uv, config, torch.inf if far else config.stereo_far * frame.camera.baseline_m)


def _look_up(frame: Frame, uv: Tensor, config: OdometryConfig) -> DepthMeasurements:
    depth_map = frame.depth.cpu()
    height, width = depth_map.shape
    at = uv.round().long()
    step = torch.tensor([-1, 0, 1])
    cols = (at[:, 0, None] + step).clamp(0, width - 1)[:, None, :]
    rows = (at[:, 1, None] + step).clamp(0, height - 1)[:, :, None]
    patch = depth_map[rows, cols].double().flatten(1)  # (N, 9)
    depth = patch[:, 4]
    patch = torch.where(torch.isfinite(patch) & (patch > 0), patch, torch.nan)
    flat = (patch - depth[:, None]).abs().nan_to_num(torch.inf).amax(1) < _EDGE * depth
    good = flat & (depth >= config.depth_min_m) & (depth <= config.depth_max_m)
    depth = torch.where(good, depth, torch.nan)
    return DepthMeasurements(ObservationKind.DEPTH, 1 / depth, torch.full_like(depth, config.depth_sigma), depth)


def _match_row(frame: Frame, uv: Tensor, config: OdometryConfig, farthest_m: float) -> DepthMeasurements:
    """Block matching finds the disparity to a pixel, Lucas-Kanade refines it and must come back to where it started."""
    camera = frame.camera
    left, right = (np.ascontiguousarray(as_grey(image)[0].cpu().numpy()) for image in (frame.image, frame.right))
    if left.shape != right.shape:
        raise SourceError(
            f"the right image is {right.shape[1]} x {right.shape[0]}, the left one {left.shape[1]} x {left.shape[0]}; "
            "a stereo pair must be rectified to one size"
        )
    height, width = left.shape
    # Block matching at half the size costs an eighth; Lucas-Kanade brings the precision back.
    steps = max(16, -(-int(config.max_disparity * width / 2) // 16) * 16)
    block = cv2.StereoBM_create(numDisparities=steps, blockSize=11)
    half = [cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA) for image in (left, right)]
    # Without the border, OpenCV leaves the leftmost columns empty.
    coarse = block.compute(*(cv2.copyMakeBorder(image, 0, 0, steps, 0, cv2.BORDER_REPLICATE) for image in half))[
        :, steps:
    ]
    at = torch.minimum((uv / 2).floor().long().clamp_min(0), torch.tensor([width // 2 - 1, height // 2 - 1])).numpy()
    disparity = coarse[at[:, 1], at[:, 0]].astype(np.float32) / 8
    found = disparity > 0
    start = np.ascontiguousarray(uv.float().numpy())
    guess = start - np.stack([np.maximum(disparity, 0), np.zeros_like(disparity)], 1)
    if len(start):
        options = dict(winSize=(15, 15), maxLevel=1, flags=cv2.OPTFLOW_USE_INITIAL_FLOW)
        there, ok, _ = cv2.calcOpticalFlowPyrLK(left, right, start, guess.copy(), **options)
        back, ok_back, _ = cv2.calcOpticalFlowPyrLK(right, left, there, start.copy(), **options)
        returned = np.linalg.norm(back - start, axis=1) < 0.5
        found &= (ok[:, 0] > 0) & (ok_back[:, 0] > 0) & returned & (np.abs(there[:, 1] - start[:, 1]) < _ROW_PX)
        found &= np.abs(there[:, 0] - guess[:, 0]) < 3
    else:
        there = start
    disparity = torch.from_numpy(start[:, 0] - there[:, 0]).double()
    depth = camera.fx * camera.baseline_m / disparity.clamp_min(1e-3)
    good = torch.from_numpy(found) & (disparity > 0.5) & (depth >= config.depth_min_m) & (depth <= farthest_m)
    nothing = torch.full_like(depth, torch.nan)
    return DepthMeasurements(
        ObservationKind.STEREO,
        torch.where(good, torch.from_numpy(there[:, 0]).double(), nothing),
        torch.full_like(depth, _STEREO_SIGMA_PX),
        torch.where(good, depth, nothing),
    )
