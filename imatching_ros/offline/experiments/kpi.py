"""The key figures of one version: accuracy on fixed recordings, and time as ratios that hold on any machine.

Times are processor time of one thread. What they are compared with, `klt` on the same back end and Ceres, takes turns with the project's own
parts in the same run.
"""

from __future__ import annotations

import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ...core.config import Config
from ...core.types import Frame, LearningSample
from ...learning.step import StepResult, Stepper
from ...matching import create_matcher
from ...matching.weights import choose_matcher
from ...pipeline import Pipeline
from ..evaluation.matching import MMA_PX, evaluate_matcher
from ..recordings.base import SourceOptions
from ..recordings import open_source
from ..training.windows import solved_windows
from . import other_solvers
from .ba_timing import TimingOptions, time_window
from .machine import ROOT
from .odometry_runs import measure
from .scenes import key_figures, render

Value = float | None  # None: could not be measured
Figures = dict[str, dict[str, dict[str, Value]]]  # section -> row -> column -> value


@dataclass(frozen=True)
class Column:
    """A figure of a section's rows. Without a tolerance it is reported only."""

    form: str
    tolerance: float | None = None  # by which it may be worse than the baseline
    relative: bool = False  # the tolerance is a share of the baseline's value
    higher_is_better: bool = False
    # Any value of this interval is as good; the tolerance is of the factor outside it.
    goal: tuple[float, float] | None = None

    def is_worse(self, value: Value, baseline: Value) -> bool:
        """Whether the value lies outside the tolerance, on the bad side."""
        if self.tolerance is None or baseline is None:
            return False
        if value is None:
            return True
        if self.goal is not None:
            allowed = (1 + self.tolerance) * _outside(baseline, self.goal)
            return _outside(value, self.goal) > allowed
        loss = baseline - value if self.higher_is_better else value - baseline
        return loss > self.tolerance * (abs(baseline) if self.relative else 1.0) + 1e-9


def _outside(value: float, goal: tuple[float, float]) -> float:
    """The factor by which a value lies below or above an interval; 1 inside it."""
    low, high = goal
    return max(low / max(value, 1e-9), value / high, 1.0)


_TIME, _RATIO = Column(".1f"), Column(".2f")
SECTIONS: dict[str, dict[str, Column]] = {
    "matching": {f"MMA {px} px": Column(".3f", 0.01, higher_is_better=True) for px in MMA_PX},
    "odometry": {
        "ATE, cm": Column(".2f", 0.25, relative=True),
        "lost": Column(".0f", 1.0),
        "TRACKING while wrong": Column(".0f", 0.0),
        "judged": Column(".0f"),
        # Of true covariances 6. A mean of few motions over a second, which overlap, varies by itself.
        "NEES, 1 s": Column(".1f", 0.25, goal=(1.0, 12.0)),
    },
    "time of a frame, ms": {"ours": _TIME, "klt": _TIME, "/ klt": _RATIO},
    "bundle adjustment, ms": {"ours": _TIME, "Ceres": _TIME, "/ Ceres": _RATIO},
    "learning": {"steps per second": _RATIO},
    "memory, MB": {"peak": Column(".0f")},
}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    width: int = 640
    height: int = 480
    frames: int = 50  # of each rendered recording
    scenes: int = 3  # rendered recordings
    texture_size: int = 512  # of their surfaces, texels
    pairs: int = 20  # of images per gap
    gaps: tuple[int, ...] = (1, 5, 10)
    windows: tuple[tuple[int, int], ...] = ((8, 300), (8, 1000), (12, 300))  # keyframes, landmarks
    repeats: int = 5  # of bundle adjustment
    steps: int = 4  # of learning


QUICK = Plan(160, 120, 24, 1, 128, 3, (1,), ((4, 40),), 1, 1)


@dataclass(frozen=True)
class Recording:
    """One recording in one mode."""

    name: str
    path: Path
    mode: str

    def frames(self) -> list[Frame]:
        """All of them, in memory."""
        return list(open_source(self.path, SourceOptions(mode=self.mode)))


# Real recordings that are used where there is a data folder.
REAL = (
    ("tartanair_hospital", "mono"),
    ("kitti_stereo_curve", "stereo"),
    ("tum_fr1_rpy", "rgbd"),
    ("tum_fr1_desk_sweep", "mono"),
)


def measure_key_figures(
    plan: Plan, config: Config, rendered: Path, data: Path | None, report: Callable[[str], None] = lambda text: None
) -> Figures:
    """Measures everything with learning off, save for the learning step and the memory.

    Args:
        rendered: folder of the rendered recordings, which are written there unless they are there already.
        data: folder of the real sequences, or None.
        report: called with the name of each part before it begins.
    """
    config = config.with_values({"learning.mode": "'off'"})
    report("rendering")
    scenes = [
        Recording(f"rendered {rendering.sequence.kind}, {mode}", render(rendered, name, rendering), mode)
        for name, rendering in list(key_figures(plan.width, plan.height, plan.frames, plan.texture_size).items())[
            : plan.scenes
        ]
        for mode in rendering.modes
    ]
    real = [Recording(f"{name}, {mode}", data / name, mode) for name, mode in REAL if data and (data / name).is_dir()]
    figures: Figures = {}
    parts: dict[str, Callable[[], dict[str, dict[str, Value]]]] = {
        "matching": lambda: measure_matching(plan, config, [scenes[0], *real[:1]]),
        "odometry": lambda: measure_odometry(config, [*scenes, *real]),
        "time of a frame, ms": lambda: time_frames(config, scenes[0].frames()),
        "bundle adjustment, ms": lambda: time_bundle_adjustment(plan),
        "learning": lambda: time_steps(plan, config, scenes[0].frames()),
        "memory, MB": lambda: measure_memory(scenes[0]),
    }
    torch.set_num_threads(config.matcher.threads)
    for name, part in parts.items():
        report(name)
        figures[name] = part()
    return figures


def measure_matching(plan: Plan, config: Config, recordings: Sequence[Recording]) -> dict[str, dict[str, Value]]:
    """MMA by true depth and poses; a missing match is wrong."""
    rows: dict[str, dict[str, Value]] = {}
    for recording in recordings:
        source = open_source(recording.path, SourceOptions(mode="rgbd"))
        matcher = create_matcher(config.matcher)
        result = evaluate_matcher(matcher, source, plan.gaps, plan.pairs, config.seed, pose=False)
        for gap, found in result["gaps"].items():
            mma = found["mma"] or {}
            name = f"{recording.name.partition(',')[0]}, gap {gap}"
            rows[name] = {f"MMA {px} px": mma.get(str(px)) for px in MMA_PX}
    return rows


def measure_odometry(config: Config, recordings: Sequence[Recording]) -> dict[str, dict[str, Value]]:
    """Accuracy of the poses as published. `lost` counts frames without a pose after the first one."""
    rows: dict[str, dict[str, Value]] = {}
    for recording in recordings:
        source = open_source(recording.path, SourceOptions(mode=recording.mode))
        row = measure(source, config.with_values({"odometry.mode": recording.mode}))
        rows[recording.name] = {
            "ATE, cm": 100 * row["ate_m"] if "ate_m" in row else None,
            "lost": row["lost"],
            "TRACKING while wrong": row["wrong_tracking"],
            "judged": row["judged"],
            "NEES, 1 s": row.get("nees_1s"),
        }
    return rows


def time_frames(config: Config, frames: Sequence[Frame], warm_up: int = 5) -> dict[str, dict[str, Value]]:
    """The configured matcher and `klt`, each on its own back end, frame by frame in turns; there and back."""
    names = (choose_matcher(config.matcher).name, "klt")
    pipelines = [Pipeline(config.with_values({"matcher.name": n, "odometry.mode": "mono"})) for n in names]
    front: list[list[float]] = [[], []]
    keyframe: list[list[float]] = [[], []]
    period_ns = frames[1].stamp_ns - frames[0].stamp_ns
    for k, frame in enumerate([*frames, *frames[-2::-1]]):
        stamped = replace(frame, id=k, stamp_ns=frames[0].stamp_ns + k * period_ns)
        for pipeline, poses_ms, keyframes_ms in zip(pipelines, front, keyframe):
            pose_ms, rest_ms, is_keyframe = _time_frame(pipeline, stamped)
            if k >= warm_up:
                poses_ms.append(pose_ms)
                keyframes_ms += [rest_ms] if is_keyframe else []
    for pipeline in pipelines:
        pipeline.close()
    rows: dict[str, dict[str, Value]] = {}
    for name, (ours, klt) in {"front end": front, "keyframe": keyframe}.items():
        for q in (50, 95):
            both = (float(np.percentile(times, q)) if times else None for times in (ours, klt))
            rows[f"{name} p{q}"] = _ratio(*both, "klt")
    means = ((sum(front[k]) + sum(keyframe[k])) / len(front[k]) for k in (0, 1))
    return rows | {"mean of all frames": _ratio(*means, "klt")}


def _time_frame(pipeline: Pipeline, frame: Frame) -> tuple[float, float, bool]:
    """Processor time to the pose and of the work after it, ms; whether the frame became a keyframe."""
    posed: list[float] = []
    begin = time.process_time()
    output = pipeline.process(frame, lambda _: posed.append(time.process_time()))
    end = time.process_time()
    return 1e3 * (posed[0] - begin), 1e3 * (end - posed[0]), output.is_keyframe


def time_bundle_adjustment(plan: Plan) -> dict[str, dict[str, Value]]:
    """Both to within 0.1 % of the best cost, building the problem included (`bench ba`)."""
    others = () if "ceres" in other_solvers.missing() else ("ceres",)
    options = TimingOptions(others, repeats=plan.repeats, clock="cpu")
    rows: dict[str, dict[str, Value]] = {}
    for keyframes, landmarks in plan.windows:
        ms = time_window(keyframes, landmarks, options)["ms"]
        rows[f"{keyframes} x {landmarks}"] = _ratio(ms["ours float64"], ms.get("ceres"), "Ceres")
    return rows


def _ratio(ours: Value, other: Value, name: str) -> dict[str, Value]:
    return {"ours": ours, name: other, f"/ {name}": ours / other if ours and other else None}


def time_steps(plan: Plan, config: Config, frames: Sequence[Frame]) -> dict[str, dict[str, Value]]:
    """Steps on windows of a recording, the first of which warms up."""
    samples = collect_samples(config, frames, plan.steps + 1)
    taken = time_stepper(make_stepper(config), samples, config.seed, time.process_time)
    return {"one thread": {"steps per second": 1 / statistics.median(taken[1:]) if len(taken) > 1 else None}}


def collect_samples(config: Config, frames: Sequence[Frame], count: int) -> list[LearningSample]:
    """The newest windows of a recording that the gate accepts; again from the first where they are too few; empty without any."""
    config = config.with_values({"odometry.mode": "mono"})
    accepted = [sample for _, sample, refused in solved_windows(config, frames) if sample is not None and not refused]
    newest = accepted[-count:]
    return [newest[k % len(newest)] for k in range(count)] if newest else []


def make_stepper(config: Config) -> Stepper:
    """As the learner makes it, from the configured weights."""
    matcher = create_matcher(config.matcher).eval()
    return Stepper(matcher, copy.deepcopy(matcher.state_dict()), config.learning, config.bundle)


def time_stepper(
    stepper: Stepper, samples: Sequence[LearningSample], seed: int, clock: Callable[[], float]
) -> list[float]:
    """Seconds of every step that was taken."""
    generator = torch.Generator().manual_seed(seed)
    seconds = []
    for sample in samples:
        begin = clock()
        if isinstance(stepper.step(sample, generator), StepResult):
            seconds.append(clock() - begin)
    return seconds


def measure_memory(recording: Recording) -> dict[str, dict[str, Value]]:
    """Peak resident memory of `replay` with learning in its thread, in a process of its own; None where Linux does not report it."""
    with tempfile.TemporaryDirectory() as out:
        program = (
            "from imatching_ros.__main__ import main\n"
            f"assert main(['replay', {str(recording.path)!r}, '--mode', {recording.mode!r}, '--out', {out!r}, '--quiet', '--json']) == 0\n"
            "peak = next(l for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
            "print('\\n' + peak.split()[1])\n"
        )
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
    peak = int(done.stdout.split()[-1]) / 1024 if done.returncode == 0 else None
    return {"replay, learning in its thread": {"peak": peak}}
