"""The limit of what learning could give: the same steps on true correspondences instead of the lower level's optimum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...core import geometry
from ...core.config import BundleConfig, LearningConfig
from ...core.types import BAResult, BAStatus, LearningSample
from ...core.errors import SourceError
from ...learning.rematching import Rematch, Solution
from ...core.residuals import RobustKernel
from ..evaluation.pairs import DEPTH_TOLERANCE
from ..recordings.base import Source


class Oracle:
    """Holds true poses and depths of a recording; `solve` takes the place of bundle adjustment in a `Stepper`."""

    def __init__(self, source: Source, frame_ids: Mapping[int, int]) -> None:
        """`source` yields depth and has true poses; only frames with the stamps (ns) named are kept, under the ids given for them."""
        truth = source.groundtruth()
        if truth is None:
            raise SourceError(f"{source.name} has no true poses, which an oracle needs")
        self._by_id: dict[int, tuple[Tensor, Tensor]] = {}
        for frame in source:
            if frame.stamp_ns in frame_ids and frame.depth is not None:
                T, known = truth.at(np.array([frame.stamp_ns]))
                if known[0]:
                    self._by_id[frame_ids[frame.stamp_ns]] = frame.depth, geometry.from_matrix(torch.from_numpy(T[0]))

    def covers(self, sample: LearningSample) -> bool:
        return all(k in self._by_id for k in sample.keyframe_ids)

    def correct(self, sample: LearningSample) -> LearningSample:
        """The window with the truth in the place of its solution."""
        T_WC, points_W, uv, seen = self._truth(sample)
        error = torch.where(seen[:, None], sample.window.obs[:, :2] - uv, torch.nan)
        return replace(sample, result=_as_result(T_WC, points_W, error, seen.double()))

    def solve(self, sample: LearningSample, found: Rematch, config: LearningConfig, bundle: BundleConfig) -> Solution:
        """True poses, landmarks at the true depth of their host observation, and weight 0 wherever a landmark cannot be seen.

        Signature of `rematching.solve_again`.
        """
        T_WC, points_W, uv, seen = self._truth(sample)
        # Wrong matches weigh as little as in bundle adjustment: the same step, with the truth in its place.
        error = (found.uv.detach().double() - uv).nan_to_num(1e6)
        whitened = error / found.sigma_px[:, None].double().clamp_min(1e-2)
        weight = seen * RobustKernel(bundle.kernel, bundle.kernel_width).weight((whitened**2).sum(1))
        return Solution(T_WC, points_W, weight, _as_result(T_WC, points_W, error, weight))

    def _truth(self, sample: LearningSample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """True poses (M, 7), landmarks (P, 3), NaN without depth, their pixels (O, 2) and whether they can be seen there (O,) bool."""
        w = sample.window
        depth, poses = zip(*(self._by_id[k] for k in sample.keyframe_ids))
        T_WC = torch.stack(poses)
        hosts = sample.host_obs
        at = w.camera.undistort(sample.uv_px[hosts].double())
        z = torch.stack([_look_up(depth[k], uv) for k, uv in zip(w.kf_idx[hosts].tolist(), at)])
        points_W = geometry.act(T_WC[w.kf_idx[hosts]], geometry.back_project(w.camera, at, z))
        points_W[z <= 0] = torch.nan
        points_C = geometry.act(geometry.inverse(T_WC)[w.kf_idx], points_W[w.pt_idx])
        uv = geometry.project(w.camera, points_C)
        seen = torch.zeros(len(w.obs), dtype=torch.bool)
        for k, image in enumerate(depth):
            mine = (w.kf_idx == k).nonzero()[:, 0]
            there = _look_up(image, uv[mine])
            seen[mine] = (there - points_C[mine, 2]).abs() < DEPTH_TOLERANCE * there
        return T_WC, points_W, uv, seen


def _as_result(T_WC: Tensor, points_W: Tensor, error_px: Tensor, weight: Tensor) -> BAResult:
    nothing = float("nan")
    return BAResult(T_WC, points_W, error_px, weight, nothing, nothing, 0, BAStatus.CONVERGED, "the truth", None)


def _look_up(depth: Tensor, uv: Tensor) -> Tensor:
    """The nearest pixel's depth (...,) float64 at ideal pixels (..., 2); 0 outside. Exact for cameras without distortion."""
    x, y = uv.nan_to_num(-9.0).round().long().unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
    found = depth[y.clamp(0, depth.shape[0] - 1), x.clamp(0, depth.shape[1] - 1)].double()
    return torch.where(inside, found, 0.0)
