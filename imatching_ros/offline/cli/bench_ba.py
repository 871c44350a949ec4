"""`bench ba`: this project's bundle adjustment beside Ceres and GTSAM on the same windows.

Every solver starts from the same place with the same robust loss and is stopped by the same rule: the first iteration whose
cost is within 0.1 % of the best cost that any of them finds. That iteration is looked up first; then the solvers are timed in
turns, each stopped at its own, with the making of the problem included. Costs are measured by this project's residual.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from dataclasses import replace
from pathlib import Path

import torch

from ..experiments import other_solvers
from ..experiments.ba_timing import TimingOptions, fit_growth, measure_memory, solver_names, time_window


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench ba`."""

    def numbers(text: str) -> list[int]:
        return [int(x) for x in text.split(",")]

    parser.add_argument(
        "--keyframes", type=numbers, default=[5, 8, 12], metavar="K,...", help="window sizes (default 5,8,12)"
    )
    parser.add_argument(
        "--landmarks", type=numbers, default=[300, 1000, 3000], metavar="L,...", help="default 300,1000,3000"
    )
    parser.add_argument("--threads", type=numbers, default=[1, 2], metavar="N,...", help="CPU threads (default 1,2)")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds; the median counts (default 7)")
    parser.add_argument("--seed", type=int, default=1, help="of the windows (default 1)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: ours there and on the CPU, with host synchronisations",
    )
    parser.add_argument("--without", default="", metavar="NAME,...", help="leave out gtsam or ceres")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time, for one thread on a machine that others use too (default wall)",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory (three short processes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")


def run(args: argparse.Namespace) -> int:
    """Measures, prints a table, writes JSON; 0 when it is done."""
    absent = other_solvers.missing()
    left_out = set(filter(None, args.without.split(",")))
    others = [
        name for name in ("ceres", "gtsam") if name not in absent and name not in left_out and args.device == "cpu"
    ]
    for name, how in absent.items():
        print(f"{name} is not installed and left out; {how}")
    rows = []
    options = TimingOptions(others, args.device, 1, args.repeats, args.seed, args.clock)
    columns = solver_names(options)
    before = torch.get_num_threads()
    for threads in args.threads if args.device == "cpu" else [1]:
        torch.set_num_threads(threads)
        print(
            f"\n{threads} thread(s), {args.clock} time: ms (iterations) to within 0.1 % of the best cost, problem building "
            "included;\n/ ceres, / gtsam: our float64 over theirs; -: another optimum, or a landmark behind its camera"
        )
        header = f"{'K x L':>9} {'obs':>6} | " + " | ".join(f"{name:>13}" for name in columns)
        print(header + " | / ceres | / gtsam | whole solve() | warm start")
        for K in args.keyframes:
            for L in args.landmarks:
                row = time_window(K, L, replace(options, threads=threads))
                rows.append(row)
                print(_format(row, columns), flush=True)
    torch.set_num_threads(before)
    growth = fit_growth([r for r in rows if r["threads"] == args.threads[0]])
    exponents = ", ".join(f"{k} {v:.2f}" for k, v in growth.items()) or "needs more sizes"
    print(f"\ngrowth of our float64 time per iteration, exponents of a power law: {exponents}")
    memory = (
        {} if args.no_memory else {f"{K}x{L}": measure_memory(K, L) for K, L in ((12, 300), (12, 1000), (12, 3000))}
    )
    if memory:
        print(
            "memory on top of torch, MB: "
            + ", ".join(f"{k} " + ("-" if v is None else f"{v:.0f}") for k, v in memory.items())
        )
    if args.json:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        }
        args.json.write_text(
            json.dumps({"machine": machine, "rows": rows, "growth": growth, "memory_mb": memory}, indent=1)
        )
    return 0


def _format(row: dict, columns: list[str]) -> str:
    cells = []
    for name in columns:
        ms, iterations = row["ms"].get(name), row["iterations"].get(name)
        cells.append(f"{ms:8.1f} ({iterations:2d})" if ms else "     -       ")
    ours = row["ms"].get("ours float64") or row["ms"].get("ours float64 cuda")
    ratios = [f"{ours / row['ms'][n]:7.2f}" if ours and row["ms"].get(n) else "      -" for n in ("ceres", "gtsam")]
    text = (
        f"{row['keyframes']:3d} x {row['landmarks']:4d} {row['observations']:6d} | "
        + " | ".join(f"{c:>13}" for c in cells)
        + " | "
        + " | ".join(ratios)
        + f" | {row['solve_ms']:10.1f} ms | {row['warm_start_ms']:5.1f} "
        f"({row['warm_start_iterations']})"
    )
    if "synchronisations" in row:
        for name, s in row["synchronisations"].items():
            text += f" | {name}: {s['synchronisations']} syncs in {s['iterations']} iterations"
        for precision in ("float64", "float32"):
            text += f" | cuda / cpu {precision} {row[f'cuda_over_cpu_{precision}'] or math.nan:.2f}"
    return text
