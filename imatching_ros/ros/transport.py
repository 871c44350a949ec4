"""The FastDDS profile that the package ships: without it, large images are lost between processes."""

from __future__ import annotations

import os
from pathlib import Path


def use_shipped_profile() -> None:
    """Names the profile in the environment, unless the user has named one. Must be called before rclpy.init."""
    names = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    path = find_shared("config/fastdds.xml")
    if path is not None and not any(name in os.environ for name in names):
        for name in names:  # ROS 2 Jazzy reads the first, newer ones the second
            os.environ[name] = str(path)


def find_shared(relative: str) -> Path | None:
    """A file of the package's share folder: installed by colcon, or of the source tree; None for a bare pip installation."""
    places = [Path(__file__).parents[2]]
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if prefix:
            places.append(Path(prefix) / "share" / "imatching_ros")
    return next((place / relative for place in places if (place / relative).is_file()), None)
