"""Does learning online make a matcher better? Frozen against adapted weights, scored on a part that learning never saw.

A SOURCE is a recording or the name of a rendered scene (dark_noise, motion_blur, fog, vignette, new_texture; `scenes` for all). Its first part
is for learning; after a gap of 10 frames comes the unseen part. Variants: frozen, adapted, unguarded (every candidate is promoted),
control (as many further steps of the offline training), oracle (as many steps on true correspondences; where there is depth).
Regimes: live (one pass at sensor rate, learning in the background) and repeated (the learning part played --passes times).
Every cell is saved below DIR/cells and skipped when it is there, so that an interrupted comparison goes on.

With --mode mono, the depth of a recording is used for scoring alone. A recording without depth but with true poses is scored by epipolar
distance, one without truth by the agreement of its matches with one another. What is said about recordings does not concern rendered scenes.

examples:
  python -m imatching_ros compare --quick --out quick
  python -m imatching_ros compare scenes recordings/hospital --out evidence --seeds 3
  python -m imatching_ros compare my_bag/ --out evidence --groundtruth truth.txt --image-topic /front/image_raw
  python -m imatching_ros compare --poison --quick --out poison
  python -m imatching_ros compare dark_noise fog --retention --quick --out retention
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import CameraError, ConfigError, SourceError
from .arguments import add_config_options, add_source_options, read_config, source_options

if TYPE_CHECKING:
    from ..recordings.base import Source, SourceOptions

VARIANTS = ("frozen", "adapted", "unguarded", "control", "oracle")
REGIMES = ("live", "repeated")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="recordings, or names of rendered scenes; `scenes` for all of them. With --poison: names of poisons (default all)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="cells, rendered scenes and the report")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of everything random (default 1)")
    parser.add_argument(
        "--regime", default="", metavar="R,R", help="live, repeated or both (default: both; with --quick: repeated)"
    )
    parser.add_argument(
        "--passes",
        type=int,
        default=2,
        metavar="N",
        help="repeated: how often the learning part is played (default 2); from the second time on validation uses images that were trained on",
    )
    parser.add_argument(
        "--variants", default=",".join(VARIANTS), metavar="V,V", help=f"of {', '.join(VARIANTS)} (default all)"
    )
    parser.add_argument("--pairs", type=int, default=40, metavar="N", help="scored pairs per gap (default 40)")
    parser.add_argument(
        "--quick", action="store_true", help="three scenes, 20 s to learn from, 6 s unseen, 320 x 240, one pass"
    )
    parser.add_argument(
        "--poison", action="store_true", help="instead: learn from spoilt input, score on a clean probe"
    )
    parser.add_argument(
        "--retention",
        action="store_true",
        help="instead: learn on the first SOURCE, then on the second; what is left on the first?",
    )
    add_config_options(parser, learning=False)
    add_source_options(parser, mode="mono")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import cv2
    import torch

    from ..experiments.learning_report import write_report

    config = read_config(args)
    torch.set_num_threads(config.matcher.threads)
    cv2.setNumThreads(config.matcher.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.poison and args.retention:
        raise ConfigError("--poison and --retention are two experiments; give one of them")
    if args.poison:
        from ..experiments.corrupted_input import poison_cells

        cells = [
            cell
            for seed in range(args.seeds)
            for cell in poison_cells(
                args.out,
                config.with_values({"seed": config.seed + seed}),
                args.quick,
                args.pairs,
                _keep(args),
                args.sources,
            )
        ]
    elif args.retention:
        cells = list(_retention_cells(args, config))
    else:
        cells = list(_cells(args, config))
    print(write_report(args.out, cells, "poison" if args.poison else "retention" if args.retention else "comparison"))
    return 0


def _cells(args: argparse.Namespace, config: Any) -> Iterator[dict[str, Any]]:
    from ..experiments.learning_scenes import QUICK_SCENES

    variants = _choose(args.variants, VARIANTS, "--variants")
    regimes = _choose(args.regime or ("repeated" if args.quick else ",".join(REGIMES)), REGIMES, "--regime")
    names = args.sources or (QUICK_SCENES if args.quick else [])
    if not names:
        raise ConfigError("no SOURCE was given; name recordings or rendered scenes, or use --quick")
    for source in _sources(list(names), args):
        scores: dict[str, dict[str, Any]] = {}
        for seed in range(args.seeds):
            seeded = config.with_values({"seed": config.seed + seed, "odometry.mode": source.division.unseen.mode})
            yield from _source_cells(source, variants, regimes, seeded, args, scores)


def _retention_cells(args: argparse.Namespace, config: Any) -> Iterator[dict[str, Any]]:
    from ..experiments.retention import retention_cells

    if len(args.sources) != 2:
        raise ConfigError(
            f"--retention takes two sources, the one learned first and the one learned after it; {len(args.sources)} were given"
        )
    first, second = _sources(list(args.sources), args)
    for seed in range(args.seeds):
        seeded = config.with_values({"seed": config.seed + seed, "odometry.mode": first.division.unseen.mode})
        keep = _keep(args, recording=first.recording, then=[second.name, second.recording])
        yield from retention_cells(
            (first.name, first.division), (second.name, second.division), seeded, args.pairs, keep
        )


def _source_cells(
    source: _Asked,
    variants: list[str],
    regimes: list[str],
    config: Any,
    args: argparse.Namespace,
    scores: dict[str, dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """`scores` holds what was measured with weights, by their hash: the seed decides what is learned, not how that is scored."""
    from ..experiments import learning_runs as runs
    from ...matching import create_matcher

    name, division = source.name, source.division
    keep = _keep(args, recording=source.recording)
    passes = 1 if args.quick else args.passes
    frames: list[Any] = []

    def learning_frames() -> Any:
        if not source.rendered:
            return division.learning  # read as it is played, for a recording may be longer than memory
        if not frames:
            frames.extend(division.learning)
        return frames

    def cell(regime: str, variant: str, learn: Callable[[], tuple[Any, dict[str, Any]]], **more: Any) -> dict[str, Any]:
        def work(weights: Path) -> dict[str, Any]:
            matcher, told = learn()
            digest = runs.save_weights(weights, matcher, told)
            if digest not in scores:
                scores[digest] = runs.score_weights(matcher, config, division, args.pairs)
            return {"learning": told, "hash": digest, **scores[digest]}

        return keep(name, regime, variant, config, work, **more)

    oracle = (
        "oracle" in variants
        and division.unseen_truth.mode == "rgbd"
        and division.unseen_truth.groundtruth() is not None
    )
    if "oracle" in variants and not oracle:
        print(f"{name}: no oracle, which needs depth and true poses", flush=True)
    if "frozen" in variants:
        yield cell("-", "frozen", lambda: (create_matcher(config.matcher), {"steps": 0}))
    for regime in regimes:
        adapted: dict[str, Any] = {}
        for variant, guard in (("adapted", True), ("unguarded", False)):
            if variant not in variants:
                continue
            settings = config.with_values({"learning.guard": guard})
            learn = (
                (lambda s=settings: runs.learn_live(s, learning_frames()))
                if regime == "live"
                else (lambda s=settings: runs.learn_in_turn(s, [learning_frames()] * passes))
            )
            result = cell(regime, variant, learn)
            adapted = adapted or result
            yield result
        if not adapted:
            continue
        steps = adapted["learning"]["steps"]
        if "control" in variants:
            folder = args.out / "control" / f"{name}_{regime}_{config.seed}"
            yield cell(regime, "control", lambda: runs.learn_offline(config, steps, folder), steps=steps)
        if oracle:
            yield cell(
                regime, "oracle", lambda: runs.learn_from_truth(config, division, learning_frames(), steps), steps=steps
            )


@dataclass(frozen=True)
class _Asked:
    """A source that was asked for."""

    name: str
    division: Any
    rendered: bool
    recording: Any  # what tells it from others of its name, for the settings of its cells


def _sources(names: list[str], args: argparse.Namespace) -> Iterator[_Asked]:
    """Yields every source; scenes are rendered when their turn comes."""
    from ..experiments.learning_scenes import FULL, QUICK, SCENES, TUNING, divide, render_scene
    from ..recordings.base import SourceOptions
    from ..recordings.identity import identify
    from ..recordings.opening import open_source

    known = SCENES | TUNING
    extent = QUICK if args.quick else FULL
    options = source_options(args)
    called: dict[str, str] = {}
    for given in [n for text in names for n in (SCENES if text == "scenes" else [text])]:
        if given not in known and not Path(given).exists():
            raise ConfigError(f"'{given}' is neither a recording nor a rendered scene; scenes are {', '.join(known)}")
        name = given if given in known else Path(given).resolve().name
        if name in called:
            raise ConfigError(
                f"{called[name]} and {given} are both called '{name}', by which results are kept; rename one, or give each its own --out"
            )
        called[name] = given
    for name, given in called.items():
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        if given in known:
            whole = open_source(render_scene(name, known[name], extent, args.out / "scenes"), SourceOptions())
            yield _Asked(name, divide(whole, extent.learning_frames, args.mode == "mono"), True, "rendered")
        else:
            whole = _open(Path(given), options)
            yield _Asked(
                name, divide(whole, None, args.mode == "mono"), False, {"identity": identify(whole), **_told(options)}
            )


def _open(path: Path, options: SourceOptions) -> Source:
    """A recording; one that is to be driven in mono is opened with its depth, if any can be used, which then scores matches."""
    from ..recordings.opening import open_source

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


def _told(options: SourceOptions) -> dict[str, Any]:
    """What was said of a recording; of the file of truth, what it holds."""
    told = {key: value for key, value in asdict(options).items() if value is not None and key != "mode"}
    if options.groundtruth is not None and options.groundtruth.is_file():
        told["groundtruth"] = hashlib.sha256(options.groundtruth.read_bytes()).hexdigest()[:16]
    return told


def _keep(args: argparse.Namespace, **more: Any) -> Callable[..., dict[str, Any]]:
    """A function that returns a saved cell of the very same experiment, or works it out and saves it; `more` tells experiments apart,
    and cells what they are called with besides."""
    from ..experiments.learning_runs import describe
    from ...core.types import plain

    folder = args.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)

    def keep(
        source: str, regime: str, variant: str, config: Any, work: Callable[[Path], dict[str, Any]], **own: Any
    ) -> dict[str, Any]:
        stem = "_".join([source, regime.replace("-", "any"), variant.replace(" ", "-"), str(config.seed)])
        path = folder / f"{stem}.json"
        passes = args.passes if regime == "repeated" else 1
        settings = plain(
            {
                **describe(config),
                "pairs": args.pairs,
                "quick": args.quick,
                "mode": args.mode,
                "passes": passes,
                **more,
                **own,
            }
        )
        if path.is_file():
            saved = json.loads(path.read_text())
            if saved["settings"] == settings:
                return saved
            print(f"{path} is of other settings: worked out again", flush=True)
        begin = time.perf_counter()
        cell = plain(
            {
                "source": source,
                "regime": regime,
                "variant": variant,
                "seed": config.seed,
                "settings": settings,
                **work(folder / f"{stem}.safetensors"),
            }
        )
        cell["cell_s"] = time.perf_counter() - begin
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(cell, indent=1) + "\n")
        partial.replace(path)
        print(f"{time.strftime('%H:%M:%S')}   {stem}: {cell['cell_s']:.0f} s", flush=True)
        return cell

    return keep


def _choose(text: str, known: tuple[str, ...], option: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in chosen if part not in known]
    if unknown or not chosen:
        raise ConfigError(f"{option} {text}: expected some of {', '.join(known)}, separated by commas")
    return chosen
