"""How the uncertainty of odometry grows: what bundle adjustment says of its window, and what windows before it have added up."""

from __future__ import annotations

import torch
from torch import Tensor

from . import geometry
from .datatypes import BAResult


class Drift:
    """Covariance (6, 6) of a pose relative to the start, for T_WC * Exp([rho, phi]); zero at the start.

    A window knows its newest pose relative to the ones it holds. When it slides by a keyframe, the share of one keyframe of
    that covariance passes into what is lost for good. Covariances are carried along the path as motions are compounded
    (Smith and Cheeseman 1986), which makes a turn's error grow into position.
    """

    def __init__(self) -> None:
        self._lost = torch.zeros(6, 6, dtype=torch.float64)
        self._window = torch.zeros(6, 6, dtype=torch.float64)
        self._T_WC = geometry.identity()

    def at(self, T_WC: Tensor) -> Tensor:
        """The covariance carried to the pose T_WC (7,), landmarks of the window included."""
        return self._carry(self._lost + self._window, T_WC)

    def add(self, covariance: Tensor, T_WC: Tensor) -> None:
        """Adds what is lost at the pose T_WC (7,), as when a map had to start again."""
        self._lost = self.at(T_WC) + covariance
        self._window, self._T_WC = torch.zeros_like(self._window), T_WC

    def rescale(self, factor: float, centre: Tensor) -> None:
        """The same uncertainty in a map that is scaled about a point (3,)."""
        unit = torch.diag(torch.tensor([factor] * 3 + [1.0] * 3, dtype=torch.float64))
        self._lost, self._window = unit @ self._lost @ unit, unit @ self._window @ unit
        self._T_WC = torch.cat([centre + (self._T_WC[:3] - centre) * factor, self._T_WC[3:]])

    def note(self, result: BAResult, slid: bool) -> None:
        """Takes over the newest solution; `slid`: a keyframe has left the window before it."""
        newest = result.T_WC[-1]
        self._lost, self._window, self._T_WC = self._carry(self._lost, newest), self._carry(self._window, newest), newest
        if result.covariance_newest is not None:  # else nothing better is known than what the last window said
            self._window = result.covariance_newest.to(self._lost)
        if slid:
            self._lost = self._lost + self._window / max(1, len(result.T_WC) - 2)

    def _carry(self, covariance: Tensor, T_WC: Tensor) -> Tensor:
        to_here = geometry.adjoint(geometry.relative(T_WC, self._T_WC))
        return to_here @ covariance @ to_here.T
