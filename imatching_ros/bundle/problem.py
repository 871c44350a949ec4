"""A WindowSnapshot compiled for the solver: checked, its gauge chosen, observations in rows of one keyframe each."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..core import geometry
from ..core.types import ObservationKind, WindowSnapshot
from ..core.errors import BundleError
from ..core.arrays import Array, array_module
from ..core.residuals import MIN_DEPTH, Observations, normalize, unpack


class Workspace:
    """The arrays that every iteration overwrites, and the views of them that it takes.

    Made once per solve: fresh arrays cost more in page faults, and views in calls, than the arithmetic on small windows.
    """

    def __init__(self, problem: Problem) -> None:
        D, M, N = problem.observations.observed.shape
        P, fixed = problem.num_points, problem.num_fixed
        F, R = M - fixed, problem.R
        self.tiny = R.new_full((1,), torch.finfo(R.dtype).tiny ** 0.5)
        # J and r of each observation, [C | b] = J^T [J | r], and the products of its Y: 1, Y, YY
        rows = R.new_empty(M, 4, D, N)
        self.J, self.r = rows[:, :3], rows[:, 3]
        self.J_of = [rows[:, :3, d].unsqueeze(2) for d in range(D)]
        self.rows_of = [rows[:, :, d].unsqueeze(1) for d in range(D)]
        self.sums = R.new_empty(M, 3, 4, N)
        self.sums_rows = self.sums.flatten(1, 2)
        products = R.new_ones(M, 13, N)
        self.products_Y, self.products_YY = products[:, 1:4], products[:, 4:].unflatten(1, (3, 3))
        self.free_sums, self.free_products = self.sums_rows[fixed:], products.mT[fixed:]
        self.pose = R.new_zeros(6 * F, 6 * F)
        self.pose_blocks = self.pose.view(F, 6, F, 6).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (F, 6, 6)
        # [C | b] of each keyframe and landmark, their sums, and these with an identity beside them, factored
        self.dense = R.new_empty(M, 3, 4, P)
        self.dense_rows = self.dense.flatten(1, 2)
        self.blocks = torch.cat([R.new_zeros(3, 4, P), torch.eye(3).to(R)[:, :, None].expand(3, 3, P)], 1)
        self.landmark, self.landmark_diagonal = self.blocks[:, :4], self.blocks.view(21, P)[::8]
        self.augmented, self.factored = torch.empty_like(self.blocks), torch.empty_like(self.blocks)
        self.augmented_diagonal = self.augmented.view(21, P)[::8]
        self.half, self.inverse = self.factored[:, 3], self.factored[:, 4:]
        # C and L^-1 by columns, and the columns of W that they reach: L is triangular
        self.C_columns = self.dense[fixed:, :, :3].split(1, 2)
        self.inverse_columns = [self.inverse[k:, k] for k in range(3)]
        W = R.new_empty(F, 6, 3, P)
        self.W, self.W_rows = W.view(6 * F, 3 * P), W.unbind(1)
        self.upper_from = [W[:, :3, k:] for k in range(3)]
        # A step of each pose: rho, phi and 2, of which (phi, 2) is a quaternion; zero where poses are fixed
        step = R.new_tensor([0.0, 0, 0, 0, 0, 0, 2]).repeat(M, 1)
        self.free_step, self.rho, self.quaternion = step[fixed:, :6], step[:, :3], step[:, 3:]
        # Added to depths: those of slots that hold nothing, or something excluded, do not count
        self.unused = R.new_zeros(M, N).masked_fill_(~problem.used_slot, torch.inf)


@dataclass
class Problem:
    """Structure of arrays: keyframes (fixed ones first), observations as (components, M, N) with N slots per keyframe."""

    order: Tensor  # (M,) int64: snapshot row of each of the solver's keyframes
    num_fixed: int
    observations: Observations
    point: Tensor  # (M * N,) int64 landmark of each slot
    coordinate: Tensor  # (M * 3 * N,) int64: where the three coordinates of a slot's landmark, (M, 3, N), are in X
    cell: Tensor  # (M, 12, N) int64, expanded: the landmark of each slot, for each of twelve numbers
    slot: Tensor  # (O,) int64 of each observation of the snapshot
    used: Tensor  # (O,) bool: not excluded
    num_points: int
    R: Tensor  # (M, 3, 3) start
    t: Tensor  # (M, 3)
    X: Tensor  # (3, P)
    centre: Tensor  # (3, P) mean position of the cameras that see each landmark, at the start
    gauge: Tensor | None  # (6F,) unit vector over the free poses' steps that must stay zero: the scale of a mono window
    excluded: str  # how many observations were left out and why, for people
    degenerate: str  # why there is nothing to solve; empty if there is
    mono: bool  # no observation measures the metric scale
    rounding: float  # cost below which residuals are rounding errors

    @cached_property
    def used_slot(self) -> Tensor:
        """(M, N) bool: slots that hold an observation that is not excluded."""
        return self.observations.inv_sigma[0] > 0

    @cached_property
    def work(self) -> Workspace:
        """Arrays that every iteration overwrites."""
        return Workspace(self)

    def double(self) -> Problem:
        """The same problem in float64."""
        return self if self.R.dtype == torch.float64 else replace(_widen(self), observations=_widen(self.observations))


def _widen(arrays: Any) -> Any:
    """A copy of a dataclass with its floating-point tensors in float64."""
    values = {f.name: getattr(arrays, f.name) for f in fields(arrays)}
    wide = {k: v.double() for k, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return replace(arrays, **wide)


def check(window: WindowSnapshot) -> None:
    """Raises BundleError when arrays disagree in shape, point outside the window, or poses are not finite."""
    M, P, count = len(window.T_WC), len(window.points_W), len(window.kf_idx)
    shapes = {
        "T_WC": (M, 7),
        "points_W": (P, 3),
        "kf_idx": (count,),
        "pt_idx": (count,),
        "obs": (count, 3),
        "kind": (count,),
        "sigma": (count, 3),
        "fixed": (M,),
    }
    for name, shape in shapes.items():
        found = tuple(getattr(window, name).shape)
        if found != shape:
            raise BundleError(
                f"window.{name} has shape {found}, expected {shape} (M={M} poses, P={P} landmarks, "
                f"O={count} observations)"
            )
    if M == 0:
        raise BundleError("the window holds no keyframe; add at least one before solving")
    indices = {"kf_idx": (window.kf_idx, M), "pt_idx": (window.pt_idx, P)} if count else {}
    for name, (index, size) in indices.items():
        least, most = torch.stack(index.aminmax()).tolist()
        if least < 0 or most >= size:
            raise BundleError(
                f"window.{name} spans {least}..{most}, expected 0..{size - 1}: an observation points outside the window"
            )
    if window.camera.baseline_m is None and bool((window.kind == ObservationKind.STEREO).any()):
        raise BundleError("the window holds stereo observations but its camera has no baseline_m; set it in metres")
    _check_poses(window.T_WC)


def _check_poses(T_WC: Tensor) -> None:
    squares = T_WC * T_WC
    unit = ((squares[:, 3:].sum(1) - 1).abs() <= 2e-3).all()
    if bool(unit & squares.sum().isfinite()):
        return
    if not bool(T_WC.isfinite().all()):
        raise BundleError(
            f"poses {(~T_WC.isfinite().all(1)).nonzero().flatten().tolist()} of the window are not finite; "
            "bundle adjustment refines a start, give each keyframe one"
        )
    norm = T_WC[:, 3:].norm(dim=1)
    raise BundleError(
        f"quaternions of the window have norms {norm.min():.4g} to {norm.max():.4g}, expected 1; normalise them"
    )


def compile_window(window: WindowSnapshot, dtype: torch.dtype) -> Problem:
    """Sorts, checks and pads; about 1 ms for 8 x 1000."""
    check(window)
    M, P, pt = len(window.T_WC), max(len(window.points_W), 1), window.pt_idx
    T, X = window.T_WC.double(), window.points_W.double()
    R, t = geometry.rotation_matrix_of_any_norm(T[:, 3:]), T[:, :3]
    if len(X) == 0:  # an empty table cannot be looked up in
        X = X.new_zeros(1, 3)

    chosen = _select(window, R, t, X)
    fixed, gauge, mono, degenerate = _choose_gauge(window, chosen)
    order = torch.argsort((~fixed).to(torch.int8), stable=True).to(pt.device)
    num_fixed = int(fixed.sum())
    slot, N = _assign_slots(order, window.kf_idx)
    rows = normalize(window.camera, window.obs.double(), window.sigma.double(), window.kind, chosen.used)
    table = torch.zeros(len(rows), M * N, dtype=dtype, device=pt.device)
    table[:, slot] = rows.to(dtype)
    observations = unpack(table.view(-1, M, N))
    point = torch.zeros(M * N, dtype=torch.int64, device=pt.device)
    point[slot] = pt
    by_row = point.view(M, 1, N)
    return Problem(
        order=order,
        num_fixed=num_fixed,
        observations=observations,
        point=point,
        coordinate=(by_row + P * torch.arange(3, device=pt.device).view(3, 1)).flatten(),
        cell=by_row.expand(M, 12, N),
        slot=slot,
        used=chosen.used,
        num_points=P,
        R=R[order].to(dtype),
        t=t[order].to(dtype),
        X=torch.where(X.isfinite(), X, 0.0).T.contiguous().to(dtype),
        centre=chosen.centre.T.contiguous().to(dtype),
        gauge=None if gauge is None else gauge[~fixed].flatten().to(order.device, dtype),
        excluded=chosen.excluded,
        degenerate=degenerate,
        mono=mono,
        rounding=rounding_cost(observations),
    )


def rounding_cost(observations: Observations[Array]) -> float:
    """Cost that rounding errors make: a pixel on the plane z = 1 is near 1, so its whitened residual is off by eps * inv_sigma."""
    eps = array_module(observations.inv_sigma).finfo(observations.inv_sigma.dtype).eps
    return 10 * float(((eps * observations.inv_sigma) ** 2).sum())


def _assign_slots(order: Tensor, kf: Tensor) -> tuple[Tensor, int]:
    """Of each observation (O,) its slot in the rows of the solver's keyframes, and N, the slots per row."""
    M = len(order)
    row_of = torch.empty_like(order)
    row_of[order] = torch.arange(M, device=order.device)
    row = row_of[kf]
    ascending, by_row = row.sort(stable=True)
    counts = torch.bincount(row, minlength=M)
    N = max(int(counts.max()), 1)
    shift = torch.arange(M, device=order.device) * N - (counts.cumsum(0) - counts)
    slot = torch.empty_like(by_row)
    slot[by_row] = torch.arange(len(kf), device=order.device) + shift[ascending]
    return slot, N


@dataclass
class _Selection:
    """The observations of a window that can be used."""

    used: Tensor  # (O,) bool
    excluded: str  # how many are not and why, for people; empty if all are
    depth: Tensor  # (O,) in their cameras, at the start
    centre: Tensor  # (P, 3) as of Problem


def _select(window: WindowSnapshot, R: Tensor, t: Tensor, X: Tensor) -> _Selection:
    kf, pt, mono = window.kf_idx, window.pt_idx, window.kind == ObservationKind.MONO
    numbers = (window.obs - window.obs == 0) & (window.sigma > 0) & (window.sigma < torch.inf)
    numbers[:, 2] |= mono  # which measures no depth
    camera = t[kf]
    depth = (R[:, :, 2][kf] * (X[pt] - camera)).sum(1)
    front = numbers.all(1) & (depth > MIN_DEPTH) & (depth < torch.inf)
    # Per landmark: the sum of its cameras' positions, how many they are, and one for each ray, two with a depth.
    views = torch.cat([camera, camera.new_ones(len(kf), 1), (2 - mono.to(camera.dtype)).unsqueeze(1)], 1)
    views = X.new_zeros(len(X), 5).index_add_(0, pt, views.mul_(front.unsqueeze(1)))
    centre = views[:, :3] / views[:, 3:4].clamp_min(1)
    used = front & (views[:, 4] >= 2)[pt]
    if bool(used.all()):
        return _Selection(used, "", depth, centre)
    finite = numbers.all(1) & X[pt].isfinite().all(1)
    counts = torch.stack([(~finite).sum(), (finite & ~front).sum(), (front & ~used).sum()]).tolist()
    reasons = ("not finite or sigma not above zero", "behind the camera", "the only ray to their landmark")
    why = "; ".join(f"{n} observations excluded: {why}" for n, why in zip(counts, reasons, strict=True) if n)
    return _Selection(used, why, depth, centre)


def _choose_gauge(window: WindowSnapshot, chosen: _Selection) -> tuple[Tensor, Tensor | None, bool, str]:
    """(fixed poses (M,), scale gauge (M, 6) or None, mono, why degenerate); arrays on the CPU.

    Poses: those the caller fixed; without any, the first. Scale: nothing in a mono window determines it, and
    scaling about the first fixed keyframe changes no residual. The step may then not change the distance, along the line
    between them, of that keyframe and the one farthest from it: a plane through the solutions that meets each of them once and never
    touches one, forward motion included, so the optimum is the same as without it.
    """
    fixed, t = window.fixed.cpu().clone(), window.T_WC[:, :3].double().cpu()
    if not bool(fixed.any()):
        fixed[0] = True
    # A depth that is only expected gives no parallax: without this, a turn on the spot would pass for a window with measured depth.
    mono = window.expected_depth or not bool(((window.kind != ObservationKind.MONO) & chosen.used).any())
    if bool(fixed.all()):
        return fixed, None, mono, ""

    why = _check_connectivity(window, chosen, fixed.tolist())
    if why or not mono:
        return fixed, None, mono, why
    first = int(fixed.to(torch.int8).argmax())
    way = t - t[first]
    distance = (way * way).sum(1).sqrt()
    depth = chosen.depth if not chosen.excluded else chosen.depth[chosen.used]
    least = 1e-6 * float(depth.median()) if len(depth) else 1e-6
    if bool((distance[fixed] > least).any()):
        return fixed, None, mono, ""
    far = int(distance.argmax())
    if not bool(distance[far] > least):
        return (
            fixed,
            None,
            mono,
            "no baseline: all keyframes start at the same place, so mono observations determine no depth",
        )
    vector = t.new_zeros(len(t), 6)
    vector[far, :3] = way[far] / distance[far]
    return fixed, vector, mono, ""


def _check_connectivity(window: WindowSnapshot, chosen: _Selection, fixed: list[bool]) -> str:
    """Why the window falls apart: a keyframe with too few observations, or a group without a fixed keyframe."""
    M, kf, pt = len(fixed), window.kf_idx, window.pt_idx
    if chosen.excluded:
        kf, pt = kf[chosen.used], pt[chosen.used]
    counts = torch.bincount(kf, minlength=M).tolist()
    few = [k for k in range(M) if not fixed[k] and counts[k] < 3]
    if few:
        return f"keyframes {few} have {[counts[k] for k in few]} usable observations, a pose needs at least 3"
    seen = torch.zeros(M, len(chosen.centre), dtype=torch.float32, device=kf.device)
    seen[kf, pt] = 1
    common = (seen @ seen.T).tolist()  # landmarks of each two keyframes
    reached = [k for k in range(M) if fixed[k]]
    for k in reached:  # which grows
        reached += [other for other in range(M) if common[k][other] and other not in reached]
    loose = [k for k in range(M) if k not in reached]
    if loose:
        return f"disconnected: keyframes {loose} share no landmark, not even through others, with a keyframe whose pose is held"
    return ""
