"""How the uncertainty of odometry grows: what bundle adjustment says of its window, and what windows before it have added up."""

from __future__ import annotations

import torch
from torch import Tensor
from ..core import geometry
from ..core.types import BAResult, BAStatus, ObservationKind
from dataclasses import dataclass, replace
from ..bundle import refine_pose
from ..camera.model import Camera
from ..core.config import BundleConfig
from .front_end import PoseEstimate


class PoseCovariance:
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

    def propagate(self, result: BAResult, keyframe_dropped: bool) -> None:
        """Takes over the newest solution; `keyframe_dropped`: a keyframe has left the window before it."""
        newest = result.T_WC[-1]
        self._lost, self._window, self._T_WC = (
            self._carry(self._lost, newest),
            self._carry(self._window, newest),
            newest,
        )
        if result.covariance_newest is not None:  # else nothing better is known than what the last window said
            self._window = result.covariance_newest.to(self._lost)
        if keyframe_dropped:
            self._lost = self._lost + self._window / max(1, len(result.T_WC) - 2)

    def _carry(self, covariance: Tensor, T_WC: Tensor) -> Tensor:
        to_here = geometry.adjoint(geometry.relative(T_WC, self._T_WC))
        return to_here @ covariance @ to_here.T


# Whether the camera stands still: then its pose is held, for a pose found anew in every frame would wander within its errors.


_LEAST = 15  # landmarks that both images must show
_MOVING = 2.0  # sigmas: matches that have moved farther on median need no test
_UNLIKELY = 22.46  # 99.9 % quantile of chi-square with 6 degrees of freedom


@dataclass(frozen=True)
class _Reference:
    """The last frame whose pose was not held."""

    id: Tensor  # (N,) int64 of landmarks, ascending
    uv: Tensor  # (N, 2) float64 ideal px
    depth: Tensor  # (N,) float64
    T_WC: Tensor  # (7,) float64


class ZeroMotionUpdate:
    """Compares every frame with the last one that had moved.

    The motion between the two follows from the pixels of landmarks that both show, placed where the first of them saw them: errors
    of the map, such as a noisy depth or a corner that the matcher sees a little aside, are the same in both and cancel. As long as
    no motion explains them as well, by the motion's own covariance, the pose stays what it was. The reference stays too, so that
    slow motion adds up until it is told from none.
    """

    def __init__(self) -> None:
        self._reference: _Reference | None = None
        self.still = False

    def reset(self) -> None:
        """There is nothing to compare with: another map, or another scale."""
        self._reference, self.still = None, False

    def apply(
        self, camera: Camera, estimate: PoseEstimate, id: Tensor, uv: Tensor, sigma_px: Tensor, config: BundleConfig
    ) -> PoseEstimate:
        """`estimate`, or the reference's pose in its place while the camera stands still.

        Args:
            id: (N,) landmarks that support the pose. uv: (N, 2) ideal px. sigma_px: (N,).
        """
        self.still = self._reference is not None and self._stands(camera, id, uv.double(), sigma_px, config)
        return replace(estimate, T_WC=self._reference.T_WC.clone()) if self.still else estimate

    def set_reference(self, id: Tensor, uv: Tensor, depth: Tensor, T_WC: Tensor) -> None:
        """Makes this frame the reference unless its pose was held; arguments as in `apply`, depth (N,) along the optical axis."""
        if not self.still:
            order = id.argsort()
            self._reference = _Reference(id[order], uv[order].double(), depth[order], T_WC.clone())

    def follow_adjustment(self, before: Tensor, after: Tensor) -> None:
        """Bundle adjustment has moved the newest pose (7,): the reference moves with it."""
        if self._reference is not None:
            T_WC = geometry.compose(after, geometry.relative(before, self._reference.T_WC))
            self._reference = replace(self._reference, T_WC=T_WC)

    def _stands(self, camera: Camera, id: Tensor, uv: Tensor, sigma_px: Tensor, config: BundleConfig) -> bool:
        r = self._reference
        at = torch.searchsorted(r.id, id).clamp_max(len(r.id) - 1)
        both = ((r.id[at] == id) & (r.depth[at] > 0)).nonzero()[:, 0]
        if len(both) < _LEAST:
            return False
        before, now, sigma = r.uv[at[both]], uv[both], sigma_px[both].double()
        if float((now - before).norm(dim=1).median()) > _MOVING * float(sigma.median()):
            return False
        points = geometry.back_project(camera, before, r.depth[at[both]])
        obs = torch.cat([now, torch.zeros_like(now[:, :1])], 1)
        kind = torch.full((len(now),), int(ObservationKind.MONO))
        moved = refine_pose(camera, geometry.identity(), points, obs, kind, sigma[:, None].expand(-1, 3), config)
        if moved.status is BAStatus.DEGENERATE or moved.covariance is None:
            return False
        e = geometry.log(moved.T_WC)
        return float(e @ torch.linalg.solve(moved.covariance, e)) < _UNLIKELY
