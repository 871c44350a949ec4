"""Whether odometry is right about where it is after the camera has jumped: found again, lost, or wrong and unaware of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...core import geometry
from ...core.config import Config
from ...core.types import OdometryOutput, TrackingState
from ...core.errors import ConfigError
from ...matching import create_matcher
from ...odometry.odometry import Odometry
from ..recordings.base import Source
from ..recordings.truth import from_matrices
from .odometry_runs import track

WALK = 25  # frames before a jump
FARTHEST = 40  # frames that a jump leads past the end of the walk
AFTER = 5  # frames that follow the jump and are judged as well
STEP_NS = 100_000_000
OFF = 0.15  # of the distance jumped, or a third of that of the distance walked: a pose farther from the truth is wrong
OFF_DEG = 5.0


def jump_about(source: Source, config: Config, jumps: int) -> dict[str, Any]:
    """Repeats a walk from a random frame on, followed by frames from another moment; counts the outcomes of these.

    Returns:
        Counts: `right` and `wrong` poses in the state TRACKING of the frame after the jump, `right_unverified` and `wrong_unverified` ones
        in UNVERIFIED, `lost` (no pose, or a new map), `not_started` walks without a pose at their end. Beside them `ever_wrong` jumps with a
        wrong pose in the state TRACKING in that frame or those that follow, and `in_the_end_right` ones whose last frame is right.

    Raises:
        ConfigError: the source has no ground truth, or is too short.
    """
    frames, truth = list(source), source.groundtruth()
    if truth is None or len(frames) < WALK + FARTHEST // 4:
        raise ConfigError(
            f"{source.name}: jumps need ground truth and at least {WALK + FARTHEST // 4} frames; it has {len(frames)} frames"
            f"{'' if truth is not None else ' and no ground truth'}"
        )
    matrices, known = truth.at(np.array([f.stamp_ns for f in frames]))
    T_true = torch.from_numpy(from_matrices(np.arange(len(frames)), matrices).T_WC)
    rng = np.random.default_rng(config.seed)
    odometry = Odometry(config, create_matcher(config.matcher))
    counts: Counter[str] = Counter(
        {name: 0 for name in ("right", "wrong", "right_unverified", "wrong_unverified", "lost", "not_started")}
    )
    later: Counter[str] = Counter({name: 0 for name in ("ever_wrong", "in_the_end_right")})
    for _ in range(jumps):
        start = int(rng.integers(0, len(frames) - WALK - FARTHEST // 4))
        target = int(rng.integers(start + WALK + 2, min(start + WALK + FARTHEST, len(frames))))
        order = [*range(start, start + WALK), *range(target, min(target + 1 + AFTER, len(frames)))]
        if known[order].all():
            odometry.reset()
            outputs = track(odometry, (replace(frames[i], id=k, stamp_ns=k * STEP_NS) for k, i in enumerate(order)))
            walk, after = outputs[:WALK], outputs[WALK:]
            outcomes = [judge_jump(walk, output, T_true[[*order[:WALK], i]]) for output, i in zip(after, order[WALK:])]
            counts[outcomes[0]] += 1
            later["ever_wrong"] += "wrong" in outcomes
            later["in_the_end_right"] += outcomes[-1] == "right"
    return {"jumps": sum(counts.values()), **counts, **later}


def judge_jump(walk: list[OdometryOutput], after: OdometryOutput, T_true: torch.Tensor) -> str:
    """`T_true` (WALK + 1, 7) of the walk and of the frame after the jump."""
    tracked = [k for k, output in enumerate(walk) if output.T_WC is not None]
    if not tracked or tracked[-1] != len(walk) - 1 or walk[-1].map_id > walk[0].map_id:
        return "not_started"
    if after.T_WC is None or after.map_id > walk[-1].map_id:
        return "lost"
    first, last = walk[tracked[0]].T_WC, walk[-1].T_WC
    walked = float((T_true[-2] - T_true[tracked[0]])[:3].norm())
    assert first is not None and last is not None, "both were tracked"
    scale = 1.0 if after.metric else walked / max(float((last - first)[:3].norm()), 1e-9)
    moved, true = geometry.relative(last, after.T_WC), geometry.relative(T_true[-2], T_true[-1])
    off = float((moved[:3] * scale - true[:3]).norm())
    off_deg = float(torch.rad2deg(geometry.log_so3(geometry.relative(moved, true)[3:]).norm()))
    right = off <= OFF * max(float(true[:3].norm()), walked / 3) and off_deg <= OFF_DEG
    return ("right" if right else "wrong") + ("_unverified" if after.state is TrackingState.UNVERIFIED else "")
