"""The error rates of the guard on windows of recordings: false promotions in an hour, power, and the correlation of windows.

Candidates are random perturbations of the weights, scored on every window that the guard would accept. Their held-out errors are
shifted so that each is as good as the weights in use, or better by one standard deviation of the gain of a window.

example:
  python -m imatching_ros bench guard recordings/drive recordings/desk --mode mono
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ...core.errors import SourceError
from .arguments import add_config_options, add_source_options, read_config, source_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="recordings")
    parser.add_argument(
        "--perturbations", type=int, default=20, metavar="N", help="different candidates on each recording (default 20)"
    )
    parser.add_argument(
        "--candidates",
        type=int,
        default=200,
        metavar="N",
        help="candidates of an hour, from random windows on (default 200)",
    )
    parser.add_argument("--sessions", type=int, default=200, metavar="N", help="simulated hours (default 200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add_config_options(parser, learning=False)
    add_source_options(parser, mode="auto")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import cv2

    from ..experiments.guard import measure, score_drive
    from ..progress import Progress
    from ..recordings import open_source

    cv2.setNumThreads(1)
    config = read_config(args)
    drives = []
    for path in args.sources:
        source = open_source(path, source_options(args))
        with Progress(f"score {path.name}", source.length) as bar:
            drives.append(score_drive(config, source, args.perturbations, bar.update))
        if len(drives[-1].before) < config.learning.validation_windows_max:
            raise SourceError(
                f"{path} gives {len(drives[-1].before)} windows to validate with, expected "
                f"{config.learning.validation_windows_max} or more; give a longer recording"
            )
    result = measure(drives, config.learning, args.sessions, args.candidates, config.seed)
    for drive in drives:
        lags = " ".join(f"{value:.2f}" for value in result["correlation"][drive.name])
        print(f"{drive.name}: {len(drive.before)} windows, correlation of gains at lags 1, 2, ...: {lags}")
    print(
        f"equal quality: a false promotion in {100 * result['false_promotion_per_session']:.1f} % of {args.sessions} hours "
        f"of {args.candidates} candidates\n"
        f"better by one standard deviation: {100 * result['power']:.0f} % promoted within "
        f"{config.learning.validation_windows_max} windows, median {result['median_windows']:.0f}; "
        f"{100 * result['vetoed_of_better']:.1f} % called worse"
    )
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0
