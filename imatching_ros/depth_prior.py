"""What its surroundings say of a new landmark's depth; in mono this is what carries the scale through turns and darkness.

Without it only landmarks whose noisy parallax happens to come out large enough are ever triangulated. These come out too near,
the next motion is measured against them, and the scale of the map shrinks by a part at every keyframe. So a landmark gets the
median inverse depth of the nearest landmarks that its anchor picture knows, with a wide standard deviation, as one more number
of its first observation. It enters the map by the parallax it should have at that depth, whatever noise made of its own, and once
that outweighs the noise for good the prior is left out. Depth filters of semi-direct odometry begin in the same way
(Forster et al., SVO, ICRA 2014, sec. V).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import geometry
from .camera import Camera
from .datatypes import ObservationKind

if TYPE_CHECKING:
    from .window import Observations, Window

RELATIVE_SIGMA = 0.5  # standard deviation of the inverse depth, relative to it
ENTER_SIGMA = 2.0  # a landmark enters when its expected parallax reaches so many standard deviations of its observations
LEAVE_SIGMA = 8.0  # from here its own parallax is enough
NEIGHBOURS = 5
MIN_KNOWN = 8  # fewer known landmarks in a picture say nothing about its depth


def suggest(window: Window) -> Tensor:
    """Inverse depth (P,) at the anchor, taken from its surroundings once they are known and kept from then on; NaN without."""
    o, table = window.observations, window.landmarks
    expected = table.expected_inv_depth.clone()
    new = window.at_anchor() & ~table.resolved[o.lm] & expected[o.lm].isnan()
    for kf in o.kf[new].unique().tolist():
        known = ((o.kf == kf) & table.resolved[o.lm]).nonzero()[:, 0]
        if len(known) < MIN_KNOWN:
            continue
        depth = geometry.act(geometry.inverse(window.T_WC[kf]), table.points_W[o.lm[known]])[:, 2]
        at = (new & (o.kf == kf)).nonzero()[:, 0]
        nearest = torch.cdist(o.uv[at], o.uv[known]).topk(NEIGHBOURS, largest=False).indices
        expected[o.lm[at]] = (1 / depth.clamp_min(1e-9))[nearest].median(1).values
    return expected


def parallax_sigmas(window: Window, camera: Camera) -> Tensor:
    """The parallax (P,) that landmarks should have at their expected depth, in standard deviations of their observations.

    NaN where no depth is expected or the anchor has left the window.
    """
    o, table = window.observations, window.landmarks
    anchors = (window.at_anchor() & table.expected_inv_depth[o.lm].isfinite()).nonzero()[:, 0]
    depth = 1 / table.expected_inv_depth[o.lm[anchors]]
    points = torch.zeros(len(table), 3, dtype=torch.float64)
    points[o.lm[anchors]] = geometry.act(window.T_WC[o.kf[anchors]], geometry.back_project(camera, o.obs[anchors, :2], depth))
    angle = geometry.parallax(window.T_WC, points, o.kf, o.lm)
    sigma = torch.zeros(len(table), dtype=torch.float64).scatter_reduce(0, o.lm, o.sigma[:, 0], "amax")
    has = torch.zeros(len(table), dtype=torch.bool)
    has[o.lm[anchors]] = True
    return torch.where(has, angle * camera.fx / sigma, torch.nan)


def with_prior(window: Window, camera: Camera) -> Observations:
    """The window's observations (O,), those at the anchors of landmarks of little parallax with the inverse depth expected there.

    Landmarks that were found much nearer than expected, things in front of a background, are left alone.
    """
    o, table = window.observations, window.landmarks
    expected = table.expected_inv_depth[o.lm]
    weak = parallax_sigmas(window, camera)[o.lm] < LEAVE_SIGMA
    inv_depth = 1 / geometry.act(geometry.inverse(window.T_WC[o.kf]), table.points_W[o.lm])[:, 2]
    in_front = table.resolved[o.lm] & (inv_depth > (1 + 2 * RELATIVE_SIGMA) * expected)
    use = window.at_anchor() & weak & ~in_front
    obs, sigma = o.obs.clone(), o.sigma.clone()
    obs[use, 2], sigma[use, 2] = expected[use], RELATIVE_SIGMA * expected[use]
    return replace(o, obs=obs, kind=torch.where(use, int(ObservationKind.DEPTH), o.kind), sigma=sigma)
