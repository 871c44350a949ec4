"""Scores matchers on a recording: pixel accuracy by true depth and poses, epipolar distance and pose accuracy by true poses.

A matcher is NAME or NAME:WEIGHTS, where NAME is expectation, expectation_fast, regression, klt, sift, an installed one, or one of
the references at their best: klt-chained (followed from frame to frame), sift-corners (descriptors at the common queries and at the corners of the
other image) and sift-own (its own keypoints, within the same budget; its figures count right matches per common query).
All get the same 512 Shi-Tomasi corners; a missing match counts as wrong; points hidden in the other image do not count.

examples:
  python -m imatching_ros match-eval my_sequence/ --out figures
  python -m imatching_ros match-eval my_bag/ --matcher expectation:run/weights/current.safetensors --gap 1,5 --out figures
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import add_source_options, source_options

DEFAULT = ("expectation", "klt", "klt-chained", "sift-corners", "sift-own")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="bags or sequence folders")
    parser.add_argument(
        "--matcher", action="append", metavar="NAME[:WEIGHTS]", help=f"may be repeated (default: {' '.join(DEFAULT)})"
    )
    parser.add_argument(
        "--gap", default="1,5,10", metavar="N,N", help="frames between the images of a pair (default: %(default)s)"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=60,
        metavar="N",
        help="at most so many per gap, evenly spread (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for results.json, table.md and images")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--max-width",
        type=int,
        default=1280,
        metavar="PX",
        help="as the setting matcher.max_width (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch and OpenCV (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-pose", action="store_true", help="leave out relative poses, which take most of the time")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_source_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import cv2
    import torch

    from ...core.errors import ConfigError
    from ...core.types import to_json_value
    from ..evaluation.matching import count_pairs, evaluate
    from ..recordings import open_source
    from ..progress import Progress

    try:
        gaps = sorted({int(x) for x in args.gap.split(",")})
    except ValueError:
        gaps = []
    if not gaps or gaps[0] < 1 or args.pairs < 1:
        raise ConfigError(
            f"--gap {args.gap} --pairs {args.pairs}: expected whole numbers of at least 1, such as --gap 1,5,10"
        )
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    results: list[dict[str, Any]] = []
    interrupted = False
    for path in args.sources:
        source = open_source(path, source_options(args))
        matchers = [make_pair_matcher(name, args.device, args.max_width) for name in args.matcher or DEFAULT]
        total = count_pairs(source, gaps, args.pairs)
        with Progress(f"match-eval {source.name}", total, "pairs", quiet=args.quiet) as progress:
            try:
                results += evaluate(matchers, source, gaps, args.pairs, args.seed, not args.no_pose, progress.update)
            except KeyboardInterrupt:
                interrupted = True
                break
    if args.out is not None and results:
        write(args.out, results)
        if not interrupted:
            from ..evaluation.match_images import write_match_images

            source = open_source(args.sources[0], source_options(args))
            write_match_images(
                args.out,
                [make_pair_matcher(name, args.device, args.max_width) for name in args.matcher or DEFAULT],
                source,
                gaps,
            )
    print(json.dumps(to_json_value(results), indent=2) if args.json else table(results))
    return 130 if interrupted else 0


def make_pair_matcher(text: str, device: str = "cpu", max_width: int = 1280) -> Any:
    """NAME[:WEIGHTS] -> a matcher.

    Raises:
        ConfigError, WeightsError: no such matcher, or weights that do not fit.
    """
    from ...core.config import MatcherConfig
    from ..evaluation.baselines import Chained, PairMatcher, OwnKeypoints, SiftCorners
    from ..evaluation.pairs import QUERIES
    from ...matching import create_matcher

    name, _, weights = text.partition(":")
    kind, base = {
        "klt-chained": (Chained, "klt"),
        "sift-own": (OwnKeypoints, "sift"),
        "sift-corners": (SiftCorners, "sift"),
    }.get(name, (PairMatcher, name))
    matcher = create_matcher(MatcherConfig(name=base, weights=weights or "default", device=device, max_width=max_width))
    return kind(text, matcher, QUERIES) if kind is OwnKeypoints else kind(text, matcher)


def write(out: Path, results: list[dict[str, Any]]) -> None:
    """results.json and table.md."""
    from ...core.types import to_json_value

    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(to_json_value(results), indent=2) + "\n")
    (out / "table.md").write_text(table(results) + "\n")


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table, one row per recording, gap and matcher."""
    head = (
        "recording",
        "gap",
        "matcher",
        "MMA 1/3/5 px",
        "right/pair",
        "Sampson median, within 1/3 px",
        "AUC 5/10/20",
        "coverage",
        "within 1/2 sigma",
        "ms image + pair",
    )
    rows = []
    by_pair = [(r["source"], gap, r["matcher"], v) for r in results for gap, v in r["gaps"].items()]
    for source, gap, name, v in sorted(
        by_pair, key=lambda row: ([r["source"] for r in results].index(row[0]), int(row[1]))
    ):
        distance = v["sampson_px"] or (v["self_consistency"] or {}).get("held_out_sampson_px")
        label = "" if v["sampson_px"] or not distance else " (own geometry)"
        rows.append(
            (
                source,
                gap,
                name,
                _join(v["mma"], ".3f"),
                _join(v["correct_per_pair"], ".0f", only="3"),
                f"{distance['median']:.2f} {distance['within_1']:.2f} {distance['within_3']:.2f}{label}"
                if distance
                else "-",
                _join(v["pose_auc"], ".3f"),
                "-" if v["coverage"] is None else f"{v['coverage']:.2f}",
                f"{v['sigma']['within_1']:.2f} {v['sigma']['within_2']:.2f}" if v["sigma"] else "-",
                f"{v['features_ms'] or 0:.1f} + {v['match_ms'] or 0:.1f}",
            )
        )
    widths = [max(len(str(row[k])) for row in (head, *rows)) for k in range(len(head))]
    lines = ["| " + " | ".join(f"{str(cell):<{w}}" for cell, w in zip(row, widths)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _join(values: dict[str, float] | None, form: str, only: str | None = None) -> str:
    if values is None:
        return "-"
    return " ".join(format(v, form) for k, v in values.items() if only is None or k == only)
