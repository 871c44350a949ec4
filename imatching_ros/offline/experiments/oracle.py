"""The limit of what learning could give: the same steps on true correspondences instead of the lower level's optimum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...camera import rolling_shutter
from ...core import geometry
from ...core.config import BundleConfig, LearningConfig
from ...core.types import BAResult, BAStatus, LearningSample
from ...core.errors import SourceError
from ...learning.rematching import Rematch, Solution, as_ideal
from ...core.residuals import RobustKernel
from ..evaluation.pairs import DEPTH_TOLERANCE
from ..recordings.base import Source

TWIST_NS = 10_000_000  # before and after a frame; about the time in which a rolling shutter reads half of it


class Oracle:
    """Holds true poses and depths of a recording; `solve` takes the place of bundle adjustment in a `Stepper`."""

    def __init__(self, source: Source, frame_ids: Mapping[int, int]) -> None:
        """`source` yields depth and has true poses; only frames with the stamps (ns) named are kept, under the ids given for them."""
        truth = source.groundtruth()
        if truth is None:
            raise SourceError(f"{source.name} has no true poses, which an oracle needs")
        self._by_id: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for frame in source:
            if frame.stamp_ns in frame_ids and frame.depth is not None:
                T, known = truth.at(frame.stamp_ns + np.array([0, -TWIST_NS, TWIST_NS]))
                if known[0]:
                    before, after = (k if known[k] else 0 for k in (1, 2))
                    T_WC = geometry.from_matrix(torch.from_numpy(T))
                    seconds = max(bool(before) + bool(after), 1) * TWIST_NS * 1e-9
                    twist = geometry.local(T_WC[before], T_WC[after]) / seconds
                    self._by_id[frame_ids[frame.stamp_ns]] = frame.depth, T_WC[0], twist

    def covers(self, sample: LearningSample) -> bool:
        return all(k in self._by_id for k in sample.keyframe_ids)

    def correct(self, sample: LearningSample) -> LearningSample:
        """The window with the truth in the place of its solution and of its velocities."""
        T_WC, points_W, uv, seen, twist = self._truth(sample)
        error = torch.where(seen[:, None], sample.window.obs[:, :2] - uv, torch.nan)
        return replace(sample, twist=twist, result=_as_result(T_WC, points_W, error, seen.double()))

    def solve(self, sample: LearningSample, found: Rematch, config: LearningConfig, bundle: BundleConfig) -> Solution:
        """True poses, landmarks at the true depth of their host observation, and weight 0 wherever a landmark cannot be seen.

        Signature of `rematching.solve_again`; the sample is a corrected one.
        """
        T_WC, points_W, uv, seen, _ = self._truth(sample)
        # Wrong matches weigh as little as in bundle adjustment: the same step, with the truth in its place.
        matched = as_ideal(sample, found.uv.detach(), sample.window.kf_idx, sample.window.pt_idx)
        error = (matched - uv).nan_to_num(1e6)
        whitened = error / found.sigma_px[:, None].double().clamp_min(1e-2)
        weight = seen * RobustKernel(bundle.kernel, bundle.kernel_width).weight((whitened**2).sum(1))
        return Solution(T_WC, points_W, weight, _as_result(T_WC, points_W, error, weight))

    def _truth(self, sample: LearningSample) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """True poses (M, 7), landmarks (P, 3), NaN without depth, their ideal px (O, 2), whether they can be seen there (O,) bool, and
        true velocities (M, 6)."""
        w = sample.window
        depth, poses, twists = zip(*(self._by_id[k] for k in sample.keyframe_ids))
        T_WC, twist = torch.stack(poses), torch.stack(twists)
        raw, hosts = sample.uv_px[sample.host_obs].double(), w.kf_idx[sample.host_obs]
        z = torch.stack([_look_up(depth[k], uv) for k, uv in zip(hosts.tolist(), raw)])
        at = rolling_shutter.undistort(w.camera, raw, twist[hosts], z)
        points_W = geometry.act(T_WC[hosts], geometry.back_project(w.camera, at, z))
        points_W[z <= 0] = torch.nan
        points_C = geometry.act(geometry.inverse(T_WC)[w.kf_idx], points_W[w.pt_idx])
        raw, _ = rolling_shutter.see(w.camera, points_C, twist[w.kf_idx])
        seen = torch.zeros(len(w.obs), dtype=torch.bool)
        for k, image in enumerate(depth):
            mine = (w.kf_idx == k).nonzero()[:, 0]
            there = _look_up(image, raw[mine])
            seen[mine] = (there - points_C[mine, 2]).abs() < DEPTH_TOLERANCE * there
        return T_WC, points_W, geometry.project(w.camera, points_C), seen, twist


def _as_result(T_WC: Tensor, points_W: Tensor, error_px: Tensor, weight: Tensor) -> BAResult:
    nothing = float("nan")
    return BAResult(T_WC, points_W, error_px, weight, nothing, nothing, 0, BAStatus.CONVERGED, "the truth", None)


def _look_up(depth: Tensor, uv: Tensor) -> Tensor:
    """The nearest pixel's depth (...,) float64 at raw pixels (..., 2); 0 outside."""
    x, y = uv.nan_to_num(-9.0).round().long().unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
    found = depth[y.clamp(0, depth.shape[0] - 1), x.clamp(0, depth.shape[1] - 1)].double()
    return torch.where(inside, found, 0.0)
