"""What moves before the camera is set apart from the world: two motions, found by `moving`, decide which landmarks give the pose."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from . import measurements
from ..core import geometry
from ..core.config import Config
from .external_odometry import ExternalOdometry
from .front_end import FeatureFrame, FrontEnd, Localization, separate
from .gyroscope import Gyroscope
from .local_map import Window
from .motion import MotionModel, TrackedFrame
from .moving import FRAMES_BACK, MotionSegmentation, SeenFrame, TwoMotions
from .rigid_motions import back_project, to_camera
from .shutter import UnnamedReadout

# Which of two motions is the camera's, as other sensors tell: by how far each is from what they measured, an angle. That of the world is off by .1 to
# .4 degrees (median), the other one by 1 to 3. Chosen, as what follows, on rendered clutter with things that sway, pass and walk (seeds 211, 212).
ERROR_RAD = 0.007
MOST_EVIDENCE, ENOUGH_EVIDENCE = 4.0, 10.0  # log-likelihood ratio that one frame adds at most, and that decides
# The pose is not in dispute while the motion of the last frames, too, is measured so: within this angle, and where the distance is measured as well,
# which a gyroscope does not, this share of the motion, as wheels slip.
AGREEING_RAD, SLIP = 0.01, 0.03


class BodySeparation:
    """Keeps the landmarks of a body that moves out of poses, and places them where each frame sees them."""

    def __init__(
        self, config: Config, front_end: FrontEnd, motion: MotionModel, gyroscope: Gyroscope, external: ExternalOdometry
    ) -> None:
        self._front_end, self._motion = front_end, motion
        self._gyroscope, self._external = gyroscope, external
        self._segmentation = MotionSegmentation()
        # Whether external odometry agreed with the images, before two motions were seen: with a pose that follows the other body it does not.
        self._trusted: deque[bool] = deque(maxlen=max(FRAMES_BACK))
        self._agrees = False  # the last poses move as those sensors say
        self._evidence = 0.0  # that the first of two motions is the camera's: log-likelihood ratio
        self.configure(config)

    def configure(self, config: Config) -> None:
        self._config = config.odometry

    @property
    def disputed(self) -> bool:
        """Whether either of two motions may be that of the camera."""
        return self._segmentation.disputed and not (self._agrees and self._evidence >= ENOUGH_EVIDENCE)

    def forget_frames(self) -> None:
        """What follows is of another scale or camera, or does not continue the last pose."""
        self._segmentation.forget_frames()

    def move(self, T: Tensor) -> None:
        """The map is moved by T (7,)."""
        self._segmentation.move(T)

    def separate(self, current: FeatureFrame, last: TrackedFrame, found: Localization, mode: str) -> Localization:
        """Where the landmarks of a frame, outliers included, move as two bodies: the pose by those of one, the others set apart."""
        if not self._segmentation.disputed:
            self._trusted.append(self._external.predicts and not self._external.problem)
        two = self._segmentation.compare(current.camera, _seen(current, found))
        if self._segmentation.last is None:
            self._evidence = 0.0
            return _without_moving(found) if bool(found.window.landmarks.moving.any()) else found
        if two is not None:
            two = self._choose(two, current.frame.stamp_ns, last.median_depth())
            window = found.window
            ids, moving = window.landmarks.id, window.landmarks.moving
            moving = (moving & ~torch.isin(ids, two.first)) | torch.isin(ids, two.second)
            matches = separate(found.matches, moving)
            estimate = self._front_end.estimate(window, current, matches, two.T_WC)
            if estimate is not None:
                window.set_moving(moving)
                found = replace(found, matches=matches, estimate=estimate)
        self._agrees = self._agree(found.estimate.T_WC, current.frame.stamp_ns, last.median_depth())
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

    def _choose(self, two: TwoMotions, now_ns: int, depth: float) -> TwoMotions:
        """The two motions, the camera's first where the gyroscope or external odometry have told which that is."""
        measured = self._measure(two.since_ns, now_ns)
        if measured is None:
            return two
        first, second = (_angle(T, measured, depth) / ERROR_RAD for T in (two.T_first, two.T_second))
        added = (second**2 - first**2) / 2
        self._evidence += max(-MOST_EVIDENCE, min(added, MOST_EVIDENCE))
        self._evidence = min(self._evidence, 2 * ENOUGH_EVIDENCE)
        if self._evidence > -ENOUGH_EVIDENCE:
            return two
        self._evidence = -self._evidence
        self._segmentation.last = two = two.swapped()
        return two

    def _agree(self, T_WC: Tensor, now_ns: int, depth: float) -> bool:
        """Whether the motion to the pose (7,) now, since the oldest frame that is kept, is what other sensors measured."""
        before = self._segmentation.oldest
        measured = None if before is None else self._measure(before.stamp_ns, now_ns)
        if before is None or measured is None:
            return False
        T = geometry.relative(before.T_WC, T_WC)
        at_rest = torch.zeros(3, dtype=T.dtype), geometry.identity()[3:]
        slip = 0.0 if measured[0] is None else SLIP * _angle(T, at_rest, depth)
        return _angle(T, measured, depth) < AGREEING_RAD + slip

    def _measure(self, from_ns: int, to_ns: int) -> tuple[Tensor | None, Tensor] | None:
        """Translation (3,) in the unit of the map, if that is known, and rotation (4,) of the camera between two times, from sensors that are trusted."""
        external = self._external
        motion = external.motion(from_ns, to_ns) if external.predicts and self._trusted[0] else None
        if motion is not None:
            return None if external.unit_m is None else motion[:3] / external.unit_m, motion[3:]
        turned = self._gyroscope.turned_between(from_ns, to_ns)
        return None if turned is None else (None, turned.q_WC)

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


def _angle(T: Tensor, measured: tuple[Tensor | None, Tensor], depth: float) -> float:
    """By how much a motion T (7,) moves the image otherwise than a measured one: rad turned plus distance over depth."""
    t, q = measured
    off = geometry.local(T, torch.cat([T[:3] if t is None else t, q]))
    return float(off[3:].norm()) + float(off[:3].norm()) / depth


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
    return SeenFrame(ids, uv, points_C, moving, T_WC, skew_px, current.frame.stamp_ns)
