"""How long to fine-tune, and on what."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import time
import torch
from dataclasses import asdict, dataclass, replace
from ...core.errors import ConfigError, SourceError, WeightsError
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol
from ...core.config import Config
from ...matching import create_matcher
from ...matching.weights import hash_state, write_weights
from ...core.types import to_json_value
from ..recordings.base import SourceOptions
from ..recordings.base import identify
from ..recordings import open_source
from .collection import Recording, collect, hold_back, read_recording
from .judgement import Judgement, judge_windows
from .ranks import Interruption, Ranks, process_count
from .tuner import CANDIDATE, StoredWindow, StepStatistics, Tuner
from .stored_windows import write_json


@dataclass(frozen=True)
class Plan:
    """The run; the learning itself is in the settings."""

    steps: int | None = None  # None: as many as `epochs` make
    epochs: float = 3.0  # times that every window teaches
    batch: int = 4  # windows of a step, over all processes
    hold_back: float = 0.3  # last part of every recording, which judges and never teaches
    save_every_s: float = 30.0  # what a kill may cost
    timeout_s: float = 300.0  # after which a silent process is given up

    def check(self) -> None:
        """Raises ConfigError for what cannot be."""
        if (self.steps is not None and self.steps < 1) or not self.epochs > 0 or self.batch < 1:
            raise ConfigError(
                f"--steps {self.steps}, --epochs {self.epochs:g}, --batch {self.batch}: expected numbers above zero"
            )
        if not 0 <= self.hold_back <= 0.9:
            raise ConfigError(
                f"--hold-back {self.hold_back:g}: expected 0 to 0.9, the part of every recording that judges"
            )
        if not self.save_every_s >= 0 or not self.timeout_s > 0:
            raise ConfigError(f"--save-every {self.save_every_s:g}, --timeout {self.timeout_s:g}: expected seconds")

    def steps_on(self, windows: int) -> int:
        """Steps in all, on so many windows."""
        return self.steps if self.steps is not None else math.ceil(self.epochs * windows / self.batch)


# Fine-tuning from its beginning to its verdict: collect, learn, judge; every stage goes on where an earlier run stopped.


FINISHED = "finetuned.safetensors"
RESULT = "result.json"
_PLAN = "plan.json"
# Settings of a process that runs beside odometry, or of this machine: they decide nothing here.
_WITHOUT_EFFECT = {
    "matcher": ("weights", "device", "threads"),
    "learning": (
        "mode",
        "guard",
        "budget",
        "queue",
        "replay_windows",
        "replay_share",
        "candidate_steps",
        "post_deployment_windows",
    ),
}


class Bar(Protocol):
    """What shows progress."""

    def update(self, done: int, note: str = "") -> None: ...


# Label, steps in all (None: unknown), unit, steps already done.
MakeBar = Callable[[str, "int | None", str, int], AbstractContextManager[Bar]]


def finetune(
    sources: list[Path], out: Path, config: Config, options: SourceOptions, plan: Plan, bar: MakeBar
) -> dict[str, Any] | None:
    """Runs, or goes on with, a fine-tuning; what is finished is only told again.

    Returns:
        What result.json holds, with `interrupted` and the steps so far when it was asked to stop; None on all processes but the first.

    Raises:
        ImatchingError: recordings, weights or settings cannot be used, or another process failed. What was done is kept.
    """
    plan.check()
    torch.set_num_threads(config.matcher.threads)
    torch.manual_seed(config.seed)
    if plan.batch < process_count():
        raise ConfigError(
            f"--batch is {plan.batch} and there are {process_count()} processes; give at least one window to each"
        )
    matcher = create_matcher(
        replace(config.matcher, device="cpu")
    )  # which GPU is this process's own is not settled yet
    if not matcher.trainable:
        raise WeightsError(
            f"matcher '{matcher.name}' has no weights that could learn; use one that has, for example expectation"
        )
    with Interruption().listening() as interruption, Ranks(config.matcher.device, plan.timeout_s).membership() as ranks:
        if not ranks.leads:
            if ranks.follow(interruption) == "finished":
                return None
            return _learn_and_judge(out, config, plan, _recordings(sources, out), ranks, interruption, bar)
        with _locked(out):
            _compare_with_earlier(
                out / _PLAN, _describe(sources, hash_state(matcher.state_dict()), config, options, plan)
            )
            recordings = _collect(sources, out, config, options, ranks, interruption, bar)
            if recordings is None:
                ranks.announce("finished")
                return {"interrupted": True, "finished": False, "stage": "collecting", "steps": 0}
            known = _earlier_result(out, plan.steps_on(sum(len(_part(r, plan)[0]) for r in recordings)))
            ranks.announce("collected" if known is None else "finished")
            return known or _learn_and_judge(out, config, plan, recordings, ranks, interruption, bar)


def _collect(
    sources: list[Path],
    out: Path,
    config: Config,
    options: SourceOptions,
    ranks: Ranks,
    interruption: Interruption,
    bar: MakeBar,
) -> list[Recording] | None:
    """The first pass over every source; None when it was asked to stop."""
    folders = _folders(sources, out)
    # All are opened before the first is played: what is wrong with the last is not to be found out after an hour.
    # One whose windows are there already may be away by now.
    opened = [
        None if read_recording(folder) and not path.exists() else open_source(path, options)
        for path, folder in zip(sources, folders)
    ]
    recordings = []
    for path, folder, source in zip(sources, folders, opened):
        known = read_recording(folder)
        if known is not None and source is not None and known.identity != identify(source):
            raise ConfigError(
                f"{folder} holds windows of another recording than {path}, which has the same name; give another --out"
            )
        if source is None or known is not None:
            assert known is not None
            recordings.append(known)
            continue
        try:
            with bar(f"collect {path.resolve().name}", source.length, "frames", 0) as shown:

                def on_frame(frames: int, windows: int) -> None:
                    shown.update(frames, f"{windows} windows")
                    ranks.beat()
                    interruption.check()

                recordings.append(collect(source, config, folder, on_frame))
        except KeyboardInterrupt:
            return None
    return recordings


def _learn_and_judge(
    out: Path,
    config: Config,
    plan: Plan,
    recordings: list[Recording],
    ranks: Ranks,
    interruption: Interruption,
    bar: MakeBar,
) -> dict[str, Any] | None:
    parts = [_part(recording, plan) for recording in recordings]
    windows = [StoredWindow(r.path(k), len(r.windows[k])) for r, (teach, _) in zip(recordings, parts) for k in teach]
    if not windows:
        raise SourceError(
            f"no window of {', '.join(r.name for r in recordings)} may teach ({_tell_refused(recordings)}); "
            "record a drive that moves sideways through a scene with texture"
        )
    steps = plan.steps_on(len(windows))
    tuner = Tuner(config, windows, plan.batch, ranks)
    tuner.resume(out)
    size = ranks.size
    about = {
        "kind": "fine-tuning",
        "sources": [r.name for r in recordings],
        "windows": len(windows),
        "batch": plan.batch,
        "seed": config.seed,
        "learning_rate": config.learning.learning_rate,
        "processes": size,
        "origin": hash_state(tuner.origin.state_dict()),
        "torch": torch.__version__,
    }
    begin, first = time.perf_counter(), tuner.step
    finished = _learn(tuner, steps, out, plan.save_every_s, about, ranks, interruption, bar)
    seconds = time.perf_counter() - begin
    ranks.leave()
    if not ranks.leads:
        return None
    counts = {"taught": len(windows), "judged": 0}
    told = {
        "steps": tuner.step,
        "updates": tuner.stepper.taken,
        "refused_in_steps": dict(tuner.refused),
        "processes": size,
        "steps_per_s": (tuner.step - first) / max(seconds, 1e-9),
        "windows": counts,
        "sources": [
            {"name": r.name, "frames": r.frames, "windows": len(r.windows), "refused": r.refused} for r in recordings
        ],
    }
    if not finished:
        return {
            "interrupted": True,
            "finished": False,
            "stage": "learning",
            "steps_wanted": steps,
            "weights": CANDIDATE,
            **told,
        }
    looks = 1 + _looks(out)
    try:
        judgement = _judge(tuner, config, recordings, [judging for _, judging in parts], looks, interruption, bar)
    except KeyboardInterrupt:
        return {
            "interrupted": True,
            "finished": False,
            "stage": "judging",
            "steps_wanted": steps,
            "weights": CANDIDATE,
            **told,
        }
    counts["judged"] = judgement.verdict.windows
    matcher = tuner.tuned()
    header = write_weights(
        out / FINISHED,
        matcher.name,
        matcher.state_dict(),
        matcher.weights_version + 1,
        about
        | {
            "steps": tuner.step,
            "updates": tuner.stepper.taken,
            "verdict": judgement.verdict.outcome,
            "reason": judgement.verdict.reason,
            "judged_windows": judgement.verdict.windows,
            "validation_before_px": judgement.verdict.before_px,
            "validation_after_px": judgement.verdict.after_px,
        },
    )
    result = to_json_value(
        {
            "interrupted": False,
            "finished": True,
            "better": judgement.better,
            "verdict": asdict(judgement.verdict),
            "checks": judgement.checks,
            "by_source": judgement.by_source,
            "weights": FINISHED,
            "hash": header.hash,
            "origin": about["origin"],
            "looks": looks,
            **told,
        }
    )
    write_json(out / RESULT, result)
    (out / CANDIDATE).unlink(missing_ok=True)
    return result


def _learn(
    tuner: Tuner,
    steps: int,
    out: Path,
    save_every_s: float,
    about: dict[str, Any],
    ranks: Ranks,
    interruption: Interruption,
    bar: MakeBar,
) -> bool:
    """The second pass; whatever ends it, the state of the last whole step is on disk."""
    saved = time.monotonic()
    shown_residual = float("nan")

    def save() -> None:
        if ranks.leads and not tuner.moving:
            tuner.save(out, about | {"verdict": "not judged"})

    try:
        with bar("learn", steps, "steps", tuner.step) if ranks.leads else contextlib.nullcontext() as shown:

            def on_step(told: StepStatistics) -> None:
                nonlocal saved, shown_residual
                if math.isfinite(told.residual):
                    shown_residual = (
                        told.residual if math.isnan(shown_residual) else 0.9 * shown_residual + 0.1 * told.residual
                    )
                if shown is not None:
                    shown.update(told.step, f"residual {shown_residual:.3f}")
                if time.monotonic() - saved > save_every_s:
                    save()
                    saved = time.monotonic()

            return tuner.run(steps, lambda: interruption.asked, on_step)
    finally:
        save()


def _judge(
    tuner: Tuner,
    config: Config,
    recordings: list[Recording],
    judging: list[list[int]],
    looks: int,
    interruption: Interruption,
    bar: MakeBar,
) -> Judgement:
    windows = [(r.name, r.path(k)) for r, indices in zip(recordings, judging) for k in indices]
    with bar("judge", len(windows), "windows", 0) as shown:

        def on_window(done: int) -> None:
            shown.update(done)
            interruption.check()

        return judge_windows(tuner.origin, tuner.tuned(), windows, config, looks, on_window)


def _part(recording: Recording, plan: Plan) -> tuple[list[int], list[int]]:
    return hold_back(recording, plan.hold_back)


def _folders(sources: list[Path], out: Path) -> list[Path]:
    return [out / "windows" / f"{number:02d}_{path.resolve().stem}" for number, path in enumerate(sources)]


def _recordings(sources: list[Path], out: Path) -> list[Recording]:
    """What the first process has collected."""
    found = [read_recording(folder) for folder in _folders(sources, out)]
    missing = [str(path) for path, recording in zip(sources, found) if recording is None]
    if missing:
        raise SourceError(
            f"the windows of {', '.join(missing)} are not in {out}; all processes must see the same folder"
        )
    return [r for r in found if r is not None]


def _tell_refused(recordings: list[Recording]) -> str:
    counts: dict[str, int] = {}
    for recording in recordings:
        for reason, n in recording.refused.items():
            counts[reason] = counts.get(reason, 0) + n
    return ", ".join(f"{reason}: {n}" for reason, n in counts.items()) or "no window was solved"


def _describe(sources: list[Path], origin: str, config: Config, options: SourceOptions, plan: Plan) -> dict[str, Any]:
    """What must not change between a run and the one that goes on with it."""
    settings = config.to_dict()
    for section, names in _WITHOUT_EFFECT.items():
        for name in names:
            del settings[section][name]
    told = {name: value for name, value in asdict(options).items() if value is not None and name != "groundtruth"}
    return to_json_value(
        {
            "sources": [path.resolve().name for path in sources],
            "weights": origin,
            "batch": plan.batch,
            "hold_back": plan.hold_back,
            "recording": told,
            "settings": settings,
        }
    )


def _compare_with_earlier(path: Path, described: dict[str, Any]) -> None:
    """Refuses to go on with a run that was started otherwise; notes how this one is started when it is the first."""
    if not path.is_file():
        write_json(path, described)
        return
    earlier = json.loads(path.read_text())
    before, now = _flat(earlier), _flat(described)
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{path.parent} holds a run that was started with {key} = {before.get(key)}, now it is {now.get(key)}"
            f"{f' ({len(changed) - 1} more differ)' if len(changed) > 1 else ''}; give the same again, or another --out"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v
            for key, item in value.items()
            for k, v in _flat(item, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: value}


def _looks(out: Path) -> int:
    """How often the windows held back were looked at before: after every number of steps that was asked for."""
    path = out / RESULT
    return int(json.loads(path.read_text())["looks"]) if path.is_file() else 0


def _earlier_result(out: Path, steps: int) -> dict[str, Any] | None:
    """The result of a run that has taken so many steps before."""
    path = out / RESULT
    if not path.is_file():
        return None
    result = json.loads(path.read_text())
    return result | {"already_finished": True} if result["steps"] >= steps else None


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
