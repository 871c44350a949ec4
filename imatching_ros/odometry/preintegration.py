"""The rotation that a gyroscope has measured between two times, and between the keyframes of a window.

Rates are integrated on SO(3) (Forster, Carlone, Dellaert and Scaramuzza, "On-Manifold Preintegration for Real-Time Visual-Inertial
Odometry", TRO 2017, equations 37 and A.8 to A.12, rotation only).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..bundle import RelativeRotations
from ..core import geometry
from ..core.types import BAResult


@dataclass(frozen=True)
class Bias:
    """Of a gyroscope's rates, in the camera's axes."""

    mean: np.ndarray  # (3,) rad/s
    covariance: np.ndarray  # (3, 3)


@dataclass(frozen=True)
class Preintegrated:
    """The rotation from one time to another, as measured."""

    R: np.ndarray  # (3, 3), axes of the later time seen from those of the earlier
    covariance: np.ndarray  # (3, 3) rad^2 of R * Exp(phi), for an exact bias
    by_bias: np.ndarray  # (3, 3) derivative of phi by the bias, s
    bias: np.ndarray  # (3,) rad/s, with which it was integrated
    mean_rate: np.ndarray  # (3,) rad/s, with the bias
    seconds: float

    def with_bias(self, bias: np.ndarray) -> Preintegrated:
        """The rotation for another bias (3,), to first order."""
        turn = exp_so3((self.by_bias @ (bias - self.bias))[None])[0]
        return Preintegrated(
            self.R @ turn, turn.T @ self.covariance @ turn, self.by_bias, bias, self.mean_rate, self.seconds
        )

    def then(self, later: Preintegrated) -> Preintegrated:
        """The rotation over this time and the one that follows it."""
        first, turn = self.with_bias(later.bias), later.R
        seconds = self.seconds + later.seconds
        return Preintegrated(
            first.R @ turn,
            turn.T @ first.covariance @ turn + later.covariance,
            turn.T @ first.by_bias + later.by_bias,
            later.bias,
            (self.mean_rate * self.seconds + later.mean_rate * later.seconds) / seconds,
            seconds,
        )


def preintegrate(rates: np.ndarray, dt: np.ndarray, bias: np.ndarray, noise_density: float) -> Preintegrated:
    """Integrates K rates (K, 3) rad/s, each constant over dt (K,) s, that are known but for `bias` (3,) and white noise."""
    phi = (rates - bias) * dt[:, None]
    turns, jacobians = exp_so3(phi), _right_jacobian(phi) * dt[:, None, None]
    R, covariance, by_bias = np.eye(3), np.zeros((3, 3)), np.zeros((3, 3))
    for turn, jacobian, seconds in zip(turns, jacobians, dt.tolist()):
        R = R @ turn
        covariance = turn.T @ covariance @ turn + jacobian @ jacobian.T * (noise_density**2 / seconds)
        by_bias = turn.T @ by_bias - jacobian
    total = float(dt.sum())
    return Preintegrated(R, covariance, by_bias, bias, (rates * dt[:, None]).sum(0) / total, total)


@dataclass(frozen=True)
class WindowRotations:
    """What was measured between the keyframes of a window. All K rotations share one bias, whose error correlates them."""

    prior: RelativeRotations  # for bundle adjustment, the bias marginalized
    by_bias: np.ndarray  # (3K, 3) derivative of the errors by the bias, s
    noise: np.ndarray  # (3K, 3K) their covariance for an exact bias
    bias: Bias

    @staticmethod
    def of(steps: Sequence[Preintegrated | None], bias: Bias, weight: float) -> WindowRotations | None:
        """None where nothing was measured.

        Args:
            steps: of each keyframe the rotation since the one before; None where it is not known.
            weight: as of `RelativeRotations`.
        """
        rows = [k for k, step in enumerate(steps) if k > 0 and step is not None]
        known = [step.with_bias(bias.mean) for step in steps[1:] if step is not None]
        if not known:
            return None
        by_bias = np.concatenate([step.by_bias for step in known])
        noise = np.zeros((3 * len(known), 3 * len(known)))
        for k, step in enumerate(known):
            noise[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] = step.covariance
        information = np.linalg.inv(noise + by_bias @ bias.covariance @ by_bias.T)
        second, R = np.array(rows), np.stack([step.R for step in known])
        return WindowRotations(RelativeRotations(second - 1, second, R, information, weight), by_bias, noise, bias)

    def learn_bias(self, result: BAResult, share: float) -> Bias | None:
        """The bias by a window that was solved with the prior; None where it has nothing to say.

        Of the solution's errors e the bias explains P J^T information e, the optimum of bias and poses together. What images say of it, to the
        information J^T (noise + images)^-1 J, follows by taking the prior out again.

        Args:
            share: of that information that is new, 0..1: windows that overlap share their measurements.
        """
        if result.rotation_errors is None or result.rotation_covariance is None:
            return None
        e, of_images = result.rotation_errors.flatten().cpu().numpy(), result.rotation_covariance.cpu().numpy()
        before = np.linalg.inv(self.bias.covariance)
        information = self.by_bias.T @ np.linalg.solve(self.noise + of_images, self.by_bias)
        optimum = self.bias.covariance @ self.by_bias.T @ self.prior.information @ e
        measured = (before + information) @ optimum
        covariance = np.linalg.inv(before + share * information)
        return Bias(self.bias.mean + share * covariance @ measured, covariance)


def exp_so3(phi: np.ndarray) -> np.ndarray:
    """Rotation vectors (K, 3) rad -> matrices (K, 3, 3)."""
    return geometry.rotation_matrix(geometry.exp_so3(torch.from_numpy(phi))).numpy()


def _right_jacobian(phi: np.ndarray) -> np.ndarray:
    """(K, 3, 3): Exp(phi + d) = Exp(phi) * Exp(J d) to first order (Forster et al., equation 8)."""
    angle = np.maximum(np.linalg.norm(phi, axis=1), 1e-6)[:, None, None]
    cross = geometry.skew(torch.from_numpy(phi)).numpy()
    return np.eye(3) - (1 - np.cos(angle)) / angle**2 * cross + (angle - np.sin(angle)) / angle**3 * cross @ cross
