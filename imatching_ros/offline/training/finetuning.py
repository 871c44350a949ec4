"""Fine-tuning from beginning to end: collect windows, train, validate; every stage resumes where an earlier run stopped."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import math
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch

from ...core.config import Config, LearningConfig
from ...core.errors import ConfigError, SourceError, WeightsError
from ...core.types import to_json_value
from ...learning.sample import hold_out
from ...learning.sequential_test import Look
from ...learning.validation import PairedTest, Score, Verdict, score
from ...matching import create_matcher
from ...matching.weights import hash_state, write_weights
from ..recordings import open_source
from ..recordings.base import Source, SourceOptions, identify
from .tuner import CANDIDATE, Processes, StepStatistics, StoredWindow, Tuner
from .windows import (
    Recording,
    Solved,
    collect,
    last_training_frame,
    read_recording,
    read_window,
    solved_windows,
    split_windows,
    training_windows_again,
    write_json,
)

FINISHED = "finetuned.safetensors"
RESULT = "result.json"
PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """Of what and for how long; how to learn is in the settings."""

    sources: list[Path]
    options: SourceOptions = SourceOptions()
    steps: int | None = None  # None: as many as `epochs` make
    epochs: float = 3.0  # passes over all training windows
    batch: int = 4  # windows of a step, over all processes
    hold_back: float = 0.3  # last part of every recording, for validation
    save_every_s: float = 30.0  # longest training that a kill can lose
    timeout_s: float = 300.0  # after which a silent process ends the run

    def check(self, processes: int) -> None:
        """Raises ConfigError for values out of bounds."""
        if (self.steps is not None and self.steps < 1) or not self.epochs > 0 or self.batch < 1:
            raise ConfigError(
                f"--steps {self.steps}, --epochs {self.epochs:g}, --batch {self.batch}: expected numbers above zero"
            )
        if not 0 <= self.hold_back <= 0.9:
            raise ConfigError(f"--hold-back {self.hold_back:g}: expected 0 to 0.9, the part of every recording")
        if not self.save_every_s >= 0 or not self.timeout_s > 0:
            raise ConfigError(f"--save-every {self.save_every_s:g}, --timeout {self.timeout_s:g}: expected seconds")
        if self.batch < processes:
            raise ConfigError(
                f"--batch is {self.batch} and there are {processes} processes; give at least one window to each"
            )

    def steps_on(self, windows: int) -> int:
        """Steps in all, on so many windows."""
        return self.steps if self.steps is not None else math.ceil(self.epochs * windows / self.batch)

    def steps_of_epoch(self, windows: int) -> int:
        """Steps of one pass over so many windows."""
        return math.ceil(windows / self.batch)

    def folders(self, out: Path, epoch: int = 0) -> list[Path]:
        """Where the windows of each source are kept, of the first epoch or of a later one."""
        windows = out / "windows" if epoch == 0 else _epoch_folder(out, epoch)
        return [windows / f"{number:02d}_{path.resolve().stem}" for number, path in enumerate(self.sources)]


class Bar(Protocol):
    """What shows progress."""

    def update(self, done: int, note: str = "") -> None: ...


# Label, steps in all (None: unknown), unit, steps already done.
MakeBar = Callable[[str, "int | None", str, int], AbstractContextManager[Bar]]


class Interruption:
    """Set by Ctrl-C and by SIGTERM; work looks at it where it can stop cleanly. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Handles the signals, where Python allows it (in the main thread)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raises KeyboardInterrupt when a stop was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.check()
        self.asked = True


def finetune(plan: Plan, out: Path, config: Config, bar: MakeBar) -> dict[str, Any] | None:
    """Runs, or resumes, a fine-tuning; a finished one is only reported again.

    Returns:
        The content of result.json, with `interrupted` and the steps so far when it was asked to stop; None on all processes but
        rank 0.

    Raises:
        ImatchingError: recordings, weights or settings cannot be used, or another process failed. What was done is kept.
    """
    processes = Processes(config.matcher.device, plan.timeout_s)
    plan.check(processes.size)
    torch.set_num_threads(config.matcher.threads)
    torch.manual_seed(config.seed)
    matcher = create_matcher(replace(config.matcher, device="cpu"))
    if not matcher.trainable:
        raise WeightsError(
            f"matcher '{matcher.name}' has no weights that could learn; use one that has, for example expectation"
        )
    with Interruption().listening() as interruption:
        run = _Run(plan, out, config, bar, interruption)
        if processes.rank > 0:
            run.follow(processes)
            return None
        with _locked(out):
            description = _describe(plan, hash_state(matcher.state_dict()), config)
            return run.lead(processes, description)


@dataclass
class _Run:
    plan: Plan
    out: Path
    config: Config
    bar: MakeBar
    interruption: Interruption

    def follow(self, processes: Processes) -> None:
        """All ranks but 0: trains on the windows that rank 0 collects."""
        with processes.joined():
            if processes.broadcast(None):
                recordings = self._recordings()
                tuner = Tuner(self.config, self._training_windows(recordings), self.plan.batch, processes)
                self._train(tuner, recordings, {})

    def lead(self, processes: Processes, description: dict[str, Any]) -> dict[str, Any]:
        """Rank 0: collects, trains with the others, validates alone."""
        with processes.joined():
            _compare_with_earlier(self.out / PLAN, description)
            recordings = self._collect()
            earlier = None if recordings is None else self._earlier_result(recordings)
            training = recordings is not None and earlier is None
            processes.broadcast(training)
            if recordings is None:
                return {"interrupted": True, "finished": False, "stage": "collecting", "steps": 0}
            if earlier is not None:
                return earlier
            windows = self._training_windows(recordings)
            tuner = Tuner(self.config, windows, self.plan.batch, processes)
            provenance = self._provenance(recordings, tuner)
            begin = time.perf_counter()
            taken, finished = self._train(tuner, recordings, provenance)
            report = self._report(recordings, tuner) | {"steps_per_s": taken / max(time.perf_counter() - begin, 1e-9)}
        stopped = {
            "interrupted": True,
            "finished": False,
            "steps_wanted": self.plan.steps_on(len(windows)),
            "weights": CANDIDATE,
        }
        if not finished:
            return report | stopped | {"stage": "training"}
        try:
            validation = self._validate(tuner, recordings)
        except KeyboardInterrupt:
            return report | stopped | {"stage": "validation"}
        return self._finish(tuner, validation, provenance, report)

    # -- collect ------------------------------------------------------------------------------------------------------

    def _collect(self) -> list[Recording] | None:
        """The windows of every source; None when it was asked to stop."""
        folders = self.plan.folders(self.out)
        # All are opened before the first is played: an error in the last must not show after an hour.
        # One whose windows are there already may be away by now.
        opened = [
            None if read_recording(folder) and not path.exists() else open_source(path, self.plan.options)
            for path, folder in zip(self.plan.sources, folders)
        ]
        recordings = []
        for path, folder, source in zip(self.plan.sources, folders, opened):
            known = read_recording(folder)
            if known is None:
                assert source is not None, "sources without windows were opened"
                known = self._collect_one(path, source, folder)
            elif source is not None and known.identity != identify(source):
                raise ConfigError(
                    f"{folder} holds windows of another recording than {path}, which has the same name; give another --out"
                )
            if known is None:
                return None
            recordings.append(known)
        return recordings

    def _collect_one(self, path: Path, source: Source, folder: Path) -> Recording | None:
        solved = solved_windows(self.config.with_values({"odometry.mode": source.mode}), source)
        return self._play(f"collect {path.resolve().name}", source, solved, folder)

    def _play(self, label: str, source: Source, solved: Iterator[Solved], folder: Path) -> Recording | None:
        """The windows that odometry solves, written; None when asked to stop."""
        with self.bar(label, source.length, "frames", 0) as shown:

            def on_frame(frames: int, windows: int) -> None:
                shown.update(frames, f"{windows} windows")
                self.interruption.check()

            try:
                return collect(source, solved, folder, on_frame)
            except KeyboardInterrupt:
                return None

    def _collect_again(self, epoch: int, tuner: Tuner, recordings: list[Recording]) -> bool:
        """Plays the training part of every recording with the weights as they are by now; False when asked to stop."""
        folders = self.plan.folders(self.out, epoch)
        matcher = None
        for path, recording, folder in zip(self.plan.sources, recordings, folders):
            if read_recording(folder) is not None:
                continue
            source = open_source(path, self.plan.options)
            if identify(source) != recording.identity:
                raise ConfigError(f"{path} has changed since its windows were collected; give another --out")
            config = self.config.with_values({"odometry.mode": source.mode})
            last = last_training_frame(recording, self.plan.hold_back)
            frames = itertools.takewhile(lambda frame: frame.id <= last, source)
            label = f"epoch {epoch + 1}: collect {path.resolve().name}"
            matcher = matcher or tuner.tuned()
            if self._play(label, source, solved_windows(config, frames, matcher), folder) is None:
                return False
        if epoch > 1:
            shutil.rmtree(_epoch_folder(self.out, epoch - 1), ignore_errors=True)
        return True

    def _recordings(self, epoch: int = 0) -> list[Recording]:
        """What rank 0 has collected."""
        found = [read_recording(folder) for folder in self.plan.folders(self.out, epoch)]
        missing = [str(path) for path, recording in zip(self.plan.sources, found) if recording is None]
        if missing:
            raise SourceError(
                f"the windows of {', '.join(missing)} are not in {self.out}; all processes must see the same folder"
            )
        return [recording for recording in found if recording is not None]

    def _training_windows(self, recordings: list[Recording]) -> list[StoredWindow]:
        windows = [
            StoredWindow(r.path(k), len(r.windows[k]))
            for r in recordings
            for k in split_windows(r, self.plan.hold_back)[0]
        ]
        if not windows:
            counts = sum((Counter(r.refused) for r in recordings), Counter())
            refused = ", ".join(f"{reason}: {n}" for reason, n in counts.items()) or "no window was solved"
            raise SourceError(
                f"no window of {', '.join(r.name for r in recordings)} can be trained on ({refused}); "
                "record a drive that moves sideways through a scene with texture"
            )
        return windows

    # -- train --------------------------------------------------------------------------------------------------------

    def _train(self, tuner: Tuner, recordings: list[Recording], provenance: dict[str, Any]) -> tuple[int, bool]:
        """Takes the steps that are left; returns their number, and whether all were taken."""
        tuner.resume(self.out)
        first, count = tuner.step, len(tuner.windows)
        until, in_epoch = self.plan.steps_on(count), self.plan.steps_of_epoch(count)
        while tuner.step < until:
            epoch = tuner.step // in_epoch
            ready = epoch == 0 or self._renew_windows(tuner, recordings, epoch, epoch * in_epoch)
            if not ready or not self._train_epoch(tuner, min(until, (epoch + 1) * in_epoch), until, provenance):
                return tuner.step - first, False
        return tuner.step - first, True

    def _renew_windows(self, tuner: Tuner, recordings: list[Recording], epoch: int, first_step: int) -> bool:
        """Has all processes train on windows that odometry with the weights by now makes of the recordings; False when asked to stop.

        Without any that can be trained on, it is those of the first epoch again. Where training is resumed within an epoch, its
        windows are there.
        """
        leads = tuner.processes.rank == 0
        if not tuner.processes.broadcast(self._collect_again(epoch, tuner, recordings) if leads else None):
            return False
        windows = [
            StoredWindow(again.path(k), len(again.windows[k]))
            for before, again in zip(recordings, self._recordings(epoch))
            for k in training_windows_again(before, again, self.plan.hold_back)
        ]
        tuner.train_on(windows or self._training_windows(recordings), first_step)
        return True

    def _train_epoch(self, tuner: Tuner, end: int, until: int, provenance: dict[str, Any]) -> bool:
        """Steps up to `end`; returns whether all were taken. The state of the last whole step is on disk, whatever ends it."""
        leads = tuner.processes.rank == 0
        residual, saved = float("nan"), time.monotonic()

        def save() -> None:
            if leads and not tuner.moving:
                tuner.save(self.out, provenance | {"verdict": "not validated"})

        try:
            with self.bar("train", until, "steps", tuner.step) if leads else contextlib.nullcontext() as shown:

                def on_step(statistics: StepStatistics) -> None:
                    nonlocal residual, saved
                    if math.isfinite(statistics.residual):  # shown smoothed
                        before = statistics.residual if math.isnan(residual) else residual
                        residual = 0.9 * before + 0.1 * statistics.residual
                    if shown is not None:
                        shown.update(statistics.step, f"residual {residual:.3f}")
                    if time.monotonic() - saved > self.plan.save_every_s:
                        save()
                        saved = time.monotonic()

                return tuner.run(end, lambda: self.interruption.asked, on_step)
        finally:
            save()

    def _provenance(self, recordings: list[Recording], tuner: Tuner) -> dict[str, Any]:
        return {
            "kind": "fine-tuning",
            "sources": [r.name for r in recordings],
            "windows": len(tuner.windows),
            "batch": self.plan.batch,
            "seed": self.config.seed,
            "learning_rate": self.config.learning.learning_rate,
            "processes": tuner.processes.size,
            "origin": hash_state(tuner.origin.state_dict()),
            "torch": torch.__version__,
        }

    def _report(self, recordings: list[Recording], tuner: Tuner) -> dict[str, Any]:
        windows = len(self._training_windows(recordings))  # of the first epoch
        return {
            "steps": tuner.step,
            "updates": tuner.stepper.taken,
            "refused_in_steps": dict(tuner.refused),
            "processes": tuner.processes.size,
            "windows": {"training": windows, "validation": 0},
            "sources": [
                {"name": r.name, "frames": r.frames, "windows": len(r.windows), "refused": r.refused}
                for r in recordings
            ],
        }

    # -- validate -----------------------------------------------------------------------------------------------------

    def _validate(self, tuner: Tuner, recordings: list[Recording]) -> Validation:
        """Compares the weights before and after on the windows held back. KeyboardInterrupt when asked to stop."""
        windows = [(r.name, r.path(k)) for r in recordings for k in split_windows(r, self.plan.hold_back)[1]]
        most = 60  # more would cost time and change no verdict
        if len(windows) > most:
            windows = [windows[k] for k in np.linspace(0, len(windows) - 1, most).round().astype(int)]
        before, after, settings = tuner.origin, tuner.tuned(), self.config.learning
        pairs: list[tuple[str, Score, Score]] = []
        with self.bar("validate", len(windows), "windows", 0) as shown:
            for number, (name, path) in enumerate(windows):
                sample = hold_out(read_window(path), self.config.seed)
                seed = self.config.seed + sample.stamp_ns % 1_000_003
                old, new = (score(m, sample, settings, self.config.bundle, seed) for m in (before, after))
                if old.has_held_out and new.has_held_out:
                    pairs.append((name, old, new))
                shown.update(number + 1)
                self.interruption.check()
        looks = 1 + self._earlier_looks()
        return Validation(pairs, decide([(old, new) for _, old, new in pairs], settings, looks), looks)

    def _finish(
        self, tuner: Tuner, validation: Validation, provenance: dict[str, Any], report: dict[str, Any]
    ) -> dict[str, Any]:
        """Writes the weights and result.json."""
        matcher, verdict = tuner.tuned(), validation.verdict
        report["windows"]["validation"] = verdict.windows
        provenance = provenance | {
            "steps": tuner.step,
            "updates": tuner.stepper.taken,
            "verdict": verdict.outcome,
            "reason": verdict.reason,
            "validation_windows": verdict.windows,
            "validation_before_px": verdict.before_px,
            "validation_after_px": verdict.after_px,
        }
        version = matcher.weights_version + 1
        header = write_weights(self.out / FINISHED, matcher.name, matcher.state_dict(), version, provenance)
        result = to_json_value(
            {
                "interrupted": False,
                "finished": True,
                "better": verdict.outcome == "better",
                "verdict": asdict(verdict),
                "checks": validation.checks(),
                "by_source": validation.by_source(),
                "weights": FINISHED,
                "hash": header.hash,
                "origin": provenance["origin"],
                "looks": validation.looks,
                **report,
            }
        )
        write_json(self.out / RESULT, result)
        (self.out / CANDIDATE).unlink(missing_ok=True)
        return result

    def _earlier_looks(self) -> int:
        """How often the windows held back were looked at before: after every number of steps that was asked for."""
        path = self.out / RESULT
        return int(json.loads(path.read_text())["looks"]) if path.is_file() else 0

    def _earlier_result(self, recordings: list[Recording]) -> dict[str, Any] | None:
        """The result of a run that has taken all steps before."""
        path = self.out / RESULT
        if not path.is_file():
            return None
        count = sum(len(split_windows(r, self.plan.hold_back)[0]) for r in recordings)
        result = json.loads(path.read_text())
        return result | {"already_finished": True} if result["steps"] >= self.plan.steps_on(count) else None


@dataclass(frozen=True)
class Validation:
    """Scores before and after on the windows held back, and what follows from them."""

    pairs: list[tuple[str, Score, Score]]  # recording, before, after
    verdict: Verdict
    looks: int

    def checks(self) -> dict[str, tuple[float, float]]:
        """Means before and after, by name."""
        names = [field.name for field in fields(Score)]
        return {name: _means([pair[1:] for pair in self.pairs], name) for name in names}

    def by_source(self) -> dict[str, tuple[float, float, int]]:
        """Held-out error before and after, px, and number of windows, by recording."""
        out = {}
        for source in dict.fromkeys(name for name, _, _ in self.pairs):
            own = [pair[1:] for pair in self.pairs if pair[0] == source]
            out[source] = (*_means(own, "held_out_px"), len(own))
        return out


def decide(scores: list[tuple[Score, Score]], settings: LearningConfig, looks: int) -> Verdict:
    """The paired test on a number of windows that is fixed beforehand. Pure.

    Look k gets the part 1 / k(k + 1) of the error rate: however many follow, together they get no more than all of it.
    """
    count, fewest = len(scores), settings.validation_windows
    if count < fewest:
        reason = f"{count} windows were held back, a verdict needs {fewest}: give more or longer recordings, or hold back more"
        return Verdict("undecided", reason, *_means(scores, "held_out_px"), count)
    test = PairedTest((Look(count, (1 - settings.confidence) / (looks * (looks + 1))),))
    return [test.add(before, after) for before, after in scores][-1]


def _epoch_folder(out: Path, epoch: int) -> Path:
    """The windows of a later epoch."""
    return out / "windows" / f"epoch{epoch}"


def _means(scores: list[tuple[Score, Score]], name: str) -> tuple[float, float]:
    if not scores:
        return float("nan"), float("nan")
    before, after = (float(np.mean([getattr(pair[k], name) for pair in scores])) for k in (0, 1))
    return before, after


def _describe(plan: Plan, origin: str, config: Config) -> dict[str, Any]:
    """What must not change between a run and one that resumes it."""
    # Settings of a process that runs beside odometry, or of this machine: they decide nothing here.
    beside = "mode guard budget queue replay_windows replay_share candidate_steps post_deployment_windows".split()
    settings = config.to_dict()
    for section, names in {"matcher": ("weights", "device", "threads"), "learning": beside}.items():
        for name in names:
            del settings[section][name]
    options = {k: v for k, v in asdict(plan.options).items() if v is not None and k != "groundtruth"}
    return to_json_value(
        {
            "sources": [path.resolve().name for path in plan.sources],
            "weights": origin,
            "batch": plan.batch,
            "hold_back": plan.hold_back,
            "recording": options,
            "settings": settings,
        }
    )


def _compare_with_earlier(path: Path, description: dict[str, Any]) -> None:
    """Refuses to resume a run that was started with other values; the first run writes its own."""
    if not path.is_file():
        write_json(path, description)
        return
    before, now = _flat(json.loads(path.read_text())), _flat(description)
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{path.parent} holds a run that was started with {key} = {before.get(key)}, now it is {now.get(key)}"
            f"{f' ({len(changed) - 1} more differ)' if len(changed) > 1 else ''}; give the same again, or another --out"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    parts = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
    return {key: item for part in parts for key, item in part.items()}


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keeps a second run out of the folder."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another run works in {out}; wait for it, or give another --out") from None
        yield
