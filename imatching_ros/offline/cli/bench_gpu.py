"""One table that answers whether a CUDA device is right, fast and leaves its memory flat; at most 8 minutes, installs nothing.

Results against the CPU (bundle adjustment, matches, one learning step), bundle adjustment beside the CPU with its synchronisations, the front
end at 640x480 and 1280x720 at the pace of a 60 Hz camera with learning off and on (goal: no frame dropped, p99 at most 25 ms), learning
steps per second, memory of the device, and the tests marked `gpu`.

The exit code is 1 when a result differs from the CPU's by more than its limit, or a test fails; a missed goal of time or memory is marked only.
`--device cpu` runs the same, very small, on the CPU: a check of the command, no measurement of a GPU.

example:
  python -m imatching_ros bench gpu --out gpu.json
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..experiments.gpu import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the same code, very small, without a GPU"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what was measured as JSON")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests marked gpu")


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ConfigError: there is no CUDA device.
    """
    import cv2

    from ...core.config import Config
    from ...core.types import to_json_value
    from ...matching import create_matcher
    from ..experiments.gpu import SMALL, Plan, measure_device
    from ..experiments.machine import describe_machine

    cv2.setNumThreads(1)
    config = Config()
    create_matcher(config.with_values({"matcher.device": args.device}).matcher)  # raises without a device
    plan = SMALL if args.device == "cpu" else Plan(tests=not args.no_tests)
    machine = describe_machine() | {"device": name_device(args.device)}
    begin = time.monotonic()
    print(
        f"device: {machine['device']}; commit {machine['commit'] or 'unknown'}, torch {machine['torch']}, {machine['processor']}"
    )
    print(f"{'':7} {'':<60}{'measured':>10}{'limit':>10}")
    results = []
    for result in measure_device(args.device, plan, config):
        results.append(result)
        print(line(result), flush=True)
    wrong = [r.name for r in results if r.required and r.within is False]
    print(
        f"{time.monotonic() - begin:.0f} s; "
        + (f"wrong: {'; '.join(wrong)}" if wrong else "results agree with the CPU's")
    )
    if args.out is not None:
        rows = [asdict(r) | {"within": r.within} for r in results]
        args.out.write_text(json.dumps(to_json_value({"machine": machine, "results": rows}), indent=1) + "\n")
    return int(bool(wrong))


def name_device(device: str) -> str:
    """What was measured, for the head of the table."""
    import torch

    if device == "cpu":
        return "CPU (no GPU was used; a small run that only shows that the command works)"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def line(result: Result) -> str:
    """Verdict, name, value, limit, note."""
    verdict = {None: "", True: "ok", False: "WRONG" if result.required else "missed"}[result.within]
    value = "-" if result.value is None else format(result.value, result.form)
    limit = "" if result.limit is None else f"{'>=' if result.higher_is_better else '<='} {result.limit:g}"
    return f"{verdict:<7} {result.name:<60}{value:>10}{limit:>10}  {result.note}".rstrip()
