"""When a frame becomes a keyframe; pure."""

from __future__ import annotations

from dataclasses import dataclass

from .config import OdometryConfig


@dataclass(frozen=True)
class Progress:
    """What has changed since the newest keyframe."""

    share: float  # of its landmarks that this frame still sees, 0..1
    parallax_px: float  # median distance between where they are and where pure rotation would have put them
    motion_px: float  # the same, rotation included
    time_s: float
    width_px: int


def keyframe_reason(progress: Progress, config: OdometryConfig) -> str:
    """Why this frame should become a keyframe; empty when it should not.

    A camera that stands still makes no keyframes: without motion, neither time nor a share that noise lowers is a reason.
    """
    if progress.parallax_px >= config.keyframe_parallax * progress.width_px:
        return "parallax"
    moved = progress.motion_px >= max(2.0, 0.1 * config.keyframe_parallax * progress.width_px)
    if progress.share < config.keyframe_share and moved:
        return "share"
    if progress.time_s >= config.keyframe_interval_s and progress.parallax_px >= 0.3 * config.keyframe_parallax * progress.width_px:
        return "time"
    return ""
