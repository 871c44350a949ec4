"""The machine, the versions and the commit that figures were measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from ...matching.precision import cpu_has_bfloat16

ROOT = Path(__file__).parents[3]  # of the repository


def describe_machine() -> dict[str, str | int | bool]:
    """Processor, instruction set as torch uses it, bfloat16, cores, versions, and the commit where there is a clone."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": cpu_has_bfloat16(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Of the working tree; with a + where it differs from it, empty without git or a clone."""
    try:
        commit = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=8", "--exclude=*"]
        return subprocess.run(commit, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
