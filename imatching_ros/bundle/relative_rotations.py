"""Rotations between keyframes of a window that another sensor has measured, as a prior of bundle adjustment.

The sensor's own parameters, a gyroscope's bias above all, are no states of the solver: their errors are marginalized into the joint
covariance of the rotations, which is why the information is dense. In numpy: on so few numbers an operation takes a third of torch's time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ..core.errors import BundleError


@dataclass(frozen=True)
class RelativeRotations:
    """K rotations with a joint normal distribution: R_first^T R_second = R * Exp(e), e ~ N(0, information^-1)."""

    first: np.ndarray  # (K,) int64, rows of keyframes
    second: np.ndarray  # (K,) int64
    R: np.ndarray  # (K, 3, 3), axes of the second keyframe seen from those of the first
    information: np.ndarray  # (3K, 3K) rad^-2
    # Of it in bundle adjustment, by how much the errors of observations exceed what their sigmas say: matches of an image share errors, so
    # that reprojection overstates its information. `BAResult.residual_scale` times `covariance_scale` of the windows before.
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.first)

    def check(self, keyframes: int) -> None:
        """Raises BundleError when arrays disagree in shape, point outside the window or are not finite."""
        K = len(self.first)
        shapes = [v.shape for v in (self.first, self.second, self.R, self.information)]
        if shapes != [(K,), (K,), (K, 3, 3), (3 * K, 3 * K)]:
            raise BundleError(
                f"rotations have shapes first, second, R, information {shapes}, expected (K,), (K,), (K, 3, 3), (3K, 3K)"
            )
        rows = np.concatenate([self.first, self.second])
        if K and not (0 <= rows.min() and rows.max() < keyframes):
            raise BundleError(f"rotations name keyframes {rows.tolist()}, expected 0..{keyframes - 1}")
        if not (np.isfinite(self.R).all() and np.isfinite(self.information).all()):
            raise BundleError("rotations between keyframes, or their information, are not finite")

    def reordered(self, order: np.ndarray) -> RelativeRotations:
        """The same for a window whose keyframe k is number order[k] (M,) of this one."""
        row = np.empty_like(order)
        row[order] = np.arange(len(order))
        return replace(self, first=row[self.first], second=row[self.second])

    def errors(self, R_WC: Tensor) -> np.ndarray:
        """e (K, 3) rad of keyframes' rotations (M, 3, 3)."""
        R = _numbers(R_WC)
        difference = (R[self.first] @ self.R).transpose(0, 2, 1) @ R[self.second]
        axis = difference[:, (2, 0, 1), (1, 2, 0)] - difference[:, (1, 2, 0), (2, 0, 1)]  # 2 sin(angle) long
        sine = 0.5 * np.sqrt((axis * axis).sum(1))
        angle = np.arctan2(sine, 0.5 * (difference.trace(axis1=1, axis2=2) - 1))
        return axis * (0.5 * np.where(sine < 1e-9, 1.0, angle / np.maximum(sine, 1e-9)))[:, None]

    def distance(self, R_WC: Tensor) -> float:
        """e^T information e: chi-square of 3K degrees of freedom at the true rotations."""
        e = self.errors(R_WC).ravel()
        return float(e @ self.information @ e)

    def contradict(self, R_WC: Tensor, of_images: Tensor | None) -> bool:
        """Whether observations contradict the prior, by the optimum R_WC (M, 3, 3) of both: then one of them is wrong.

        The innovation squared: observations alone, which know the rotations to `of_images` (3K, 3K), would be at (I + of_images information) e.
        """
        freedom, pull = 3 * len(self), self.information @ self.errors(R_WC).ravel()
        distance = self.distance(R_WC)
        if of_images is not None:
            distance += float(pull @ _numbers(of_images) @ pull)
        # The 99.9 % quantile of chi-square (Wilson and Hilferty 1931).
        return distance > freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3

    def cost(self, R_WC: Tensor) -> float:
        """To be added to that of the observations, with `weight`."""
        return 0.5 * self.weight * self.distance(R_WC)

    def normal_equations(self, R_WC: Tensor, num_fixed: int) -> tuple[Tensor, Tensor]:
        """H (6F, 6F) and right hand side (6F,) of `cost`, by steps [rho, phi] of the free keyframes, R <- Exp(phi) R."""
        e = self.errors(R_WC)
        J = self.jacobian(R_WC, num_fixed, e)
        weighted = self.weight * (J.T @ self.information)
        return R_WC.new_tensor(weighted @ J), R_WC.new_tensor(-(weighted @ e.ravel()))

    def jacobian(self, R_WC: Tensor, num_fixed: int, e: np.ndarray) -> np.ndarray:
        """(3K, 6F) derivative of `errors` e (K, 3) by steps of the free keyframes.

        By phi_second - phi_first it is Jr^-1(e) R_second^T, with Jr^-1 = I + [e]x / 2 + [e]x^2 / 12 to third order.
        """
        K, M = len(self), len(R_WC)
        cross = np.zeros((K, 3, 3))
        cross[:, (2, 0, 1), (1, 2, 0)] = e
        cross[:, (1, 2, 0), (2, 0, 1)] = -e
        block = (np.eye(3) + cross / 2 + cross @ cross / 12) @ _numbers(R_WC)[self.second].transpose(0, 2, 1)
        J, rows = np.zeros((K, M, 6, 3)), np.arange(K)
        J[rows, self.second, 3:] = block.transpose(0, 2, 1)
        J[rows, self.first, 3:] = -J[rows, self.second, 3:]
        return J[:, num_fixed:].transpose(0, 3, 1, 2).reshape(3 * K, -1)


def _numbers(values: Tensor) -> np.ndarray:
    return values.numpy(force=True).astype(np.float64, copy=False)
