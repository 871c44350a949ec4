"""Starting without depth: two-view geometry from the first frames, checked for parallax, then poses of the frames between."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from ..core import geometry
from ..core.config import BundleConfig, OdometryConfig
from .measurements import detect
from ..core.types import Frame, as_grey
from ..matching.base import Features, Matcher
from .front_end import estimate_pose

_VIEWS = 6  # frames between reference and newest that are kept
_THRESHOLD_PX = 1.0
_PLANAR = 0.95  # a homography that explains so much of what the essential matrix explains leaves the pose ambiguous
_TURNED = 0.02  # a homography this near to a rotation shows a camera that only turns
_PATIENCE = 12  # frames over which the wanted parallax and the wanted precision fall
_FADING = 0.7  # share of the wanted parallax that is enough when the reference is about to be lost
_LEAST_PARALLAX = 0.4  # share of the wanted parallax below which nothing starts
_FAR_BASELINES = 1e4  # how far points may be that tell the four poses of an essential matrix apart
_MIN_SHARE = 0.4  # of the points still followed from frame to frame; below, the newest frame becomes the reference


@dataclass(frozen=True)
class View:
    frame: Frame
    image: Tensor  # (1, H, W) uint8 grey
    features: Features
    uv: Tensor  # (N, 2) float32 raw px of the reference's points
    ok: Tensor  # (N,) bool
    sigma_px: Tensor  # (N,)


@dataclass(frozen=True)
class InitialViews:
    """The first keyframes of a map, in the frame of the first one, up to scale."""

    views: tuple[View, ...]
    T_WC: Tensor  # (V, 7) float64
    inlier: Tensor  # (N,) bool: points that support it
    patience: float  # 1 at first, 0 after a long wait: a camera that hardly moves would else never start


class MonoInitializer:
    """Collects frames until two of them, with parallax, agree on an essential matrix."""

    def __init__(self, config: OdometryConfig, bundle: BundleConfig, matcher: Matcher) -> None:
        self._config = config
        self._bundle = bundle
        self._matcher = matcher
        self._views: list[View] = []
        self._waited = 0

    def configure(self, config: OdometryConfig, bundle: BundleConfig) -> None:
        """Takes other settings over; the views collected so far stay."""
        self._config, self._bundle = config, bundle

    def add_frame(self, frame: Frame, features: Features) -> InitialViews | str:
        """Takes the next frame; returns the start, or why there is none yet."""
        image = as_grey(frame.image)
        if not self._views:
            return self._restart(frame, image, features)
        reference, last = self._views[0], self._views[-1]
        wide = self._matcher.wide_baseline
        source = reference if wide else last
        width = frame.camera.width
        found = self._matcher.estimate(
            self._matcher.describe(source.features, source.uv.to(self._matcher.device)),
            [features],
            last.uv[None].to(self._matcher.device),
            self._config.new_search_radius * width,
        )
        uv, score = found.uv[0].cpu().float(), found.score[0].cpu()
        ok = (score >= self._config.min_score) & (last.ok | wide)
        self._views.append(
            View(frame, image, features, torch.where(ok[:, None], uv, last.uv), ok, found.sigma_px[0].cpu())
        )
        count, fading = int(ok.sum()), not wide and int(ok.sum()) < _MIN_SHARE * len(ok)
        self._waited += 1
        # Much parallax makes a good start; who waits long or is about to lose the reference takes less.
        patience = 1 - self._waited / _PATIENCE
        patience = min(patience, _FADING) if fading else patience
        result = self._solve(max(patience, _LEAST_PARALLAX)) if count >= self._config.start_landmarks else ""
        if len(self._views) > _VIEWS + 1:
            # Every second one goes: the views stay spread over the whole time since the reference.
            self._views = [self._views[0], *self._views[2:-1:2], self._views[-1]]
        if isinstance(result, InitialViews):
            return result
        if fading or count < self._config.start_landmarks:
            self._restart(frame, image, features)
            return f"only {count} of {len(ok)} points could be followed; starting again from this frame"
        return result

    def _restart(self, frame: Frame, image: Tensor, features: Features) -> str:
        c = self._config
        uv = detect(
            self._matcher,
            features,
            image,
            torch.zeros(0, 2),
            c.landmarks_per_frame,
            c.corner_distance * frame.camera.width,
            c.corner_quality,
        )
        self._views = []
        if len(uv) < c.start_landmarks:
            return (
                f"{len(uv)} corners in the image, {c.start_landmarks} are needed: too dark, covered or without texture"
            )
        self._views = [View(frame, image, features, uv, torch.ones(len(uv), dtype=torch.bool), torch.ones(len(uv)))]
        return "waiting for parallax"

    def _solve(self, share: float) -> InitialViews | str:
        """Two-view geometry from the reference to the newest view, if it has that share of the wanted parallax."""
        c = self._config
        first, last = self._views[0], self._views[-1]
        camera = last.frame.camera
        K = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
        a, b = camera.undistort(first.uv.double()), camera.undistort(last.uv.double())
        rows = (last.ok & torch.isfinite(a).all(1) & torch.isfinite(b).all(1)).nonzero()[:, 0]
        needed = share * c.start_parallax * camera.width
        if float((a[rows] - b[rows]).norm(dim=1).median()) < needed:
            return "waiting for parallax"
        pa, pb = a[rows].numpy(), b[rows].numpy()
        cv2.setRNGSeed(0)
        E, mask = cv2.findEssentialMat(
            pa, pb, K, method=cv2.USAC_MAGSAC, prob=0.9999, threshold=_THRESHOLD_PX, maxIters=2000
        )
        if E is None or E.shape != (3, 3):
            return "no essential matrix fits the matches"
        support = mask[:, 0] > 0
        # Without a distance of its own OpenCV wants all points within 50 baselines.
        _, R, t, front, _ = cv2.recoverPose(E, pa, pb, K, distanceThresh=_FAR_BASELINES, mask=mask.copy())
        in_front = front[:, 0] > 0
        rotated = geometry.project(camera, geometry.rays(camera, a[rows]) @ torch.from_numpy(R).T)
        parallax = float((rotated - b[rows]).norm(dim=1)[torch.from_numpy(support)].median()) if support.any() else 0.0
        if parallax < needed:
            return f"no parallax: {parallax:.1f} px after rotation, {needed:.1f} are needed; move the camera sideways"
        H, flat = cv2.findHomography(pa, pb, cv2.USAC_MAGSAC, 2 * _THRESHOLD_PX)
        if flat is not None and flat.sum() >= _PLANAR * support.sum():
            turned = np.linalg.inv(K) @ H @ K
            turned = turned / np.cbrt(np.linalg.det(turned))
            if np.abs(turned @ turned.T - np.eye(3)).max() < _TURNED:
                return "no parallax: the camera only turns; move it sideways"
            return "the scene is one plane from these views: the motion is ambiguous; move on"
        if in_front.sum() < 0.7 * support.sum() or in_front.sum() < c.start_landmarks:
            return f"only {int(in_front.sum())} points agree on the motion"
        T_last = geometry.inverse(geometry.from_matrix(torch.from_numpy(np.hstack([R, t]))))
        return self._with_between(rows[torch.from_numpy(in_front)], T_last)

    def _with_between(self, rows: Tensor, T_last: Tensor) -> InitialViews | str:
        """Adds the frames between, with poses estimated from the two-view points, so that the first bundle adjustment has more than two views."""
        c = self._config
        first, last = self._views[0], self._views[-1]
        camera = last.frame.camera
        poses = torch.stack([geometry.identity(), T_last])
        obs = torch.cat([camera.undistort(first.uv[rows].double()), camera.undistort(last.uv[rows].double())])
        count = len(rows)
        both = torch.arange(2 * count)
        found = geometry.triangulate(camera, poses, both // count, both % count, obs, count)
        good = found.valid & (found.rms_px < c.inlier_px) & (found.parallax_rad * camera.fx >= c.min_parallax_px)
        if int(good.sum()) < c.start_landmarks:
            return f"{int(good.sum())} points have enough parallax, {c.start_landmarks} are needed; move the camera sideways"
        rows, points = rows[good], found.points_W[good]
        between, T_between = [], []
        for view in self._views[1:-1]:
            seen = view.ok[rows]
            estimate = estimate_pose(
                camera,
                camera.undistort(view.uv[rows][seen].double()),
                points[seen],
                view.sigma_px[rows][seen],
                None,
                c,
                self._bundle,
            )
            if estimate is not None:
                between.append(view)
                T_between.append(estimate.T_WC)
        inlier = torch.zeros(len(first.uv), dtype=torch.bool)
        inlier[rows] = True
        # A frame that is alike its neighbour adds nothing but work.
        chosen = list(range(len(between)))[:: max(1, len(between) // 3)][:4]
        views = (first, *(between[i] for i in chosen), last)
        patience = max(0.0, 1 - self._waited / _PATIENCE)
        return InitialViews(views, torch.stack([poses[0], *(T_between[i] for i in chosen), poses[1]]), inlier, patience)
