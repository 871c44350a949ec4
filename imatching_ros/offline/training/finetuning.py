"""Fine-tuning from beginning to end: collect windows, train, validate; every stage resumes where an earlier run stopped."""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...core.config import Config
from ...core.errors import WeightsError
from ...core.types import to_json_value
from ...learning.validation import Score
from ...matching import create_matcher
from ...matching.weights import hash_state, write_weights
from .collection import Collection
from .held_out import Validation, decide, held_out_windows, score_windows
from .plan import Plan, compare_with_earlier, describe
from .run_control import Interruption, MakeBar, locked
from .tuner import CANDIDATE, Processes, StepStatistics, StoredWindow, Tuner
from .windows import Recording, split_windows, training_windows_again, write_json

FINISHED = "finetuned.safetensors"
RESULT = "result.json"
PLAN = "plan.json"


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
        with locked(out):
            description = describe(plan, hash_state(matcher.state_dict()), config)
            return run.lead(processes, description)


@dataclass
class _Run:
    plan: Plan
    out: Path
    config: Config
    bar: MakeBar
    interruption: Interruption

    def __post_init__(self) -> None:
        self._collection = Collection(self.plan, self.out, self.config, self.bar, self.interruption)

    def follow(self, processes: Processes) -> None:
        """All ranks but 0: trains on the windows that rank 0 collects."""
        with processes.joined():
            if processes.broadcast(None):
                recordings = self._collection.recordings()
                tuner = Tuner(self.config, self._collection.training_windows(recordings), self.plan.batch, processes)
                self._train(tuner, recordings, {})

    def lead(self, processes: Processes, description: dict[str, Any]) -> dict[str, Any]:
        """Rank 0: collects, trains with the others, validates alone."""
        with processes.joined():
            compare_with_earlier(self.out / PLAN, description)
            recordings = self._collection.collect()
            earlier = None if recordings is None else self._earlier_result(recordings)
            training = recordings is not None and earlier is None
            processes.broadcast(training)
            if recordings is None:
                return {"interrupted": True, "finished": False, "stage": "collecting", "steps": 0}
            if earlier is not None:
                return earlier
            windows = self._collection.training_windows(recordings)
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
        if not tuner.processes.broadcast(
            self._collection.collect_again(epoch, recordings, tuner.tuned) if leads else None
        ):
            return False
        windows = [
            StoredWindow(again.path(k), len(again.windows[k]))
            for before, again in zip(recordings, self._collection.recordings(epoch))
            for k in training_windows_again(before, again, self.plan.hold_back)
        ]
        tuner.train_on(windows or self._collection.training_windows(recordings), first_step)
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
        windows = len(self._collection.training_windows(recordings))  # of the first epoch
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

    def _validate(self, tuner: Tuner, recordings: list[Recording]) -> Validation:
        """Compares the weights before and after on the windows held back. KeyboardInterrupt when asked to stop."""
        windows = held_out_windows(recordings, self.plan.hold_back)
        pairs: list[tuple[str, Score, Score]] = []
        with self.bar("validate", len(windows), "windows", 0) as shown:
            for number, pair in enumerate(score_windows(tuner.origin, tuner.tuned(), windows, self.config)):
                if pair is not None:
                    pairs.append(pair)
                shown.update(number + 1)
                self.interruption.check()
        looks = 1 + self._earlier_looks()
        return Validation(pairs, decide([(old, new) for _, old, new in pairs], self.config.learning, looks), looks)

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
