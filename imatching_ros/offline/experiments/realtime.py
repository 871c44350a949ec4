"""Playing at sensor rate: the clock, and odometry timed behind a camera (frames dropped, latency, memory)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...core.config import Config
    from ...core.types import Frame, OdometryOutput
    from ..recordings.base import Source


class SensorClock:
    """Sensor time, s, since the clock was made: `rate` times real time."""

    def __init__(self, rate: float = 1.0) -> None:
        self._rate = rate
        self._begin_s = time.perf_counter()

    @property
    def now_s(self) -> float:
        return (time.perf_counter() - self._begin_s) * self._rate

    def wait_until(self, due_s: float, meanwhile: Callable[[], None] | None = None, period_s: float = 0.1) -> None:
        """Returns at `due_s`, at once when it has passed. `meanwhile` is called once, and every period of real time until then."""
        while True:
            if meanwhile is not None:
                meanwhile()
            left_s = (due_s - self.now_s) / self._rate
            if left_s <= 0:
                return
            time.sleep(left_s if meanwhile is None else min(left_s, period_s))


def play(
    frames: Sequence[Frame],
    config: Config,
    seconds: float,
    rate_hz: float,
    memory: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Plays frames forwards and backwards, so that the camera never jumps; a frame that the next one overtakes is dropped.

    Args:
        memory: returns the memory in use, MB; by default resident memory.

    Returns:
        Counts, percentiles in ms of latency (from a frame's due time to its pose), of processing (until the next frame could be
        taken), of keyframes and of frames that adopted new weights, memory in MB over time, and the learner's counters.
    """
    from ...pipeline import Pipeline  # not for a player that only needs the clock

    pipeline, played = Pipeline(config), _Played()
    total, period_s = round(seconds * rate_hz), 1 / rate_hz
    clock = SensorClock()
    for k in range(total):
        due_s, now_s = k * period_s, clock.now_s
        if now_s > due_s + period_s:
            played.dropped += 1
            continue
        clock.wait_until(due_s)
        posed_s: list[float] = []
        started_s = clock.now_s
        frame = replace(_back_and_forth(frames, k), id=k, stamp_ns=round(due_s * 1e9) + 1)
        output = pipeline.process(frame, lambda _: posed_s.append(clock.now_s), behind=now_s > due_s + period_s / 2)
        played.add(output, posed_s[0] - due_s, clock.now_s - started_s)
        if k % max(total // 20, 1) == 0:
            played.memory_mb.append(round((memory or resident_mb)(), 1))
    status = pipeline.learning_status()
    pipeline.close()
    return {
        "learning": config.learning.mode,
        "frames": total,
        **played.summary(),
        "steps": status.step,
        "promotions": status.promotions,
        "busy_share": status.busy_s / (total * period_s),
        "learning_state": status.state,
    }


@dataclass
class _Played:
    """What was measured of the frames of a run."""

    dropped: int = 0
    memory_mb: list[float] = field(default_factory=list)
    times_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, output: OdometryOutput, latency_s: float, processing_s: float) -> None:
        self.times_ms["latency"].append(latency_s * 1e3)
        self.times_ms["processing"].append(processing_s * 1e3)
        if "adopt" in output.timings_ms:
            self.times_ms["adopting"].append(processing_s * 1e3)
        elif output.is_keyframe:
            self.times_ms["keyframe"].append(processing_s * 1e3)

    def summary(self) -> dict[str, Any]:
        kinds = ("latency", "processing", "keyframe", "adopting")
        times = {f"{kind}_ms": _percentiles(self.times_ms[kind]) for kind in kinds}
        return {"dropped": self.dropped, **times, "memory_mb": self.memory_mb}


def play_recording(source: Source, config: Config, seconds: float, rate_hz: float) -> dict[str, Any]:
    """One run over a recording that is held in memory, as one flat row.

    Returns:
        frames, dropped, percentiles of latency, processing and keyframes as in `play`; memory at the end and its growth, MB.
    """
    played = play(list(source), config, seconds, rate_hz)
    row: dict[str, Any] = {"frames": played["frames"], "dropped": played["dropped"]}
    for name in ("latency", "processing", "keyframe"):
        times = played[f"{name}_ms"]
        row |= {f"{name}_{q}": None if times is None else times[q] for q in ("p50", "p95", "p99")}
    return row | {"memory_mb": played["memory_mb"][-1], "growth_mb": memory_growth_mb(played["memory_mb"])}


def compare_learning(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds of `play` with learning off and in its thread, and the ratio of their 95th percentiles."""
    out: dict[str, Any] = {}
    for mode in ("off", "thread"):
        mine = [r for r in rounds if r["learning"] == mode]
        out[mode] = {
            **{q: float(np.median([r["latency_ms"][q] for r in mine])) for q in ("p50", "p95", "p99")},
            "dropped": sum(r["dropped"] for r in mine),
            "frames": sum(r["frames"] for r in mine),
            "memory_growth_mb": max(memory_growth_mb(r["memory_mb"]) for r in mine),
            "steps": sum(r["steps"] for r in mine),
        }
    out["p95_ratio"] = out["thread"]["p95"] / out["off"]["p95"]
    return out


def memory_growth_mb(memory_mb: list[float]) -> float:
    """From the second fifth of a round, when everything has been loaded, to its end."""
    settled = memory_mb[len(memory_mb) // 5 :]
    return settled[-1] - settled[0] if settled else 0.0


def resident_mb() -> float:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _back_and_forth(frames: Sequence[Frame], k: int) -> Frame:
    turn, at = divmod(k, len(frames))
    return frames[at if turn % 2 == 0 else len(frames) - 1 - at]


def _percentiles(values: list[float]) -> dict[str, float] | None:
    return {f"p{p}": float(np.percentile(values, p)) for p in (50, 95, 99)} if values else None
