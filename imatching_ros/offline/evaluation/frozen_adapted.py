"""Frozen vs. adapted weights on the images of a run: figures into matches.json, drawn pairs into matches/."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.config import MatcherConfig
from ...matching import create_matcher
from ...core.types import to_json_value
from ..recordings.base import Source
from .baselines import PairMatcher
from .match_images import write_match_images
from .matching import evaluate


def compare_frozen_adapted(
    folder: Path,
    source: Source,
    config: MatcherConfig,
    adapted: Path | None,
    gaps: tuple[int, ...] = (1, 5),
    max_pairs: int = 24,
    seed: int = 0,
    unseen: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Scores and draws both sets of weights on evenly spread pairs; the same queries for both.

    Args:
        folder: of the run; gets matches.json and matches/*.jpg, which its report shows.
        config: names the matcher and the frozen weights. adapted: promoted weights, None when nothing was promoted.
        unseen: learning never saw this recording; otherwise the figures show what changed, not what holds elsewhere.
    """
    matchers = [PairMatcher("frozen", create_matcher(config))]
    if adapted is not None:
        matchers.append(PairMatcher("adapted", create_matcher(replace(config, weights=str(adapted)))))
    results = evaluate(matchers, source, gaps, max_pairs, seed, pose=False, on_progress=on_progress)
    images = folder / "matches"
    images.mkdir(exist_ok=True)
    files = write_match_images(images, matchers, source, gaps)
    data = to_json_value(
        {
            "results": results,
            "images": [str(f.relative_to(folder)) for f in files],
            "unseen": unseen,
            "adapted": None if adapted is None else adapted.name,
        }
    )
    (folder / "matches.json").write_text(json.dumps(data, indent=2) + "\n")
    return data
