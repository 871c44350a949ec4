"""From a solved window to what the learner gets: host keyframes in the window; and the holding out of observations for validation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core.types import BAResult, LearningSample, WindowSnapshot
from ..odometry.mapper import SolvedWindow
from ..odometry.odometry import Odometry

HELD_OUT_ONE_IN = 5  # observations; of a validating window; held out from its bundle adjustment, they validate
MIN_VIEWS = 4  # of a landmark: it must stay well determined without the observation that is held out


def next_sample(odometry: Odometry) -> LearningSample | None:
    """The window that odometry solved last, for the learner; None when it was taken before or nothing of it remains."""
    solved = odometry.take_solved()
    if solved is None:
        return None
    return take_sample(solved, odometry.matcher.weights_version, odometry.healthy)


def take_sample(solved: SolvedWindow, weights_version: int, healthy: bool) -> LearningSample | None:
    """The landmarks whose host keyframe is in the window, and their observations, cloned; None when nothing remains.

    Images are shared with the keyframes, which never change them: neighbouring windows have most of them in common.
    """
    w = solved.snapshot
    count = len(w.points_W)
    has_host = torch.bincount(w.pt_idx[solved.is_host], minlength=count) == 1
    points = has_host.nonzero()[:, 0]
    used = has_host[w.pt_idx].nonzero()[:, 0]
    if len(points) == 0:
        return None
    index = torch.full((count,), -1)
    index[points] = torch.arange(len(points))
    pt_idx, is_host = index[w.pt_idx[used]], solved.is_host[used]
    host_obs = torch.zeros(len(points), dtype=torch.int64)
    host_obs[pt_idx[is_host]] = is_host.nonzero()[:, 0]
    return LearningSample(
        stamp_ns=solved.keyframes[-1].stamp_ns,
        keyframe_ids=tuple(k.id for k in solved.keyframes),
        images=tuple(k.image for k in solved.keyframes),
        window=_select_observations(w, points, used, pt_idx),
        result=_select_residuals(solved.result, points, used),
        uv_px=solved.uv[used],
        twist=torch.stack([k.twist for k in solved.keyframes]),
        host_obs=host_obs,
        held_out=torch.zeros(len(used), dtype=torch.bool),
        weights_version=weights_version,
        tracking_healthy=healthy,
        skew_px=solved.skew_px,
        masks=tuple(k.mask for k in solved.keyframes) if any(k.mask is not None for k in solved.keyframes) else (),
    )


def _select_observations(w: WindowSnapshot, points: Tensor, used: Tensor, pt_idx: Tensor) -> WindowSnapshot:
    """The rows `points` and `used` of landmarks and observations, cloned; pt_idx numbers the landmarks anew."""
    return replace(
        w,
        T_WC=w.T_WC.clone(),
        points_W=w.points_W[points],
        kf_idx=w.kf_idx[used],
        pt_idx=pt_idx,
        obs=w.obs[used],
        kind=w.kind[used],
        sigma=w.sigma[used],
        fixed=w.fixed.clone(),
    )


def _select_residuals(r: BAResult, points: Tensor, used: Tensor) -> BAResult:
    """The same rows of the solution, cloned."""
    return replace(
        r,
        T_WC=r.T_WC.clone(),
        points_W=r.points_W[points],
        residual_px=r.residual_px[used],
        weight=r.weight[used],
        covariance_newest=None if r.covariance_newest is None else r.covariance_newest.clone(),
    )


def hold_out(sample: LearningSample, seed: int) -> LearningSample:
    """The window as a validating one: one in five of its observations is held out from bundle adjustment.

    Windows that are trained on hold nothing out: what is held out of one would teach in the next, which shares its keyframes.
    Never at the host, and at most one of a landmark, so that three views always remain.
    """
    pt_idx = sample.window.pt_idx
    count = len(pt_idx)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + sample.keyframe_ids[-1])
    views = torch.bincount(pt_idx)
    held_out = (torch.rand(count, generator=generator) < 1 / HELD_OUT_ONE_IN) & (views[pt_idx] >= MIN_VIEWS)
    held_out[sample.host_obs] = False
    order = torch.where(held_out, torch.arange(count), count)
    first = torch.full((len(views),), count).scatter_reduce(0, pt_idx, order, "amin")
    return replace(sample, held_out=held_out & (torch.arange(count) == first[pt_idx]))
