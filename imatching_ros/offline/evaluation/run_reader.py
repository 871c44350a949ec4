"""Reading back the folder that a run left behind; every file but metrics.json may be missing."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import SourceError
from ..recordings.truth import Trajectory, read_trajectory
from .trajectory import TrajectoryScore, score_trajectory


@dataclass(frozen=True)
class Run:
    """What happened."""

    folder: Path
    metrics: dict[str, Any]
    estimate: Trajectory | None
    truth: Trajectory | None
    score: TrajectoryScore | None
    # Columns of frames.csv; numbers as float64, state as text.
    frames: dict[str, np.ndarray] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""
    matches: dict[str, Any] | None = None  # matches.json: frozen vs. adapted weights

    @property
    def start_ns(self) -> int:
        """The stamp from which times are counted."""
        stamps = self.frames.get("stamp_ns")
        if stamps is not None and len(stamps):
            return int(stamps[0])
        return int(self.estimate.stamps_ns[0]) if self.estimate is not None and len(self.estimate) else 0

    def seconds(self, stamps_ns: Any) -> np.ndarray:
        """ns -> seconds since the start."""
        return (np.asarray(stamps_ns, np.int64) - self.start_ns) / 1e9

    def events_of(self, *kinds: str) -> list[dict[str, Any]]:
        """Events of these kinds that have a stamp."""
        return [e for e in self.events if e.get("event") in kinds and e.get("stamp_ns") is not None]


def read_run(folder: Path) -> Run:
    """Reads a folder of `replay` or of the demo.

    Raises:
        SourceError: no metrics.json, or one that cannot be read.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
    except OSError:
        raise SourceError(f"{folder} holds no metrics.json; expected the output folder of replay") from None
    except ValueError as error:
        raise SourceError(f"{folder / 'metrics.json'} is damaged: {error}") from None
    estimate, truth = (_trajectory(folder / name) for name in ("trajectory.txt", "groundtruth.txt"))
    score = None
    if estimate is not None and truth is not None:
        found = score_trajectory(estimate, truth, bool(metrics.get("metric")))
        score = found if isinstance(found, TrajectoryScore) else None
    matches = folder / "matches.json"
    config = folder / "config.yaml"
    return Run(
        folder,
        metrics,
        estimate,
        truth,
        score,
        _frames(folder / "frames.csv"),
        _events(folder / "events.jsonl"),
        config.read_text() if config.is_file() else "",
        json.loads(matches.read_text()) if matches.is_file() else None,
    )


def _trajectory(path: Path) -> Trajectory | None:
    try:
        return read_trajectory(path)
    except SourceError:  # missing, or empty because nothing was tracked
        return None


def _frames(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        # A run that was killed may end in half a line.
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    types = {"state": str, "stamp_ns": np.int64}
    return {name: np.array([types.get(name, float)(value) for value in values]) for name, values in columns.items()}


def _events(path: Path) -> list[dict[str, Any]]:
    events = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue  # half a line at the end
    return events
