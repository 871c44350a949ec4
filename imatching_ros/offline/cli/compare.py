"""Does learning online make a matcher better? Frozen vs. adapted weights, scored on what learning never saw.

A SOURCE is a recording or the name of a rendered scene (`scenes` for all of them). A rendered scene is scored where it was learned, seen
again (revisit), at places of it without pose overlap (new place), and in another scene of the same kind and shift (other scene). Of a
recording the first 60 % are learned and the rest is scored (unseen).

Variants: frozen, adapted, unguarded (every candidate is promoted), and with as many steps as adapted: offline (the offline training goes on),
warps (warps of the live images, no geometry), oracle (true poses and depth; where there is depth).
Regimes: live (at the sensor's rate, learning in the background) and repeated (learning in line, as fast as it goes).
Every cell is saved below DIR/cells and skipped when it is there, so that an interrupted comparison goes on.

With --mode mono, the depth of a recording is used for scoring alone. A recording without depth but with true poses is scored by epipolar
distance, one without truth by the agreement of its matches with one another. Options about recordings do not apply to rendered scenes.

examples:
  python -m imatching_ros compare --quick --out quick
  python -m imatching_ros compare scenes recordings/hospital --out evidence
  python -m imatching_ros compare my_bag/ --out evidence --groundtruth truth.txt --image-topic /front/image_raw
  python -m imatching_ros compare --corrupted-input --quick --out corrupted
  python -m imatching_ros compare --ablation --out ablation
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from .arguments import add_config_options, add_source_options, read_config, source_options

if TYPE_CHECKING:
    from ...core.config import Config
    from ..experiments.learning_comparison import ComparisonPlan

VARIANTS = ("frozen", "adapted", "unguarded", "offline", "warps", "oracle")
REGIMES = ("live", "repeated")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="recordings, or names of rendered scenes; `scenes` for all of them. With --corrupted-input: kinds of corruption (default all)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="cells, rendered scenes and the report")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of everything random (default 1)")
    parser.add_argument(
        "--regime", default="repeated", metavar="R,R", help="live, repeated or both (default %(default)s)"
    )
    parser.add_argument(
        "--passes",
        type=int,
        default=1,
        metavar="N",
        help="how often the learning part is played (default %(default)s); from the second time on validation uses images that were trained on",
    )
    parser.add_argument(
        "--variants", default="frozen,adapted", metavar="V,V", help=f"of {', '.join(VARIANTS)} (default %(default)s)"
    )
    parser.add_argument("--pairs", type=int, default=10, metavar="N", help="scored pairs per gap (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="three scenes of half the length")
    parser.add_argument(
        "--corrupted-input",
        action="store_true",
        help="instead: learn from corrupted input (with --variants unguarded also without validation), score on a clean scene",
    )
    parser.add_argument(
        "--ablation",
        action="store_true",
        help="instead: --steps of every part of the learning step on rendered scenes for tuning (default tuning_dark_noise tuning_none); "
        "scored at the same place, at new places and in another scene",
    )
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="of --ablation (default %(default)s)")
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
    if args.corrupted_input and args.ablation:
        raise ConfigError("--corrupted-input and --ablation are different experiments; give one of them")
    if args.ablation:
        return _ablation(args, config)
    cells = (_corrupted_input if args.corrupted_input else _comparison)(args, config)
    print(write_report(args.out, list(cells), args.corrupted_input))
    return 0


def _ablation(args: argparse.Namespace, config: Config) -> int:
    from ..experiments.ablation import ablation_cells, format_ablation
    from ..experiments.scenes import TUNING

    names = _choose(",".join(args.sources or ["tuning_dark_noise", "tuning_none"]), tuple(TUNING), "SOURCE")
    text = format_ablation(list(ablation_cells(config, _plan(args), names, args.steps)))
    (args.out / "ablation.txt").write_text(text + "\n")
    print(text)
    return 0


def _plan(args: argparse.Namespace) -> ComparisonPlan:
    from ..experiments.learning_comparison import ComparisonPlan

    return ComparisonPlan(args.out, args.pairs, args.quick, args.mode, args.passes)


def _seeds(args: argparse.Namespace, config: Config) -> Iterator[Config]:
    for seed in range(args.seeds):
        yield config.with_values({"seed": config.seed + seed})


def _comparison(args: argparse.Namespace, config: Config) -> Iterator[dict[str, Any]]:
    from ..experiments.learning_comparison import SourceComparison, open_sources
    from ..experiments.scenes import QUICK_SCENES

    variants = _choose(args.variants, VARIANTS, "--variants")
    regimes = _choose(args.regime, REGIMES, "--regime")
    names = args.sources or (QUICK_SCENES if args.quick else [])
    if not names:
        raise ConfigError("no SOURCE was given; name recordings or rendered scenes, or use --quick")
    plan = _plan(args)
    for source in open_sources(names, plan, source_options(args)):
        comparison = SourceComparison(source, plan)
        for seeded in _seeds(args, config.with_values({"odometry.mode": source.division.learning.mode})):
            yield from comparison.cells(variants, regimes, seeded)


def _corrupted_input(args: argparse.Namespace, config: Config) -> Iterator[dict[str, Any]]:
    from ..experiments.corrupted_input import corrupted_input_cells

    unguarded = "unguarded" in _choose(args.variants, VARIANTS, "--variants")
    for seeded in _seeds(args, config):
        yield from corrupted_input_cells(seeded, _plan(args), args.sources, unguarded)


def _choose(text: str, known: tuple[str, ...], option: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in chosen if part not in known]
    if unknown or not chosen:
        raise ConfigError(f"{option} {text}: expected some of {', '.join(known)}, separated by commas")
    return chosen
