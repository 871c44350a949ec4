"""Times odometry at sensor rate with learning off and on, alternating, and watches drops and memory.

A rendered scene (640 x 480 at 10 Hz by default) is played as a camera would: a frame that the next one overtakes is dropped. Latency is from
a frame's due time to its pose. The two settings alternate in rounds, so that whatever else the machine does meets both.

example:
  python -m imatching_ros bench interference --out interference --rounds 2 --seconds 60
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from .arguments import add_config_options, read_config


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

    from ...core.types import Frame
    from ..recordings.opening import open_source
    from ..simulation.recording import write_recording
    from ..simulation.sequence import SimulatedSequence

    width, height = (int(x) for x in args.size.split("x"))
    cv2.setNumThreads(1)
    path = args.out / f"scene_{args.size}_{args.loop:g}s_{args.rate_hz:g}hz"
    if not (path / "complete").is_file():
        sequence = SimulatedSequence(
            "room", round(args.loop * args.rate_hz), 907, width, height, args.rate_hz, supersample=1
        )
        write_recording(path, sequence, format="tum", overwrite=True)
        (path / "complete").touch()
    frames = [Frame(f.id, f.stamp_ns, f.image, f.camera) for f in open_source(path)]
    config = read_config(args).with_values({"odometry.mode": "mono"})
    rounds: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        for mode in ("'off'", "thread"):
            rounds.append(play(frames, config.with_values({"learning.mode": mode}), args.seconds, args.rate_hz))
            print(json.dumps(rounds[-1]), flush=True)
    result = summarise(rounds) | {
        "rounds": rounds,
        "config": config.to_dict()["learning"],
        "size": args.size,
        "rate_hz": args.rate_hz,
    }
    (args.out / "interference.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    return 0


def play(frames: list[Any], config: Any, seconds: float, rate_hz: float) -> dict[str, Any]:
    """One round. The scene is played forwards and backwards, so that the camera never jumps."""
    from dataclasses import replace

    import numpy as np

    from ...pipeline import Pipeline

    pipeline = Pipeline(config)
    total, period = round(seconds * rate_hz), 1 / rate_hz
    latency_ms, processing_ms, memory_mb = [], [], []
    adopting_ms, keyframe_ms = [], []
    dropped = 0
    begin = time.perf_counter()
    for k in range(total):
        due = k * period
        now = time.perf_counter() - begin
        if now > due + period:
            dropped += 1
            continue
        time.sleep(max(0.0, due - now))
        turn, at = divmod(k, len(frames))
        frame = replace(
            frames[at if turn % 2 == 0 else len(frames) - 1 - at], id=k, stamp_ns=round(k * period * 1e9) + 1
        )
        posed: list[float] = []
        started = time.perf_counter()
        output = pipeline.process(frame, lambda _: posed.append(time.perf_counter()), behind=now > due + period / 2)
        latency_ms.append((posed[0] - begin - due) * 1e3)
        processing_ms.append((time.perf_counter() - started) * 1e3)
        if "adopt" in output.timings_ms:
            adopting_ms.append(processing_ms[-1])
        elif output.is_keyframe:
            keyframe_ms.append(processing_ms[-1])
        if k % max(total // 20, 1) == 0:
            memory_mb.append(resident_mb())
    status = pipeline.learning_status()
    pipeline.close()

    def percentiles(values: list[float]) -> dict[str, float] | None:
        return {f"p{p}": float(np.percentile(values, p)) for p in (50, 95, 99)} if values else None

    return {
        "learning": config.learning.mode,
        "frames": total,
        "dropped": dropped,
        "latency_ms": percentiles(latency_ms),
        "processing_ms": percentiles(processing_ms),
        "keyframe_ms": percentiles(keyframe_ms),
        "adopting_ms": percentiles(adopting_ms),
        "memory_mb": [round(m, 1) for m in memory_mb],
        "steps": status.step,
        "promotions": status.promotions,
        "busy_share": status.busy_s / (total * period),
        "learning_state": status.state,
    }


def resident_mb() -> float:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds, and the ratio on / off."""
    import numpy as np

    out: dict[str, Any] = {}
    for mode in ("off", "thread"):
        mine = [r for r in rounds if r["learning"] == mode]
        out[mode] = {
            "p50": float(np.median([r["latency_ms"]["p50"] for r in mine])),
            "p95": float(np.median([r["latency_ms"]["p95"] for r in mine])),
            "p99": float(np.median([r["latency_ms"]["p99"] for r in mine])),
            "dropped": sum(r["dropped"] for r in mine),
            "frames": sum(r["frames"] for r in mine),
            "memory_growth_mb": max(growth(r["memory_mb"]) for r in mine),
            "steps": sum(r["steps"] for r in mine),
        }
    out["p95_ratio"] = out["thread"]["p95"] / out["off"]["p95"]
    return out


def growth(memory_mb: list[float]) -> float:
    """From the second fifth of the round, when everything has been loaded, to its end."""
    settled = memory_mb[len(memory_mb) // 5 :]
    return settled[-1] - settled[0] if settled else 0.0


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
