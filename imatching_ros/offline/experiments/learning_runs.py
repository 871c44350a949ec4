"""One cell of the comparison: a way of getting weights, and how good they are on what learning never saw."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.config import Config
from ...core.types import Frame, LearningSample
from ..training.windows import solved_windows
from ...learning.rematching import solve_again
from ...learning.step import Solver, Stepper
from ...matching import create_matcher
from ...matching.base import Matcher
from ...matching.weights import hash_state, write_weights
from ...odometry.odometry import Odometry
from ...pipeline import Pipeline
from .division import Division
from ..evaluation.matching import evaluate_matcher
from .oracle import Oracle
from .odometry_runs import score_outputs, track

GAPS = (1, 5, 10)


def learn_in_turn(config: Config, parts: Sequence[Iterable[Frame]]) -> tuple[Matcher, dict[str, Any]]:
    """REPEATED: plays one part after the other, each into an empty map, learning in line with odometry; deterministic."""
    run = _LearningRun(config.with_values({"learning.mode": "sync"}))
    for frames in parts:
        for due_s, frame in _timed(frames):
            run.process(frame, due_s)
        run.finish_part()
    return run.close()


def learn_live(config: Config, parts: Sequence[Iterable[Frame]]) -> tuple[Matcher, dict[str, Any]]:
    """LIVE: one part after the other at the sensor's rate, learning in the background; a frame overtaken by the next is dropped.

    The first part is played once before with learning off, to tell by how much learning delays poses. Frames of a
    recording are decoded while it plays, one ahead.

    Args:
        parts: each is played into an empty map, and can be iterated again.
    """
    alone, run = (_LearningRun(config.with_values({"learning.mode": mode})) for mode in ("off", "thread"))
    _play_live(alone, parts[0])
    alone.close()
    for frames in parts:
        _play_live(run, frames)
    matcher, counters = run.close()
    delays = {"off": _delay_ms(alone.delays_s), "learning": _delay_ms(run.delays_s)}
    return matcher, counters | {"frames_dropped": run.dropped, "frames": run.frames, "pose_delay_ms": delays}


def _play_live(run: _LearningRun, frames: Iterable[Frame]) -> None:
    coming = iter(_timed(frames))
    following = next(coming, None)
    begin = time.perf_counter()
    while following is not None:
        due_s, frame = following
        following = next(coming, None)
        now = time.perf_counter() - begin
        if following is not None and now > following[0]:
            run.dropped += 1
            continue
        time.sleep(max(0.0, due_s - now))
        delay_s = run.process(frame, due_s, behind=now > due_s + 0.05)
        run.delays_s.append(delay_s + max(0.0, now - due_s))
    run.finish_part()


def _timed(frames: Iterable[Frame]) -> Iterator[tuple[float, Frame]]:
    """Every frame with its time after the first, seconds."""
    first_ns: int | None = None
    for frame in frames:
        first_ns = frame.stamp_ns if first_ns is None else first_ns
        yield (frame.stamp_ns - first_ns) / 1e9, frame


def _delay_ms(delays_s: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": 1e3 * float(np.percentile(delays_s, q)) for q in (50, 95)}


class _LearningRun:
    """A pipeline that learns while parts of a recording are played, and when it did what: seconds of frames played."""

    def __init__(self, config: Config) -> None:
        self.frames, self.dropped = 0, 0
        self.delays_s: list[float] = []  # of each pose after its image was due
        self._events: list[dict[str, Any]] = []
        self._before_s, self._played_s = 0.0, 0.0  # parts before this one; with this one
        self._pipeline = Pipeline(config, lambda event: self._events.append(event | {"played_s": self._played_s}))
        self._begin = time.perf_counter()

    def process(self, frame: Frame, due_s: float, behind: bool = False) -> float:
        """One frame, `due_s` after the first of its part. Returns the seconds until there was a pose."""
        self._played_s = self._before_s + due_s
        begin = time.perf_counter()
        tracked: list[float] = []
        self._pipeline.process(
            replace(frame, id=self.frames), lambda output: tracked.append(time.perf_counter()), behind
        )
        self.frames += 1
        return tracked[0] - begin

    def finish_part(self) -> None:
        """The next frame starts another part, with an empty map."""
        self._before_s = self._played_s
        self._pipeline.reset()

    def close(self) -> tuple[Matcher, dict[str, Any]]:
        """The matcher as it is at the end, and what was counted."""
        seconds = time.perf_counter() - self._begin
        self._pipeline.close()
        status = self._pipeline.learning_status()
        promoted = [e["played_s"] for e in self._events if e["event"] == "promotion"]
        validations = [
            {k: e[k] for k in ("outcome", "reason", "before_px", "after_px", "step", "played_s")}
            for e in self._events
            if e["event"] == "validation"
        ]
        return self._pipeline.matcher, {
            "steps": status.step,
            "samples": status.samples,
            "promotions": status.promotions,
            "rollbacks": status.rollbacks,
            "rejected": status.rejected,
            "dropped_windows": status.dropped,
            "state": status.state,
            "busy_s": status.busy_s,
            "seconds": seconds,
            "first_promotion_s": promoted[0] if promoted else None,
            "validations": validations,
            "lost": sum(e["event"] == "lost" for e in self._events),
        }


def learn_offline(
    config: Config, steps: int, folder: Path, size: tuple[int, int] = (240, 320)
) -> tuple[Matcher, dict[str, Any]]:
    """The control: as many further steps of the offline training, at the learning rate of learning, and no live data.

    Args:
        folder: for the state of this training alone; what another one has left in it is removed.
    """
    from ...matching.weights import resolve_weights
    from ..training.photographs import load_photographs
    from ..training.trainer import Trainer, TrainingPlan

    begin = time.perf_counter()
    matcher = create_matcher(config.matcher)
    shutil.rmtree(folder / "control", ignore_errors=True)
    if steps > 0:
        plan = TrainingPlan(
            matcher.name,
            steps,
            height=size[0],
            width=size[1],
            learning_rate=config.learning.learning_rate,
            seed=config.seed,
            init=str(resolve_weights(config.matcher)),
        )
        trainer = Trainer(plan, load_photographs([])[0], folder / "control", torch.device(config.matcher.device))
        trainer.train(lambda step, parts: None)
        matcher.load_state_dict(trainer.finished().state_dict())
    return matcher, {"steps": steps, "seconds": time.perf_counter() - begin}


def collect_windows(config: Config, frames: Iterable[Frame]) -> list[LearningSample]:
    """The windows that learning would accept, seen by odometry with the frozen weights."""
    return [sample for _, sample, refusal in solved_windows(config, frames) if sample is not None and refusal is None]


def train_on(
    samples: list[LearningSample], config: Config, steps: int, solve: Solver = solve_again
) -> tuple[Matcher, dict[str, Any]]:
    """Takes so many steps on randomly drawn windows, without validation; `solve` is the lower level."""
    begin = time.perf_counter()
    matcher = create_matcher(config.matcher)
    pretrained = {k: v.clone() for k, v in matcher.state_dict().items()}
    stepper = Stepper(matcher, pretrained, config.learning, config.bundle, solve)
    generator = torch.Generator().manual_seed(config.seed)
    taken = refused = 0
    while samples and taken < steps and refused <= steps:
        result = stepper.step(samples[int(torch.randint(len(samples), (1,), generator=generator))], generator)
        refused += isinstance(result, str)
        taken += not isinstance(result, str)
    return stepper.candidate(samples, generator), {
        "steps": taken,
        "windows": len(samples),
        "seconds": time.perf_counter() - begin,
    }


def learn_from_warps(config: Config, frames: Iterable[Frame], steps: int) -> tuple[Matcher, dict[str, Any]]:
    """The same steps on warps of the live images alone, without geometry."""
    no_geometry = config.with_values({"learning.residual_weight": 0.0, "learning.pseudo_truth_weight": 0.0})
    return train_on(collect_windows(config, frames), no_geometry, steps)


def learn_from_truth(
    config: Config, division: Division, frames: Iterable[Frame], steps: int
) -> tuple[Matcher, dict[str, Any]]:
    """The oracle: the same steps on the same kind of windows, with true poses and depths in the place of bundle adjustment."""
    # By stamp: where the first images have no depth, frames with depth have other numbers.
    ids: dict[int, int] = {}

    def noted() -> Iterator[Frame]:
        for frame in frames:
            ids[frame.stamp_ns] = frame.id
            yield frame

    samples = collect_windows(config, noted())
    wanted = {k for s in samples for k in s.keyframe_ids}
    oracle = Oracle(division.learning_truth, {stamp_ns: k for stamp_ns, k in ids.items() if k in wanted})
    return train_on([oracle.correct(s) for s in samples if oracle.covers(s)], config, steps, oracle.solve)


def score_weights(matcher: Matcher, config: Config, division: Division, pairs: int) -> dict[str, Any]:
    """{column: everything that is measured there, with learning off}."""
    return {column: _score_column(matcher, config, division, column, pairs) for column in division.scored}


def _score_column(matcher: Matcher, config: Config, division: Division, column: str, pairs: int) -> dict[str, Any]:
    gaps = evaluate_matcher(matcher, division.scored[column], GAPS, pairs)["gaps"]
    frames = division.for_odometry(column)
    outputs = track(Odometry(config, matcher), frames)
    score = score_outputs(outputs, frames.groundtruth())
    return {
        "matching": {gap: _describe_matches(values) for gap, values in gaps.items()},
        "tracked": sum(o.T_WC is not None for o in outputs) / max(len(outputs), 1),
        "ate": None if score is None else score.ate,
        "rpe": None if score is None else score.rpe,
    }


def _describe_matches(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "mma": values["mma"],
        "sigma": (values["sigma"] or {}).get("within_1"),
        "common_px": values["common_px"],
        "translation_ratio": values["translation_ratio"],
        "pose_auc": values["pose_auc"],
        "sampson_within_1": (values["sampson_px"] or {}).get("within_1"),
        "own_within_1": ((values["self_consistency"] or {}).get("held_out_sampson_px") or {}).get("within_1"),
    }


def save_weights(path: Path, matcher: Matcher, counters: dict[str, Any]) -> str:
    """Writes the weights of a cell; returns their hash."""
    write_weights(
        path,
        matcher.name,
        matcher.state_dict(),
        matcher.weights_version,
        {"kind": "comparison", "steps": counters.get("steps", 0)},
    )
    return hash_state(matcher.state_dict())


def describe(config: Config) -> dict[str, Any]:
    """The settings that decide a cell, with the weights that it starts from. The regime decides the learning mode."""
    settings = config.to_dict()
    del settings["learning"]["mode"]
    return {**settings, "weights": hash_state(create_matcher(config.matcher).state_dict())}
