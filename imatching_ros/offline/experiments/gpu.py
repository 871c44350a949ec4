"""Whether a CUDA device gives the results of the CPU, how fast it is, and whether its memory stays flat."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ... import bundle
from ...core import geometry
from ...core.config import BundleConfig, Config
from ...core.types import Frame, LearningSample, as_grey
from ...matching import create_matcher
from ..evaluation.pairs import sample_queries
from ..simulation.sequence import SimulatedSequence
from .ba_timing import TimingOptions, move_window, time_window
from .ba_windows import make_window
from .kpi import collect_samples, make_stepper, time_stepper
from .realtime import memory_growth_mb, play, resident_mb


@dataclass(frozen=True)
class Result:
    """One figure. Without a limit it is reported only."""

    name: str
    value: float | None  # None: could not be measured
    form: str = ".3g"
    limit: float | None = None
    higher_is_better: bool = False
    required: bool = False  # a wrong result, not just a slow one
    note: str = ""

    @property
    def within(self) -> bool | None:
        """Whether the value keeps the limit; None without one."""
        if self.limit is None:
            return None
        if self.value is None:
            return False
        return self.value >= self.limit if self.higher_is_better else self.value <= self.limit


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    sizes: tuple[tuple[int, int], ...] = ((640, 480), (1280, 720))
    frames: int = 60  # of each rendered scene, played forwards and backwards
    render_hz: float = 30.0
    seconds: float = 15.0  # of playing
    rate_hz: float = 60.0  # of playing
    windows: tuple[tuple[int, int], ...] = ((8, 1000), (12, 3000))  # keyframes, landmarks
    repeats: int = 5
    steps: int = 10
    texture_size: int = 512
    tests: bool = True
    tests_timeout_s: float = 200.0


SMALL = Plan(((160, 120),), 24, 10.0, 1.5, 5.0, ((4, 40),), 1, 1, 128, False)  # for the CPU


def measure_device(device: str, plan: Plan, config: Config) -> Iterator[Result]:
    """Everything, in the order in which it is printed."""
    on_device = config.with_values({"matcher.device": device, "odometry.mode": "mono"})
    yield from check_bundle_adjustment(device, *plan.windows[0])
    scenes = [render_scene(size, plan, device) for size in plan.sizes]
    on_cpu = on_device.with_values({"matcher.device": "cpu", "matcher.precision": "float32"})
    samples = collect_samples(on_cpu, scenes[0], plan.steps + 1)
    yield check_matching(on_device, scenes[0])
    yield from check_step(on_device, samples)
    for keyframes, landmarks in plan.windows:
        yield from time_bundle_adjustment(device, keyframes, landmarks, plan.repeats)
    for frames in scenes:
        for learning in ("off", "thread"):
            yield from time_front_end(on_device, frames, learning, plan)
    seconds = time_stepper(make_stepper(on_device), samples, config.seed, time.perf_counter)
    median = statistics.median(seconds[1:]) if len(seconds) > 1 else None
    yield Result("learning steps per second, odometry at rest", median and 1 / median)
    if plan.tests:
        yield run_gpu_tests(Path(__file__).parents[3], plan.tests_timeout_s)


def render_scene(size: tuple[int, int], plan: Plan, device: str) -> list[Frame]:
    """Images without depth."""
    sequence = SimulatedSequence(
        "clutter",
        plan.frames,
        909,  # a path that moves as well as it turns: its windows are learned from
        *size,
        rate_hz=plan.render_hz,
        supersample=1,
        texture_size=plan.texture_size,
        device=device,
    )
    return [Frame(f.id, f.stamp_ns, f.image, f.camera) for f, _ in sequence.read()]


def check_bundle_adjustment(device: str, keyframes: int, landmarks: int) -> Iterator[Result]:
    """The optimum of one window on both."""
    window = make_window(keyframes, landmarks, outliers=0.05).window
    config = BundleConfig(cost_tolerance=1e-6, max_iterations=100)
    cpu, there = bundle.solve(window, config), bundle.solve(move_window(window, device), config)
    off = geometry.local(cpu.T_WC, there.T_WC.cpu()).norm(dim=1).max()
    name = f"BA {keyframes} x {landmarks}"
    yield Result(f"{name}: poses off by, m and rad", float(off), ".1e", 1e-3, required=True)
    yield Result(f"{name}: cost off by", abs(there.cost_after / cpu.cost_after - 1), ".1e", 1e-4, required=True)


def check_matching(config: Config, frames: list[Frame]) -> Result:
    """Queries of the first image in the fifth one, in float32 on both."""
    here = create_matcher(replace(config.matcher, device="cpu", precision="float32"))
    there = create_matcher(replace(config.matcher, precision="float32"))
    first, last = (as_grey(frames[k].image) for k in (0, 5))
    uv = sample_queries(first)
    found = [m.estimate(m.describe(m.observe(first), uv.to(m.device)), [m.observe(last)]) for m in (here, there)]
    sure = found[0].score[0] > 0.5
    off = (found[0].uv[0] - found[1].uv[0].cpu()).norm(dim=1)[sure]
    share = float((off < 0.05).float().mean()) if len(off) else None
    return Result("matches within 0.05 px of the CPU's, share", share, ".3f", 0.99, True, required=True)


def check_step(config: Config, samples: list[LearningSample]) -> Iterator[Result]:
    """Loss and gradient of one window in both; convolutions use TF32 where torch does so by default."""
    names = ("learning step: loss off by", "learning step: cosine of the gradients")
    results = [
        _gradient(config.with_values({"matcher.device": d}), samples[:1]) for d in ("cpu", config.matcher.device)
    ]
    if any(result is None for result in results):
        results, note = [(float("nan"), torch.zeros(1))] * 2, "no window with a loss"
    else:
        note = ""
    (loss, gradient), (loss_there, gradient_there) = results
    off = abs(loss_there / loss - 1) if not note else None
    cosine = float(torch.cosine_similarity(gradient, gradient_there, dim=0)) if not note else None
    yield Result(names[0], off, ".1e", 0.02, required=True, note=note)
    yield Result(names[1], cosine, ".4f", 0.99, True, required=True, note=note)


def _gradient(config: Config, samples: list[LearningSample]) -> tuple[float, Tensor] | None:
    """Loss and gradient of all weights in float32; None without a loss."""
    stepper = make_stepper(config.with_values({"matcher.precision": "float32"}))
    if not samples:
        return None
    generator = torch.Generator().manual_seed(config.seed)
    result = stepper.accumulate(samples[0], generator)
    if isinstance(result, str):
        return None
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in stepper.parameters]
    return result.pseudo_truth + result.warp, torch.cat([p.detach().flatten().double().cpu() for p in parts])


def time_bundle_adjustment(device: str, keyframes: int, landmarks: int, repeats: int) -> Iterator[Result]:
    """Time to the same cost beside the CPU, and synchronisations for each iteration."""
    row = time_window(keyframes, landmarks, TimingOptions(device=device, repeats=repeats))
    name = f"BA {keyframes} x {landmarks}"
    for precision in ("float64", "float32"):
        column = f"ours {precision}" + ("" if device == "cpu" else f" {device}")
        ratio = row.get(f"cuda_over_cpu_{precision}")
        note = "" if ratio is None else f"{ratio:.2f} x the CPU's"
        yield Result(f"{name}: {precision}, ms", row["ms"][column], ".1f", note=note)
    for column, counts in row.get("synchronisations", {}).items():
        share = counts["synchronisations"] / max(counts["iterations"], 1)
        note = f"{counts['synchronisations']} in {counts['iterations']} iterations"
        yield Result(f"{name}: synchronisations per iteration, {column.split()[1]}", share, ".2f", 1.0, note=note)


def time_front_end(config: Config, frames: list[Frame], learning: str, plan: Plan) -> Iterator[Result]:
    """Frames at the pace of a camera; a frame that the next one overtakes is dropped."""
    height, width = frames[0].image.shape[-2:]
    cuda = config.matcher.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
    with_learning = config.with_values({"learning.mode": f"'{learning}'"})
    play(frames, with_learning, plan.seconds / 5, plan.rate_hz)  # kernels are loaded and chosen
    played = play(frames, with_learning, plan.seconds, plan.rate_hz, device_mb if cuda else resident_mb)
    name = f"{width} x {height}, learning {'on' if learning == 'thread' else learning}"
    rate_hz = (played["frames"] - played["dropped"]) / plan.seconds
    note = f"{played['dropped']} of {played['frames']} dropped, {played['steps']} steps"
    yield Result(f"{name}: frames/s of {plan.rate_hz:g}", rate_hz, ".1f", plan.rate_hz, True, note=note)
    for q, limit in (("p50", None), ("p95", None), ("p99", 25.0)):
        yield Result(f"{name}: latency {q}, ms", played["latency_ms"][q], ".1f", limit)
    growth = memory_growth_mb(played["memory_mb"])
    yield Result(f"{name}: memory growth, MB", growth, ".1f", 32.0, note="of the device" if cuda else "of the process")


def device_mb() -> float:
    """Memory of all tensors on the CUDA device."""
    return torch.cuda.memory_allocated() / 2**20


def run_gpu_tests(root: Path, timeout_s: float) -> Result:
    """Number of failed tests among those marked `gpu`; None where pytest or the tests are missing, or time ran out."""
    name = "tests marked gpu: failed"
    if find_spec("pytest") is None or not (root / "test").is_dir():
        return Result(name, None, note="pytest or the tests are not installed")
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "test"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=timeout_s, env={**os.environ, "PYTHONPATH": path}
        )
    except subprocess.TimeoutExpired:
        return Result(name, None, ".0f", 0.0, required=True, note=f"not done within {timeout_s:g} s")
    last = (done.stdout.strip().splitlines() or [""])[-1].strip("= ")
    broken = sum(int(n) for n in re.findall(r"(\d+) (?:failed|error)", last))
    return Result(name, float(max(broken, done.returncode not in (0, 5))), ".0f", 0.0, required=True, note=last)
