"""`train`: trains the shipped weights of a matcher from rendered scenes and photographs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..training.trainer import TrainingPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--matcher", default="expectation", choices=("expectation", "expectation_fast", "regression"))
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="directory of checkpoint, log and finished weights; resumes if it has a checkpoint",
    )
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps in all (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=6, help="pairs per step (default: %(default)s, for 2 CPU cores)")
    parser.add_argument("--size", default="320x240", help="WIDTHxHEIGHT of the training images (default: %(default)s)")
    parser.add_argument(
        "--photographs",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="further photographs, besides those of scikit-image and scikit-learn; may be repeated",
    )
    parser.add_argument(
        "--init", default="", metavar="FILE", help="weights to go on from (also the other family's: its backbone)"
    )
    parser.add_argument(
        "--teacher",
        default="",
        metavar="FILE",
        help="weights of the larger network (model card) whose maps are learned as well",
    )
    parser.add_argument(
        "--teacher-weight", type=float, default=3.0, help="of the distance to the teacher's maps (default: %(default)s)"
    )
    parser.add_argument(
        "--matching-weight",
        type=float,
        default=1.0,
        help="of the matching loss beside a teacher (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of the convolutions (default: %(default)s)",
    )
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="largest step size (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-minutes", type=float, default=None, help="stop (resumably) after this time")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import torch

    from ...matching.weights import write_weights
    from ..training.photographs import load_photographs
    from ..training.trainer import Trainer

    plan = _make_plan(args)
    photographs, names = load_photographs(args.photographs)
    print(
        f"training '{args.matcher}' for {args.steps} steps of {args.batch} pairs, {len(photographs)} photographs",
        flush=True,
    )
    trainer = Trainer(plan, photographs, args.out, torch.device(args.device))
    if trainer.step:
        print(f"resuming at step {trainer.step} from {trainer.checkpoint}")
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        trainer.train(_Log(args, trainer.step).add)
    except (KeyboardInterrupt, TimeoutError):
        print(f"\nstopped at step {trainer.step}; the same command resumes")
    matcher = trainer.finished()
    provenance = {
        "kind": "offline training",
        "plan": {**asdict(plan), "init": Path(args.init).name, "teacher": Path(args.teacher).name},
        "steps_taken": trainer.step,
        "photographs": names,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
    }
    path = args.out / f"{args.matcher}.safetensors"
    header = write_weights(path, args.matcher, matcher.state_dict(), 1, provenance)
    print(f"\nwrote {path} (hash {header.hash}, {path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _make_plan(args: argparse.Namespace) -> TrainingPlan:
    from ..training.trainer import TrainingPlan

    width, height = (int(x) for x in args.size.split("x"))
    return TrainingPlan(
        args.matcher,
        args.steps,
        args.batch,
        height,
        width,
        learning_rate=args.learning_rate,
        seed=args.seed,
        init=args.init,
        teacher=args.teacher,
        teacher_weight=args.teacher_weight,
        matching_weight=args.matching_weight,
        bfloat16=args.precision == "bfloat16",
    )


class _Log:
    """log.jsonl, and a line on the terminal."""

    def __init__(self, args: argparse.Namespace, first: int) -> None:
        """`first`: steps that were done before."""
        self._args, self._first, self._begin = args, first, time.monotonic()
        self._mean: dict[str, float] = {}

    def add(self, step: int, parts: dict[str, float]) -> None:
        """One step with the parts of its loss.

        Raises:
            TimeoutError: the time is over (`--max-minutes`).
        """
        args, mean = self._args, self._mean
        elapsed = time.monotonic() - self._begin
        rate = (step - self._first) / elapsed
        for key, value in parts.items():
            mean[key] = value if key not in mean else 0.9 * mean[key] + 0.1 * value
        with open(args.out / "log.jsonl", "a") as log:
            log.write(json.dumps({"step": step, "seconds": round(elapsed, 1), **parts}) + "\n")
        print(
            f"\r{step}/{args.steps}  {rate:.1f} steps/s  {(args.steps - step) / rate / 60:.0f} min left  "
            + "  ".join(f"{k} {v:.3f}" for k, v in mean.items()),
            end="" if sys.stdout.isatty() else "\n",
            flush=True,
        )
        if args.max_minutes is not None and elapsed > 60 * args.max_minutes:
            raise TimeoutError
