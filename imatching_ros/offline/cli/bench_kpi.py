"""The key figures of this version beside those of the baseline, on one sheet.

Accuracy on rendered recordings, and on the real sequences where --data or IMATCHING_DATA names their folder: MMA, ATE, frames lost,
frames that are TRACKING while the motion over ten frames is wrong (rotation by 5 degrees, translation by 20 % of itself and 2 % of the median
depth, or the scale by 1.3), and NEES of the motion over one second, whose goal is 1 to 12. Time, as processor time of one thread: the front
end and keyframes beside `klt` on the same back end, bundle adjustment beside Ceres where it is installed, steps of learning per second, and
memory. No more than 8 minutes on two cores.

The exit code is 1 when accuracy is worse than the baseline by more than the tolerance of its column. Time and memory never fail.

examples:
  python -m imatching_ros bench kpi --out kpi.json
  python -m imatching_ros bench kpi --data data/ --update-baseline
  python -m imatching_ros bench kpi --document docs/results.md
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_config_options, read_config

if TYPE_CHECKING:
    from ..experiments.kpi import Column

BASELINE = Path(__file__).parents[3] / "docs" / "kpi_baseline.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    data = os.environ.get("IMATCHING_DATA")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the sheet as JSON")
    parser.add_argument(
        "--data",
        type=Path,
        default=data and Path(data),
        metavar="FOLDER",
        help="of the real sequences (default: IMATCHING_DATA; without it only rendered ones)",
    )
    parser.add_argument(
        "--rendered",
        type=Path,
        metavar="FOLDER",
        help="keep the rendered recordings there (default: a temporary folder)",
    )
    parser.add_argument(
        "--baseline", type=Path, default=BASELINE, metavar="FILE", help="default: docs/kpi_baseline.json of the clone"
    )
    parser.add_argument("--update-baseline", action="store_true", help="make this sheet the baseline")
    parser.add_argument(
        "--document",
        type=Path,
        metavar="FILE",
        help="measure nothing; write the baseline into the tables of a document",
    )
    parser.add_argument("--quick", action="store_true", help="very small, to try the command; nothing is compared")
    add_config_options(parser, learning=False)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from ...core.errors import ConfigError

    if args.quick and args.update_baseline:
        raise ConfigError("--quick measures too little for a baseline; leave out one of --quick and --update-baseline")
    if args.data is not None and not args.data.is_dir():
        raise ConfigError(f"--data {args.data} is no folder; name that of the real sequences")
    baseline = None if args.quick else read_baseline(args.baseline)
    if args.document is not None:
        args.document.write_text(fill(args.document.read_text(), baseline))
        return 0
    sheet = _measure(args)
    print(table(sheet, baseline))
    for path in ([args.out] if args.out else []) + ([args.baseline] if args.update_baseline else []):
        path.write_text(json.dumps(sheet, indent=1) + "\n")
    worse = [] if baseline is None else list(find_worse(sheet, baseline))
    for line in worse:
        print(line)
    return int(bool(worse) and not args.update_baseline)


def read_baseline(path: Path) -> dict[str, Any] | None:
    """The sheet in a file; None where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """The sheet: machine, settings, seconds taken, figures."""
    import cv2

    from ...core.types import to_json_value
    from ...matching.precision import use_bfloat16
    from ...matching.weights import choose_matcher
    from ..experiments.kpi import QUICK, Plan, measure_key_figures
    from ..experiments.machine import describe_machine

    cv2.setNumThreads(1)
    config, begin = read_config(args), time.monotonic()

    def report(part: str) -> None:
        print(f"{time.monotonic() - begin:5.0f} s  {part}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        plan = QUICK if args.quick else Plan()
        figures = measure_key_figures(plan, config, args.rendered or Path(folder), args.data, report)
    precision = "bfloat16" if use_bfloat16(config.matcher) else "float32"
    return {
        "machine": describe_machine(),
        "matcher": choose_matcher(config.matcher).name,
        "precision": precision,
        "seconds": round(time.monotonic() - begin),
        "figures": to_json_value(figures),
    }


def find_worse(sheet: dict[str, Any], baseline: dict[str, Any]) -> Iterator[str]:
    """One line for each figure outside its tolerance; rows that only one of the two has are not compared."""
    for section, row, name, column, value in _cells(sheet):
        before = _value(baseline, section, row, name)
        if row in baseline["figures"].get(section, {}) and column.is_worse(value, before):
            limit = f"{column.tolerance:.0%}" if column.relative else f"{column.tolerance:g}"
            yield (
                f"worse: {section}, {row}, {name}: {_text(column, value)}, baseline {_text(column, before)}, "
                f"tolerance {limit}"
            )


def table(sheet: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """For a terminal: every figure, and its difference to the baseline in brackets; `!` marks those outside their tolerance."""
    lines = [f"{about(sheet)}; {sheet['seconds']} s"]
    lines += ["no baseline: nothing is compared" if baseline is None else f"baseline: {about(baseline)}"]
    for section, rows in sheet["figures"].items():
        columns = list(next(iter(rows.values()), {}))
        lines += ["", f"{section:<34}" + "".join(f"{name:>22}" for name in columns)]
        for row in rows:
            cells = [
                _compared(column, value, None if baseline is None else _value(baseline, section, row, name))
                for s, r, name, column, value in _cells(sheet)
                if (s, r) == (section, row)
            ]
            lines.append(f"  {row:<32}" + "".join(f"{cell:>22}" for cell in cells))
    if baseline is not None:
        missing = [
            row
            for section, rows in baseline["figures"].items()
            for row in rows
            if row not in sheet["figures"].get(section, {})
        ]
        lines += ["", f"in the baseline only: {'; '.join(missing)}"] if missing else []
    return "\n".join(lines)


def about(sheet: dict[str, Any]) -> str:
    """Machine, versions and commit in one line."""
    m = sheet["machine"]
    bfloat16 = "with" if m["bfloat16"] else "without"
    return (
        f"commit {m['commit'] or 'unknown'}, {m['processor']} ({m['isa']}, {bfloat16} bfloat16, {m['cores']} cores), "
        f"torch {m['torch']}, {sheet['matcher']} in {sheet['precision']}"
    )


def document(baseline: dict[str, Any] | None) -> str:
    """The baseline as Markdown tables with their caption."""
    from ..tables import format_table

    if baseline is None:
        return "No baseline has been measured yet."
    parts = [
        f"One torch thread, processor time, {about(baseline)}. Measured in {baseline['seconds']} s by\n`python -m imatching_ros bench kpi --update-baseline`"
    ]
    for section, rows in baseline["figures"].items():
        columns = list(next(iter(rows.values()), {}))
        body = [[r, *(_text(c, v) for s, q, _, c, v in _cells(baseline) if (s, q) == (section, r))] for r in rows]
        parts.append(format_table([[section, *columns], *body]))
    return "\n\n".join(parts)


def fill(text: str, baseline: dict[str, Any] | None) -> str:
    """The document with everything between its marks made anew.

    Raises:
        ConfigError: the marks are not there once.
    """
    from ...core.errors import ConfigError

    begin, end = "<!-- begin key figures -->", "<!-- end key figures -->"
    body = f"{begin}\n{document(baseline)}\n{end}"
    text, count = re.subn(f"{begin}.*?{end}", lambda _: body, text, flags=re.DOTALL)
    if count != 1:
        raise ConfigError(f"the document has {count} places for key figures, expected one: {begin} ... {end}")
    return text


def _cells(sheet: dict[str, Any]) -> Iterator[tuple[str, str, str, Column, float | None]]:
    """(section, row, name of the column, column, value) of everything that is known to this version."""
    from ..experiments.kpi import SECTIONS

    for section, rows in sheet["figures"].items():
        for row, values in rows.items():
            for name, value in values.items():
                column = SECTIONS.get(section, {}).get(name)
                if column is not None:
                    yield section, row, name, column, value


def _value(sheet: dict[str, Any], section: str, row: str, name: str) -> float | None:
    return sheet["figures"].get(section, {}).get(row, {}).get(name)


def _text(column: Column, value: float | None) -> str:
    return "-" if value is None else format(value, column.form)


def _compared(column: Column, value: float | None, before: float | None) -> str:
    mark = "! " if column.is_worse(value, before) else ""
    change = "" if value is None or before is None else f" ({value - before:+{column.form}})"
    return f"{mark}{_text(column, value)}{change}"
