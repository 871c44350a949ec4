"""The local map: a sliding window of keyframes, landmarks and observations as flat arrays (structure of arrays), on the CPU.

A landmark is found as a corner of one keyframe, its host, where its query was described. It is `triangulated` once its position
is known. Rows are compacted when landmarks or keyframes leave; `id` names a landmark for good, also beyond its window.

In mono, a depth prior on new landmarks carries the scale through turns and darkness. Without it only landmarks whose noisy
parallax happens to come out large enough are ever triangulated. These come out too near, the next motion is measured against
them, and the scale of the map shrinks at every keyframe. So a landmark gets the median inverse depth of the nearest landmarks of
its host image, with a wide standard deviation, as an inverse-depth measurement of its host observation. It enters the map by the
parallax it should have at that depth, whatever noise made of its own. Once its own parallax outweighs the noise for good the
prior is left out. Depth filters of semi-direct odometry begin in the same way (Forster et al., SVO, ICRA 2014, sec. V).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..bundle import triangulate
from ..camera import rolling_shutter
from ..camera.model import Camera
from ..core import geometry
from ..core.types import BAResult, ObservationKind, WindowSnapshot
from ..matching.base import Features, Matcher, Queries
from .measurements import DepthMeasurements
from .preintegration import Preintegrated

# Of the depth prior:
PRIOR_RELATIVE_SIGMA = 0.5  # standard deviation of the inverse depth, relative to it
ENTER_SIGMAS = 2.0  # a landmark enters when its expected parallax is so many standard deviations of its observations
LEAVE_SIGMAS = 8.0  # from here its own parallax is enough


@dataclass(frozen=True)
class Keyframe:
    id: int  # of its frame
    stamp_ns: int
    image: Tensor  # (1, H, W) uint8 grey
    features: Features
    twist: Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))  # (6,) as of `FeatureFrame`
    rate_error: float = 0.0  # rad/s, as of `FeatureFrame`
    mask: Tensor | None = None  # (H, W) bool as of `Frame`
    turned: Preintegrated | None = None  # since the keyframe before, by the gyroscope


@dataclass(frozen=True)
class Landmarks:
    """P landmarks."""

    id: Tensor  # (P,) int64
    points_W: Tensor  # (P, 3) float64, NaN until triangulated
    triangulated: Tensor  # (P,) bool
    host: Tensor  # (P,) int64, frame id of the keyframe where its query was described
    uv_host: Tensor  # (P, 2) float32 raw px there
    uv_last: Tensor  # (P, 2) float32 raw px where it was seen last
    seen: Tensor  # (P,) int64, frame id where it was seen last
    misses: Tensor  # (P,) int64, frames in a row in which it was searched in vain
    expected_inv_depth: Tensor  # (P,) float64, at its host, by its surroundings; NaN without (depth prior)
    moving: Tensor  # (P,) bool, of a body that moves: placed anew by every frame that sees it, and no part of poses

    @staticmethod
    def empty() -> Landmarks:
        whole, px = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2)
        number = torch.zeros(0, dtype=torch.float64)
        return Landmarks(whole, number.view(0, 3), whole.bool(), whole, px, px, whole, whole, number, whole.bool())

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True)
class Observations:
    """O observations, in the order in which they were made."""

    kf: Tensor  # (O,) int64, row of the keyframe
    lm: Tensor  # (O,) int64, row of the landmark
    uv: Tensor  # (O, 2) float32 raw px
    obs: Tensor  # (O, 3) float64, as in WindowSnapshot
    kind: Tensor  # (O,) int64, ObservationKind
    sigma: Tensor  # (O, 3) float64

    @staticmethod
    def empty() -> Observations:
        whole, three = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.float64)
        return Observations(whole, whole, torch.zeros(0, 2), three, whole, three)

    def __len__(self) -> int:
        return len(self.kf)


Table = TypeVar("Table", Landmarks, Observations)


def _each(table: Table, change: Callable[[Tensor], Tensor]) -> Table:
    """The table with every column changed."""
    return replace(table, **{name: change(value) for name, value in vars(table).items()})


def _append(table: Table, rows: Table) -> Table:
    return replace(table, **{name: torch.cat([value, getattr(rows, name)]) for name, value in vars(table).items()})


class Window:
    """Owned by one thread; everything that leaves it is cloned.

    Attributes:
        queries: one per landmark; None with matchers that search from the previous frame.
        keyframe_dropped: a keyframe has left, so that the oldest poses carry what it contributed.
        error_scale: by how much the variance of its observations exceeds that of their sigmas, errors that they share included; 0 if unknown.
        turned_in_place: when it was solved last, one camera had turned much and moved little (`turning.turned_in_place`).
        narrow: then it had moved little, and a gyroscope knows its rotations (`turning.is_narrow`).
        next_id: of the next landmark; a window that takes the place of another begins there, so that no id names two landmarks.
    """

    def __init__(self, next_id: int = 0) -> None:
        self.keyframes: list[Keyframe] = []
        self.T_WC = torch.zeros(0, 7, dtype=torch.float64)
        self.landmarks = Landmarks.empty()
        self.observations = Observations.empty()
        self.queries: Queries | None = None
        self.keyframe_dropped = False
        self.turned_in_place = self.narrow = False
        self.error_scale = 0.0
        self.next_id = next_id
        # ids of landmarks (N,), ascending, and their depths in the oldest keyframe
        self._scale: tuple[Tensor, Tensor] | None = None

    def select_queries(self, rows: Tensor) -> Queries:
        """The queries of landmarks (N,); the window is one of a matcher with a wide baseline.

        Raises:
            ValueError: the window holds no queries.
        """
        if self.queries is None:
            raise ValueError("a window without queries: its matcher searches from the previous frame")
        return self.queries.select(rows)

    # -- growing ------------------------------------------------------------------------------------------------------

    def add_keyframe(self, keyframe: Keyframe, T_WC: Tensor) -> int:
        """Appends a keyframe with its pose (7,); returns its row."""
        self.keyframes.append(keyframe)
        self.T_WC = torch.cat([self.T_WC, T_WC[None].double()])
        return len(self.keyframes) - 1

    def add_landmarks(self, kf: int, uv: Tensor, queries: Queries | None) -> Tensor:
        """New, not yet triangulated, landmarks at raw px `uv` (N, 2) of keyframe `kf`, their host; returns their rows.

        `queries` were described there; None with matchers that are queried from the previous frame.
        """
        count, table = len(uv), self.landmarks
        host = torch.full((count,), self.keyframes[kf].id)
        uv = uv.cpu().float()
        added = Landmarks(
            id=torch.arange(self.next_id, self.next_id + count),
            points_W=torch.full((count, 3), torch.nan, dtype=torch.float64),
            triangulated=torch.zeros(count, dtype=torch.bool),
            host=host,
            uv_host=uv,
            uv_last=uv,
            seen=host,
            misses=torch.zeros(count, dtype=torch.int64),
            expected_inv_depth=torch.full((count,), torch.nan, dtype=torch.float64),
            moving=torch.zeros(count, dtype=torch.bool),
        )
        self.next_id += count
        self.landmarks = _append(table, added)
        if queries is not None:
            self.queries = queries if self.queries is None or len(table) == 0 else Queries.cat([self.queries, queries])
        return torch.arange(len(table), len(table) + count)

    def observe(
        self,
        camera: Camera,
        kf: Tensor | int,
        rows: Tensor,
        uv: Tensor,
        sigma_px: Tensor,
        depths: DepthMeasurements | None = None,
        at: Tensor | None = None,
    ) -> None:
        """Adds observations of landmarks `rows` (N,) at raw px `uv` (N, 2) in keyframe(s) `kf`, with their measured depths.

        Observations without a measured depth are MONO. `at`: (N,) depths by which a rolling shutter is undone, where the map has no
        position of the landmarks yet.
        """
        count = len(rows)
        kf = torch.as_tensor(kf).expand(count).clone()
        ideal = self._undistort(camera, kf, rows, uv, at)
        kind, measured = ObservationKind.MONO, torch.full((count,), torch.nan, dtype=torch.float64)
        measured_sigma = torch.ones(count, dtype=torch.float64)
        if depths is not None:
            kind, measured, measured_sigma = depths.kind, depths.measured.double(), depths.sigma.double()
        known = torch.isfinite(measured) & torch.isfinite(measured_sigma)
        sigma = sigma_px.double().cpu() * camera.stretch(ideal)
        added = Observations(
            kf=kf,
            lm=rows,
            uv=uv.float(),
            obs=torch.cat([ideal, torch.where(known, measured, 0.0)[:, None]], 1),
            kind=torch.where(known, int(kind), int(ObservationKind.MONO)),
            sigma=torch.stack([sigma, sigma, torch.where(known, measured_sigma, 1.0)], 1),
        )
        inside = torch.isfinite(ideal).all(1)
        self.observations = _append(self.observations, _each(added, lambda v: v[inside]))

    def _undistort(self, camera: Camera, kf: Tensor, rows: Tensor, uv: Tensor, depth: Tensor | None = None) -> Tensor:
        """Ideal px (N, 2); where the shutter rolls, landmarks without a depth (N,) or position are taken to be as far as the scene."""
        if camera.readout_s == 0 or len(rows) == 0:
            return camera.undistort(uv.double())
        twist = torch.stack([k.twist for k in self.keyframes])[kf]
        if depth is None:
            scene = torch.tensor([self.median_depth(k) for k in range(len(self.keyframes))], dtype=torch.float64)
            z = geometry.act(geometry.inverse(self.T_WC)[kf], self.landmarks.points_W[rows])[:, 2]
            depth = torch.where(z > 0, z, scene[kf])
        return rolling_shutter.undistort(camera, uv, twist, depth)

    def recalibrate(self, before: Camera, now: Camera) -> None:
        """Carries the observations over to another calibration of the camera: each keeps the ray that its own image gave it.

        Another readout time gives other rays.
        """
        o = self.observations
        if replace(before, readout_s=now.readout_s) == now:
            ideal = self._undistort(now, o.kf, o.lm, o.uv)
            self.observations = replace(o, obs=torch.cat([ideal, o.obs[:, 2:]], 1))
            return
        obs, sigma = o.obs.clone(), o.sigma.clone()
        scale = obs.new_tensor([now.fx / before.fx, now.fy / before.fy])
        obs[:, :2], sigma[:, :2] = now.carry(obs[:, :2], before), sigma[:, :2] * scale
        right = o.kind == int(ObservationKind.STEREO)
        obs[right, 2], sigma[right, 2] = (obs[right, 2] - before.cx) * scale[0] + now.cx, sigma[right, 2] * scale[0]
        self.observations = replace(o, obs=obs, sigma=sigma)

    def set_twist(self, camera: Camera, kf: int, twist: Tensor, rate_error: float) -> None:
        """Corrects the rows of a keyframe by another velocity (6,), whose rotation may be off by `rate_error`, rad/s."""
        self.keyframes[kf] = replace(self.keyframes[kf], twist=twist, rate_error=rate_error)
        if camera.readout_s == 0:
            return
        o = self.observations
        mine = (o.kf == kf).nonzero()[:, 0]
        obs = o.obs.clone()
        obs[mine, :2] = self._undistort(camera, o.kf[mine], o.lm[mine], o.uv[mine])
        self.observations = replace(o, obs=obs)

    def mark(self, frame_id: int, rows: Tensor, uv: Tensor, unmatched: Tensor) -> None:
        """Records where landmarks were seen in a frame, and which were searched in vain."""
        table = self.landmarks
        uv_last, seen, misses = table.uv_last.clone(), table.seen.clone(), table.misses.clone()
        uv_last[rows], seen[rows], misses[rows] = uv.float(), frame_id, 0
        misses[unmatched] += 1
        self.landmarks = replace(table, uv_last=uv_last, seen=seen, misses=misses)

    def set_moving(self, moving: Tensor) -> None:
        """Says which landmarks (P,) are of a body that moves."""
        self.landmarks = replace(self.landmarks, moving=moving)

    def join_moving(self, camera: Camera, kf: int, rows: Tensor) -> Tensor:
        """Takes new corners (N,) of a keyframe for parts of the moving body where most of their neighbours are, and as far away as these.

        Returns:
            Rows of the other ones.
        """
        neighbours = 3
        table, o = self.landmarks, self.observations
        if len(rows) == 0 or not bool(table.moving.any()):
            return rows
        old = ((o.kf == kf) & table.triangulated[o.lm] & (o.lm < rows[0])).nonzero()[:, 0]
        if len(old) < neighbours:
            return rows
        uv = table.uv_host[rows]
        nearest = torch.cdist(uv, o.uv[old]).topk(neighbours, largest=False).indices
        joins = table.moving[o.lm[old]][nearest].sum(1) > neighbours // 2
        depth = geometry.act(geometry.inverse(self.T_WC[kf]), table.points_W[o.lm[old]])[:, 2][nearest].median(1).values
        points_C = geometry.back_project(camera, camera.undistort(uv[joins].double()), depth[joins])
        self.set_positions(rows[joins], geometry.act(self.T_WC[kf], points_C))
        self.set_moving(table.moving.index_fill(0, rows[joins], True))
        return rows[~joins]

    def drop_moving(self) -> None:
        """Removes the landmarks of a body that moves."""
        self._keep_landmarks(~self.landmarks.moving)

    def set_positions(self, rows: Tensor, points_W: Tensor) -> None:
        """Sets landmarks to known positions (N, 3)."""
        points, triangulated = self.landmarks.points_W.clone(), self.landmarks.triangulated.clone()
        points[rows], triangulated[rows] = points_W.double(), True
        self.landmarks = replace(self.landmarks, points_W=points, triangulated=triangulated)

    # -- geometry -----------------------------------------------------------------------------------------------------

    def views(self) -> Tensor:
        """Number of observations of each landmark, (P,) int64."""
        return torch.bincount(self.observations.lm, minlength=len(self.landmarks))

    def seen_at(self, kf: int) -> Tensor:
        """The row of each landmark's observation in keyframe `kf`, (P,) int64; -1 where there is none."""
        at = torch.full((len(self.landmarks),), -1)
        mine = (self.observations.kf == kf).nonzero()[:, 0]
        at[self.observations.lm[mine]] = mine
        return at

    def placed(self) -> Tensor:
        """Which landmarks (P,) have a position in the world: triangulated, and of no body that moves."""
        return self.landmarks.triangulated & ~self.landmarks.moving

    def triangulated_in(self, kf: int) -> Tensor:
        """Rows (N,) of the triangulated landmarks of the world that keyframe `kf` observes."""
        return ((self.seen_at(kf) >= 0) & self.placed()).nonzero()[:, 0]

    def residuals(self, camera: Camera) -> tuple[Tensor, Tensor]:
        """Distance between observation and reprojection (O,) in ideal px, and depth of the landmark in that keyframe (O,).

        NaN for landmarks that are not triangulated.
        """
        return self._residuals(camera, self.landmarks.points_W[self.observations.lm])

    def _residuals(self, camera: Camera, points_W: Tensor, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        o = self.observations
        points_C = geometry.act(geometry.inverse(self.T_WC)[o.kf[rows]], points_W)
        return (geometry.project(camera, points_C) - o.obs[rows, :2]).norm(dim=1), points_C[:, 2]

    def is_host(self, o: Observations) -> Tensor:
        """(O,) bool: the observation at which its landmark was detected."""
        ids = torch.tensor([k.id for k in self.keyframes])
        return ids[o.kf] == self.landmarks.host[o.lm]

    def _is_metric(self) -> bool:
        return bool((self.observations.kind != int(ObservationKind.MONO)).any())

    def _measured(self) -> Tensor:
        """(P,) bool: an observation measures its depth."""
        o = self.observations
        return torch.bincount(o.lm[o.kind != int(ObservationKind.MONO)], minlength=len(self.landmarks)) > 0

    def triangulate(self, camera: Camera, min_parallax_px: float, gate_px: float) -> Tensor:
        """Triangulates landmarks whose rays have enough parallax and agree within the gate; returns their rows.

        A measured depth counts as parallax. Where nothing measures depth, a landmark whose surroundings are known enters by the
        parallax that it should have there (depth prior). Observations that disagree with their landmark are dropped; a landmark that is
        still pending keeps all of its own, for with more views the wrong one may stand out.
        """
        pending = ~self.landmarks.triangulated
        mine = pending[self.observations.lm].nonzero()[:, 0]
        o, sigmas = _each(self.observations, lambda v: v[mine]), None
        if not self._is_metric():
            self.landmarks = replace(self.landmarks, expected_inv_depth=expected_inverse_depths(self))
            sigmas = parallax_sigmas(self, o, camera)
            o = with_depth_prior(self, o, sigmas)
        keep = torch.ones(len(o), dtype=torch.bool)
        rows = (pending & ((self.views() >= 2) | self._measured())).nonzero()[:, 0]
        if len(rows) == 0:
            return rows
        index = torch.full((len(self.landmarks),), -1)
        index[rows] = torch.arange(len(rows))
        for iterations in (2, 4):  # the first round only has to show the outliers
            used = ((index[o.lm] >= 0) & keep).nonzero()[:, 0]
            lm = index[o.lm[used]]
            found = triangulate(
                camera, self.T_WC, o.kf[used], lm, o.obs[used], len(rows), o.kind[used], o.sigma[used], iterations
            )
            residual = self._residuals(camera, found.points_W[lm], mine[used])[0]
            keep[used] = residual < gate_px
        enough = geometry.parallax(self.T_WC, found.points_W, o.kf[used], lm) * camera.fx >= min_parallax_px
        if sigmas is not None:
            enough = torch.where(sigmas[rows].isfinite(), sigmas[rows] >= ENTER_SIGMAS, enough)
        good = found.valid & (found.rms_px < gate_px) & (enough | self._measured()[rows])
        self.set_positions(rows[good], found.points_W[good])
        wrong = mine[~keep & self.landmarks.triangulated[o.lm]]
        self._keep_observations(torch.ones(len(self.observations), dtype=torch.bool).index_fill(0, wrong, False))
        return rows[good]

    def median_depth(self, kf: int) -> float:
        """Median depth of the world's triangulated landmarks that keyframe `kf` observes; 1 where it observes none."""
        o = self.observations
        rows = o.lm[(o.kf == kf) & self.placed()[o.lm]]
        if len(rows) == 0:
            return 1.0
        return float(geometry.act(geometry.inverse(self.T_WC[kf]), self.landmarks.points_W[rows])[:, 2].median())

    # -- bundle adjustment --------------------------------------------------------------------------------------------

    def snapshot(self, camera: Camera) -> tuple[WindowSnapshot, Tensor, Tensor] | None:
        """The window as a problem, with the rows of its observations (O,) and of its landmarks (P,); None without a problem.

        The oldest keyframe is held; once keyframes have left, the two oldest, which carry what those knew, the scale in mono included.
        Not in stereo, where that measured worse than holding one (docs/negative_results.md).
        """
        if len(self.keyframes) < 2:
            return None
        good = self.placed() & (self.views() >= 2)
        used = good[self.observations.lm].nonzero()[:, 0]
        rows = good.nonzero()[:, 0]
        if len(rows) == 0:
            return None
        index = torch.full((len(self.landmarks),), -1)
        index[rows] = torch.arange(len(rows))
        # Until a keyframe has left, the scale is the gauge of the problem: a prior that only passes it on has no part in it.
        plain = self._is_metric() or not self.keyframe_dropped
        o = _each(self.observations, lambda v: v[used])
        if not plain:
            o = with_depth_prior(self, o, parallax_sigmas(self, o, camera))
        fixed = torch.zeros(len(self.keyframes), dtype=torch.bool)
        stereo = bool((o.kind == int(ObservationKind.STEREO)).any())
        fixed[: 2 if self.keyframe_dropped and len(self.keyframes) > 3 and not stereo else 1] = True
        snapshot = WindowSnapshot(
            camera,
            self.T_WC.clone(),
            self.landmarks.points_W[rows],
            o.kf,
            index[o.lm],
            o.obs,
            o.kind,
            o.sigma,
            fixed,
            expected_depth=not plain,
        )
        return snapshot, used, rows

    def absorb(self, result: BAResult, rows: Tensor) -> None:
        """Takes over poses and landmark positions."""
        self.T_WC = result.T_WC.clone().double()
        self.set_positions(rows, result.points_W)

    def add_error_scale(self, scale: float) -> None:
        """By the newest solution; the mean with earlier ones, for it is known to a factor of a few only."""
        self.error_scale = (self.error_scale * scale) ** 0.5 if self.error_scale else scale

    def remember_scale(self) -> None:
        """The current depths of landmarks define the scale of the map until the oldest keyframe leaves (`restore_scale`)."""
        rows = self.landmarks.triangulated.nonzero()[:, 0]
        self._scale = self.landmarks.id[rows], self._depths_in_oldest(rows)

    def restore_scale(self, rows: Tensor) -> float:
        """Scales a mono window that began with one keyframe back to the remembered depths of its landmarks.

        Bundle adjustment takes the scale of such a window from the baseline to the next keyframe, which is a few centimetres
        that one pose was measured by. Hundreds of landmarks are a better measure.

        Args:
            rows: (N,) of the landmarks that bundle adjustment has placed.

        Returns:
            By what factor the window was scaled about its oldest keyframe.
        """
        if self._scale is None or len(self._scale[0]) == 0 or self.keyframe_dropped or self._is_metric():
            return 1.0
        ids, depth = self._scale
        at = torch.searchsorted(ids, self.landmarks.id[rows]).clamp_max(len(ids) - 1)
        known = ids[at] == self.landmarks.id[rows]
        ratio = depth[at[known]] / self._depths_in_oldest(rows[known])
        factor = float(ratio.median()) if len(ratio) else 1.0
        if not factor > 0:
            return 1.0
        self.rescale(factor)
        self._scale = ids, depth
        return factor

    def _depths_in_oldest(self, rows: Tensor) -> Tensor:
        return geometry.act(geometry.inverse(self.T_WC[0]), self.landmarks.points_W[rows])[:, 2]

    def rescale(self, factor: float, centre: Tensor | None = None) -> None:
        """Scales the map about a point (3,), by default the centre of its oldest keyframe."""
        origin = self.T_WC[0, :3].clone() if centre is None else centre
        self.T_WC = torch.cat([origin + (self.T_WC[:, :3] - origin) * factor, self.T_WC[:, 3:]], 1)
        unit = torch.tensor([factor] * 3 + [1.0] * 3, dtype=torch.float64)
        self.keyframes = [replace(k, twist=k.twist * unit) for k in self.keyframes]
        if self._scale is not None:
            self._scale = self._scale[0], self._scale[1] * factor
        self.landmarks = replace(
            self.landmarks,
            points_W=origin + (self.landmarks.points_W - origin) * factor,
            expected_inv_depth=self.landmarks.expected_inv_depth / factor,
        )

    def move(self, T: Tensor) -> None:
        """Moves the whole map by the pose T (7,): what was at the origin is then at T."""
        self.T_WC = geometry.compose(T.expand(len(self.T_WC), 7), self.T_WC)
        self.landmarks = replace(self.landmarks, points_W=geometry.act(T, self.landmarks.points_W))

    # -- shrinking ----------------------------------------------------------------------------------------------------

    def cull(self, camera: Camera, gate_px: float) -> None:
        """Drops observations that disagree with their landmark, and landmarks that are behind a camera or no longer supported.

        A triangulated landmark needs two observations, or one whose kind measures depth.
        """
        residual, depth = self.residuals(camera)
        o = self.observations
        placed = self.placed()
        self._keep_observations(~placed[o.lm] | ((residual < gate_px) & (depth > 0)))
        support = self.views() + self._measured().long()
        self._keep_landmarks(torch.where(placed, support >= 2, support >= 1))

    def drop_keyframe(self, row: int) -> Keyframe:
        """Removes a keyframe with its observations, and landmarks that nothing observes any more."""
        self.keyframe_dropped = True
        o = self.observations
        self._keep_observations(o.kf != row)
        o = self.observations
        self.observations = replace(o, kf=o.kf - (o.kf > row).long())
        self.T_WC = torch.cat([self.T_WC[:row], self.T_WC[row + 1 :]])
        gone = self.keyframes.pop(row)
        if row < len(self.keyframes):
            after = self.keyframes[row]
            turned = None if gone.turned is None or after.turned is None else gone.turned.then(after.turned)
            self.keyframes[row] = replace(after, turned=turned)
        self._keep_landmarks(self.views() > 0)
        return gone

    def renew_features(self, matcher: Matcher, features: Mapping[int, Features]) -> None:
        """Replaces features and queries after a change of weights; features that are not given are computed.

        A landmark is described at its host; where that has left the window, the newest keyframe that saw it becomes its host. A
        landmark that no keyframe saw is dropped.
        """

        def renewed(keyframe: Keyframe) -> Features:
            given = features.get(keyframe.id)
            if given is None or given.weights_version != matcher.weights_version:
                return matcher.observe(keyframe.image)
            return given

        for values in (values for given in features.values() for values in given.maps.values()):
            if values.is_cuda:
                # Made on the learner's stream, which must not use their memory again before this stream is done.
                values.record_stream(torch.cuda.current_stream(values.device))

        self.keyframes = [replace(keyframe, features=renewed(keyframe)) for keyframe in self.keyframes]
        if self.queries is not None:
            self._renew_queries(matcher)

    def _renew_queries(self, matcher: Matcher) -> None:
        ids = torch.tensor([k.id for k in self.keyframes])
        o = self.observations
        # Of each landmark's observations, the one at the host comes last, else the newest.
        order = torch.where(ids[o.kf] == self.landmarks.host[o.lm], len(ids), o.kf) * len(o) + torch.arange(len(o))
        best = torch.full((len(self.landmarks),), -1).scatter_reduce(0, o.lm, order, "amax")
        self._keep_landmarks(best >= 0)
        best = best[best >= 0] % max(1, len(o))
        uv, kf = o.uv[best], o.kf[best]
        parts, rows = [], []
        for k, keyframe in enumerate(self.keyframes):
            mine = (kf == k).nonzero()[:, 0]
            if len(mine):
                parts.append(matcher.describe(keyframe.features, uv[mine].to(matcher.device)))
                rows.append(mine)
        self.queries = Queries.cat(parts).select(torch.cat(rows).argsort().to(matcher.device)) if parts else None
        # The depth that was expected at a host that has left is not that at another one.
        expected = torch.where(ids[kf] == self.landmarks.host, self.landmarks.expected_inv_depth, torch.nan)
        self.landmarks = replace(self.landmarks, host=ids[kf], uv_host=uv, expected_inv_depth=expected)

    def _keep_observations(self, keep: Tensor) -> None:
        if not bool(keep.all()):
            self.observations = _each(self.observations, lambda v: v[keep])

    def _keep_landmarks(self, keep: Tensor) -> None:
        if bool(keep.all()):
            return
        self._keep_observations(keep[self.observations.lm])
        index = keep.long().cumsum(0) - 1
        self.observations = replace(self.observations, lm=index[self.observations.lm])
        self.landmarks = _each(self.landmarks, lambda v: v[keep])
        if self.queries is not None:
            self.queries = self.queries.select(keep.nonzero()[:, 0].to(self.queries.uv.device))


# -- depth prior ------------------------------------------------------------------------------------------------------


def expected_inverse_depths(window: Window) -> Tensor:
    """Inverse depth (P,) at the host, taken from its surroundings once they are known and kept from then on; NaN without."""
    neighbours = 5
    min_known = 8  # fewer known landmarks in an image say nothing about its depth
    o, table = window.observations, window.landmarks
    expected = table.expected_inv_depth.clone()
    new = window.is_host(o) & ~table.triangulated[o.lm] & expected[o.lm].isnan()
    for kf in o.kf[new].unique().tolist():
        known = ((o.kf == kf) & window.placed()[o.lm]).nonzero()[:, 0]
        if len(known) < min_known:
            continue
        depth = geometry.act(geometry.inverse(window.T_WC[kf]), table.points_W[o.lm[known]])[:, 2]
        at = (new & (o.kf == kf)).nonzero()[:, 0]
        nearest = torch.cdist(o.uv[at], o.uv[known]).topk(neighbours, largest=False).indices
        expected[o.lm[at]] = (1 / depth.clamp_min(1e-9))[nearest].median(1).values
    return expected


def parallax_sigmas(window: Window, o: Observations, camera: Camera) -> Tensor:
    """The parallax (P,) that landmarks should have at their expected depth, in standard deviations of their observations.

    NaN where no depth is expected or the host has left the window. `o`: all of the window's observations of landmarks that matter.
    """
    table = window.landmarks
    hosts = (window.is_host(o) & table.expected_inv_depth[o.lm].isfinite()).nonzero()[:, 0]
    depth = 1 / table.expected_inv_depth[o.lm[hosts]]
    points = torch.zeros(len(table), 3, dtype=torch.float64)
    points[o.lm[hosts]] = geometry.act(window.T_WC[o.kf[hosts]], geometry.back_project(camera, o.obs[hosts, :2], depth))
    angle = geometry.parallax(window.T_WC, points, o.kf, o.lm)
    sigma = torch.zeros(len(table), dtype=torch.float64).scatter_reduce(0, o.lm, o.sigma[:, 0], "amax")
    has = torch.zeros(len(table), dtype=torch.bool)
    has[o.lm[hosts]] = True
    return torch.where(has, angle * camera.fx / sigma, torch.nan)


def with_depth_prior(window: Window, o: Observations, sigmas: Tensor) -> Observations:
    """Observations (O,) of the window, those at the hosts of landmarks of little parallax with the inverse depth expected there.

    Landmarks that were found much nearer than expected, things in front of a background, are left alone.

    Args:
        sigmas: (P,) of `parallax_sigmas`.
    """
    table = window.landmarks
    expected = table.expected_inv_depth[o.lm]
    weak = sigmas[o.lm] < LEAVE_SIGMAS
    inv_depth = 1 / geometry.act(geometry.inverse(window.T_WC)[o.kf], table.points_W[o.lm])[:, 2]
    in_front = table.triangulated[o.lm] & (inv_depth > (1 + 2 * PRIOR_RELATIVE_SIGMA) * expected)
    use = window.is_host(o) & weak & ~in_front
    obs, sigma = o.obs.clone(), o.sigma.clone()
    obs[use, 2], sigma[use, 2] = expected[use], PRIOR_RELATIVE_SIGMA * expected[use]
    return replace(o, obs=obs, kind=torch.where(use, int(ObservationKind.DEPTH), o.kind), sigma=sigma)
