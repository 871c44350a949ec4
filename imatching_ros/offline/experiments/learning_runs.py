"""One cell of the comparison: a way of getting weights, and how good they are on what learning never saw."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    config = config.with_values({"learning.mode": "sync"})
    events: list[dict[str, Any]] = []
    pipeline = Pipeline(config, events.append)
    begin, played, first_ns = time.perf_counter(), 0, 0
    for frames in parts:
        for frame in frames:
            first_ns = first_ns if played else frame.stamp_ns
            pipeline.process(replace(frame, id=played))
            played += 1
        pipeline.reset()
    return _finish(pipeline, events, first_ns, time.perf_counter() - begin)


def learn_live(config: Config, frames: Iterable[Frame]) -> tuple[Matcher, dict[str, Any]]:
    """LIVE: one pass at the sensor's rate, learning in the background; a frame that is overtaken by the next is dropped.

    Frames of a recording are decoded while it plays, one ahead.
    """
    config = config.with_values({"learning.mode": "thread"})
    events: list[dict[str, Any]] = []
    pipeline = Pipeline(config, events.append)
    coming = iter(frames)
    following: Frame | None = next(coming)
    assert following is not None
    dropped, count, first = 0, 0, following.stamp_ns
    begin = time.perf_counter()
    while (frame := following) is not None:
        following = next(coming, None)
        count += 1
        now = time.perf_counter() - begin
        if following is not None and now > (following.stamp_ns - first) / 1e9:
            dropped += 1
            continue
        due = (frame.stamp_ns - first) / 1e9
        time.sleep(max(0.0, due - now))
        pipeline.process(frame, behind=now > due + 0.05)
    matcher, counters = _finish(pipeline, events, first, time.perf_counter() - begin)
    return matcher, counters | {"frames_dropped": dropped, "frames": count}


def _finish(
    pipeline: Pipeline, events: list[dict[str, Any]], first_ns: int, seconds: float
) -> tuple[Matcher, dict[str, Any]]:
    pipeline.close()
    status = pipeline.learning_status()
    promoted = [e["stamp_ns"] for e in events if e["event"] == "promotion"]
    validations = [
        {k: e[k] for k in ("outcome", "reason", "before_px", "after_px", "step")}
        for e in events
        if e["event"] == "validation"
    ]
    return pipeline.matcher, {
        "steps": status.step,
        "samples": status.samples,
        "promotions": status.promotions,
        "rollbacks": status.rollbacks,
        "rejected": status.rejected,
        "dropped_windows": status.dropped,
        "state": status.state,
        "busy_s": status.busy_s,
        "seconds": seconds,
        "first_promotion_s": (promoted[0] - first_ns) / 1e9 if promoted else None,
        "validations": validations,
        "lost": sum(e["event"] == "lost" for e in events),
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
