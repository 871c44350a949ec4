"""Writes report.html about a run: one page without network, figures/*.png and report.json beside it.

examples:
  python -m imatching_ros report run/
  python -m imatching_ros report run/ --source my_bag/ --pairs 40
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_source_options, source_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run", type=Path, metavar="DIR", help="output folder of replay or of the demo")
    parser.add_argument(
        "--source", type=Path, help="the recording, for the images of matches (default: where the run found it)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: DIR/report.html)")
    parser.add_argument(
        "--pairs",
        type=int,
        default=24,
        help="pairs on which frozen and adapted weights are scored (default: %(default)s)",
    )
    parser.add_argument("--no-matches", action="store_true", help="leave out what needs the recording's images")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_source_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from ..evaluation.report import write_report

    if not args.no_matches:
        add_matches(args.run, args.source, source_options(args), args.pairs, args.quiet)
    print(write_report(args.run, args.out))
    return 0


def add_matches(folder: Path, path: Path | None, options, pairs: int = 24, quiet: bool = False) -> None:
    """Scores and draws frozen and adapted weights on the run's recording, where that is still to be found."""
    import yaml

    from ...core.config import Config
    from ..evaluation.frozen_adapted import compare_frozen_adapted
    from ..evaluation.matching import count_pairs
    from ..evaluation.run_reader import read_run
    from ..recordings import open_source
    from ..progress import Progress

    recorded = (read_run(folder).metrics.get("source") or {}).get("path")
    path = path or (Path(recorded) if recorded else None)
    if path is None or not path.exists():
        print("the recording is not to be found: the report has no images of matches (name it with --source)")
        return
    source = open_source(path, options)
    # Only the matcher's section and the seed: a run of another version may have settings that this one does not know.
    kept = yaml.safe_load((folder / "config.yaml").read_text()) if (folder / "config.yaml").is_file() else {}
    config = Config.from_dict({k: kept[k] for k in ("matcher", "seed") if k in kept})
    adapted = folder / "weights" / "current.safetensors"
    gaps = (1, 5)
    with Progress("matches", count_pairs(source, gaps, pairs), "pairs", quiet=quiet) as progress:
        compare_frozen_adapted(
            folder,
            source,
            config.matcher,
            adapted if adapted.is_file() else None,
            gaps,
            pairs,
            config.seed,
            on_progress=progress.update,
        )
