"""Measured depth at points of a picture: looked up in a depth image, or matched along the row of a rectified pair."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from .config import OdometryConfig
from .datatypes import Frame, ObservationKind, as_grey
from .errors import CameraError, SourceError

_EDGE = 0.05  # neighbours differ by more than this share of the depth: an edge, where colour and depth disagree
_STEREO_SIGMA_PX = 0.5
_ROW_PX = 1.0  # a match in the right picture must stay this near to the row


@dataclass(frozen=True)
class Depths:
    """What was measured at N points."""

    kind: ObservationKind
    third: Tensor  # (N,) float64, third number of the observation; NaN where nothing was measured
    sigma: Tensor  # (N,) float64
    depth: Tensor  # (N,) float64, along the optical axis; NaN where nothing was measured


def resolve_mode(frame: Frame, mode: str) -> str:
    """mono, stereo or rgbd: the configured mode, checked against what the first frame carries."""
    if mode == "auto":
        return "rgbd" if frame.depth is not None else "stereo" if frame.right is not None and frame.camera.baseline_m else "mono"
    missing = lacking(frame, mode)
    if missing:
        raise SourceError(f"odometry.mode is '{mode}', but the frame has no {missing} image; give a {missing} topic or folder, or set mode to "
                          "'mono'")
    if mode == "stereo" and not frame.camera.baseline_m:
        raise CameraError("odometry.mode is 'stereo', but the camera has no baseline; it comes from P of the right CameraInfo")
    return mode


def lacking(frame: Frame, mode: str) -> str:
    """Which image, `depth` or `right`, the mode measures by and the frame does not carry; empty when it carries all."""
    if mode == "rgbd" and frame.depth is None:
        return "depth"
    if mode == "stereo" and frame.right is None:
        return "right"
    return ""


def measure(frame: Frame, mode: str, uv: Tensor, config: OdometryConfig, far: bool = False) -> Depths | None:
    """Depth of a frame at raw px (N, 2); None in mono, and for a frame that came without its depth or right image.

    In stereo, points beyond `stereo_far` baselines count as not measured unless `far`: there, a rectification that is wrong by
    a fraction of a pixel outweighs the measurement, and motion tells their depth better.
    """
    if mode == "mono" or lacking(frame, mode):
        return None
    if mode == "rgbd":
        return _look_up(frame, uv, config)
    return _match_row(frame, uv, config, torch.inf if far else config.stereo_far * frame.camera.baseline_m)


def _look_up(frame: Frame, uv: Tensor, config: OdometryConfig) -> Depths:
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
    return Depths(ObservationKind.DEPTH, 1 / depth, torch.full_like(depth, config.depth_sigma), depth)


def _match_row(frame: Frame, uv: Tensor, config: OdometryConfig, farthest_m: float) -> Depths:
    """Block matching finds the disparity to a pixel, Lucas-Kanade refines it and must come back to where it started."""
    camera = frame.camera
    left, right = (np.ascontiguousarray(as_grey(image)[0].cpu().numpy()) for image in (frame.image, frame.right))
    if left.shape != right.shape:
        raise SourceError(f"the right image is {right.shape[1]} x {right.shape[0]}, the left one {left.shape[1]} x {left.shape[0]}; "
                          "a stereo pair must be rectified to one size")
    height, width = left.shape
    # Block matching at half the size costs an eighth; Lucas-Kanade brings the precision back.
    steps = max(16, -(-int(config.max_disparity * width / 2) // 16) * 16)
    block = cv2.StereoBM_create(numDisparities=steps, blockSize=11)
    half = [cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA) for image in (left, right)]
    # Without the border, OpenCV leaves the leftmost columns empty.
    coarse = block.compute(*(cv2.copyMakeBorder(image, 0, 0, steps, 0, cv2.BORDER_REPLICATE) for image in half))[:, steps:]
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
    return Depths(ObservationKind.STEREO, torch.where(good, torch.from_numpy(there[:, 0]).double(), nothing),
                  torch.full_like(depth, _STEREO_SIGMA_PX), torch.where(good, depth, nothing))
