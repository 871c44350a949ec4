"""Frames at the pace of a camera: how many are lost, how late poses come, and whether memory grows."""

from __future__ import annotations

from typing import Any

from ...core.config import Config
from ..recordings.base import Source
from ..cli.bench_interference import growth, play


def watch(source: Source, config: Config, seconds: float, rate_hz: float) -> dict[str, Any]:
    """One run over a recording that is played forwards and backwards until the time is over; all of it is held in memory.

    Returns:
        frames, dropped (overtaken by the next one before they could be taken), times in ms: latency from a frame's due time to its
        pose, processing until the next one could be taken, work on a keyframe; memory at the end and how much it has grown since
        the first fifth of the run, MB.
    """
    played = play(list(source), config, seconds, rate_hz)
    row: dict[str, Any] = {"frames": played["frames"], "dropped": played["dropped"]}
    for name in ("latency", "processing", "keyframe"):
        times = played[f"{name}_ms"]
        row |= {f"{name}_{q}": None if times is None else times[q] for q in ("p50", "p95", "p99")}
    return row | {"memory_mb": played["memory_mb"][-1], "growth_mb": growth(played["memory_mb"])}
