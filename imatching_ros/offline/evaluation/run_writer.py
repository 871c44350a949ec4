"""The folder that a run leaves behind, written line by line so that an interrupted run loses nothing."""

from __future__ import annotations

import json
import math
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...core.config import Config
from ...core.types import OdometryOutput, TrackingState
from ...core.types import to_json_value
from ..recordings.truth import Trajectory, tum_line, write_tum
from .trajectory import TrajectoryScore, score_trajectory

FRAME_COLUMNS = (
    "frame",
    "stamp_ns",
    "state",
    "inliers",
    "matches",
    "residual_px",
    "latency_ms",
    "processing_ms",
    "keyframe",
    "map",
    "weights_version",
)
RESIDUAL_EDGES_PX = np.round(np.arange(0, 5.01, 0.1), 2)


class RunWriter:
    """Writes trajectory.txt, frames.csv and events.jsonl while the run goes on, the rest at its end.

    Events may come from several threads; everything else is called from one.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        """`folder` is made; what an earlier run and its report have left in it is removed."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        _remove_earlier(folder)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
        self._trajectory = (folder / "trajectory.txt").open("w", buffering=1)
        self._trajectory.write("# timestamp tx ty tz qx qy qz qw\n")
        self._frames = (folder / "frames.csv").open("w", buffering=1)
        self._frames.write(",".join(FRAME_COLUMNS) + "\n")
        self._events = (folder / "events.jsonl").open("w", buffering=1)
        self._lock = threading.Lock()
        self._stamps: list[int] = []
        self._poses: list[list[float]] = []
        self._states: list[TrackingState] = []
        self._latencies_ms: list[float] = []
        self._processing_ms: list[float] = []
        self._inliers: list[int] = []
        self._histogram = np.zeros(len(RESIDUAL_EDGES_PX), np.int64)  # the last bin is everything beyond
        self._keyframes = 0
        self._landmarks: set[int] = set()
        self._observations = 0
        self._maps: set[int] = set()
        self._reasons: dict[
            str, list
        ] = {}  # {a reason without its numbers: [frames without a pose, its newest wording]}
        self._stretches: list[tuple[int, list]] = []  # (poses until its end, keyframes) of those before the newest
        self.metric = False
        self.scale = "unknown"

    def add_frame(self, output: OdometryOutput, latency_ms: float, processing_ms: float) -> None:
        """One processed frame; only a pose that the frame's own matches support enters the trajectory.

        Args:
            latency_ms: from the image to its pose. processing_ms: until the next image could be taken.
        """
        self._states.append(output.state)
        self._latencies_ms.append(latency_ms)
        self._processing_ms.append(processing_ms)
        self._keyframes += output.is_keyframe
        residual = math.nan
        matches = 0
        if output.matches is not None:
            matches = len(output.matches.uv_i)
            seen = output.matches.landmark_id[output.matches.inlier].tolist()
            self._landmarks.update(seen)
            self._observations += len(seen)
            residuals = output.matches.residual_px[output.matches.inlier].double().cpu().numpy()
            residuals = residuals[np.isfinite(residuals)]
            if len(residuals):
                residual = float(np.median(residuals))
                index = np.minimum(residuals / RESIDUAL_EDGES_PX[1], len(self._histogram) - 1).astype(int)
                self._histogram += np.bincount(index, minlength=len(self._histogram))
        if output.T_WC is None:
            reason = self._reasons.setdefault(re.sub(r"[0-9.]+", "#", output.reason), [0, ""])
            reason[:] = reason[0] + 1, output.reason
        else:
            # One pose in other units, and the whole is not metric.
            self.metric = output.metric and (self.metric or not self._stamps)
            self.scale = output.scale
            self._maps.add(output.map_id)
            self._inliers.append(output.inliers)
            pose = output.T_WC.tolist()
            self._stamps.append(output.stamp_ns)
            self._poses.append(pose)
            self._trajectory.write(tum_line(output.stamp_ns, pose))
        row = (
            output.frame_id,
            output.stamp_ns,
            output.state.value,
            output.inliers,
            matches,
            f"{residual:.4f}",
            f"{latency_ms:.3f}",
            f"{processing_ms:.3f}",
            int(output.is_keyframe),
            output.map_id,
            output.weights_version,
        )
        self._frames.write(",".join(map(str, row)) + "\n")

    def begin_stretch(self, keyframes: list[tuple[int, Any]]) -> None:
        """What follows starts again at an origin of its own; `keyframes` as of `finish`, of what came before."""
        self._stretches.append((len(self._stamps), keyframes))

    def add_event(self, event: dict[str, Any]) -> None:
        """One JSON object per line; numbers that are not finite become null."""
        line = json.dumps(to_json_value(event))
        with self._lock:
            if not self._events.closed:
                self._events.write(line + "\n")

    @property
    def trajectory(self) -> Trajectory:
        """The poses so far, as published; where the run started again, the stretch of most poses."""
        return max(self._split(), key=len)

    def _split(self) -> list[Trajectory]:
        ends = [*(end for end, _ in self._stretches), len(self._stamps)]
        stamps, poses = np.array(self._stamps, np.int64), np.array(self._poses, float).reshape(-1, 7)
        return [Trajectory(stamps[a:b], poses[a:b]) for a, b in zip([0, *ends], ends)]

    def _choose_stretch(self, keyframes: list[tuple[int, Any]]) -> tuple[Trajectory, list[tuple[int, Any]]]:
        """The stretch of most poses with its keyframes; the others go to files of their own, for their stamps may overlap."""
        parts = self._split()
        chosen = max(range(len(parts)), key=lambda k: len(parts[k]))
        if len(parts) > 1:
            write_tum(self.folder / "trajectory.txt", parts[chosen])
            for k, part in enumerate(parts):
                if k != chosen and len(part):
                    write_tum(self.folder / f"trajectory_stretch{k + 1}.txt", part)
        return parts[chosen], [*(kept for _, kept in self._stretches), keyframes][chosen]

    def finish(
        self,
        truth: Trajectory | None,
        keyframes: list[tuple[int, Any]],
        more: dict[str, Any],
        no_truth: str = "the recording has no truth",
    ) -> dict[str, Any]:
        """Writes keyframes.txt, groundtruth.txt and metrics.json, and returns the metrics.

        Args:
            keyframes: (stamp_ns, T_WC (7,)) of the refined keyframes.
            more: further entries of metrics.json.
            no_truth: why there is no truth where there is none.
        """
        self._trajectory.close()
        estimate, keyframes = self._choose_stretch(keyframes)
        stamps = np.array([stamp for stamp, _ in keyframes], np.int64)
        poses = np.array([np.asarray(T, float) for _, T in keyframes]).reshape(-1, 7)
        write_tum(self.folder / "keyframes.txt", Trajectory(stamps, poses))
        metrics: dict[str, Any] = self._counts()
        try:
            score = no_truth if truth is None else score_trajectory(estimate, truth, self.metric)
        except Exception as error:  # whatever is wrong with the truth, the run itself is worth keeping
            score = f"the comparison with the truth failed: {type(error).__name__} {error}"
        if truth is not None:
            write_tum(self.folder / "groundtruth.txt", truth)
        if isinstance(score, TrajectoryScore):
            metrics |= {"path_length_m": score.ate["path_length_m"], "ate": score.ate, "rpe": score.rpe}
        else:
            metrics |= {"path_length_m": estimate.path_length_m, "ate": None, "rpe": None, "no_truth_because": score}
        metrics |= {
            "path_length_is": "true, over the tracked frames"
            if isinstance(score, TrajectoryScore)
            else "estimated"
            if self.metric
            else "estimated, in map units",
            **more,
        }
        metrics = to_json_value(metrics)
        (self.folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        self.close()
        return metrics

    def close(self) -> None:
        """Closes the files; `add_event` of a late thread is ignored from here on."""
        with self._lock:
            for file in (self._trajectory, self._frames, self._events):
                file.close()

    def _median_residual(self) -> float | None:
        """To the middle of a bin of the histogram."""
        total = self._histogram.sum()
        if not total:
            return None
        return float(RESIDUAL_EDGES_PX[np.searchsorted(self._histogram.cumsum(), total / 2)] + RESIDUAL_EDGES_PX[1] / 2)

    def _counts(self) -> dict[str, Any]:
        first = next(
            (k for k, s in enumerate(self._states) if s in (TrackingState.TRACKING, TrackingState.UNVERIFIED)), None
        )
        after = len(self._states) - first if first is not None else 0
        spent_s = sum(self._processing_ms) / 1e3
        return {
            "frames": len(self._states),
            "tracked_frames": len(self._stamps),
            "lost_frames": sum(s is TrackingState.LOST for s in self._states),
            "initialized_at_frame": first,
            "tracked_share_after_initialization": len(self._stamps) / after if after else 0.0,
            "keyframes": self._keyframes,
            "maps": len(self._maps),
            "stretches": len(self._stretches) + 1,
            "without_pose": [
                {"reason": reason, "frames": count}
                for count, reason in sorted(self._reasons.values(), key=lambda r: -r[0])[:5]
            ],
            "metric": self.metric,
            "scale": self.scale,
            "min_inliers": min(self._inliers, default=None),
            "fps": len(self._states) / spent_s if spent_s > 0 else None,
            "latency_ms": _percentiles(self._latencies_ms),
            "processing_ms": _percentiles(self._processing_ms),
            # What can be measured without truth: it falls with better matches, but wrong and consistent ones lower it too.
            "self_consistency": {
                "median_residual_px": self._median_residual(),
                "mean_track_length_frames": self._observations / len(self._landmarks) if self._landmarks else None,
            },
            "residual_histogram": {"edges_px": RESIDUAL_EDGES_PX.tolist(), "counts": self._histogram.tolist()},
        }


def _remove_earlier(folder: Path) -> None:
    """A report reads whatever lies there: truth, metrics or images of another run would be taken for this one's."""
    if not (folder / "trajectory.txt").is_file():
        return
    if (folder / "report.json").is_file():  # a folder named figures may be anybody's
        for file in (folder / "figures").glob("*.png"):
            file.unlink()
    if (folder / "matches.json").is_file():
        for file in (folder / "matches").glob("gap*.jpg"):
            file.unlink()
    for file in folder.glob("trajectory_stretch*.txt"):
        file.unlink()
    for name in ("keyframes.txt", "groundtruth.txt", "metrics.json", "matches.json", "report.html", "report.json"):
        (folder / name).unlink(missing_ok=True)


def _percentiles(values: list[float]) -> dict[str, float]:
    array = np.array(values or [math.nan])
    return {
        "p50": np.percentile(array, 50),
        "p95": np.percentile(array, 95),
        "p99": np.percentile(array, 99),
        "max": array.max(),
    }
