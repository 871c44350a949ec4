"""Fine-tunes a matcher on recordings: the learning step of the robot, without ground truth, as often as there is time for.

First, odometry plays every recording with the weights as they are, and keeps the windows that pass the gate. Then the weights are
trained on these; before every further epoch the recordings are played again, with the weights so far. At last, both weights are
validated on windows from the end of each recording, which were not trained on, by the test that a candidate must pass on the robot.
Ctrl-C or a kill costs little: the same command resumes; given more --steps, it resumes a finished run too.

DIR gets finetuned.safetensors (load it with --weights), result.json, the windows, and what is needed to resume.
Exit codes: 0 finished, 1 an error, 3 not shown to be better (with --require-better), 130 interrupted.

examples:
  python -m imatching_ros finetune monday.mcap tuesday.mcap --out tuned
  python -m imatching_ros finetune my_bag/ --out tuned --steps 200 --mode mono
  python -m imatching_ros replay my_bag/ --out run --weights tuned/finetuned.safetensors
  torchrun --nproc-per-node 2 -m imatching_ros finetune monday.mcap tuesday.mcap --out tuned
"""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .arguments import add_config_options, add_source_options, read_config, source_options

NOT_BETTER = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from ..training.plan import Plan

    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="bag file or folder, or a data set's sequence folder"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="weights, windows, state; an unfinished run in it is resumed",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="N", help="steps in all (default: as many as --epochs make)")
    length.add_argument(
        "--epochs",
        type=float,
        default=Plan.epochs,
        metavar="X",
        help="passes over all training windows (default %(default)g)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=Plan.batch,
        metavar="N",
        help="windows of a step, over all processes (default %(default)s)",
    )
    parser.add_argument(
        "--hold-back",
        type=float,
        default=Plan.hold_back,
        metavar="X",
        help="last part of every recording, for validation only (default %(default)g)",
    )
    parser.add_argument(
        "--save-every",
        type=float,
        default=Plan.save_every_s,
        metavar="S",
        help="longest training that a kill can lose (default %(default)g s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=Plan.timeout_s,
        metavar="S",
        help="several processes: one that is silent for so long ends the run (default %(default)g s)",
    )
    parser.add_argument(
        "--require-better",
        action="store_true",
        help=f"exit code {NOT_BETTER} unless the weights are shown to be better",
    )
    parser.add_argument("--json", action="store_true", help="print result.json instead of the text")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    add_config_options(parser, learning=False)
    add_source_options(parser, truth=False)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from ..training.finetuning import finetune
    from ..training.plan import Plan
    from ..progress import Progress

    def bar(label: str, total: int | None, unit: str, first: int) -> AbstractContextManager[Progress]:
        return Progress(label, total, unit, quiet=args.quiet, first=first)

    plan = Plan(
        args.sources,
        source_options(args),
        args.steps,
        args.epochs,
        args.batch,
        args.hold_back,
        args.save_every,
        args.timeout,
    )
    result = finetune(plan, args.out, read_config(args), bar)
    if result is None:  # not rank 0
        return 0
    print(json.dumps(result, indent=2) if args.json else summary(result, args.out))
    if result["interrupted"]:
        return 130
    return NOT_BETTER if args.require_better and not result["better"] else 0


def summary(result: dict[str, Any], out: Path) -> str:
    """The result as text."""
    if result["interrupted"]:
        at = (
            "while collecting windows; complete recordings are kept"
            if result["stage"] == "collecting"
            else f"after {result['steps']} of {result['steps_wanted']} steps; the weights so far are in {out / result['weights']}, not validated"
        )
        return f"interrupted {at}. The same command resumes."
    verdict, windows = result["verdict"], result["windows"]
    lines = [
        f"{s['name']:<24} {s['frames']} frames, {s['windows']} windows" + _refused(s["refused"])
        for s in result["sources"]
    ]
    lines.append(
        f"{'trained':<24} {result['steps']} steps, {result['updates']} of them moved the weights, on {windows['training']} windows"
        + _refused(result["refused_in_steps"])
    )
    if windows["validation"]:
        lines.append(f"{'validated':<24} on {windows['validation']} windows that were not trained on, before -> after:")
        lines += [
            f"  {name:<22} {_number(before)} -> {_number(after)}" for name, (before, after) in result["checks"].items()
        ]
        lines += [
            f"  held_out_px in {name}: {_number(before)} -> {_number(after)} ({count} windows)"
            for name, (before, after, count) in result["by_source"].items()
        ]
    lines.append(
        f"{'BETTER' if result['better'] else 'NOT BETTER'}: {verdict['outcome'].replace('_', ' ')}, {verdict['reason']}"
    )
    if result.get("already_finished"):
        lines.append(
            f"This was finished before, with {result['steps']} steps; nothing was done. Give more --steps to continue."
        )
    lines.append(
        f"weights: {out / result['weights']} ({result['hash']})"
        + ("" if result["better"] else "; they are not shown to be better than the initial ones: keep those")
    )
    return "\n".join(lines)


def _refused(counts: dict[str, int]) -> str:
    return "; refused " + ", ".join(f"{n} ({reason})" for reason, n in counts.items()) if counts else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
