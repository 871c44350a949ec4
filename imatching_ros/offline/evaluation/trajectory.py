"""Absolute and relative trajectory errors; association, alignment and error metrics are evo's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from evo.core import metrics, sync
from evo.core.geometry import GeometryException
from evo.core.lie_algebra import se3
from evo.core.trajectory import PoseTrajectory3D

from ..recordings.truth import Trajectory, from_matrices

ASSOCIATION_S = 0.02  # estimate and truth of one moment are at most so far apart
_LEAST_POSES = 3


@dataclass(frozen=True)
class TrajectoryScore:
    """An estimate against the truth, after association and alignment; N poses."""

    alignment: str  # sim3, se3
    scale: float  # the estimate was multiplied by this
    estimate: Trajectory  # aligned
    truth: Trajectory  # the associated poses
    error_m: np.ndarray  # (N,) distance of positions
    rpe_trans_m: np.ndarray  # (N - 1,) from one associated pose to the next
    rpe_rot_deg: np.ndarray  # (N - 1,)
    ate: dict[str, Any]
    rpe: dict[str, Any]


def score_trajectory(estimate: Trajectory, truth: Trajectory, metric: bool) -> TrajectoryScore | str:
    """ATE and RPE of an estimate.

    Args:
        metric: True aligns with SE(3) (stereo, RGB-D), False with Sim(3) (mono has no scale); Umeyama 1991 either way.

    Returns:
        The score, or in words why there is none (too few common poses, poses that fix no alignment).
    """
    if len(estimate) < _LEAST_POSES:
        return f"{len(estimate)} poses were estimated, {_LEAST_POSES} are needed"
    try:
        reference, aligned = sync.associate_trajectories(_to_evo(truth), _to_evo(estimate), max_diff=ASSOCIATION_S)
    except sync.SyncException:
        return f"no pose of the estimate has a true one within {ASSOCIATION_S} s; do both use the same clock?"
    if reference.num_poses < _LEAST_POSES:
        return f"{reference.num_poses} poses have a true one within {ASSOCIATION_S} s, {_LEAST_POSES} are needed"
    try:
        _, _, scale = aligned.align(reference, correct_scale=not metric)
    except (
        GeometryException
    ):  # evo refuses motion along a line, about which the rotation is free; errors do not depend on it
        scale = _align_line(reference, aligned, with_scale=not metric)
        if scale is None:
            return "the camera stands still in the estimate or in the truth, which fixes no scale"
    ape = metrics.APE(metrics.PoseRelation.translation_part)
    ape.process_data((reference, aligned))
    length = float(reference.path_length)
    statistics = ape.get_all_statistics()
    ate: dict[str, Any] = {name: float(statistics[name]) for name in ("rmse", "mean", "median", "max")}
    ate |= {
        "alignment": "se3" if metric else "sim3",
        "scale": float(scale),
        "poses": int(reference.num_poses),
        "path_length_m": length,
        "percent_of_path": 100 * ate["rmse"] / length if length > 0 else None,
    }
    step_m, step_deg = _relative(reference, aligned, 1)
    per_second = max(round(1 / max(float(np.median(np.diff(reference.timestamps))), 1e-6)), 1)
    second_m, second_deg = _relative(reference, aligned, per_second)
    rpe = {"frame": _rmse(step_m, step_deg, 1), "second": _rmse(second_m, second_deg, per_second)}
    return TrajectoryScore(
        ate["alignment"],
        float(scale),
        _from_evo(aligned),
        _from_evo(reference),
        np.asarray(ape.error),
        step_m,
        step_deg,
        ate,
        rpe,
    )


def _align_line(reference: PoseTrajectory3D, estimate: PoseTrajectory3D, with_scale: bool) -> float | None:
    """Umeyama's alignment without the demand that it be unique; moves `estimate`, returns the scale, None without motion."""
    x, y = estimate.positions_xyz, reference.positions_xyz
    dx, dy = x - x.mean(0), y - y.mean(0)
    U, D, Vt = np.linalg.svd(dy.T @ dx / len(x))
    S = np.diag([1.0, 1.0, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    R = U @ S @ Vt
    variance = (dx**2).sum() / len(x)
    scale = 1.0
    if with_scale:
        scale = float((D * np.diag(S)).sum() / variance) if variance > 1e-18 else 0.0
        if scale <= 1e-12:
            return None
        estimate.scale(scale)
    estimate.transform(se3(R, y.mean(0) - scale * R @ x.mean(0)))
    return scale


def _relative(reference: PoseTrajectory3D, estimate: PoseTrajectory3D, delta: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of motions over `delta` poses: metres and degrees; empty when the trajectory is too short."""
    if reference.num_poses <= delta:
        return np.zeros(0), np.zeros(0)
    errors = []
    for relation in (metrics.PoseRelation.translation_part, metrics.PoseRelation.rotation_angle_deg):
        rpe = metrics.RPE(relation, delta=delta, delta_unit=metrics.Unit.frames, all_pairs=True)
        rpe.process_data((reference, estimate))
        errors.append(np.asarray(rpe.error, float))
    return errors[0], errors[1]


def _rmse(trans_m: np.ndarray, rot_deg: np.ndarray, delta: int) -> dict[str, Any] | None:
    if not len(trans_m):
        return None
    return {
        "poses_apart": delta,
        "trans_rmse_m": float(np.sqrt(np.mean(trans_m**2))),
        "rot_rmse_deg": float(np.sqrt(np.mean(rot_deg**2))),
    }


def _to_evo(trajectory: Trajectory) -> PoseTrajectory3D:
    q = trajectory.T_WC[:, 3:]
    return PoseTrajectory3D(trajectory.T_WC[:, :3].copy(), q[:, [3, 0, 1, 2]].copy(), trajectory.stamps_ns / 1e9)


def _from_evo(trajectory: PoseTrajectory3D) -> Trajectory:
    return from_matrices(
        np.round(np.asarray(trajectory.timestamps) * 1e9).astype(np.int64), np.array(trajectory.poses_se3)
    )
