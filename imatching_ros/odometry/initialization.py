"""Initialization without depth: two-view geometry between the first frames, checked for parallax, and the poses between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..bundle import RotationPrior, triangulate
from ..core import geometry
from ..core.config import Config
from ..core.masks import is_masked
from ..matching.base import Matcher
from .front_end import FeatureFrame
from .gyroscope import Gyroscope
from .measurements import detect
from .pose_estimator import Correspondences, PoseEstimator
from .two_view import PairMatches, two_view_geometry


@dataclass(frozen=True)
class View:
    """A frame in which the points of the reference were searched."""

    current: FeatureFrame
    uv: Tensor  # (N, 2) float32 raw px of the reference's points
    ok: Tensor  # (N,) bool
    sigma_px: Tensor  # (N,)


@dataclass(frozen=True)
class InitialViews:
    """The first keyframes of a map, in the frame of the first one, up to scale."""

    views: tuple[View, ...]
    T_WC: Tensor  # (V, 7) float64
    inlier: Tensor  # (N,) bool: points that support it
    points: Tensor  # (K, 3) float64, where these are
    patience: float  # 1 at first, 0 after a long wait: a camera that hardly moves would else never start


class MonoInitializer:
    """Collects frames until two of them, with parallax, agree on one motion."""

    MAX_BETWEEN = 6  # views between reference and newest that are kept
    PATIENCE = 12  # frames over which the wanted parallax and the wanted precision fall
    FADING_SHARE = 0.7  # of the wanted parallax, enough when the reference is about to be lost
    LEAST_SHARE = 0.4  # of the wanted parallax, below which nothing starts
    MIN_FOLLOWED = 0.4  # share of points followed from frame to frame; below, the newest frame becomes the reference

    def __init__(self, config: Config, matcher: Matcher) -> None:
        self._matcher = matcher
        self.configure(config)
        self.reset()

    def configure(self, config: Config) -> None:
        """Takes other settings over; the views collected so far stay."""
        self._config, self._bundle = config.odometry, config.bundle

    def reset(self) -> None:
        """Drops the views."""
        self._views: list[View] = []
        self._waited = 0

    def add_frame(self, current: FeatureFrame, gyroscope: Gyroscope) -> InitialViews | str:
        """Takes the next frame; returns the initial views, or why there are none yet."""
        if not self._views:
            return self._restart(current)
        view = self._match(current)
        self._views.append(view)
        self._waited += 1
        count, enough = int(view.ok.sum()), self._config.start_landmarks
        fading = not self._matcher.wide_baseline and count < self.MIN_FOLLOWED * len(view.ok)
        # Much parallax makes a good start; a long wait, or a reference about to be lost, is content with less.
        patience = 1 - self._waited / self.PATIENCE
        patience = min(patience, self.FADING_SHARE) if fading else patience
        turned = gyroscope.turned_since(self._views[0].current.frame.stamp_ns, current.frame.stamp_ns)
        result = self._solve(max(patience, self.LEAST_SHARE), turned) if count >= enough else ""
        if len(self._views) > self.MAX_BETWEEN + 1:
            # Every second one goes: the views stay spread over the whole time since the reference.
            self._views = [self._views[0], *self._views[2:-1:2], self._views[-1]]
        if isinstance(result, InitialViews):
            return result
        if fading or count < enough:
            self._restart(current)
            return f"only {count} of {len(view.ok)} points could be followed; starting again from this frame"
        return result

    def _match(self, current: FeatureFrame) -> View:
        """Searches for the reference's points: from the reference with a wide baseline, else from the last view."""
        reference, last = self._views[0], self._views[-1]
        wide, device = self._matcher.wide_baseline, self._matcher.device
        source = reference if wide else last
        found = self._matcher.estimate(
            self._matcher.describe(source.current.features, source.uv.to(device)),
            [current.features],
            last.uv[None].to(device),
            self._config.new_search_radius * current.camera.width,
        )
        uv, score = found.uv[0].cpu().float(), found.score[0].cpu()
        ok = (score >= self._config.min_score) & (last.ok | wide) & ~is_masked(current.frame.mask, uv)
        return View(current, torch.where(ok[:, None], uv, last.uv), ok, found.sigma_px[0].cpu())

    def _restart(self, current: FeatureFrame) -> str:
        c = self._config
        none = torch.zeros(0, 2)
        mask = current.frame.mask
        uv = detect(self._matcher, current.features, current.image, none, c.landmarks_per_frame, c, mask)
        self._views = []
        if len(uv) < c.start_landmarks:
            return (
                f"{len(uv)} corners in the image, {c.start_landmarks} are needed: too dark, covered or without texture"
            )
        self._views = [View(current, uv, torch.ones(len(uv), dtype=torch.bool), torch.ones(len(uv)))]
        return "waiting for parallax"

    def _solve(self, share: float, turned: RotationPrior | None) -> InitialViews | str:
        """Two-view geometry from the reference to the newest view, if it has that share of the wanted parallax."""
        first, last = self._views[0], self._views[-1]
        camera = last.current.camera
        a, b = camera.undistort(first.uv.double()), camera.undistort(last.uv.double())
        rows = (last.ok & torch.isfinite(a).all(1) & torch.isfinite(b).all(1)).nonzero()[:, 0]
        wanted_px = share * self._config.start_parallax * camera.width
        if float((a[rows] - b[rows]).norm(dim=1).median()) < wanted_px:
            return "waiting for parallax"
        sigma_b = last.sigma_px[rows].double()
        matches = PairMatches(a[rows], b[rows], torch.full_like(sigma_b, self._config.corner_sigma_px), sigma_b)
        found = two_view_geometry(camera, matches, wanted_px, self._config.start_landmarks, self._bundle, turned=turned)
        if isinstance(found, str):
            return found
        return self._with_between(rows[found.inlier], found.T_last)

    def _with_between(self, rows: Tensor, T_last: Tensor) -> InitialViews | str:
        """Adds the views between, their poses estimated on the two-view points: the first bundle adjustment needs more than two."""
        c = self._config
        first, last = self._views[0], self._views[-1]
        camera = last.current.camera
        poses = torch.stack([geometry.identity(), T_last])
        obs = torch.cat([camera.undistort(first.uv[rows].double()), camera.undistort(last.uv[rows].double())])
        count = len(rows)
        both = torch.arange(2 * count)
        found = triangulate(camera, poses, both // count, both % count, obs, count)
        parallax_px = geometry.parallax(poses, found.points_W, both // count, both % count) * camera.fx
        good = found.valid & (found.rms_px < c.inlier_px) & (parallax_px >= c.min_parallax_px)
        if int(good.sum()) < c.start_landmarks:
            return f"{int(good.sum())} points have enough parallax, {c.start_landmarks} are needed; move the camera sideways"
        rows = rows[good]
        points = found.points_W[good]
        between = self._poses_between(rows, points)
        # At most four: a frame that is like its neighbour adds nothing but work.
        between = between[:: max(1, len(between) // 3)][:4]
        inlier = torch.zeros(len(first.uv), dtype=torch.bool)
        inlier[rows] = True
        views = (first, *(view for view, _ in between), last)
        T_WC = torch.stack([poses[0], *(T for _, T in between), poses[1]])
        return InitialViews(views, T_WC, inlier, points, max(0.0, 1 - self._waited / self.PATIENCE))

    def _poses_between(self, rows: Tensor, points: Tensor) -> list[tuple[View, Tensor]]:
        estimator = PoseEstimator(self._config, self._bundle)
        between = []
        for view in self._views[1:-1]:
            seen, camera = view.ok[rows], self._views[-1].current.camera
            uv = camera.undistort(view.uv[rows][seen].double())
            found = estimator.estimate(Correspondences(camera, uv, points[seen], view.sigma_px[rows][seen]), None)
            if found is not None:
                between.append((view, found.T_WC))
        return between
