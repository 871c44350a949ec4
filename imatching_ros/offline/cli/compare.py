"""Does learning online make a matcher better? Frozen vs. adapted weights, scored on a part that learning never saw.

A SOURCE is a recording or the name of a rendered scene (dark_noise, motion_blur, fog, vignette, new_texture; `scenes` for all). Its first part
is for learning; after a gap of 10 frames comes the unseen part. Variants: frozen, adapted, unguarded (every candidate is promoted),
control (as many further steps of the offline training), oracle (as many steps on true correspondences; where there is depth).
Regimes: live (one pass at sensor rate, learning in the background) and repeated (the learning part played --passes times).
Every cell is saved below DIR/cells and skipped when it is there, so that an interrupted comparison goes on.

With --mode mono, the depth of a recording is used for scoring alone. A recording without depth but with true poses is scored by epipolar
distance, one without truth by the agreement of its matches with one another. Options about recordings do not apply to rendered scenes.

examples:
  python -m imatching_ros compare --quick --out quick
  python -m imatching_ros compare scenes recordings/hospital --out evidence --seeds 3
  python -m imatching_ros compare my_bag/ --out evidence --groundtruth truth.txt --image-topic /front/image_raw
  python -m imatching_ros compare --corrupted-input --quick --out corrupted
  python -m imatching_ros compare dark_noise fog --retention --quick --out retention
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

VARIANTS = ("frozen", "adapted", "unguarded", "control", "oracle")
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
        "--corrupted-input", action="store_true", help="instead: learn from corrupted input, score on a clean scene"
    )
    parser.add_argument(
        "--retention",
        action="store_true",
        help="instead: learn on the first SOURCE, then on the second; what is left on the first?",
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
    if args.corrupted_input + args.retention + args.ablation > 1:
        raise ConfigError("--corrupted-input, --retention and --ablation are different experiments; give one of them")
    if args.ablation:
        return _ablation(args, config)
    kind = "corrupted_input" if args.corrupted_input else "retention" if args.retention else "comparison"
    cells = {"corrupted_input": _corrupted_input, "retention": _retention, "comparison": _comparison}[kind](
        args, config
    )
    print(write_report(args.out, list(cells), kind))
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

    return ComparisonPlan(args.out, args.pairs, args.quick, args.mode, 1 if args.quick else args.passes)


def _seeds(args: argparse.Namespace, config: Config) -> Iterator[Config]:
    for seed in range(args.seeds):
        yield config.with_values({"seed": config.seed + seed})


def _comparison(args: argparse.Namespace, config: Config) -> Iterator[dict[str, Any]]:
    from ..experiments.learning_comparison import SourceComparison, open_sources
    from ..experiments.scenes import QUICK_SCENES

    variants = _choose(args.variants, VARIANTS, "--variants")
    regimes = _choose(args.regime or ("repeated" if args.quick else ",".join(REGIMES)), REGIMES, "--regime")
    names = args.sources or (QUICK_SCENES if args.quick else [])
    if not names:
        raise ConfigError("no SOURCE was given; name recordings or rendered scenes, or use --quick")
    plan = _plan(args)
    for source in open_sources(names, plan, source_options(args)):
        comparison = SourceComparison(source, plan)
        for seeded in _seeds(args, config.with_values({"odometry.mode": source.division.unseen.mode})):
            yield from comparison.cells(variants, regimes, seeded)


def _retention(args: argparse.Namespace, config: Config) -> Iterator[dict[str, Any]]:
    from ..experiments.learning_comparison import open_sources
    from ..experiments.retention import retention_cells

    if len(args.sources) != 2:
        raise ConfigError(
            f"--retention takes two sources, the one learned first and the one learned after it; {len(args.sources)} were given"
        )
    plan = _plan(args)
    first, second = open_sources(args.sources, plan, source_options(args))
    for seeded in _seeds(args, config.with_values({"odometry.mode": first.division.unseen.mode})):
        yield from retention_cells(first, second, seeded, plan)


def _corrupted_input(args: argparse.Namespace, config: Config) -> Iterator[dict[str, Any]]:
    from ..experiments.corrupted_input import corrupted_input_cells

    for seeded in _seeds(args, config):
        yield from corrupted_input_cells(seeded, _plan(args), args.sources)


def _choose(text: str, known: tuple[str, ...], option: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in chosen if part not in known]
    if unknown or not chosen:
        raise ConfigError(f"{option} {text}: expected some of {', '.join(known)}, separated by commas")
    return chosen
