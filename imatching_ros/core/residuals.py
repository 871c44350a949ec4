"""THE reprojection residual, its Jacobian and its robust kernels: bundle adjustment minimises it, learning descends it.

Learning may hold T* and p* constant only because both levels share this residual and these weights: at the optimum of the
one, the derivative of the other with respect to T and p vanishes.

The model is a pinhole camera in ideal pixels. An observation is u, v and, unless its kind is MONO, a measurement of depth d: the
column in the rectified right image (STEREO, from which the disparity is u - d) or the inverse depth (DEPTH). Both have the form
d = alpha u + beta / z. `reproject` is the model in the layout of a window, differentiable by autograd; `project` and `landmark_jacobian`
are the same model in the layout of the solvers, with derivatives written out.

Functions of an `Array` take torch's or numpy's, and return the same kind. On the few hundred numbers of a single image an operation of
numpy takes a third of the time of one of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor

from . import geometry
from .arrays import Array, array_module
from .types import ObservationKind, WindowSnapshot
from .errors import CameraError, ConfigError

if TYPE_CHECKING:
    from ..camera.model import Camera

# Nearer than this a point has no meaningful pixel; in the unit of the map.
MIN_DEPTH = 1e-6


def depth_model(camera: Camera, kind: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(alpha, beta), each shaped as `kind`: the disparity or inverse-depth measurement is alpha * u + beta / z; 0, 0 in mono.

    Raises:
        CameraError: stereo observations of a camera without `baseline_m`.
    """
    stereo, depth = kind == ObservationKind.STEREO, kind == ObservationKind.DEPTH
    if camera.baseline_m is None:
        if bool(stereo.any()):
            raise CameraError(
                "stereo observations need the camera's baseline_m, which is not given; set it to the distance "
                "between the rectified cameras in metres"
            )
        return stereo.to(dtype), depth.to(dtype)
    return stereo.to(dtype), depth.to(dtype) - camera.fx * camera.baseline_m * stereo.to(dtype)


def reproject(window: WindowSnapshot, T_WC: Tensor, points_W: Tensor) -> Tensor:
    """Predicted observations (O, 3): u, v in ideal px, then u in the right image (STEREO), 1/z (DEPTH) or 0 (MONO).

    Differentiable in T_WC (M, 7) and points_W (P, 3), which replace those of the window. NaN where the landmark is not in front
    of the camera.
    """
    camera = window.camera
    points_C = geometry.act(geometry.inverse(T_WC)[window.kf_idx], points_W[window.pt_idx])
    x, y, z = points_C.unbind(-1)
    z = torch.where(z > MIN_DEPTH, z, torch.nan)
    u, v = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
    alpha, beta = depth_model(camera, window.kind, points_C.dtype)
    return torch.stack([u, v, alpha * u + beta / z], -1)


def whiten(residual: Tensor, sigma: Tensor, kind: Tensor) -> Tensor:
    """Residuals (O, 3) over sigma (O, 3); the depth measurement that a mono observation lacks becomes 0."""
    depth = torch.where(kind == ObservationKind.MONO, 0.0, residual[:, 2] / sigma[:, 2])
    return torch.cat([residual[:, :2] / sigma[:, :2], depth[:, None]], 1)


def squared_norm(window: WindowSnapshot, T_WC: Tensor, points_W: Tensor) -> Tensor:
    """s (O,): squared norm of every whitened residual, differentiable in T_WC, points_W and window.obs; what the kernels take."""
    r = whiten(window.obs - reproject(window, T_WC, points_W), window.sigma, window.kind)
    return (r * r).sum(-1)


@dataclass
class Observations(Generic[Array]):
    """Observations of M cameras in N slots each, component-major, as the solvers use them.

    On the plane z = 1: u, v and a right u are (px - centre) / focal. D is 2 if all observations are mono, else 3. An empty slot, and
    an observation that is excluded, has inv_sigma 0: it costs nothing and needs no mask in inner loops.
    """

    observed: Array  # (D, M, N)
    inv_sigma: Array  # (D, M, N)
    alpha: Array | None  # (M, N), with beta: the depth measurement is alpha * x/z + beta / z; None if D is 2
    beta: Array | None  # (M, N)


def normalize(camera: Camera, obs: Array, sigma: Array, kind: Array, used: Array) -> Array:
    """Observations (O, 3) of `WindowSnapshot` on the plane z = 1: (C, O) rows observed (D), inv_sigma (D) and, if D is 3, alpha, beta.

    Columns that are not `used` (O,) are 0.
    """
    xp = array_module(obs)
    u, v = (obs[:, 0] - camera.cx) / camera.fx, (obs[:, 1] - camera.cy) / camera.fy
    inv_sigma = 1 / sigma
    observed: list[Any] = [u, v]
    weights: list[Any] = [inv_sigma[:, 0] * camera.fx, inv_sigma[:, 1] * camera.fy]
    model: list[Any] = []
    if bool((kind != int(ObservationKind.MONO)).any()):
        stereo, depth = kind == int(ObservationKind.STEREO), kind == int(ObservationKind.DEPTH)
        zero, one = xp.zeros_like(u), xp.ones_like(u)
        observed.append(xp.where(stereo, (obs[:, 2] - camera.cx) / camera.fx, xp.where(depth, obs[:, 2], zero)))
        weights.append(xp.where(stereo, inv_sigma[:, 2] * camera.fx, xp.where(depth, inv_sigma[:, 2], zero)))
        beta = xp.where(stereo, -(camera.baseline_m or 0.0) * one, xp.where(depth, one, zero))
        model = [xp.where(stereo, one, zero), beta]
    return xp.where(used, xp.stack([*observed, *weights, *model]), xp.zeros_like(u))


def unpack(table: Array) -> Observations[Array]:
    """`Observations` from the rows of `normalize`, laid out as (C, M, N)."""
    if len(table) == 4:
        return Observations(table[:2], table[2:], None, None)
    return Observations(table[:3], table[3:6], table[6], table[7])


@dataclass
class Residuals(Generic[Array]):
    """Whitened residuals of `Observations` and what their derivatives need."""

    depth: Array  # (M, N)
    inv_depth: Array  # (M, N)
    predicted: Array  # (D, M, N) on the plane z = 1
    whitened: Array  # (D, M, N)
    s: Array  # (M, N) squared norm of `whitened`


def project(observations: Observations[Array], points_C: Array) -> Residuals[Array]:
    """Residuals of points (M, 3, N) in their cameras; a point behind its camera counts as one at MIN_DEPTH."""
    depth = points_C[:, 2]
    inv_depth = 1 / depth.clip(MIN_DEPTH)
    predicted = points_C[:, :2].swapaxes(0, 1) * inv_depth
    if observations.alpha is not None and observations.beta is not None:
        d = observations.alpha * predicted[0] + observations.beta * inv_depth
        predicted = array_module(d).stack([predicted[0], predicted[1], d])
    whitened = (observations.observed - predicted) * observations.inv_sigma
    return Residuals(depth, inv_depth, predicted, whitened, (whitened * whitened).sum(0))


def landmark_jacobian(
    observations: Observations[Tensor], at: Residuals[Tensor], R: Tensor, scale: Tensor, out: Tensor | None = None
) -> Tensor:
    """(M, 3, D, N): minus the derivative of each whitened component by its landmark, times `scale` (M, N).

    A component with prediction h has the derivative (lead - h e_z) / z in the camera's axes, where lead is e_x for u, e_y for v
    and alpha e_x for the depth measurement.

    Args:
        R: (M, 3, 3) camera axes -> the axes of the result; the identity gives the camera's own.
        out: takes the result.
    """
    D, M, N = observations.observed.shape
    J = scale.new_empty(M, 3, D, N) if out is None else out
    xy, z = R.unsqueeze(3).split((2, 1), 2)
    predicted = at.predicted.transpose(0, 1).unsqueeze(1)
    if observations.alpha is None:
        torch.addcmul(xy, z, predicted, value=-1, out=J)
    else:
        torch.addcmul(xy, z, predicted[:, :, :2], value=-1, out=J[:, :, :2])
        torch.mul(xy[:, :, 0], observations.alpha.unsqueeze(1), out=J[:, :, 2])
        J[:, :, 2].addcmul_(z.squeeze(2), predicted[:, :, 2], value=-1)
    gain = observations.inv_sigma * (scale * at.inv_depth)
    return J.mul_(gain.transpose(0, 1).unsqueeze(1))


def pose_jacobian(landmark: Tensor, Y: Tensor) -> Tensor:
    """(M, 6, N): the derivative by the pose that belongs to a derivative by the landmark (M, 3, N).

    Args:
        Y: (M, 3, N) landmark minus camera. In world axes the pose moves by t + rho, Exp(phi) R; in the camera's own axes it is
            T * Exp([rho, phi]). The camera sees R^T (X - t), so its derivative is that of the landmark times [-I, [Y]x].
    """
    return torch.cat([-landmark, torch.linalg.cross(landmark, Y, dim=1)], 1)


@dataclass(frozen=True)
class RobustKernel:
    """rho(s) of s, the squared norm of one observation's whitened residual (2 numbers in mono, 3 with depth).

    The cost of a window is sum(rho(s)) / 2. Huber 1964; Cauchy; Geman and McClure 1985, scaled to rho'(0) = 1; none: rho(s) = s.

    Raises:
        ConfigError: an unknown name.
    """

    name: str  # huber, cauchy, geman_mcclure or none
    width: float  # sigma: about where rho departs from s

    def __post_init__(self) -> None:
        if self.name not in ("huber", "cauchy", "geman_mcclure", "none"):
            raise ConfigError(f"unknown robust kernel '{self.name}', expected huber, cauchy, geman_mcclure or none")

    def cost(self, s: Array) -> Array:
        """rho(s), same shape as s."""
        xp, k2 = array_module(s), self.width * self.width
        if self.name == "huber":
            return xp.where(s <= k2, s, 2 * self.width * xp.sqrt(s.clip(k2)) - k2)
        if self.name == "cauchy":
            return k2 * xp.log1p(s / k2)
        if self.name == "geman_mcclure":
            return s / (1 + s / k2)
        return s

    def total(self, s: Tensor) -> Tensor:
        """sum(rho(s)) / 2, ()."""
        if self.name == "huber":
            norm = s.sqrt()
            clipped = norm.clamp_max(self.width)
            return torch.dot(clipped.view(-1), torch.sub(norm, clipped, alpha=0.5).view(-1))
        return 0.5 * self.cost(s).sum()

    def weight(self, s: Array) -> Array:
        """rho'(s), in 0..1: the weight of the squared residual in iteratively reweighted least squares."""
        xp, k2 = array_module(s), self.width * self.width
        if self.name == "huber":
            return self.width / xp.sqrt(s.clip(k2))
        if self.name == "cauchy":
            return 1 / (1 + s / k2)
        if self.name == "geman_mcclure":
            return (1 + s / k2) ** -2
        return xp.ones_like(s)

    def weight_derivative(self, s: Array) -> Array:
        """rho''(s), not above 0."""
        xp, k2 = array_module(s), self.width * self.width
        if self.name == "huber":
            return xp.where(s > k2, -0.5 * self.weight(s) / s.clip(k2), xp.zeros_like(s))
        if self.name == "cauchy":
            return -(self.weight(s) ** 2) / k2
        if self.name == "geman_mcclure":
            return -2 / k2 * (1 + s / k2) ** -3
        return xp.zeros_like(s)

    def curvature_loss(self, s: Tensor) -> Tensor:
        """-2 s rho''(s) / rho'(s): the part of the curvature along the residual that reweighting overstates (Triggs 2000, 4.3).

        0 for a quadratic cost, 1 where the cost has no curvature along the residual, as in Huber's linear part, above 1 where it
        curves downwards.
        """
        k2 = self.width * self.width
        if self.name == "huber":
            return (s > k2).to(s.dtype)
        if self.name == "cauchy":
            return 2 * s / (k2 + s)
        if self.name == "geman_mcclure":
            return 4 * s / (k2 + s)
        return torch.zeros_like(s)
