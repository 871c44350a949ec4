"""Runs odometry over recordings, scores the poses as they were published, and times the parts of a frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ...core import geometry
from ...core.config import Config
from ...core.types import Frame, OdometryOutput, TrackingState
from ...odometry.odometry import Odometry
from ...pipeline import Pipeline
from ..evaluation.motion_consistency import measure_motion_consistency
from ..evaluation.tracking_errors import find_tracking_errors
from ..evaluation.trajectory import TrajectoryScore, score_trajectory
from ..progress import Progress
from ..recordings.base import Source
from ..recordings.truth import Trajectory


def drive(
    source: Iterable[Frame],
    config: Config,
    *,
    change: Callable[[int, Frame], Frame | None] | None = None,
    observe: Callable[[Pipeline, Frame, OdometryOutput], None] | None = None,
) -> list[OdometryOutput | None]:
    """Every frame through a fresh pipeline.

    Args:
        change: replaces the frame at an index, or drops it by returning None.
        observe: called after each processed frame.

    Returns:
        One output per frame of the source, None for those that `change` dropped.
    """
    label, length = f"{getattr(source, 'name', 'frames')} {config.matcher.name}", getattr(source, "length", None)
    pipeline = Pipeline(config)
    outputs: list[OdometryOutput | None] = []
    try:
        with Progress(label, length) as progress:
            for i, original in enumerate(source):
                frame = original if change is None else change(i, original)
                output = None if frame is None else pipeline.process(frame)
                if observe is not None and frame is not None and output is not None:
                    observe(pipeline, frame, output)
                outputs.append(output)
                progress.update(i + 1)
    finally:
        pipeline.close()
    return outputs


def track(odometry: Odometry, frames: Iterable[Frame]) -> list[OdometryOutput]:
    """Every frame through odometry alone, without a learner."""
    outputs = []
    for frame in frames:
        outputs.append(odometry.track(frame))
        odometry.extend()
    return outputs


def score_outputs(outputs: Iterable[OdometryOutput], truth: Trajectory | None) -> TrajectoryScore | None:
    """ATE and RPE of the poses among the outputs; None without truth, or where too few poses or no motion allow none."""
    tracked = [o for o in outputs if o.T_WC is not None]
    if truth is None or not tracked:
        return None
    stamps_ns = np.array([o.stamp_ns for o in tracked], np.int64)
    estimate = Trajectory(stamps_ns, np.stack([o.T_WC.numpy() for o in tracked if o.T_WC is not None]))
    score = score_trajectory(estimate, truth, tracked[-1].metric)
    return None if isinstance(score, str) else score


def measure(source: Source, config: Config) -> dict[str, Any]:
    """One run as a flat row: counts of frames, ATE and RPE where there is truth, times of the parts.

    `wrong_tracking` of the `judged` frames are TRACKING although the motion over ten frames is wrong (`evaluation.tracking_errors`).
    Of all `wrong_10` that have a pose, the covariance does not contain the error in `uncovered_10`.
    `rotation_10` [degrees] and `scale_10` are the largest errors over ten frames of all that have a pose, `..._tracking` of the judged ones.
    `nees_1s` and its parts are those of the motion over one second (`evaluation.motion_consistency`).
    """
    depths: list[float] = []

    def observe(pipeline: Pipeline, frame: Frame, output: OdometryOutput) -> None:
        depths.append(pipeline.window.median_depth(len(pipeline.window.keyframes) - 1))

    outputs = [o for o in drive(source, config, observe=observe) if o is not None]
    tracked = sum(o.T_WC is not None for o in outputs)
    first = next((i for i, o in enumerate(outputs) if o.T_WC is not None), None)
    row: dict[str, Any] = {
        "frames": len(outputs),
        "tracked": tracked,
        "tracking": sum(o.state is TrackingState.TRACKING for o in outputs),
        "first": first,
        "lost": None if first is None else len(outputs) - first - tracked,
        "keyframes": sum(o.is_keyframe for o in outputs),
        "maps": 1 + max(o.map_id for o in outputs),
    }
    truth = source.groundtruth()
    if truth is not None:
        errors = find_tracking_errors(outputs, depths, truth)
        row |= {"judged": len(errors.judged), "wrong_tracking": len(errors.wrong)}
        every = find_tracking_errors(outputs, depths, truth, every=True)
        row |= {"wrong_10": len(every.wrong), "uncovered_10": len(every.uncovered)}
        row |= {"rotation_10": every.rotation_deg, "rotation_10_tracking": errors.rotation_deg}
        row |= {"scale_10": every.scale_change, "scale_10_tracking": errors.scale_change}
        motion = measure_motion_consistency(outputs, truth)
        if motion is not None:
            row |= {"nees_1s": motion.nees, "nees_1s_rotation": motion.nees_rotation}
            row |= {"nees_1s_position": motion.nees_position, "nees_1s_pairs": motion.pairs}
    score = score_outputs(outputs, truth)
    if score is not None:
        row |= {
            "ate_m": score.ate["rmse"],
            "ate_percent": score.ate["percent_of_path"],
            "rpe_deg": float(np.sqrt(np.mean(score.rpe_rot_deg**2))),
            "identity_deg": _identity_rpe_deg(score.truth),
        }
    return row | timings(outputs)


def timings(outputs: list[OdometryOutput]) -> dict[str, float]:
    """Median and 95th percentile, ms: of every part, of the way to the pose (`front`), and of keyframe work."""
    parts: dict[str, list[float]] = {}
    for output in outputs:
        for name, value in output.timings_ms.items():
            parts.setdefault(name, []).append(value)
        parts.setdefault("front", []).append(sum(v for k, v in output.timings_ms.items() if k != "keyframe"))
    return {f"{name}_p{q}": float(np.percentile(values, q)) for name, values in parts.items() for q in (50, 95)}


def compare_ates(rows: list[dict[str, Any]], matchers: list[str]) -> list[str]:
    """One line for every other matcher and learning mode: the geometric mean of the first matcher's ATE over theirs, case by case.

    Cases in which one of the two tracked much less are left out: errors over half a path are no measure of those over all of it.
    """
    most_apart = 0.1  # share of the frames by which what two matchers tracked may differ
    key = ("source", "mode", "learning", "seed")
    found = {(r["matcher"], tuple(r[k] for k in key)): r for r in rows if r.get("ate_m")}
    cases = list(dict.fromkeys(tuple(r[k] for k in key) for r in rows))
    lines = []
    for learning in dict.fromkeys(case[2] for case in cases):
        mine = [case for case in cases if case[2] == learning]
        for other in matchers[1:]:
            pairs = {
                c: (found[matchers[0], c], found[other, c])
                for c in mine
                if {(matchers[0], c), (other, c)} <= found.keys()
            }
            apart = [c for c, (a, b) in pairs.items() if abs(_tracked_share(a) - _tracked_share(b)) > most_apart]
            ratios = [a["ate_m"] / b["ate_m"] for c, (a, b) in pairs.items() if c not in apart]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                names = ", ".join(f"{case[0]} ({case[1]})" for case in apart)
                note = f"; left out, since they tracked different shares of the frames: {names}" if apart else ""
                lines.append(
                    f"learning {learning}: ATE of {matchers[0]} over that of {other}, geometric mean of {len(ratios)} of "
                    f"{len(mine)} cases: {mean:.3f}{note}"
                )
    return lines


def _tracked_share(row: dict[str, Any]) -> float:
    return row["tracked"] / row["frames"]


def _identity_rpe_deg(truth: Trajectory) -> float:
    """RMS rotation from one true pose to the next: the relative error of an odometry that never turns."""
    T_WC = torch.as_tensor(truth.T_WC).double()
    return float(torch.rad2deg(geometry.local(T_WC[:-1], T_WC[1:])[:, 3:].square().sum(1).mean().sqrt()))
