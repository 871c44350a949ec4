"""How wide the residuals really are, for covariances that do not believe the assumed sigmas."""

from __future__ import annotations

import torch
from torch import Tensor
from ..core.config import BundleConfig
from ..camera.model import Camera
from ..core.residuals import kernel_weight
from .problem import Problem
from .linearization import State


def measure_spread(s: Tensor, weight: Tensor, size: Tensor, parameters: Tensor | int, config: BundleConfig) -> Tensor:
    """The factor () that turns (J^T W J)^-1 of unit sigmas into the covariance of the estimate.

    Huber's covariance of an M-estimate (Robust Statistics, 1981, section 7.6): (n / (n - p)) mean(psi^2) / mean(psi')^2
    (J^T J)^-1, with J^T W J taken as mean(w) J^T J.

    Args:
        s, weight: (O,) squared whitened norms and kernel weights of the used observations. size: (O,) their numbers, 2 or 3.
        parameters: p, how many numbers were estimated from them.
    """
    n = size.sum()
    psi2 = (weight**2 * s).sum() / n
    k2 = config.kernel_width**2
    # psi = w(s) r in `size` dimensions has the divergence size * w + 2 s w'(s).
    bend = {
        "none": lambda: torch.zeros_like(s),
        "huber": lambda: torch.where(s > k2, -0.5 * weight / s.clamp_min(k2), 0.0),
        "cauchy": lambda: -(weight**2) / k2,
        "geman_mcclure": lambda: -2 / k2 * (1 + s / k2) ** -3,
    }[config.kernel]()
    slope = (size * weight + 2 * s * bend).sum() / n
    mean_weight = (size * weight).sum() / n
    return psi2 * mean_weight / slope.clamp_min(0.05) ** 2 * n / (n - parameters).clamp_min(1.0)


# How much less correlated observations tell than as many independent ones.
#
# A matcher errs alike on neighbouring points and goes on erring alike along a track, and of that the inverse of the normal equations
# and the size of the residuals know nothing. The design effect (Kish, Survey Sampling, 1965) is the variance of an estimate by sums over
# clusters, within which residuals may be correlated in any way (Liang and Zeger 1986), over its variance for independent residuals.
# A cluster is what lies in one part of the image, at all times.
#
# Errors that a whole image shares are taken for motion and leave no residual at all: `BundleConfig.shared_error` stands for them.


_ACROSS, _DOWN = 6, 4  # parts of the image
_HELD = 1e-9  # eigenvalues of a correlation matrix below this are rounding


def image_parts(camera: Camera, uv: Tensor) -> Tensor:
    """The part of the image (N,) int64 that ideal px (N, 2) lie in; px outside belong to the nearest."""
    size = uv.new_tensor([camera.width, camera.height])
    u, v = (uv / size * uv.new_tensor([_ACROSS, _DOWN])).nan_to_num(0.0).floor().long().unbind(1)
    return v.clamp(0, _DOWN - 1) * _ACROSS + u.clamp(0, _ACROSS - 1)


def design_effect(influence: Tensor, part: Tensor, covariance: Tensor) -> Tensor:
    """Variance by clusters over variance for independent residuals, as the mean over all directions, (); at least 1.

    Args:
        influence: (N, D) what the residuals of each observation, or landmark, move the estimate by. part: (N,) of `image_parts`.
        covariance: (D, D) of the estimate for independent residuals.
    """
    count = _ACROSS * _DOWN
    sums = influence.new_zeros(count, influence.shape[1]).index_add_(0, part, influence)
    filled = (torch.bincount(part, minlength=count) > 0).sum()
    # In mono one direction may be held by convention: nothing is known to vary along it.
    scale = covariance.diagonal().clamp_min(1e-300).rsqrt()
    values, vectors = torch.linalg.eigh(covariance * scale[:, None] * scale)
    along = (sums * scale) @ vectors * (values > _HELD)
    variance = (along * along).sum(0) / values.clamp_min(_HELD) * (filled / (filled - 1).clamp_min(1))
    return (variance.sum() / (values > _HELD).sum().clamp_min(1)).nan_to_num(1.0).clamp_min(1.0)


def landmark_parts(camera: Camera, uv: Tensor, point: Tensor, used: Tensor, num_points: int) -> Tensor:
    """The part of the image (P,) that each landmark is seen in on average, by observations (O, 2) ideal px that are used (O,)."""
    uv = torch.where(used[:, None], uv, 0.0)
    total = uv.new_zeros(num_points, 2).index_add_(0, point, uv)
    views = uv.new_zeros(num_points).index_add_(0, point, used.to(uv.dtype))
    return image_parts(camera, total / views.clamp_min(1)[:, None])


def pose_scores(problem: Problem, state: State, kernel: str, width: float) -> Tensor:
    """Gradient (M, 6, N) that each observation adds to the pose it was made from, for the step [rho, phi] in world axes.

    At the optimum the gradient of a landmark itself is zero, so all of its observations together move the poses by these alone.
    """
    weight = kernel_weight(kernel, state.s, width)
    columns = state.R.permute(2, 0, 1)[..., None]
    gain = problem.inv_sigma * (state.residual * weight * state.inv_depth)
    across, down, along = gain[0], gain[1], -(gain[0] * state.ratio[0] + gain[1] * state.ratio[1])
    if problem.alpha is not None:
        across = across + gain[2] * problem.alpha
        along = along - gain[2] * torch.addcmul(problem.alpha * state.ratio[0], problem.beta, state.inv_depth)
    push = across[:, None] * columns[0] + down[:, None] * columns[1] + along[:, None] * columns[2]
    return torch.cat([-push, torch.linalg.cross(push, state.Y, dim=1)], 1)
