"""Times odometry at sensor rate with learning off and on, alternating, and watches drops and memory.

A rendered scene (640 x 480 at 10 Hz by default) is played as a camera would: a frame that the next one overtakes is dropped. Latency is from
a frame's due time to its pose. The two settings alternate in rounds, so that whatever else the machine does meets both.

example:
  python -m imatching_ros bench interference --out interference --rounds 2 --seconds 60
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_config_options, read_config

if TYPE_CHECKING:
    from ...core.types import Frame


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="interference.json and the rendered scene"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of sensor time per round (default 60)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of off and on (default 2)")
    parser.add_argument(
        "--loop",
        type=float,
        default=30.0,
        metavar="S",
        help="length of the rendered scene, played again and again (default 30)",
    )
    parser.add_argument("--size", default="640x480", metavar="WxH")
    parser.add_argument("--rate-hz", type=float, default=10.0)
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import cv2

    from ..experiments.realtime import compare_learning, play

    cv2.setNumThreads(1)
    frames = _frames(args)
    config = read_config(args).with_values({"odometry.mode": "mono"})
    rounds: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        for mode in ("'off'", "thread"):
            rounds.append(play(frames, config.with_values({"learning.mode": mode}), args.seconds, args.rate_hz))
            print(json.dumps(rounds[-1]), flush=True)
    result = compare_learning(rounds)
    settings = {"config": config.to_dict()["learning"], "size": args.size, "rate_hz": args.rate_hz}
    (args.out / "interference.json").write_text(json.dumps(result | {"rounds": rounds} | settings, indent=1) + "\n")
    print(table(result))
    return 0


def _frames(args: argparse.Namespace) -> list[Frame]:
    """The rendered scene as images without depth; rendered unless it is there already."""
    from ...core.types import Frame
    from ..experiments.scenes import INTERFERENCE_SEED, render_once
    from ..recordings import open_source
    from ..simulation.sequence import SimulatedSequence

    width, height = (int(x) for x in args.size.split("x"))
    count = round(args.loop * args.rate_hz)
    sequence = SimulatedSequence("room", count, INTERFERENCE_SEED, width, height, args.rate_hz, supersample=1)
    path = render_once(args.out / f"scene_{args.size}_{args.loop:g}s_{args.rate_hz:g}hz", sequence)
    return [Frame(f.id, f.stamp_ns, f.image, f.camera) for f in open_source(path)]


def table(result: dict[str, Any]) -> str:
    """One row per setting."""
    lines = [f"{'learning':<10}{'latency p50':>12}{'p95':>8}{'p99':>8} ms{'dropped':>16}{'memory +MB':>12}{'steps':>7}"]
    for mode in ("off", "thread"):
        r = result[mode]
        lines.append(
            f"{mode:<10}{r['p50']:>12.1f}{r['p95']:>8.1f}{r['p99']:>8.1f}   {r['dropped']:>8} of {r['frames']:<5}"
            f"{r['memory_growth_mb']:>10.1f}{r['steps']:>7}"
        )
    return "\n".join([*lines, f"p95 on / off: {result['p95_ratio']:.2f}"])
