"""Motion-only refinement: one camera pose against fixed landmarks, for every frame.

In numpy: a frame takes some hundred operations on a few hundred numbers, and on so few numpy is three times as fast as torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..camera.model import Camera
from ..core.config import BundleConfig
from ..core.errors import BundleError
from ..core.residuals import MIN_DEPTH, Residuals, RobustKernel, normalize, project, unpack
from ..core.types import BAStatus, ObservationKind
from .covariance import design_effect, image_cell, residual_scale
from .levenberg_marquardt import Attempt, Outcome, minimize, negligible_decrease
from .problem import rounding_cost


@dataclass(frozen=True)
class View:
    """N landmarks and their observations in one image, as in `WindowSnapshot`."""

    camera: Camera
    points_W: Tensor  # (N, 3)
    obs: Tensor  # (N, 3) ideal px
    kind: Tensor  # (N,) int64, ObservationKind
    sigma: Tensor  # (N, 3)

    @staticmethod
    def mono(camera: Camera, points_W: Tensor, uv: Tensor, sigma_px: Tensor) -> View:
        """Of landmarks (N, 3) at ideal px (N, 2) that are known to sigma_px (N,); no depth is measured."""
        obs = torch.cat([uv, torch.zeros_like(uv[:, :1])], 1)
        kind = torch.full((len(uv),), int(ObservationKind.MONO), device=uv.device)
        return View(camera, points_W, obs, kind, sigma_px[:, None].expand(-1, 3))

    def excluding(self, excluded: Tensor) -> View:
        """The same landmarks, of which those at `excluded` (N,) bool say nothing about the pose: their sigma is infinite."""
        return replace(self, sigma=torch.where(excluded[:, None], torch.inf, self.sigma))


@dataclass(frozen=True)
class RotationPrior:
    """What another sensor knows of the rotation of the pose."""

    q_WC: Tensor  # (4,) float64 xyzw
    covariance: Tensor  # (3, 3) float64 rad^2 of R_WC * Exp(phi)
    binding: bool = False  # it has proved right so often that an image that contradicts it is wrong

    def certain(self) -> RotationPrior:
        """Known ten times as well: what contradicts it counts as an outlier."""
        return replace(self, covariance=self.covariance / 100)

    def correct(self, T_WC: Tensor, covariance: Tensor, used: bool) -> Correction:
        """What the images say of it: from a pose (7,) and its covariance (6, 6), of which the prior is a part where it was `used`."""
        P, prior = _numbers(covariance)[3:, 3:], _numbers(self.covariance)
        moved, reduced = -_Prior(self).error(_numbers(T_WC)[3:]), prior - P
        if not used:
            gain = prior @ np.linalg.inv(prior + P)
            moved, reduced = gain @ moved, gain @ prior
        values, axes = np.linalg.eigh(reduced)
        informed = values > 1e-3 * np.linalg.eigvalsh(prior).max()  # axes of which images say something
        return Correction(moved, reduced, float((((axes.T @ moved) ** 2)[informed] / values[informed]).sum()))


@dataclass(frozen=True)
class Correction:
    """By how much images move a prior, and reduce its covariance."""

    # Of the distance. The 99.9 % quantile of chi-square is 16, but errors of matches have heavier tails.
    CONTRADICTION: ClassVar[float] = 16.0

    moved: np.ndarray  # (3,) rad
    reduced: np.ndarray  # (3, 3) rad^2
    distance: float  # normalized innovation squared: moved^T reduced^-1 moved

    @property
    def contradicts(self) -> bool:
        return self.distance > self.CONTRADICTION


@dataclass(frozen=True)
class PoseResult:
    """One refined pose and its residuals."""

    T_WC: Tensor  # (7,) float64
    covariance: Tensor | None  # (6, 6) float64 of T_WC * Exp([rho, phi]), scaled by the residuals; None without one
    residual_px: (
        Tensor  # (N, 2) float64, observed minus reprojected, ideal px, of excluded ones too; NaN if not in front
    )
    weight: Tensor  # (N,) float64, the kernel's weight; 0 where the observation is excluded
    cost_before: float
    cost_after: float
    iterations: int
    status: BAStatus
    reason: str  # why not CONVERGED; empty otherwise


@torch.no_grad()
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def refine_pose(
    view: View, T_WC: Tensor, config: BundleConfig, covariance: bool = True, prior: RotationPrior | None = None
) -> PoseResult:
    """The pose that minimises the robust reprojection cost of `bundle.solve` with the landmarks held.

    Args:
        T_WC: (7,) start.
        covariance: whether the result has one, unless it is DEGENERATE.
        prior: weighed by its covariance against that of the observations, errors that they share included.

    Observations that are not finite or behind the camera at the start are excluded. Fewer than 3 usable ones, or a singular system,
    give DEGENERATE with the start pose.

    Raises:
        BundleError: a start that is not finite, or arrays that disagree in length.
    """
    _check(view, T_WC)
    problem = _Pose(view, T_WC, config, prior)
    count, inverse = int(problem.usable.sum()), None
    if count < 3:
        cost = problem.state.cost
        outcome = Outcome(cost, cost, 0, False, f"{count} usable observations, a pose needs at least 3")
    else:
        outcome = minimize(problem, config, damping=1e-6, rounding=problem.rounding)
        inverse = problem.invert()
        if inverse is None:
            reason = "the observations do not determine the pose: the system is singular"
            outcome = replace(outcome, reason=reason)
    status = BAStatus.CONVERGED if outcome.converged else BAStatus.MAX_ITER
    found = _scale(inverse, problem, view, config) if covariance and inverse is not None else None
    return PoseResult(
        T_WC=T_WC.double() if inverse is None else problem.pose(T_WC),
        covariance=None if found is None else torch.from_numpy(found).to(view.obs.device),
        residual_px=torch.from_numpy(problem.residual_px()).to(T_WC.device),
        weight=torch.from_numpy(problem.weight()).to(T_WC.device),
        cost_before=outcome.cost_before,
        cost_after=outcome.cost,
        iterations=outcome.iterations,
        status=BAStatus.DEGENERATE if inverse is None else status,
        reason=outcome.reason,
    )


def _check(view: View, start: Tensor) -> None:
    N = len(view.points_W)
    if not (view.obs.shape == view.sigma.shape == (N, 3) and view.kind.shape == (N,) and start.shape == (7,)):
        raise BundleError(
            f"refine_pose got T_WC {tuple(start.shape)}, points {tuple(view.points_W.shape)}, obs {tuple(view.obs.shape)}, "
            f"kind {tuple(view.kind.shape)}, sigma {tuple(view.sigma.shape)}, expected (7,), (N, 3), (N, 3), (N,), (N, 3)"
        )
    if not np.isfinite(_numbers(start)).all():
        raise BundleError(f"refine_pose needs a finite start pose, got {start.tolist()}")


def _scale(inverse: np.ndarray, problem: _Pose, view: View, config: BundleConfig) -> np.ndarray:
    """The covariance (6, 6): the inverse of the normal equations by the factors of `bundle.covariance`.

    With a prior the observations are weighed by these factors, and the pose takes the step that is left to the optimum.
    """
    used, s, kernel = problem.in_front(), problem.state.residuals.s[0], problem.kernel
    s, size = s[used], np.where(problem.kind == int(ObservationKind.MONO), 2.0, 3.0)[used]
    covariance = inverse * residual_scale(s, kernel.weight(s), size, 6, kernel)
    cells = image_cell(view.camera, problem.obs[used])
    covariance *= config.shared_error * design_effect(problem.influence(inverse)[:, used].T, cells, covariance)
    if problem.prior is None:
        return covariance
    return problem.weigh_prior(covariance.trace() / inverse.trace())


@dataclass
class _State:
    """A pose and its residuals."""

    t: np.ndarray  # (3,)
    q: np.ndarray  # (4,) xyzw
    R: np.ndarray  # (3, 3) of q
    points_C: np.ndarray  # (1, 3, N)
    residuals: Residuals[np.ndarray]  # (D, 1, N)
    cost: float


class _Prior:
    """Rows of a rotation prior: e = Log(R^-1 * R_prior), whose derivative by the step is -(I - [e]x / 2) to second order."""

    def __init__(self, prior: RotationPrior) -> None:
        self._q, self.information = _numbers(prior.q_WC), np.linalg.inv(_numbers(prior.covariance))

    def error(self, q: np.ndarray) -> np.ndarray:
        """(3,) rad from a rotation (4,) to the prior."""
        return _log(_multiply(q * (-1.0, -1.0, -1.0, 1.0), self._q))

    def cost(self, q: np.ndarray) -> float:
        e = self.error(q)
        return 0.5 * float(e @ self.information @ e)

    def normal_equations(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """H (3, 3) and g (3,) of the rotation."""
        e = self.error(q)
        J = np.eye(3) - 0.5 * _skew(e)
        weighted = J.T @ self.information
        return weighted @ J, weighted @ e


class _Pose:
    """A single pose as a least-squares problem, stepping by T * Exp([rho, phi]), Exp to second order.

    Attributes:
        usable: (N,) bool, observations that are not excluded.
        prior: of the rotation; None without one.
    """

    def __init__(self, view: View, start: Tensor, config: BundleConfig, prior: RotationPrior | None = None) -> None:
        """start: (7,)."""
        self._camera, self._config = view.camera, config
        self.prior = None if prior is None else _Prior(prior)
        self.kernel = RobustKernel(config.kernel, config.kernel_width)
        self.obs, self.kind, sigma = _numbers(view.obs), view.kind.cpu().numpy(), _numbers(view.sigma)
        X, T = _numbers(view.points_W).T, _numbers(start)
        self._known = np.isfinite(X).all(0)
        self._X = np.where(self._known, X, 0.0)
        finite = np.isfinite(self.obs) & np.isfinite(sigma) & (sigma > 0)
        finite[:, 2] |= self.kind == int(ObservationKind.MONO)  # which measures no depth
        t, q = T[:3], T[3:] / np.linalg.norm(T[3:])
        in_front = _rotation(q)[:, 2] @ (self._X - t[:, None]) > MIN_DEPTH
        self.usable = finite.all(1) & self._known & in_front
        self._observations = unpack(normalize(view.camera, self.obs, sigma, self.kind, self.usable)[:, None])
        self.rounding = rounding_cost(self._observations)
        self.state = self._trial = self._evaluate(t, q)
        self._linearize()

    def _evaluate(self, t: np.ndarray, q: np.ndarray) -> _State:
        R = _rotation(q)
        points_C = (R.T @ (self._X - t[:, None]))[None]
        residuals = project(self._observations, points_C)
        cost = 0.5 * float(self.kernel.cost(residuals.s).sum())
        if self.prior is not None:
            cost += self._config.shared_error * self.prior.cost(q)
        return _State(t, q, R, points_C, residuals, cost)

    def _linearize(self) -> None:
        """The normal equations at the state, by iteratively reweighted least squares."""
        at = self.state.residuals
        root = np.sqrt(self.kernel.weight(at.s))
        self._J = self._jacobian(root)
        self._r = (at.whitened * root).ravel()
        self._H, self._g = self._J @ self._J.T, self._J @ self._r
        if self.prior is not None:
            self._add_prior(self._config.shared_error)

    def _add_prior(self, weight: float) -> None:
        assert self.prior is not None, "called with a prior only"
        H, g = self.prior.normal_equations(self.state.q)
        self._H[3:, 3:] += weight * H
        self._g[3:] += weight * g

    def weigh_prior(self, scale: float) -> np.ndarray:
        """Weighs observations by 1 / scale against the prior, takes the last step, and returns the covariance (6, 6)."""
        self._H, self._g = self._J @ self._J.T / scale, self._J @ self._r / scale
        self._add_prior(1.0)
        covariance = np.linalg.inv(self._H)
        step, at = covariance @ self._g, self.state
        self.state = self._evaluate(at.t + at.R @ step[:3], _turn(at.q, step[3:]))
        return covariance

    def _jacobian(self, scale: np.ndarray) -> np.ndarray:
        """(6, D * N): minus the derivative of the whitened residuals by the step, times `scale` (1, N).

        Row for row that of `residuals.landmark_jacobian` and `pose_jacobian`, for one camera and all components at once.
        """
        at, alpha = self.state.residuals, self._observations.alpha
        gain = self._observations.inv_sigma * (scale * at.inv_depth)
        # Derivative by the point in the camera.
        a, b, c = (
            np.zeros_like(gain),
            np.zeros_like(gain),
            -gain * at.predicted,
        )
        a[0], b[1] = gain[0], gain[1]
        if alpha is not None:
            a[2] = gain[2] * alpha
        x, y, z = self.state.points_C[0]
        return np.concatenate([-a, -b, -c, b * z - c * y, c * x - a * z, a * y - b * x]).reshape(6, -1)

    def attempt(self, damping: float) -> Attempt:
        cost, extra = self.state.cost, self._H.diagonal() * damping + 1e-300
        try:
            step = np.linalg.solve(self._H + np.diag(extra), self._g)
        except np.linalg.LinAlgError:
            return Attempt(cost, np.inf, np.nan)
        predicted = 0.5 * float(step @ (self._g + extra * step))
        if 0 <= predicted <= negligible_decrease(cost, self._config, self.rounding):
            return Attempt(cost, np.inf, predicted)  # converged: the step is not worth its evaluation
        at = self.state
        self._trial = self._evaluate(at.t + at.R @ step[:3], _turn(at.q, step[3:]))
        return Attempt(cost, self._trial.cost, predicted)

    def accept(self, near_optimum: bool) -> None:
        self.state = self._trial
        self._linearize()

    def reject(self) -> None:
        pass

    def invert(self) -> np.ndarray | None:
        """(6, 6) inverse of the normal equations; None when they are singular."""
        scale = np.maximum(self._H.diagonal(), 1e-300) ** -0.5
        scale = scale[:, None] * scale
        try:
            half = np.linalg.inv(np.linalg.cholesky(self._H * scale))
        except np.linalg.LinAlgError:
            return None
        inverse = half.T @ half
        return inverse * scale if inverse.diagonal().max() < 1e12 else None

    def influence(self, inverse: np.ndarray) -> np.ndarray:
        """(6, N): by how much each observation moves the pose."""
        return inverse @ (self._J * self._r).reshape(6, -1, len(self.usable)).sum(1)

    def in_front(self) -> np.ndarray:
        """(N,) bool: observations that are used and whose landmark is in front of the camera."""
        return self.usable & (self.state.residuals.depth[0] > MIN_DEPTH)

    def weight(self) -> np.ndarray:
        """(N,) of the kernel; 0 where the observation is excluded."""
        return np.where(self.in_front(), self.kernel.weight(self.state.residuals.s[0]), 0.0)

    def residual_px(self) -> np.ndarray:
        """(N, 2) observed minus predicted; NaN where the landmark is not in front."""
        at, camera = self.state.residuals, self._camera
        seen = self._known & (at.depth[0] > MIN_DEPTH)
        predicted = at.predicted[:2, 0].T * (camera.fx, camera.fy) + (camera.cx, camera.cy)
        return np.where(seen[:, None], self.obs[:, :2] - predicted, np.nan)

    def pose(self, like: Tensor) -> Tensor:
        """(7,) on the device of the pose `like`, with the sign of its quaternion."""
        q = self.state.q
        q = -q if q @ _numbers(like)[3:] < 0 else q
        return torch.from_numpy(np.concatenate([self.state.t, q])).to(like.device)


def _numbers(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _rotation(q: np.ndarray) -> np.ndarray:
    """`geometry.rotation_matrix` of one quaternion (4,): I + 2 w [v]x + 2 [v]x [v]x."""
    x, y, z, w = q.tolist()
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + 2 * (w * cross + cross @ cross)


def _skew(v: np.ndarray) -> np.ndarray:
    x, y, z = v.tolist()
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def _multiply(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Hamilton product of quaternions (4,)."""
    return np.append(p[3] * q[:3] + q[3] * p[:3] + np.cross(p[:3], q[:3]), p[3] * q[3] - p[:3] @ q[:3])


def _log(q: np.ndarray) -> np.ndarray:
    """Unit quaternion (4,) -> rotation vector (3,) rad, at most pi long."""
    q = -q if q[3] < 0 else q
    norm = float(np.linalg.norm(q[:3]))
    return q[:3] * (2.0 if norm < 1e-8 else 2 * np.arctan2(norm, q[3]) / norm)


def _turn(q: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """A quaternion (4,) times that of Cayley's formula, (phi / 2, 1) normalised: Exp(phi) to second order."""
    x, y, z, w = q.tolist()
    a, b, c = (0.5 * phi).tolist()
    turned = np.array(
        [x + w * a + y * c - z * b, y + w * b + z * a - x * c, z + w * c + x * b - y * a, w - x * a - y * b - z * c]
    )
    return turned / np.linalg.norm(turned)
