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
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch

from ... import bundle
from ...core import geometry
from ...bundle.problem import compile_window
from ...bundle.solver import minimise
from ...core.config import BundleConfig
from ...core.types import WindowSnapshot
from ..experiments import other_solvers
from ..experiments.ba_windows import make_window

_WITHIN = 1.001


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
    before = torch.get_num_threads()
    for threads in args.threads if args.device == "cpu" else [1]:
        torch.set_num_threads(threads)
        print(
            f"\n{threads} thread(s), {args.clock} time: ms (iterations) to within 0.1 % of the best cost, problem building "
            "included;\n/ ceres, / gtsam: our float64 over theirs; -: another optimum, or a landmark behind its camera"
        )
        header = f"{'K x L':>9} {'obs':>6} | " + " | ".join(f"{name:>13}" for name in _columns(args.device, others))
        print(header + " | / ceres | / gtsam | whole solve() | warm start")
        for K in args.keyframes:
            for L in args.landmarks:
                row = _measure(K, L, threads, others, args)
                rows.append(row)
                print(_format(row, _columns(args.device, others)), flush=True)
    torch.set_num_threads(before)
    growth = _fit_growth([r for r in rows if r["threads"] == args.threads[0]])
    exponents = ", ".join(f"{k} {v:.2f}" for k, v in growth.items()) or "needs more sizes"
    print(f"\ngrowth of our float64 time per iteration, exponents of a power law: {exponents}")
    memory = (
        {} if args.no_memory else {f"{K}x{L}": _measure_memory(K, L) for K, L in ((12, 300), (12, 1000), (12, 3000))}
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


def _columns(device: str, others: list[str]) -> list[str]:
    ours = ["ours float64", "ours float32"]
    return ours + others if device == "cpu" else [f"{name} {d}" for d in ("cuda", "cpu") for name in ours]


def _measure(K: int, L: int, threads: int, others: list[str], args: argparse.Namespace) -> dict:
    window = make_window(K, L, outliers=0.05, seed=args.seed).window
    config = BundleConfig()
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    solvers = {}
    for column in _columns(args.device, []):
        precision = column.split()[1]
        on = column.split()[2] if args.device == "cuda" else "cpu"
        solvers[column] = _Ours(_move(window, on), replace(config, precision=precision), clock)
    if "ceres" in others:
        solvers["ceres"] = _Other(other_solvers.Ceres(window, config.kernel, config.kernel_width, threads, clock))
    if "gtsam" in others:
        solvers["gtsam"] = _Other(other_solvers.Gtsam(window, config.kernel, config.kernel_width, clock))

    first = next(iter(solvers.values()))
    finals = {name: s.cost_after(200) for name, s in solvers.items() if not name.startswith("gtsam")}
    best = min(finals.values())
    stop = {name: _find_stop(s, best * _WITHIN, 16 if name == "gtsam" else 60) for name, s in solvers.items()}
    times: dict[str, list[float]] = {name: [] for name in solvers}
    whole: list[float] = []
    warm_times: list[float] = []
    warm = _warm_start(window, config, "cuda" if args.device == "cuda" else "cpu")
    for turn in range(args.repeats):
        for name, s in solvers.items():
            if stop[name] and (name != "gtsam" or turn < 3):  # it takes longer than all others together
                times[name].append(s.time(stop[name]))
        whole.append(_time(lambda: bundle.solve(first.window, config), first.window, clock))
        warm_times.append(_time(lambda: bundle.solve(warm, config), warm, clock))
    row = {
        "keyframes": K,
        "landmarks": L,
        "observations": len(window.kf_idx),
        "threads": threads,
        "clock": args.clock,
        "best_cost": best,
        "ms": {n: statistics.median(t) if t else None for n, t in times.items()},
        "spread_ms": {n: [min(t), max(t)] if t else None for n, t in times.items()},
        "iterations": stop,
        "final_cost": {n: c if math.isfinite(c) else None for n, c in finals.items()},
        "solve_ms": statistics.median(whole),
        "warm_start_ms": statistics.median(warm_times),
        "warm_start_iterations": bundle.solve(warm, config).iterations,
    }
    if args.device == "cuda":
        row["synchronisations"] = {n: s.count_synchronisations() for n, s in solvers.items() if "cuda" in n}
        for precision in ("float64", "float32"):
            gpu, cpu = row["ms"][f"ours {precision} cuda"], row["ms"][f"ours {precision} cpu"]
            row[f"cuda_over_cpu_{precision}"] = gpu / cpu if gpu and cpu else None
    return row


def _warm_start(window: WindowSnapshot, config: BundleConfig, device: str) -> WindowSnapshot:
    """The window as odometry hands it over: at its optimum, except for the newest pose, which is 2 cm and half a degree off."""
    result = bundle.solve(window, config)
    off = torch.tensor([0.02, -0.01, 0.01, 0.005, -0.005, 0.005], dtype=torch.float64)
    T_WC = torch.cat([result.T_WC[:-1], geometry.retract(result.T_WC[-1:], off[None])])
    return _move(replace(window, T_WC=T_WC, points_W=result.points_W), device)


class _Ours:
    def __init__(self, window: WindowSnapshot, config: BundleConfig, clock: Callable[[], float]) -> None:
        self.window, self.config, self.clock = window, config, clock

    @torch.no_grad()
    def _run(self, iterations: int, tolerance: float):
        problem = compile_window(self.window, getattr(torch, self.config.precision))
        return minimise(problem, replace(self.config, max_iterations=iterations, cost_tolerance=tolerance))

    def cost_after(self, iterations: int) -> float:
        return float(self._run(iterations, 1e-7).state.cost)

    def time(self, iterations: int) -> float:
        return _time(lambda: self._run(iterations, 0.0), self.window, self.clock)

    def count_synchronisations(self) -> dict[str, int]:
        """Of the iterations alone: what PyTorch's own debug mode reports."""
        with torch.no_grad():
            problem = compile_window(self.window, getattr(torch, self.config.precision))
            torch.cuda.synchronize()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    iterations = minimise(problem, self.config).iterations
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        return {"iterations": iterations, "synchronisations": sum("synchroniz" in str(w.message) for w in caught)}


class _Other:
    def __init__(self, solver: other_solvers.Ceres | other_solvers.Gtsam) -> None:
        self.solver = solver

    def cost_after(self, iterations: int) -> float:
        return self.solver.solve(iterations, 1e-7).cost

    def time(self, iterations: int) -> float:
        result = self.solver.solve(iterations, 0.0)
        return result.build_ms + result.solve_ms


def _find_stop(solver: _Ours | _Other, target: float, most: int) -> int | None:
    """The least number of iterations that reaches the target, by halving: costs only fall; None if `most` do not."""
    if solver.cost_after(most) > target:
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if solver.cost_after(middle) <= target else (middle + 1, high)
    return low


def _time(call: Callable[[], object], window: WindowSnapshot, clock: Callable[[], float]) -> float:
    cuda = window.T_WC.is_cuda
    if cuda:
        torch.cuda.synchronize()
    begin = clock()
    call()
    if cuda:
        torch.cuda.synchronize()
    return 1e3 * (clock() - begin)


def _move(window: WindowSnapshot, device: str) -> WindowSnapshot:
    parts = {f.name: getattr(window, f.name) for f in fields(window)}
    return replace(window, **{name: part.to(device) for name, part in parts.items() if isinstance(part, torch.Tensor)})


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


def _fit_growth(rows: list[dict]) -> dict[str, float]:
    """Exponents: time over L at the middle K, over K at the middle L, over observations at all sizes; per iteration."""
    key = next((k for k in ("ours float64", "ours float64 cuda") if rows and k in rows[0]["ms"]), None)
    rows = [r for r in rows if key and r["ms"][key]]

    def slope(pairs: list[tuple[float, float]]) -> float | None:
        if len({x for x, _ in pairs}) < 2:
            return None
        x, y = (torch.tensor(v, dtype=torch.float64).log() for v in zip(*pairs, strict=True))
        return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())

    def per(r: dict) -> float:
        return r["ms"][key] / r["iterations"][key]

    def middle(name: str) -> int | None:
        values = sorted({r[name] for r in rows})
        return values[len(values) // 2] if values else None

    K, L = middle("keyframes"), middle("landmarks")
    slopes = {
        "L": slope([(r["landmarks"], per(r)) for r in rows if r["keyframes"] == K]),
        "K": slope([(r["keyframes"], per(r)) for r in rows if r["landmarks"] == L]),
        "observations": slope([(r["observations"], per(r)) for r in rows]),
    }
    return {name: value for name, value in slopes.items() if value is not None}


def _measure_memory(K: int, L: int) -> float | None:
    """Peak resident memory that making and solving one window adds to a warmed-up process, MB; None where Linux does not tell."""
    program = (
        "import torch; torch.set_num_threads(1)\n"
        "from imatching_ros import bundle\nfrom imatching_ros.core.config import BundleConfig\n"
        "from imatching_ros.offline.experiments.ba_windows import make_window\n"
        "bundle.solve(make_window(3, 30).window, BundleConfig())\n"
        "status = lambda key: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key)) / 1024\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # resets the peak
        f"before = status('VmRSS'); bundle.solve(make_window({K}, {L}, outliers=0.05).window, BundleConfig())\n"
        "print(status('VmHWM') - before)\n"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root + os.pathsep + os.environ.get("PYTHONPATH", "")},
    )
    return float(done.stdout) if done.returncode == 0 else None
