"""What keyframes that leave the window know, kept as a prior on those that stay.

Odometry holds poses instead, which measured better. This is the alternative that it was measured against, by `bench leaving`,
which alone uses it: so that the choice can be measured again.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core.config import BundleConfig
from ..core.types import WindowSnapshot
from .priors import MarginalPrior, PointPrior
from .problem import compile_window
from .linearization import Workspace, eliminate, evaluate, linearise

# Directions that the prior knows less of than this part of the best known one are taken as unknown.
_UNKNOWN = 1e-12


@torch.no_grad()
def marginalize(
    window: WindowSnapshot, leaving: Tensor, config: BundleConfig, alive: Tensor | None = None
) -> tuple[MarginalPrior | None, Tensor]:
    """Eliminates the leaving keyframes and the landmarks they see; the window must be at its optimum.

    A landmark goes with its observations in all keyframes, also those that stay: what is counted in the prior must not be
    counted again. Landmarks that are still wanted can be kept `alive`; then the leaving keyframes' observations of them are
    lost. Linearised once, at the window's poses, which the prior keeps (first-estimate Jacobians). Earlier priors on poses
    are absorbed.

    Args:
        leaving: (M,) bool. alive: (P,) bool, landmarks that are not eliminated.

    Returns:
        the prior on the staying, free keyframes, with rows of the window WITHOUT the leaving ones (None if nothing is known of
        them), and the observations (O,) that must be left out from now on.
    """
    gone = leaving[window.kf_idx]
    eliminated = torch.zeros(len(window.points_W), dtype=torch.bool, device=leaving.device)
    eliminated[window.pt_idx[gone]] = True
    if alive is not None:
        eliminated &= ~alive
    consumed = eliminated[window.pt_idx]
    part = replace(
        window,
        kf_idx=window.kf_idx[consumed],
        pt_idx=window.pt_idx[consumed],
        obs=window.obs[consumed],
        kind=window.kind[consumed],
        sigma=window.sigma[consumed],
        priors=tuple(p for p in window.priors if not isinstance(p, PointPrior)),
    )
    problem = compile_window(part, torch.float64)
    order = problem.order[problem.num_fixed :]
    work = Workspace(problem)
    state = evaluate(problem, problem.R, problem.t, problem.X, config.kernel, config.kernel_width)
    reduced = eliminate(linearise(problem, state, config.kernel, config.kernel_width, work), work, 0.0)
    H, b = reduced.S - torch.diag(reduced.pose_damping), reduced.rhs.clone()

    go = leaving[order].repeat_interleave(6)
    stay = ~go
    if bool(go.any()):
        # Directions that nobody knows, such as the scale in mono, are zero rows of H: a pseudo-inverse passes them over.
        A, B = H[go][:, go], H[stay][:, go]
        inverse = torch.linalg.pinv(A, rcond=_UNKNOWN, hermitian=True)
        b = b[stay] - B @ (inverse @ b[go])
        H = H[stay][:, stay] - B @ inverse @ B.T
    H = 0.5 * (H + H.T)
    kept = ~leaving[order]
    # What is left is positive up to rounding; rounding below zero would make the cost unbounded.
    values, vectors = torch.linalg.eigh(H)
    known = values > _UNKNOWN * values.amax(0, keepdim=True).clamp_min(1e-300) if len(values) else values > 0
    if not bool(known.any()):
        return None, consumed | gone
    H = (vectors * torch.where(known, values, 0.0)) @ vectors.T
    along = torch.where(known, vectors.T @ b, 0.0)
    b = vectors @ along
    constant = 0.5 * float((along**2 / torch.where(known, values, 1.0)).sum())
    rows = order[kept]
    after = (~leaving).long().cumsum(0) - 1
    metric = not problem.mono or any(p.anchors_scale for p in window.priors if isinstance(p, MarginalPrior))
    weight = H.diagonal().view(-1, 6).amax(1)
    touched = weight > _UNKNOWN * weight.max()
    select = touched.repeat_interleave(6)
    rows = rows[touched]
    T = window.T_WC[rows].double()
    T = torch.cat([T[:, :3], T[:, 3:] / T[:, 3:].norm(dim=1, keepdim=True)], 1)
    return MarginalPrior(after[rows], T, H[select][:, select], b[select], constant, metric), consumed | gone
