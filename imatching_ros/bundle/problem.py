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
    """The large arrays of an iteration, made once per solve: fresh ones cost more in page faults than the arithmetic in them."""

    def __init__(self, problem: Problem) -> None:
        _, M, N = problem.observations.observed.shape
        P, F = problem.num_points, M - problem.num_fixed
        new = problem.R.new_empty
        self.rows = new(M, 4, len(problem.observations.observed), N)
        self.sums = new(M, 3, 4, N)
        self.products = new(M, 10, N)
        self.products[:, 0] = 1
        self.dense = new(M, 3, 4, P)
        self.W = new(F, 6, 3, P)


@dataclass
class Problem:
    """Structure of arrays: keyframes (fixed ones first), observations as (components, M, N) with N slots per keyframe."""

    order: Tensor  # (M,) int64: snapshot row of each of the solver's keyframes
    num_fixed: int
    observations: Observations
    point: Tensor  # (M * N,) int64 landmark of each slot
    coordinate: Tensor  # (M * 3 * N,) int64: where the three coordinates of a slot's landmark, (M, 3, N), are in X
    cell: Tensor  # (M * 12 * N,) int64: where the twelve numbers of a slot, (M, 12, N), go in a (M, 12, P) array
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
    for name, size in (("kf_idx", M), ("pt_idx", P)) if count else ():
        least, most = torch.stack(getattr(window, name).aminmax()).tolist()
        if least < 0 or most >= size:
            raise BundleError(
                f"window.{name} spans {least}..{most}, expected 0..{size - 1}: an observation points outside the window"
            )
    if not bool(window.T_WC.isfinite().all()):
        raise BundleError(
            f"poses {(~window.T_WC.isfinite().all(1)).nonzero().flatten().tolist()} of the window are not finite; "
            "bundle adjustment refines a start, give each keyframe one"
        )
    norm = window.T_WC[:, 3:].norm(dim=1)
    if bool(((norm - 1).abs() > 1e-3).any()):
        raise BundleError(
            f"quaternions of the window have norms {norm.min():.4g} to {norm.max():.4g}, expected 1; normalise them"
        )
    if window.camera.baseline_m is None and bool((window.kind == ObservationKind.STEREO).any()):
        raise BundleError("the window holds stereo observations but its camera has no baseline_m; set it in metres")


def compile_window(window: WindowSnapshot, dtype: torch.dtype) -> Problem:
    """Sorts, checks and pads; about 1 ms for 8 x 1000."""
    check(window)
    M, P, pt = len(window.T_WC), max(len(window.points_W), 1), window.pt_idx
    T, X = window.T_WC.double(), window.points_W.double()
    R, t = geometry.rotation_matrix(T[:, 3:] / T[:, 3:].norm(dim=1, keepdim=True)), T[:, :3]

    used, excluded = _select(window, R, t, X)
    if len(X) == 0:  # an empty table cannot be looked up in
        X = X.new_zeros(1, 3)
    X = torch.where(X.isfinite(), X, 0.0)
    fixed, gauge, mono, degenerate = _choose_gauge(window, used, X)
    order = torch.argsort((~fixed).to(torch.int8), stable=True)
    num_fixed = int(fixed.sum())
    slot, N = _assign_slots(order, window.kf_idx)
    rows = normalize(window.camera, window.obs.double(), window.sigma.double(), window.kind, used)
    table = torch.zeros(len(rows), M * N, dtype=dtype, device=pt.device)
    table[:, slot] = rows.to(dtype)
    observations = unpack(table.view(-1, M, N))
    point = torch.zeros(M * N, dtype=torch.int64, device=pt.device)
    point[slot] = pt
    block = torch.arange(12 * M, device=pt.device).view(M, 12, 1) * P
    views = X.new_zeros(P).index_add_(0, pt, used.double()).clamp_min(1)
    centre = X.new_zeros(P, 3).index_add_(0, pt, t[window.kf_idx] * used[:, None]) / views[:, None]
    if gauge is not None:
        gauge = gauge[order][num_fixed:].flatten()
        gauge = (gauge / gauge.norm()).to(dtype)
    return Problem(
        order=order,
        num_fixed=num_fixed,
        observations=observations,
        point=point,
        coordinate=(block.flatten()[:3, None] + point.view(M, 1, N)).flatten(),
        cell=(block + point.view(M, 1, N)).flatten(),
        slot=slot,
        used=used,
        num_points=P,
        R=R[order].to(dtype),
        t=t[order].to(dtype),
        X=X.T.contiguous().to(dtype),
        centre=centre.T.contiguous().to(dtype),
        gauge=gauge,
        excluded=excluded,
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
    by_row = torch.argsort(row, stable=True)
    counts = torch.bincount(row, minlength=M)
    N = max(int(counts.max()), 1)
    starts = counts.cumsum(0) - counts
    slot = torch.empty_like(by_row)
    slot[by_row] = torch.arange(len(kf), device=order.device) - starts[row[by_row]] + row[by_row] * N
    return slot, N


def _select(window: WindowSnapshot, R: Tensor, t: Tensor, X: Tensor) -> tuple[Tensor, str]:
    """Which observations (O,) can be used, and a sentence about the others."""
    kf, pt, kind, P = window.kf_idx, window.pt_idx, window.kind, len(window.points_W)
    mono = kind == ObservationKind.MONO
    numbers = window.obs.isfinite() & window.sigma.isfinite() & (window.sigma > 0)
    numbers[:, 2] |= mono  # which measures no depth
    finite = numbers.all(1) & X[pt].isfinite().all(1)
    z = (R[:, :, 2][kf] * (X[pt] - t[kf])).sum(1)
    front = finite & (z > MIN_DEPTH)
    score = torch.zeros(P, dtype=torch.int64, device=kf.device).index_add_(0, pt, torch.where(mono, 1, 2) * front)
    supported = front & (score >= 2)[pt]
    if bool(supported.all()):
        return supported, ""
    counts = torch.stack([(~finite).sum(), (finite & ~front).sum(), (front & ~supported).sum()]).tolist()
    reasons = ("not finite or sigma not above zero", "behind the camera", "the only ray to their landmark")
    return supported, "; ".join(
        f"{n} observations excluded: {why}" for n, why in zip(counts, reasons, strict=True) if n
    )


def _choose_gauge(window: WindowSnapshot, used: Tensor, X: Tensor) -> tuple[Tensor, Tensor | None, bool, str]:
    """(fixed poses (M,), scale gauge (M, 6) or None, mono, why degenerate).

    Poses: those the caller fixed; without any, the first. Scale: nothing in a mono window determines it, and
    scaling about the first fixed keyframe changes no residual. The step may then not change the distance, along the line
    between them, of that keyframe and the one farthest from it: a plane through the solutions that meets each of them once and never
    touches one, forward motion included, so the optimum is the same as without it.
    """
    M = len(window.T_WC)
    kf, pt = window.kf_idx[used], window.pt_idx[used]
    t = window.T_WC[:, :3].double()
    fixed = window.fixed.clone()
    if not bool(fixed.any()):
        fixed[0] = True
    # A depth that is only expected gives no parallax: without this, a turn on the spot would pass for a window with measured depth.
    mono = window.expected_depth or not bool((window.kind[used] != ObservationKind.MONO).any())
    if bool(fixed.all()):
        return fixed, None, mono, ""

    why = _check_connectivity(M, len(window.points_W), kf, pt, fixed)
    if why or not mono:
        return fixed, None, mono, why
    first = int(torch.nonzero(fixed)[0])
    distance = (t - t[first]).norm(dim=1)
    depth = (X[pt] - t[kf]).norm(dim=1).median() if len(kf) else t.new_tensor(1.0)
    least = 1e-6 * depth
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
    direction = (t[far] - t[first]) / distance[far]
    vector = t.new_zeros(M, 6)
    vector[far, :3] = direction
    return fixed, vector, mono, ""


def _check_connectivity(M: int, P: int, kf: Tensor, pt: Tensor, fixed: Tensor) -> str:
    """Why the window falls apart: a keyframe with too few observations, or a group without a fixed keyframe."""
    counts = torch.bincount(kf, minlength=M)
    few = (~fixed) & (counts < 3)
    if bool(few.any()):
        rows = few.nonzero().flatten().tolist()
        return f"keyframes {rows} have {counts[few].tolist()} usable observations, a pose needs at least 3"
    seen = torch.zeros(M, P, dtype=torch.float32, device=kf.device)
    seen[kf, pt] = 1
    linked = (seen @ seen.T > 0).float()
    for _ in range((M - 1).bit_length()):  # each time through twice as many others
        linked = (linked @ linked > 0).float()
    reached = fixed | (linked @ fixed.float() > 0)
    loose = (~reached).nonzero().flatten().tolist()
    if loose:
        return f"disconnected: keyframes {loose} share no landmark, not even through others, with a keyframe whose pose is held"
    return ""
