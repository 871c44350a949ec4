"""Two-view geometry: the motion between two images by their matches, refused where two motions explain these about as well.

Of a scene that is nearly a plane a second motion, with another rotation and direction, explains the matches nearly as well
(Longuet-Higgins, The reconstruction of a plane surface from two perspective projections, 1986). An essential matrix fitted to
them may be of either, and a map that begins with the wrong one agrees with itself ever after. So the motions of the homography
are refined beside that of the essential matrix, and the best of them has to be better than any other by clear odds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from ..bundle import RelativeRotations, RotationPrior, solve, triangulate
from ..camera.model import Camera
from ..core import geometry
from ..core.config import BundleConfig
from ..core.types import ObservationKind, WindowSnapshot

THRESHOLD_PX = 1.0  # of the essential matrix
OUTLIER_SIGMAS = 3.0  # from here a match speaks against all motions alike
# Errors are shared by neighbours: the covariance for independent ones is too small by so much (docs/results.md, 73 / 3.9).
DESIGN_EFFECT = 20.0
LEAST_LOG_ODDS = math.log(20.0)  # of the best motion against the next one
MOST_DISTANCE = 16.3  # of a motion to a measured rotation: the 99.9 % quantile of chi-square with 3 degrees of freedom


@dataclass(frozen=True)
class PairMatches:
    """N matches between two images."""

    a: Tensor  # (N, 2) float64 ideal px in the first image
    b: Tensor  # (N, 2) in the second
    sigma_a: Tensor  # (N,) float64 px
    sigma_b: Tensor  # (N,)


@dataclass(frozen=True)
class TwoViews:
    """A relative pose with the points that agree on it."""

    T_last: Tensor  # (7,) float64, the second view in the frame of the first one, baseline 1
    inlier: Tensor  # (N,) bool of the matches given


def two_view_geometry(
    camera: Camera,
    matches: PairMatches,
    wanted_px: float,
    min_points: int,
    config: BundleConfig,
    *,
    turned: RotationPrior | None = None,
) -> TwoViews | str:
    """The relative pose of two views; or why it is not determined.

    The essential matrix and the homography are fitted by MAGSAC. Where the homography explains the matches as well, the scene is a
    plane and the motion ambiguous; near a plane the best one of the motions that the two suggest has to win clearly.

    `turned`: the rotation as another sensor has measured it. It tells the motions by which a plane can cause a homography apart.
    """
    planar = 0.95  # a homography that explains so much of what the essential matrix explains
    in_front_share = 0.7
    K = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    essential = _essential_motion(K, matches)
    if isinstance(essential, str):
        return essential
    T_E, support = essential
    q_turned = geometry.inverse(T_E if turned is None else torch.cat([T_E[:3], turned.q_WC]))[3:]
    rotated = geometry.project(camera, geometry.rotate(q_turned, geometry.rays(camera, matches.a)))
    parallax = float((rotated - matches.b).norm(dim=1)[support].median())
    if parallax < wanted_px:
        return f"no parallax: {parallax:.1f} px after rotation, {wanted_px:.1f} are needed; move the camera sideways"
    H, flat = cv2.findHomography(matches.a.numpy(), matches.b.numpy(), cv2.USAC_MAGSAC, 2 * THRESHOLD_PX)
    if flat is not None and flat.sum() >= planar * support.sum():
        return _describe_plane(K, H)
    starts = [T_E] if H is None else [T_E, *_plane_motions(K, H)]
    refined = [found for T in starts if (found := _refine(camera, matches, T, config, turned)) is not None]
    if not refined:
        return "the points of the essential matrix are not in front of the camera"
    known = [motion for motion in refined if motion.distance < MOST_DISTANCE]
    if not known:
        return "the rotation of the matches is not the one that was measured"
    chosen = _choose(known)
    if chosen is None:
        return "two motions explain the matches, for the scene is nearly one plane from these views; move on"
    agreeing = int(chosen.inlier.sum())
    if agreeing < max(min_points, in_front_share * float(support.sum())):
        return f"only {agreeing} points agree on the motion"
    return chosen


def _essential_motion(K: np.ndarray, matches: PairMatches) -> tuple[Tensor, Tensor] | str:
    """The motion (7,) of the essential matrix and which matches (N,) support that matrix; or why there is none."""
    far_baselines = 1e4  # OpenCV otherwise wants all points within 50 baselines
    pa, pb = matches.a.numpy(), matches.b.numpy()
    cv2.setRNGSeed(0)
    E, mask = cv2.findEssentialMat(
        pa, pb, K, method=cv2.USAC_MAGSAC, prob=0.9999, threshold=THRESHOLD_PX, maxIters=2000
    )
    if E is None or E.shape != (3, 3) or not mask.any():
        return "no essential matrix fits the matches"
    _, R, t, _, _ = cv2.recoverPose(E, pa, pb, K, distanceThresh=far_baselines, mask=mask.copy())
    return _from_opencv(R, t), torch.from_numpy(mask[:, 0] > 0)


def _plane_motions(K: np.ndarray, H: np.ndarray) -> list[Tensor]:
    """The motions (7,) by which a plane can cause a homography (3, 3), those included that put it behind a camera."""
    _, R, t, _ = cv2.decomposeHomographyMat(H, K)
    return [_from_opencv(R_i, t_i / norm) for R_i, t_i in zip(R, t) if (norm := np.linalg.norm(t_i)) > 1e-9]


def _from_opencv(R: np.ndarray, t: np.ndarray) -> Tensor:
    return geometry.inverse(geometry.from_matrix(torch.from_numpy(np.hstack([R, t]))))


@dataclass(frozen=True)
class _Motion:
    T_last: Tensor  # (7,) baseline 1
    s: Tensor  # (N,) squared whitened residual of each match; inf where its point is behind a camera
    distance: float = 0.0  # chi-square of 3 degrees of freedom to a measured rotation

    def cost(self, variance: float) -> float:
        """Minus the logarithm of the likelihood, of whitened residuals with this variance that neighbours share."""
        return (float((self.s / variance).clamp_max(OUTLIER_SIGMAS**2).sum()) / DESIGN_EFFECT + self.distance) / 2


def _refine(
    camera: Camera, matches: PairMatches, T_last: Tensor, config: BundleConfig, turned: RotationPrior | None
) -> _Motion | None:
    """The optimum near a motion (7,); None where most points would be behind a camera."""
    front = _triangulate(camera, matches, T_last)[0].isfinite().all(1).nonzero()[:, 0]
    count = len(front)
    if count < max(8, 0.5 * len(matches.a)):
        return None
    part = PairMatches(*(values[front] for values in vars(matches).values()))
    points, _ = _triangulate(camera, part, T_last)
    view = torch.arange(2 * count) // count
    none = torch.zeros(2 * count, 1, dtype=torch.float64)
    sigma = torch.cat([part.sigma_a, part.sigma_b])[:, None]
    window = WindowSnapshot(
        camera,
        torch.stack([geometry.identity(), T_last]),
        points,
        view,
        torch.arange(2 * count) % count,
        torch.cat([torch.cat([part.a, part.b]), none], 1),
        torch.full((2 * count,), int(ObservationKind.MONO)),
        torch.cat([sigma, sigma, none + 1], 1),
        fixed=torch.tensor([True, False]),
    )
    measured = None if turned is None else _between(turned)
    T = solve(window, config, measured).T_WC[1]
    T = torch.cat([T[:3] / T[:3].norm().clamp_min(1e-12), T[3:]])
    R = geometry.rotation_matrix(torch.stack([geometry.identity(), T])[:, 3:])
    return _Motion(T, _triangulate(camera, matches, T)[1], 0.0 if measured is None else measured.distance(R))


def _between(turned: RotationPrior) -> RelativeRotations:
    """The rotation from the first view to the second, against observations whose errors neighbours share."""
    R, information = geometry.rotation_matrix(turned.q_WC).numpy(), torch.linalg.inv(turned.covariance).numpy()
    return RelativeRotations(np.array([0]), np.array([1]), R[None], information, DESIGN_EFFECT)


def _triangulate(camera: Camera, matches: PairMatches, T_last: Tensor) -> tuple[Tensor, Tensor]:
    """Points (N, 3), NaN behind a camera, and the squared whitened residuals (N,) of both views, inf there."""
    count = len(matches.a)
    T_WC, row = torch.stack([geometry.identity(), T_last]), torch.arange(2 * count)
    obs = torch.stack([matches.a, matches.b])
    found = triangulate(camera, T_WC, row // count, row % count, obs.flatten(0, 1), count)
    seen = geometry.project(camera, geometry.act(geometry.inverse(T_WC)[:, None], found.points_W[None]))
    whitened = (seen - obs) / torch.stack([matches.sigma_a, matches.sigma_b])[..., None]
    points_W = torch.where(found.valid[:, None], found.points_W, torch.nan)
    return points_W, torch.where(found.valid, whitened.square().sum((0, 2)), torch.inf)


def _choose(motions: list[_Motion]) -> TwoViews | None:
    """The motion with the smallest cost; None where another one is nearly as good."""
    median_1 = 0.4549  # of chi-square with the one degree of freedom that two views leave to a point
    variance = max(min(float(m.s.median()) for m in motions) / median_1, 1e-12)
    best = min(motions, key=lambda m: m.cost(variance))
    others = [m.cost(variance) for m in motions if _differ(best.T_last, m.T_last)]
    if others and min(others) - best.cost(variance) < LEAST_LOG_ODDS:
        return None
    return TwoViews(best.T_last, best.s / variance < OUTLIER_SIGMAS**2)


def _differ(T_a: Tensor, T_b: Tensor) -> bool:
    """Whether two motions (7,) of baseline 1 would begin different maps, rather than being one optimum that iterations have missed."""
    apart_rad, apart_cos = 0.017, 0.94  # 1 and 20 degrees
    turned = float(geometry.log_so3(geometry.relative(T_a, T_b)[3:]).norm())
    return turned > apart_rad or float(T_a[:3] @ T_b[:3]) < apart_cos


def _describe_plane(K: np.ndarray, H: np.ndarray) -> str:
    """Why a homography (3, 3) leaves the motion open: a camera that turns, K^-1 H K orthogonal, or a scene that is a plane."""
    tolerance = 0.02
    turned = np.linalg.inv(K) @ H @ K
    turned = turned / np.cbrt(np.linalg.det(turned))
    if np.abs(turned @ turned.T - np.eye(3)).max() < tolerance:
        return "no parallax: the camera only turns; move it sideways"
    return "the scene is one plane from these views: the motion is ambiguous; move on"
