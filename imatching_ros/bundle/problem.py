"""A WindowSnapshot compiled for the solver: checked, its gauge chosen, observations in rows of one keyframe each.

This is done once per solve, on the CPU and in numpy, in many small operations: a third of what they take in torch, and on CUDA two transfers
instead of some 150 kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..camera.model import Camera
from ..core import geometry
from ..core.types import ObservationKind, WindowSnapshot
from ..core.errors import BundleError
from ..core.arrays import Array, array_module
from ..core.residuals import MIN_DEPTH, Observations, normalize, unpack
from .relative_rotations import RelativeRotations


class Workspace:
    """The arrays that every iteration overwrites, and the views of them that it takes.

    Made once per solve: fresh arrays cost more in page faults, and views in calls, than the arithmetic on small windows. What is used up
    when the equations are made lies where W is put after that: all of it should stay in the processor's cache.
    """

    def __init__(self, problem: Problem) -> None:
        D, M, N = problem.observations.observed.shape
        P, fixed = problem.num_points, problem.num_fixed
        F, new = M - fixed, problem.R.new_empty
        self.tiny = new(1).fill_(torch.finfo(new(0).dtype).tiny ** 0.5)  # damping of what nothing observes
        shared = new(max((4 * D + 12 + 13) * M * N, 18 * F * P))
        rows, sums, products = shared[: (4 * D + 12 + 13) * M * N].split([4 * D * M * N, 12 * M * N, 13 * M * N])
        # J and r of each observation, [C | b] = J^T [J | r], and the products of its Y: 1, Y, YY
        rows, self.sums, products = rows.view(M, 4, D, N), sums.view(M, 3, 4, N), products.view(M, 13, N)
        self.J, self.r = rows[:, :3], rows[:, 3]
        self.J_of = [rows[:, :3, d].unsqueeze(2) for d in range(D)]
        self.rows_of = [rows[:, :, d].unsqueeze(1) for d in range(D)]
        self.sums_flat, self.C = sums.view(M, 12, N), self.sums[:, :, :3]
        self.ones, self.Y, self.YY = products[:, 0], products[:, 1:4], products[:, 4:].view(M, 3, 3, N)
        self.free_sums, self.free_products = self.sums_flat[fixed:], products.mT[fixed:]
        self.pose = new(6 * F, 6 * F).zero_()
        self.pose_blocks = self.pose.view(F, 6, F, 6).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (F, 6, 6)
        # [C | b] of each keyframe and landmark; their sums, and these with an identity beside them, factored
        self.dense = new(M, 3, 4, P)
        self.dense_flat, self.C_columns = self.dense.view(M, 12, P), self.dense[fixed:, :, :3].split(1, 2)
        self.blocks, self.augmented, self.factored = new(3, 7, P).zero_(), new(3, 7, P), new(3, 7, P)
        self.blocks.view(21, P)[4::8] = 1  # the identity
        self.landmark, self.landmark_diagonal = self.blocks[:, :4], self.blocks.view(21, P)[::8]
        self.augmented_diagonal = self.augmented.view(21, P)[::8]
        self.augmented_rows, self.factored_rows = self.augmented.unbind(0), self.factored.unbind(0)
        self.half, self.inverse = self.factored[:, 3], self.factored[:, 4:]
        # W, and for each column of L^-1 the columns of W that it reaches: L is triangular
        W = shared[: 18 * F * P].view(F, 6, 3, P)
        self.W, self.W_rows, self.W_reached = W.view(6 * F, 3 * P), W.unbind(1), [W[:, :3, k:] for k in range(3)]
        self.inverse_columns = [self.inverse[k:, k] for k in range(3)]
        # A step of each pose: rho, phi and 2, of which (phi, 2) is a quaternion; zero where poses are fixed
        step = new(M, 7).zero_()
        step[:, 6] = 2
        self.free_step, self.rho, self.quaternion = step[fixed:, :6], step[:, :3], step[:, 3:]
        # Added to depths: those of slots that hold nothing, or something excluded, do not count
        self.unused = new(M, N).fill_(torch.inf).masked_fill_(problem.used_slot, 0.0)


@dataclass
class Problem:
    """Structure of arrays: keyframes (fixed ones first), observations as (components, M, N) with N slots per keyframe."""

    order: Tensor  # (M,) int64: snapshot row of each of the solver's keyframes
    num_fixed: int
    observations: Observations
    point: Tensor  # (M * N,) int64 landmark of each slot
    coordinate: Tensor  # (M * 3 * N,) int64: where the three coordinates of a slot's landmark, (M, 3, N), are in X
    cell: Tensor  # (M, 12, N) int64: the landmark of each slot, the same for each of its twelve numbers
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
    rotations: RelativeRotations | None = None  # a prior, of the solver's keyframes

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


@dataclass
class _Host:
    """The arrays of a WindowSnapshot in numpy; numbers in float64."""

    camera: Camera
    T_WC: np.ndarray
    points_W: np.ndarray
    kf_idx: np.ndarray
    pt_idx: np.ndarray
    obs: np.ndarray
    kind: np.ndarray
    sigma: np.ndarray
    fixed: np.ndarray
    expected_depth: bool

    @staticmethod
    def of(window: WindowSnapshot) -> _Host:
        arrays: dict[str, Any] = {
            k: v.numpy(force=True) if isinstance(v, Tensor) else v for k, v in vars(window).items()
        }
        for name in ("T_WC", "points_W", "obs", "sigma"):
            arrays[name] = arrays[name].astype(np.float64, copy=False)
        return _Host(**arrays)


def _check(window: _Host) -> None:
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
        found = getattr(window, name).shape
        if found != shape:
            raise BundleError(
                f"window.{name} has shape {found}, expected {shape} (M={M} poses, P={P} landmarks, "
                f"O={count} observations)"
            )
    if M == 0:
        raise BundleError("the window holds no keyframe; add at least one before solving")
    for name, size in (("kf_idx", M), ("pt_idx", P)) if count else ():
        least, most = getattr(window, name).min(), getattr(window, name).max()
        if least < 0 or most >= size:
            raise BundleError(
                f"window.{name} spans {least}..{most}, expected 0..{size - 1}: an observation points outside the window"
            )
    finite = np.isfinite(window.T_WC)
    if not finite.all():
        raise BundleError(
            f"poses {np.flatnonzero(~finite.all(1)).tolist()} of the window are not finite; "
            "bundle adjustment refines a start, give each keyframe one"
        )
    norm = np.sqrt((window.T_WC[:, 3:] ** 2).sum(1))
    if (np.abs(norm - 1) > 1e-3).any():
        raise BundleError(
            f"quaternions of the window have norms {norm.min():.4g} to {norm.max():.4g}, expected 1; normalise them"
        )
    if window.camera.baseline_m is None and (window.kind == int(ObservationKind.STEREO)).any():
        raise BundleError("the window holds stereo observations but its camera has no baseline_m; set it in metres")


def compile_window(window: WindowSnapshot, dtype: torch.dtype, rotations: RelativeRotations | None = None) -> Problem:
    """Checks, sorts and pads.

    Raises:
        BundleError: arrays that contradict each other, poses that are not finite.
    """
    host, device = _Host.of(window), window.T_WC.device
    _check(host)
    if rotations is not None:
        rotations.check(len(host.T_WC))
    M, P = len(host.T_WC), max(len(host.points_W), 1)
    R, t = geometry.rotation_matrix_of_any_norm(torch.from_numpy(host.T_WC[:, 3:])).numpy(), host.T_WC[:, :3]
    X = host.points_W if len(host.points_W) else np.zeros((1, 3))  # an empty table cannot be looked up in
    chosen = _select(host, R, t, X)
    fixed, gauge, mono, degenerate = _choose_gauge(host, chosen)
    order = np.argsort(~fixed, kind="stable")
    slot, N = _assign_slots(order, host.kf_idx)
    with np.errstate(divide="ignore", invalid="ignore"):  # of what is not used
        rows = normalize(host.camera, host.obs, host.sigma, host.kind, chosen.used)
    table = np.zeros((len(rows), M * N))
    table[:, slot] = rows
    point = np.zeros(M * N, dtype=np.int64)
    point[slot] = host.pt_idx

    def number(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

    def index(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    observations = unpack(number(table).view(-1, M, N))
    return Problem(
        order=index(order),
        num_fixed=int(fixed.sum()),
        observations=observations,
        point=index(point),
        coordinate=index((point.reshape(M, 1, N) + P * np.arange(3)[:, None]).ravel()),
        cell=index(point).view(M, 1, N).expand(M, 12, N),
        slot=index(slot),
        used=index(chosen.used),
        num_points=P,
        R=number(R[order]),
        t=number(t[order]),
        X=number(np.where(np.isfinite(X), X, 0.0).T),
        centre=number(chosen.centre),
        gauge=None if gauge is None else number(gauge[~fixed].ravel()),
        excluded=chosen.excluded,
        degenerate=degenerate,
        mono=mono,
        rounding=rounding_cost(observations),
        rotations=None if rotations is None else rotations.reordered(order),
    )


def rounding_cost(observations: Observations[Array]) -> float:
    """Cost that rounding errors make: a pixel on the plane z = 1 is near 1, so its whitened residual is off by eps * inv_sigma."""
    eps = array_module(observations.inv_sigma).finfo(observations.inv_sigma.dtype).eps
    return 10 * float(((eps * observations.inv_sigma) ** 2).sum())


def _assign_slots(order: np.ndarray, kf: np.ndarray) -> tuple[np.ndarray, int]:
    """Of each observation (O,) its slot in the rows of the solver's keyframes, and N, the slots per row."""
    M = len(order)
    row_of = np.empty(M, dtype=np.int16)  # sorted by radix
    row_of[order] = np.arange(M)
    row = row_of[kf]
    by_row, counts = np.argsort(row, kind="stable"), np.bincount(row, minlength=M)
    N = max(int(counts.max()), 1)
    starts = counts.cumsum() - counts
    slot = np.empty(len(kf), dtype=np.int64)
    slot[by_row] = np.arange(len(kf)) + np.repeat(np.arange(M) * N - starts, counts)
    return slot, N


@dataclass
class _Selection:
    """The observations of a window that can be used."""

    used: np.ndarray  # (O,) bool
    excluded: str  # how many are not and why, for people; empty if all are
    depth: np.ndarray  # (O,) in their cameras, at the start
    centre: np.ndarray  # (3, P) as of Problem


def _select(window: _Host, R: np.ndarray, t: np.ndarray, X: np.ndarray) -> _Selection:
    kf, pt, P = window.kf_idx, window.pt_idx, len(X)
    mono = window.kind == int(ObservationKind.MONO)
    numbers = np.isfinite(window.obs) & np.isfinite(window.sigma) & (window.sigma > 0)
    numbers[:, 2] |= mono  # which measures no depth
    camera = t.T.take(kf, 1)
    with np.errstate(invalid="ignore"):  # landmarks that are not finite
        depth = (R[:, :, 2].T.take(kf, 1) * (X.T.take(pt, 1) - camera)).sum(0)
    front = numbers.all(1) & (depth > MIN_DEPTH) & (depth < np.inf)
    rays = np.bincount(pt, np.where(mono, 1.0, 2.0) * front, minlength=P)  # a measured depth counts as a second one
    used = front & (rays >= 2)[pt]
    views = np.bincount(pt, used, minlength=P)
    centre = np.stack([np.bincount(pt, c * used, minlength=P) for c in camera]) / np.maximum(views, 1)
    if used.all():
        return _Selection(used, "", depth, centre)
    finite = numbers.all(1) & np.isfinite(X[pt]).all(1)
    counts = [(~finite).sum(), (finite & ~front).sum(), (front & ~used).sum()]
    reasons = ("not finite or sigma not above zero", "behind the camera", "the only ray to their landmark")
    why = "; ".join(f"{n} observations excluded: {why}" for n, why in zip(counts, reasons, strict=True) if n)
    return _Selection(used, why, depth, centre)


def _choose_gauge(window: _Host, chosen: _Selection) -> tuple[np.ndarray, np.ndarray | None, bool, str]:
    """(fixed poses (M,), scale gauge (M, 6), of length 1, or None, mono, why degenerate).

    Poses: those the caller fixed; without any, the first. Scale: nothing in a mono window determines it, and
    scaling about the first fixed keyframe changes no residual. The step may then not change the distance, along the line
    between them, of that keyframe and the one farthest from it: a plane through the solutions that meets each of them once and never
    touches one, forward motion included, so the optimum is the same as without it.
    """
    used, t = chosen.used, window.T_WC[:, :3]
    fixed = window.fixed.copy()
    if not fixed.any():
        fixed[0] = True
    # A depth that is only expected gives no parallax: without this, a turn on the spot would pass for a window with measured depth.
    mono = window.expected_depth or not (window.kind[used] != int(ObservationKind.MONO)).any()
    if fixed.all():
        return fixed, None, mono, ""

    why = _check_connectivity(window.kf_idx[used], window.pt_idx[used], fixed, chosen.centre.shape[1])
    if why or not mono:
        return fixed, None, mono, why
    way = t - t[fixed.argmax()]
    distance = np.sqrt((way * way).sum(1))
    depth, middle = chosen.depth[used], used.sum() // 2
    least = 1e-6 * (np.partition(depth, middle)[middle] if len(depth) else 1.0)
    if (distance[fixed] > least).any():
        return fixed, None, mono, ""
    far = distance.argmax()
    if not distance[far] > least:
        return (
            fixed,
            None,
            mono,
            "no baseline: all keyframes start at the same place, so mono observations determine no depth",
        )
    vector = np.zeros((len(t), 6))
    vector[far, :3] = way[far] / distance[far]
    return fixed, vector, mono, ""


def _check_connectivity(kf: np.ndarray, pt: np.ndarray, fixed: np.ndarray, num_points: int) -> str:
    """Why the window falls apart: a keyframe with too few observations, or a group without a fixed keyframe."""
    M = len(fixed)
    counts = np.bincount(kf, minlength=M)
    few = np.flatnonzero(~fixed & (counts < 3))
    if len(few):
        return f"keyframes {few.tolist()} have {counts[few].tolist()} usable observations, a pose needs at least 3"
    seen = np.zeros((M, num_points), dtype=np.float32)
    seen[kf, pt] = 1
    linked = seen @ seen.T > 0
    reached, before = fixed, 0
    while reached.sum() > before:
        before, reached = reached.sum(), reached | linked[reached].any(0)
    loose = np.flatnonzero(~reached).tolist()
    if loose:
        return f"disconnected: keyframes {loose} share no landmark, not even through others, with a keyframe whose pose is held"
    return ""
