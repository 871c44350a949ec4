"""Whether this processor computes bfloat16 natively. Where it does, features take about two thirds of the time."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from ..core.config import MatcherConfig

# Names of the flags on x86-64 and on arm64.
FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def use_bfloat16(config: MatcherConfig) -> bool:
    """What the setting `matcher.precision` means on this machine."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    return config.device == "cpu" and cpu_has_bfloat16()


def describe_choice(config: MatcherConfig) -> str:
    """The matcher (already chosen) and how it runs here: what `auto` means for the precision, and why."""
    threads = f"{config.threads} thread{'s' if config.threads > 1 else ''}"
    if config.name in ("klt", "sift"):  # no network
        return f"{config.name}, {threads}"
    precision = "bfloat16" if use_bfloat16(config) else "float32"
    if config.precision == "auto" and config.device == "cpu":
        precision += f" (auto: this processor {'has' if cpu_has_bfloat16() else 'lacks'} bfloat16)"
    return f"{config.name} on {config.device} in {precision}, {threads}"


@lru_cache(maxsize=1)
def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """False also where it cannot be determined, and where ATEN_CPU_CAPABILITY holds torch to AVX2."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return False
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next(
        (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))), []
    )
    return not FLAGS.isdisjoint(flags)
