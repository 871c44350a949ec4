"""What a comparison is made of: sources in parts, and cells (a way of getting weights, scored), which are kept on disk."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...core.config import Config
from ...core.errors import CameraError, ConfigError, SourceError
from ...core.types import Frame, to_json_value
from ...matching import create_matcher
from ...matching.base import Matcher
from ..recordings.base import Source, SourceOptions, identify
from ..recordings import open_source
from . import learning_runs as runs
from .division import Division, divide
from .scenes import FULL, QUICK, SCENES, TUNING, open_scene

CONTROLS = ("offline", "warps", "oracle")  # further offline training, no geometry, true geometry

Cell = dict[str, Any]
Learned = tuple[Matcher, dict[str, Any]]  # weights, and counters of how they were learned


@dataclass(frozen=True)
class ComparisonPlan:
    """What all cells of an experiment have in common."""

    out: Path  # cells, rendered scenes and the report
    pairs: int  # scored pairs per gap
    quick: bool  # short scenes, one pass
    mode: str  # in which odometry sees the recordings; auto, mono, stereo or rgbd
    passes: int  # how often the learning part is played


@dataclass(frozen=True)
class ComparedSource:
    """A recording or rendered scene of the comparison."""

    name: str
    division: Division
    rendered: bool
    recording: Any  # distinguishes it from others of its name, in the settings of its cells


class CellStore:
    """Cells as JSON below `out`/cells, each with the weights beside it. A cell of other settings is worked out again."""

    def __init__(self, plan: ComparisonPlan, **more: Any) -> None:
        """`more` distinguishes experiments, besides the plan."""
        self._plan, self._more = plan, more
        self._folder = plan.out / "cells"
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(
        self, key: tuple[str, str, str], config: Config, work: Callable[[Path], dict[str, Any]], **more: Any
    ) -> Cell:
        """The saved cell of the very same experiment, or what `work` returns, saved.

        Args:
            key: source, regime (live, repeated, or - for none) and variant.
            work: given the path for the cell's weights.
            more: further settings that decide this cell.
        """
        source, regime, variant = key
        stem = "_".join([source, regime.replace("-", "any"), variant.replace(" ", "-"), str(config.seed)])
        path = self._folder / f"{stem}.json"
        settings = self._settings(regime, config) | to_json_value(more)
        if path.is_file():
            saved = json.loads(path.read_text())
            if saved["settings"] == settings:
                return saved
            print(f"{path} is of other settings: worked out again", flush=True)
        begin = time.perf_counter()
        cell = {"source": source, "regime": regime, "variant": variant, "seed": config.seed, "settings": settings}
        cell = to_json_value(cell | work(self._folder / f"{stem}.safetensors"))
        cell["cell_s"] = time.perf_counter() - begin
        partial_path = path.with_suffix(".partial")
        partial_path.write_text(json.dumps(cell, indent=1) + "\n")
        partial_path.replace(path)
        print(f"{time.strftime('%H:%M:%S')}   {stem}: {cell['cell_s']:.0f} s", flush=True)
        return cell

    def _settings(self, regime: str, config: Config) -> dict[str, Any]:
        plan = {name: getattr(self._plan, name) for name in ("pairs", "quick", "mode")}
        passes = 1 if regime == "-" else self._plan.passes
        return to_json_value({**runs.describe(config), **plan, "passes": passes, **self._more})


def open_sources(names: Iterable[str], plan: ComparisonPlan, options: SourceOptions) -> Iterator[ComparedSource]:
    """Yields every source; scenes are rendered when their turn comes.

    Args:
        names: paths of recordings, names of rendered scenes, or `scenes` for all of these.
        options: of recordings; rendered scenes need none.

    Raises:
        ConfigError: neither a recording nor a scene, or two of one name.
    """
    known = SCENES | TUNING
    extent, mono = QUICK if plan.quick else FULL, plan.mode == "mono"
    for name, given in _name_sources(names, known).items():
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        if given in known:
            division = open_scene(name, known[name], extent, plan.out / "scenes")
            yield ComparedSource(name, division, True, [known[name], extent])
        else:
            whole = _open_recording(Path(given), options)
            recording = {"identity": identify(whole), **_describe_options(options)}
            yield ComparedSource(name, divide(whole, mono), False, recording)


def _name_sources(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """{name by which results are kept: what was given}."""
    named: dict[str, str] = {}
    for given in [n for text in names for n in (SCENES if text == "scenes" else [text])]:
        if given not in known and not Path(given).exists():
            raise ConfigError(f"'{given}' is neither a recording nor a rendered scene; scenes are {', '.join(known)}")
        name = given if given in known else Path(given).resolve().name
        if name in named:
            raise ConfigError(
                f"{named[name]} and {given} are both called '{name}', by which results are kept; rename one, or give each its own --out"
            )
        named[name] = given
    return named


def _open_recording(path: Path, options: SourceOptions) -> Source:
    """A recording; one for mono odometry is opened with its depth, if any can be used, which then only scores matches."""
    if options.mode != "mono":
        return open_source(path, options)
    try:
        whole = open_source(path, replace(options, mode="rgbd"))
        next(iter(whole))
        return whole
    except (SourceError, CameraError) as error:
        whole = open_source(path, options)
        print(f"{whole.name}: scored without depth ({error})", flush=True)
        return whole


def _describe_options(options: SourceOptions) -> dict[str, Any]:
    """The options that were given; of the file of true poses, a hash of its contents."""
    described = {key: value for key, value in asdict(options).items() if value is not None and key != "mode"}
    if options.groundtruth is not None and options.groundtruth.is_file():
        described["groundtruth"] = hashlib.sha256(options.groundtruth.read_bytes()).hexdigest()[:16]
    return described


class SourceComparison:
    """The cells of one source. Weights are scored once: the seed decides what is learned, not how that is scored."""

    def __init__(self, source: ComparedSource, plan: ComparisonPlan) -> None:
        self._source, self._plan = source, plan
        self._store = CellStore(plan, recording=source.recording)
        self._scores: dict[str, dict[str, Any]] = {}  # by the hash of the weights
        self._frames: list[Frame] = []

    def cells(self, variants: list[str], regimes: list[str], config: Config) -> Iterator[Cell]:
        """The variants in every regime, with one seed. Those of `CONTROLS` take as many steps as the adapted weights did."""
        truth = self._source.division.learning_truth
        has_truth = truth.mode == "rgbd" and truth.groundtruth() is not None
        if "oracle" in variants and not has_truth:
            print(f"{self._source.name}: no oracle, which needs depth and true poses", flush=True)
            variants = [v for v in variants if v != "oracle"]
        if "frozen" in variants:
            yield self._cell("-", "frozen", config, lambda: (create_matcher(config.matcher), {"steps": 0}))
        for regime in regimes:
            steps = None
            for variant in [v for v in ("adapted", "unguarded") if v in variants]:
                guarded = config.with_values({"learning.guard": variant == "adapted"})
                cell = self._cell(regime, variant, config, partial(self._learn, guarded, regime))
                steps = cell["learning"]["steps"] if steps is None else steps
                yield cell
            for variant in [v for v in CONTROLS if v in variants and steps is not None]:
                learn = partial(self._learn_control, variant, config, regime, steps)
                yield self._cell(regime, variant, config, learn, steps=steps)

    def _learn_control(self, variant: str, config: Config, regime: str, steps: int) -> Learned:
        if variant == "offline":
            folder = self._plan.out / "offline" / f"{self._source.name}_{regime}_{config.seed}"
            return runs.learn_offline(config, steps, folder)
        if variant == "warps":
            return runs.learn_from_warps(config, self._learning_frames(), steps)
        return runs.learn_from_truth(config, self._source.division, self._learning_frames(), steps)

    def _learn(self, config: Config, regime: str) -> Learned:
        if regime == "live":
            return runs.learn_live(config, [self._learning_frames()] * self._plan.passes)
        return runs.learn_in_turn(config, [self._learning_frames()] * self._plan.passes)

    def _learning_frames(self) -> Iterable[Frame]:
        if not self._source.rendered:
            return self._source.division.learning  # read as it is played, for a recording may be longer than memory
        if not self._frames:
            self._frames = list(self._source.division.learning)
        return self._frames

    def _cell(self, regime: str, variant: str, config: Config, learn: Callable[[], Learned], **more: Any) -> Cell:
        def work(weights: Path) -> dict[str, Any]:
            matcher, counters = learn()
            digest = runs.save_weights(weights, matcher, counters)
            if digest not in self._scores:
                self._scores[digest] = runs.score_weights(matcher, config, self._source.division, self._plan.pairs)
            return {"learning": counters, "hash": digest, "columns": self._scores[digest]}

        return self._store.get((self._source.name, regime, variant), config, work, **more)
