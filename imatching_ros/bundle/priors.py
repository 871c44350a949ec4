"""What a window may know besides its observations. Errors are e = [t - t0, Log(R R0^T)] per pose, in world axes.

That is the perturbation the solver itself steps in (t + rho, Exp(phi) R), so a prior's Jacobian is the identity and stays the
one of the moment the prior was made: the first-estimate Jacobian.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import geometry


@dataclass(frozen=True)
class PosePrior:
    """Keyframe `keyframe` is near `T_WC`: cost e^T information e / 2."""

    keyframe: int  # row of WindowSnapshot.T_WC
    T_WC: Tensor  # (7,) float64
    information: Tensor  # (6, 6) float64, of a perturbation [rho, phi] in world axes


@dataclass(frozen=True)
class PointPrior:
    """Landmarks `points` are near `points_W`: cost of each e^T information e / 2 with e = X - X0."""

    points: Tensor  # (K,) int64, rows of WindowSnapshot.points_W
    points_W: Tensor  # (K, 3) float64
    information: Tensor  # (K, 3, 3) float64


@dataclass(frozen=True)
class MarginalPrior:
    """What keyframes that left the window knew about those that stay: cost e^T information e / 2 - vector^T e + constant.

    Odometry holds poses instead; `bundle.marginal` says why both are here.

    `keyframes` are rows of the window that the prior is used in; `with_keyframes` moves it to another window.
    """

    keyframes: Tensor  # (K,) int64
    T_WC: Tensor  # (K, 7) float64, where it was linearised
    information: Tensor  # (6K, 6K) float64
    vector: Tensor  # (6K,) float64, minus the gradient at T_WC
    constant: float = 0.0  # makes the least cost 0, so that costs stay positive
    anchors_scale: bool = False  # it knows the scale of the map, so a mono window needs no other

    def with_keyframes(self, keyframes: Tensor) -> MarginalPrior:
        """The same knowledge for the window in which the poses have these rows (K,)."""
        return MarginalPrior(keyframes, self.T_WC, self.information, self.vector, self.constant, self.anchors_scale)


def pose_error(R: Tensor, t: Tensor, T0: Tensor) -> Tensor:
    """(K, 6) errors [t - t0, Log(R R0^T)] of rotation matrices (K, 3, 3) and positions (K, 3)."""
    delta = R @ geometry.rotation_matrix(T0[:, 3:]).mT
    q = geometry.from_matrix(torch.cat([delta, torch.zeros_like(delta[..., :1])], -1))[..., 3:]
    return torch.cat([t - T0[:, :3], geometry.log_so3(q)], 1)


class PosePriors:
    """All priors on poses of one window as a single quadratic form over the free poses' errors."""

    def __init__(self, priors: list[PosePrior | MarginalPrior], row_of: Tensor, dtype: torch.dtype) -> None:
        """row_of (M,): where each keyframe of the snapshot stands in the solver's order."""
        device = row_of.device
        self.parts: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        for p in priors:
            if isinstance(p, PosePrior):
                rows = row_of[torch.tensor([p.keyframe], device=device)]
                self.parts.append(
                    (
                        rows,
                        p.T_WC[None].to(device, dtype),
                        p.information.to(device, dtype),
                        torch.zeros(6, dtype=dtype, device=device),
                        torch.zeros((), dtype=dtype, device=device),
                    )
                )
            else:
                self.parts.append(
                    (
                        row_of[p.keyframes.to(device)],
                        p.T_WC.to(device, dtype),
                        p.information.to(device, dtype),
                        p.vector.to(device, dtype),
                        torch.tensor(p.constant, dtype=dtype, device=device),
                    )
                )

    def double(self) -> PosePriors:
        """The same priors in float64."""
        wide = PosePriors([], torch.zeros(0, dtype=torch.int64), torch.float64)
        wide.parts = [(rows, *(x.double() for x in rest)) for rows, *rest in self.parts]
        return wide

    def __bool__(self) -> bool:
        return bool(self.parts)

    def cost(self, R: Tensor, t: Tensor) -> Tensor:
        """Sum of the priors' costs; t is (M, 3)."""
        total = t.new_zeros(())
        for rows, T0, information, vector, constant in self.parts:
            e = pose_error(R[rows], t[rows], T0).flatten()
            total = total + 0.5 * e @ (information @ e) - vector @ e + constant
        return total

    def add(self, H: Tensor, rhs: Tensor, R: Tensor, t: Tensor) -> None:
        """Adds to H (M, 6, M, 6) and rhs (M, 6), all keyframes in the solver's order."""
        for rows, T0, information, vector, _ in self.parts:
            K = len(rows)
            e = pose_error(R[rows], t[rows], T0).flatten()
            grid = information.view(K, 6, K, 6).transpose(1, 2)
            H.transpose(1, 2).index_put_((rows[:, None], rows[None, :]), grid, accumulate=True)
            rhs.index_add_(0, rows, (vector - information @ e).view(K, 6))
