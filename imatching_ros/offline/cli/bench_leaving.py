"""What to do with what keyframes know when they leave the window: four ways, by the accuracy of odometry.

drop: it is lost, one pose is held. hold2, hold4: the two or four oldest poses that stay are held where bundle adjustment left them.
marginalize: it becomes a prior on the poses that stay (Schur complement, first-estimate Jacobians); no pose is held.

example:
  python -m imatching_ros bench leaving data/kitti_mono_turn data/kitti_stereo_curve --rendered renderings --matchers klt,expectation --starts 0,0.5
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import bundle
from ...bundle import MarginalPrior
from ...camera.model import Camera
from .arguments import add_config_options, add_source_options, read_config
from ...core.config import Config
from ...core.types import WindowSnapshot
from ...odometry.mapper import Adjusted, Fresh, Mapper
from ...matching.base import Matcher
from ...pipeline import Pipeline
from ...odometry.relocalization import Places, place_of
from ...odometry.local_map import Window
from .bench_odometry import measure, recordings

WAYS = {"drop": 1, "hold2": 2, "hold4": 4, "marginalize": 0}  # how many poses are held


class _Window(Window):
    """A window that holds as many poses as it is told, or has a prior in their place."""

    held = 2

    def __init__(self, next_id: int = 0) -> None:
        super().__init__(next_id)
        self.prior: MarginalPrior | None = None

    def snapshot(self, camera: Camera) -> tuple[WindowSnapshot, Tensor, Tensor] | None:
        problem = super().snapshot(camera)
        if problem is None:
            return None
        window, used, rows = problem
        fixed = torch.zeros_like(window.fixed)
        if self.prior is None:
            fixed[: self.held if self.slid and len(fixed) > self.held + 1 else 1] = True
        return replace(window, fixed=fixed, priors=() if self.prior is None else (self.prior,)), used, rows


class _Mapper(Mapper):
    """Lets keyframes go in one of the ways."""

    def __init__(self, config: Config, matcher: Matcher, way: str) -> None:
        super().__init__(config, matcher)
        self._way = way
        self.window_type = type("_HeldWindow", (_Window,), {"held": max(1, WAYS[way])})

    def extend(self, window: Window, places: Places, fresh: Fresh, mode: str) -> Adjusted | None:
        adjusted = super().extend(window, places, fresh, mode)
        if (
            self._way == "marginalize"
            and isinstance(window, _Window)
            and len(window.keyframes) >= self._config.window_keyframes
        ):
            self._marginalize(window, places, fresh.frame.camera)
        return adjusted

    def _marginalize(self, window: _Window, places: Places, camera: Camera) -> None:
        """At the optimum, before the next keyframe comes. Landmarks that the newest keyframe sees go on."""
        problem = window.snapshot(camera)
        if problem is None:
            return
        snapshot, used, rows = problem
        newest = len(window.keyframes) - 1
        leaving, alive = torch.arange(newest + 1) == 0, torch.zeros(len(rows), dtype=torch.bool)
        alive[snapshot.pt_idx[snapshot.kf_idx == newest]] = True
        prior, lost = bundle.marginalize(snapshot, leaving, self._all.bundle, alive)
        places.remember(place_of(window, 0))
        window.forget_observations(used[lost])
        window.drop_keyframe(0)
        window.prior = prior


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE[=MODE]", help="recordings with ground truth; a mode goes before --mode"
    )
    parser.add_argument(
        "--rendered", type=Path, metavar="FOLDER", help="also the five rendered recordings of bench odometry"
    )
    parser.add_argument("--matchers", default="klt,expectation", metavar="NAME,...", help="default klt,expectation")
    parser.add_argument(
        "--starts",
        default="0",
        metavar="S,...",
        help="seconds that are left out; without learning nothing is random, so that "
        "another start is what other seeds are elsewhere (default 0)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add_source_options(parser)
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import cv2

    cv2.setNumThreads(1)
    base = read_config(args).with_values({"learning.mode": "'off'"})
    rows: list[dict[str, Any]] = []
    for start in map(float, args.starts.split(",")):
        for name, source in recordings(argparse.Namespace(**{**vars(args), "start": start})):
            for matcher in args.matchers.split(","):
                config = base.with_values({"matcher.name": matcher})
                row: dict[str, Any] = {"source": name, "mode": source.mode, "matcher": matcher, "start_s": start}
                for way in WAYS:

                    def prepare(pipeline: Pipeline, config: Config = config, way: str = way) -> None:
                        pipeline.odometry._mapper = _Mapper(config, pipeline.matcher, way)

                    row[way] = measure(source, config, prepare).get("ate_m")
                rows.append(row)
    print(_table(rows))
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{group: {way: geometric mean of its ATE over that of `drop`}}, of rows that every way has brought to an end."""
    whole = [row for row in rows if all(row[way] for way in WAYS)]
    groups = {"all": whole}
    for key in ("matcher", "mode"):
        for value in dict.fromkeys(row[key] for row in whole):
            groups[value] = [row for row in whole if row[key] == value]
    return {
        name: {way: math.exp(sum(math.log(row[way] / row["drop"]) for row in mine) / len(mine)) for way in WAYS}
        for name, mine in groups.items()
        if mine
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'recording':>24} {'mode':>7} {'matcher':>12} {'from':>5} | ATE in m: "
        + " ".join(f"{way:>12}" for way in WAYS)
    ]
    for row in rows:
        cells = " ".join(f"{'-' if row[way] is None else format(row[way], '.4f'):>12}" for way in WAYS)
        lines.append(
            f"{row['source']:>24} {row['mode']:>7} {row['matcher']:>12} {row['start_s']:>5g} |           " + cells
        )
    for name, means in summarise(rows).items():
        lines.append(f"{'over drop, ' + name:>51} |           " + " ".join(f"{means[way]:>12.3f}" for way in WAYS))
    return "\n".join(lines)
