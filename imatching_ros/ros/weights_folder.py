"""Where a node keeps its weights, and under which name when the user gives none."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..core.config import MatcherConfig


def weights_directory(given: str) -> Path:
    """Where weights are kept: the parameter, else under $ROS_HOME, never the working directory."""
    if given:
        return Path(given).expanduser()
    home = os.environ.get("ROS_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".ros") / "imatching_ros"


def default_profile(matcher: MatcherConfig, namespace: str = "/") -> str:
    """Kept apart: what was learned from the shipped weights and from a file of the user's, by every network, and in every namespace,
    for two nodes of one robot learn from two cameras."""
    own = (
        matcher.name
        if matcher.weights == "default"
        else re.sub(r"\W", "_", Path(matcher.weights).stem, flags=re.ASCII) + "_adapted"
    )
    prefix = namespace.strip("/").replace("/", "-")
    return f"{prefix}_{own}" if prefix else own
