"""What moves before the camera is set apart from the world: two motions, found by `moving`, decide which landmarks give the pose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from . import measurements
from ..core import geometry
from ..core.config import Config
from .front_end import FeatureFrame, FrontEnd, Localization, separate
from .local_map import Window
from .motion import MotionModel, TrackedFrame
from .moving import MotionSegmentation, SeenFrame
from .rigid_motions import back_project, to_camera
from .shutter import UnnamedReadout


class BodySeparation:
    """Keeps the landmarks of a body that moves out of poses, and places them where each frame sees them."""

    def __init__(self, config: Config, front_end: FrontEnd, motion: MotionModel) -> None:
        self._front_end, self._motion = front_end, motion
        self._segmentation = MotionSegmentation()
        self.configure(config)

    def configure(self, config: Config) -> None:
        self._config = config.odometry

    @property
    def disputed(self) -> bool:
        """Whether either of two motions may be that of the camera."""
        return self._segmentation.disputed

    def forget_frames(self) -> None:
        """What follows is of another scale or camera, or does not continue the last pose."""
        self._segmentation.forget_frames()

    def move(self, T: Tensor) -> None:
        """The map is moved by T (7,)."""
        self._segmentation.move(T)

    def separate(self, current: FeatureFrame, last: TrackedFrame, found: Localization, mode: str) -> Localization:
        """Where the landmarks of a frame, outliers included, move as two bodies: the pose by those of one, the others set apart."""
        two = self._segmentation.compare(current.camera, _seen(current, found))
        if self._segmentation.last is None and bool(found.window.landmarks.moving.any()):
            return _without_moving(found)
        if two is not None:
            window = found.window
            ids, moving = window.landmarks.id, window.landmarks.moving
            moving = (moving & ~torch.isin(ids, two.first)) | torch.isin(ids, two.second)
            matches = separate(found.matches, moving)
            estimate = self._front_end.estimate(window, current, matches, two.T_WC)
            if estimate is not None:
                window.set_moving(moving)
                found = replace(found, matches=matches, estimate=estimate)
        self._place_moving(current, last, found, mode)
        return found

    def keep(self, current: FeatureFrame, last: TrackedFrame, found: Localization) -> None:
        """Keeps what a frame saw for later comparisons, and adds to the covariance that the other one of two motions may be the camera's."""
        two = self._segmentation.last
        # With one body, only a pose that is held differs from that compared, and by less than a match.
        self._segmentation.keep(None if two is None else _seen(current, found))
        if two is not None and self.disputed:
            self._motion.add_dispute(last, two.difference(), found.estimate.T_WC)
        else:
            self._motion.end_dispute()

    def add_new_landmarks(self, window: Window, current: FeatureFrame) -> None:
        """The newest keyframe has seen its new landmarks as well."""
        table, camera = window.landmarks, current.camera
        new = (table.triangulated & (table.host == current.frame.id)).nonzero()[:, 0]
        uv = camera.undistort(table.uv_host[new].double()).numpy()
        depth = to_camera(window.T_WC[-1], table.points_W[new].numpy())[:, 2]
        self._segmentation.add_landmarks(table.id[new].numpy(), uv, back_project(camera, uv, depth))

    def _place_moving(self, current: FeatureFrame, last: TrackedFrame, found: Localization, mode: str) -> None:
        """Places the landmarks that move where this frame sees them, at their measured depth or that at which the last frame had them."""
        moving, window, camera = found.matches.moving, found.window, current.camera
        if moving is None or len(moving.rows) == 0:
            return
        depth = geometry.act(geometry.inverse(last.T_WC), window.landmarks.points_W[moving.rows])[:, 2]
        measured = measurements.measure(current.frame, mode, moving.uv, self._config)
        if measured is not None:
            depth = torch.where(measured.depth.isfinite(), measured.depth, depth)
        points_C = geometry.back_project(camera, camera.undistort(moving.uv.double()), depth)
        window.set_positions(moving.rows, geometry.act(found.estimate.T_WC, points_C))


def _without_moving(found: Localization) -> Localization:
    """The body has stopped, or left: what was seen of it is forgotten, and found anew if it is still there."""
    keep = (~found.window.landmarks.moving).long().cumsum(0) - 1
    m = found.matches
    found.window.drop_moving()
    return replace(found, matches=replace(m, rows=keep[m.rows], unmatched=keep[m.unmatched], moving=None))


def _seen(current: FeatureFrame, found: Localization) -> SeenFrame:
    """What a frame saw of triangulated landmarks, those that move included."""
    landmarks, T_WC, camera = found.window.landmarks, found.estimate.T_WC, current.camera
    parts = [found.matches] if found.matches.moving is None else [found.matches, found.matches.moving]
    rows = np.concatenate([part.rows.numpy() for part in parts])
    uv = torch.from_numpy(np.concatenate([part.uv.numpy() for part in parts]).astype(np.float64))
    known = landmarks.triangulated.numpy()[rows]
    rows, uv = rows[known], camera.undistort(uv).numpy()[known]
    readout_s = max(camera.readout_s, UnnamedReadout.LIKELY_S)
    skew_px = float(np.linalg.norm(current.twist.numpy()[3:])) * readout_s / 2 * camera.fx
    ids, moving = landmarks.id.numpy()[rows], landmarks.moving.numpy()[rows]
    points_C = back_project(camera, uv, to_camera(T_WC, landmarks.points_W.numpy()[rows])[:, 2])
    return SeenFrame(ids, uv, points_C, moving, T_WC, skew_px)
