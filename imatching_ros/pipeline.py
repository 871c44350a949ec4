"""Odometry with learning beside it: what the online node and the offline replay both drive, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .config import Config
from .datatypes import Frame, OdometryOutput, TrackingState
from .errors import SourceError
from .matching import create_matcher
from .odometry import Clock, Odometry
from .window import Window

Event = dict[str, Any]


class Pipeline:
    """Owned by one thread; only the learner, when its mode is `thread`, works in another."""

    def __init__(self, config: Config, on_event: Callable[[Event], None] | None = None, weights_dir: str | Path | None = None) -> None:
        """`on_event` is called with one dict per event: `stamp_ns`, `event`, and what belongs to it. Promoted weights are written
        to `weights_dir`."""
        torch.set_num_threads(config.matcher.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self._on_event = on_event
        self._weights_dir = None if weights_dir is None else Path(weights_dir)
        self.matcher = create_matcher(config.matcher)
        self.odometry = Odometry(config, self.matcher)
        self._state: TrackingState | None = None
        self._map_id = 0
        self._stamp_ns: int | None = None

    def process(self, frame: Frame, on_tracked: Callable[[OdometryOutput], None] | None = None) -> OdometryOutput:
        """One frame. `on_tracked` gets the pose before the keyframe work; the returned output also holds its result.

        Raises:
            SourceError: the stamp does not lie after that of the frame before; the frame is not used.
        """
        if self._stamp_ns is not None and frame.stamp_ns <= self._stamp_ns:
            raise SourceError(f"frame {frame.id} has the stamp {frame.stamp_ns} ns, which is not after the one before "
                              f"({self._stamp_ns} ns); frames must come in order of time; call reset when time starts again")
        self._stamp_ns = frame.stamp_ns
        output = self.odometry.track(frame)
        self._tell_state(output)
        if on_tracked is not None:
            on_tracked(output)
        clock = Clock()
        result = self.odometry.extend()
        if output.is_keyframe:
            clock.lap("keyframe")
            self._tell(frame.stamp_ns, "keyframe", frame_id=frame.id, landmarks=len(self.odometry.window.landmarks),
                       status=None if result is None else result.status.value)
            output = replace(output, bundle=result, timings_ms={**output.timings_ms, **clock.laps})
        return output

    @property
    def window(self) -> Window:
        """Keyframes and landmarks as they are now; of the thread that owns the pipeline."""
        return self.odometry.window

    def configure(self, config: Config) -> None:
        """Takes over settings that may change while running (`live` in the configuration); others keep their effect of the start."""
        self.config = self.odometry.config = config

    def reset(self) -> None:
        """Starts again with an empty map; the weights stay."""
        self.odometry.reset()
        self._state, self._map_id, self._stamp_ns = None, 0, None

    def close(self) -> None:
        """Ends what runs in the background."""

    def _tell_state(self, output: OdometryOutput) -> None:
        if output.map_id != self._map_id:
            self._map_id = output.map_id
            self._tell(output.stamp_ns, "restart", frame_id=output.frame_id, map_id=output.map_id)
        if output.state is not self._state:
            before, self._state = self._state, output.state
            self._tell(output.stamp_ns, output.state.value, frame_id=output.frame_id, before=None if before is None else before.value,
                       reason=output.reason)

    def _tell(self, stamp_ns: int, event: str, **values: Any) -> None:
        if self._on_event is not None:
            self._on_event({"stamp_ns": stamp_ns, "event": event, **values})
