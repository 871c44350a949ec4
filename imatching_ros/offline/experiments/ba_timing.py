"""Times bundle adjustment beside Ceres and GTSAM, or on CUDA beside the CPU, on the same synthetic windows.

Every solver starts from the same place with the same robust loss and is stopped by the same rule: the first iteration whose cost is
within 0.1 % of the best cost that any of them finds. Costs are measured by this project's residual.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ... import bundle
from ...bundle.problem import compile_window
from ...bundle.solver import solve_compiled
from ...core import geometry
from ...core.config import BundleConfig
from ...core.types import WindowSnapshot
from . import other_solvers
from .ba_windows import make_window


@dataclass(frozen=True)
class TimingOptions:
    """How windows are timed."""

    others: Sequence[str] = ()  # of ceres and gtsam, which run on the CPU only
    device: str = "cpu"  # cuda: ours there and on the CPU, with host synchronisations
    threads: int = 1  # of the CPU
    repeats: int = 7  # timed rounds; the median counts
    seed: int = 1  # of the windows
    clock: str = "wall"  # or cpu: processor time


def solver_names(options: TimingOptions) -> list[str]:
    """The columns of the table, in order; on CUDA each of our precisions there and on the CPU."""
    ours = ["ours float64", "ours float32"]
    if options.device == "cpu":
        return [*ours, *options.others]
    return [f"{name} {device}" for device in ("cuda", "cpu") for name in ours]


def time_window(keyframes: int, landmarks: int, options: TimingOptions) -> dict[str, Any]:
    """Times every solver on one window.

    The iteration at which each solver stops is looked up first. Then the solvers are timed in turns, building the problem included.

    Returns:
        By solver: `ms` (median), `spread_ms`, `iterations`, `final_cost`. Of ours in float64: `solve_ms`, a whole `solve`, and `warm_start_ms`.
        On CUDA also `synchronisations` and `cuda_over_cpu_float64`, `cuda_over_cpu_float32`. None where a solver found another optimum.
    """
    within = 1.001  # of the best cost
    window, config = make_window(keyframes, landmarks, outliers=0.05, seed=options.seed).window, BundleConfig()
    solvers = _make_solvers(window, config, options)
    finals = {name: s.cost_after(200) for name, s in solvers.items() if name != "gtsam"}
    target = min(finals.values()) * within
    stop = {name: _find_stop(s, target, 16 if name == "gtsam" else 60) for name, s in solvers.items()}
    warm = _warm_start(window, config, options.device)
    start = move_window(window, options.device)
    times: dict[str, list[float]] = {name: [] for name in (*solvers, "whole", "warm")}
    for turn in range(options.repeats):
        for name, s in solvers.items():
            if stop[name] and (name != "gtsam" or turn < 3):  # it takes longer than all others together
                times[name].append(s.time(stop[name]))
        times["whole"].append(_time(lambda: bundle.solve(start, config), start, _clock(options)))
        times["warm"].append(_time(lambda: bundle.solve(warm, config), warm, _clock(options)))
    row = {
        "keyframes": keyframes,
        "landmarks": landmarks,
        "observations": len(window.kf_idx),
        "threads": options.threads,
        "clock": options.clock,
        "best_cost": min(finals.values()),
        "ms": {n: statistics.median(times[n]) if times[n] else None for n in solvers},
        "spread_ms": {n: [min(times[n]), max(times[n])] if times[n] else None for n in solvers},
        "iterations": stop,
        "final_cost": {n: c if math.isfinite(c) else None for n, c in finals.items()},
        "solve_ms": statistics.median(times["whole"]),
        "warm_start_ms": statistics.median(times["warm"]),
        "warm_start_iterations": bundle.solve(warm, config).iterations,
    }
    return row if options.device == "cpu" else row | _cuda_figures(row["ms"], solvers)


def _make_solvers(window: WindowSnapshot, config: BundleConfig, options: TimingOptions) -> dict[str, _Ours | _Other]:
    clock = _clock(options)
    solvers: dict[str, _Ours | _Other] = {}
    for name in solver_names(replace(options, others=())):
        _, precision, *device = name.split()
        moved = move_window(window, device[0] if device else "cpu")
        solvers[name] = _Ours(moved, replace(config, precision=precision), clock)
    if "ceres" in options.others:
        ceres = other_solvers.Ceres(window, config.kernel, config.kernel_width, options.threads, clock)
        solvers["ceres"] = _Other(ceres)
    if "gtsam" in options.others:
        solvers["gtsam"] = _Other(other_solvers.Gtsam(window, config.kernel, config.kernel_width, clock))
    return solvers


def _cuda_figures(ms: dict[str, float | None], solvers: dict[str, _Ours | _Other]) -> dict[str, Any]:
    on_cuda = {name: s for name, s in solvers.items() if isinstance(s, _Ours) and "cuda" in name}
    figures: dict[str, Any] = {"synchronisations": {n: s.count_synchronisations() for n, s in on_cuda.items()}}
    for precision in ("float64", "float32"):
        gpu, cpu = ms[f"ours {precision} cuda"], ms[f"ours {precision} cpu"]
        figures[f"cuda_over_cpu_{precision}"] = gpu / cpu if gpu and cpu else None
    return figures


def _clock(options: TimingOptions) -> Callable[[], float]:
    return time.process_time if options.clock == "cpu" else time.perf_counter


def _warm_start(window: WindowSnapshot, config: BundleConfig, device: str) -> WindowSnapshot:
    """The window as odometry hands it over: at its optimum, except for the newest pose, which is 2 cm and half a degree off."""
    result = bundle.solve(window, config)
    off = torch.tensor([0.02, -0.01, 0.01, 0.005, -0.005, 0.005], dtype=torch.float64)
    T_WC = torch.cat([result.T_WC[:-1], geometry.retract(result.T_WC[-1:], off[None])])
    return move_window(replace(window, T_WC=T_WC, points_W=result.points_W), device)


class _Ours:
    def __init__(self, window: WindowSnapshot, config: BundleConfig, clock: Callable[[], float]) -> None:
        self.window, self.config, self.clock = window, config, clock

    @torch.inference_mode()
    def _run(self, iterations: int, tolerance: float):
        problem = compile_window(self.window, getattr(torch, self.config.precision))
        return solve_compiled(problem, replace(self.config, max_iterations=iterations, cost_tolerance=tolerance))

    def cost_after(self, iterations: int) -> float:
        return self._run(iterations, 1e-7)[1].cost

    def time(self, iterations: int) -> float:
        return _time(lambda: self._run(iterations, 0.0), self.window, self.clock)

    def count_synchronisations(self) -> dict[str, int]:
        """Of the iterations alone: what PyTorch's own debug mode reports."""
        with torch.inference_mode():
            problem = compile_window(self.window, getattr(torch, self.config.precision))
            torch.cuda.synchronize()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    iterations = solve_compiled(problem, self.config)[1].iterations
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


def move_window(window: WindowSnapshot, device: str) -> WindowSnapshot:
    """The window with all of its tensors on a device."""
    parts = {f.name: getattr(window, f.name) for f in fields(window)}
    return replace(window, **{name: part.to(device) for name, part in parts.items() if isinstance(part, torch.Tensor)})


def fit_growth(rows: list[dict]) -> dict[str, float]:
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


def measure_memory(K: int, L: int) -> float | None:
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
