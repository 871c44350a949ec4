"""Whether the camera stands still: then its pose is held, for a pose found anew in every frame would wander within its errors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import geometry
from .bundle import refine_pose
from .camera import Camera
from .config import BundleConfig
from .datatypes import BAStatus, ObservationKind
from .tracking import Located

_LEAST = 15  # landmarks that both pictures must show
_MOVING = 2.0  # sigmas: matches that have moved farther on median need no test
_UNLIKELY = 22.46  # 99.9 % quantile of chi-square with 6 degrees of freedom


@dataclass(frozen=True)
class _Reference:
    """The last frame whose pose was not held."""

    id: Tensor  # (N,) int64 of landmarks, ascending
    uv: Tensor  # (N, 2) float64 ideal px
    depth: Tensor  # (N,) float64
    T_WC: Tensor  # (7,) float64


class Stillness:
    """Compares every frame with the last one that had moved.

    The motion between the two follows from the pixels of landmarks that both show, placed where the first of them saw them: errors
    of the map, such as a noisy depth or a corner that the matcher sees a little aside, are the same in both and cancel. As long as
    no motion explains them as well, by the motion's own covariance, the pose stays what it was. The reference stays too, so that
    slow motion adds up until it is told from none.
    """

    def __init__(self) -> None:
        self._reference: _Reference | None = None
        self.still = False

    def forget(self) -> None:
        """There is nothing to compare with: another map, or another scale."""
        self._reference, self.still = None, False

    def hold(self, camera: Camera, located: Located, id: Tensor, uv: Tensor, sigma_px: Tensor, config: BundleConfig) -> Located:
        """`located`, or the reference's pose in its place while the camera stands still.

        Args:
            id: (N,) landmarks that support the pose. uv: (N, 2) ideal px. sigma_px: (N,).
        """
        self.still = self._reference is not None and self._stands(camera, id, uv.double(), sigma_px, config)
        return replace(located, T_WC=self._reference.T_WC.clone()) if self.still else located

    def note(self, id: Tensor, uv: Tensor, depth: Tensor, T_WC: Tensor) -> None:
        """Makes this frame the reference unless its pose was held; arguments as in `hold`, depth (N,) along the optical axis."""
        if not self.still:
            order = id.argsort()
            self._reference = _Reference(id[order], uv[order].double(), depth[order], T_WC.clone())

    def correct(self, before: Tensor, after: Tensor) -> None:
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
