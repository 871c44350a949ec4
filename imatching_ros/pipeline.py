"""Frames in, poses out, learning beside: what the online node and the offline replay both drive, frame by frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core.config import Config, refuse_change
from .core.errors import SourceError
from .core.timing import Clock
from .core.types import Frame, OdometryOutput, TrackingState
from .learning.learner import LearningStatus
from .learning.sample import next_sample
from .learning.weights_store import CURRENT, DeployedWeights, WeightsStore
from .matching import create_matcher
from .matching.base import Matcher
from .odometry.local_map import Window
from .odometry.odometry import Odometry
from .odometry.planar import NO_MOUNTING

Event = dict[str, Any]
MOST_KEYFRAMES = 20_000  # remembered poses of keyframes; a run of any length has bounded memory


class Pipeline:
    """Owned by one thread; only the learner, when its mode is `thread`, works in another.

    Attributes:
        odometry: poses from frames.
        weights: what the odometry's matcher uses, and learning, which replaces them.
    """

    def __init__(
        self,
        config: Config,
        on_event: Callable[[Event], None] | None = None,
        weights_dir: str | Path | None = None,
        profile: str = CURRENT,
        named: bool = False,
    ) -> None:
        """Ready for the first frame; weights of `profile` are resumed from `weights_dir` when it holds some.

        Args:
            on_event: called, by the owning thread, with one dict per event: `stamp_ns`, `event`, and what belongs to it.
            weights_dir: promoted weights are written here; None keeps nothing.
            profile: name under which the weights in use are kept, for example of a site.
            named: the user chose that name: the profile is resumed even when it was adapted from other weights than
                `matcher.weights` now gives. Otherwise such a profile is renamed, with a warning.
        """
        torch.set_num_threads(config.matcher.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self._on_event = on_event
        # Events of learning, from any thread, wait here until the owning thread passes them on.
        self._learning_events: deque[Event] = deque(maxlen=10_000)
        self.odometry = Odometry(config, create_matcher(config.matcher))
        store = None if weights_dir is None else WeightsStore(Path(weights_dir), profile)
        self.weights = DeployedWeights(self.odometry, self._learning_events.append, store, named)
        self._state: TrackingState | None = None
        self._map_id = 0
        self._imu_problem = self._planar_problem = ""
        self._fault = ""
        self._stamp_ns: int | None = None
        self._refined: dict[int, tuple[int, Tensor]] = {}

    def process(
        self, frame: Frame, on_tracked: Callable[[OdometryOutput], None] | None = None, behind: bool = False
    ) -> OdometryOutput:
        """One frame. `on_tracked` gets the pose before the keyframe work; the returned output also holds its result.

        `behind`: several frames are waiting, or some were dropped; learning in the background rests until odometry has caught up.

        Raises:
            SourceError: the stamp does not lie after that of the frame before; the frame is not used.
        """
        self._check_order(frame)
        clock = Clock()
        if self.weights.begin_frame(frame.stamp_ns, behind):
            clock.lap("adopt")
        try:
            output = self.odometry.track(frame)
            if self.odometry.tracking_failed:
                self.weights.notify_tracking_lost()
            output = replace(output, timings_ms={**output.timings_ms, **clock.laps})
            self._report_state(output)
            self._report_fault(output)
            if on_tracked is not None:
                on_tracked(output)
            return self._extend(frame, output)
        finally:
            self.weights.end_frame()  # or learning would rest until the next frame, which may never come

    def _extend(self, frame: Frame, output: OdometryOutput) -> OdometryOutput:
        """The keyframe work of a frame, if it is one; the solved window goes to learning."""
        clock = Clock()
        result = self.odometry.extend()
        if not output.is_keyframe:
            return output
        clock.lap("keyframe")
        self._rescale_keyframes(frame.stamp_ns)
        self._report(
            frame.stamp_ns,
            "keyframe",
            frame_id=frame.id,
            landmarks=len(self.window.landmarks),
            status=None if result is None else result.status.value,
        )
        self._remember_keyframes()
        self.weights.learn(None if self.weights.learning is None else next_sample(self.odometry))
        self._pass_events_on()
        return replace(output, bundle=result, timings_ms={**output.timings_ms, **clock.laps})

    def keyframes(self) -> list[tuple[int, Tensor]]:
        """(stamp_ns, T_WC (7,)) of every keyframe of the run, oldest first, as bundle adjustment last left it."""
        return sorted(self._refined.values(), key=lambda keyframe: keyframe[0])

    def add_external_odometry(self, stamp_ns: int, T_OC: Tensor) -> None:
        """A pose (7,) of the camera from external odometry, in any frame that stays; metres. See `external_odometry` in the configuration.

        Raises:
            SourceError: a pose that is not finite, or without a rotation.
        """
        self.odometry.external.add(stamp_ns, T_OC)

    def add_angular_rate(self, stamp_ns: int, rate: np.ndarray) -> None:
        """A gyroscope's rate (3,) rad/s about the axes of the camera's optical frame, at its own stamp; bad ones are left out."""
        self.odometry.gyroscope.add(stamp_ns, rate)

    def mount_camera(self, T_BC: Tensor | None, why: str = NO_MOUNTING) -> None:
        """The pose (7,) of the camera's optical frame in the base, for `odometry.planar`; None where it is not known, and `why`."""
        self.odometry.planar.mount(T_BC, why)

    @property
    def matcher(self) -> Matcher:
        """The matcher that odometry uses, with the weights in use."""
        return self.odometry.matcher

    @property
    def window(self) -> Window:
        """Keyframes and landmarks as they are now; of the thread that owns the pipeline."""
        return self.odometry.window

    def configure(self, config: Config) -> None:
        """Takes other settings over, between two frames.

        Raises:
            ConfigError: a setting differs that may not change while running; all stay as they were.
        """
        refuse_change(self.config, config)
        self.config = config
        self.odometry.configure(config)
        self.weights.configure(config)

    def reset(self) -> None:
        """Starts again with an empty map, whose id is the next one; the weights stay."""
        self.odometry.reset()
        self._state, self._map_id, self._stamp_ns = None, self.odometry.map_id, None
        self._refined.clear()

    # -- weights and learning -----------------------------------------------------------------------------------------

    def learning_status(self) -> LearningStatus:
        """See `DeployedWeights.status`."""
        return self.weights.status()

    def set_learning(self, on: bool) -> None:
        """See `DeployedWeights.set_learning`."""
        self.weights.set_learning(on)

    def save_weights(self, name: str) -> str:
        """See `DeployedWeights.save`."""
        return self.weights.save(name)

    def load_weights(self, name: str) -> str:
        """See `DeployedWeights.load`."""
        return self.weights.load(name)

    def close(self, timeout_s: float | None = None) -> None:
        """Ends what runs in the background; promoted weights are on disk then. `timeout_s`: see `DeployedWeights.close`."""
        self.weights.close(timeout_s)
        self._pass_events_on()

    # -- parts --------------------------------------------------------------------------------------------------------

    def _check_order(self, frame: Frame) -> None:
        if self._stamp_ns is not None and frame.stamp_ns <= self._stamp_ns:
            raise SourceError(
                f"frame {frame.id} has the stamp {frame.stamp_ns} ns, which is not after the one before "
                f"({self._stamp_ns} ns); frames must come in order of time; call reset when time starts again"
            )
        self._stamp_ns = frame.stamp_ns

    def _rescale_keyframes(self, stamp_ns: int) -> None:
        if self.odometry.rescaled is None:
            return
        factor, centre = self.odometry.rescaled
        if self._refined:  # at once: after hours there are thousands, and odometry waits
            poses = torch.stack([T_WC for _, T_WC in self._refined.values()])
            poses[:, :3] = centre + (poses[:, :3] - centre) * factor
            self._refined = {
                key: (stamp, T_WC) for (key, (stamp, _)), T_WC in zip(self._refined.items(), poses.unbind())
            }
        self._report(stamp_ns, "scale", factor=factor, centre_m=centre)

    def _remember_keyframes(self) -> None:
        for keyframe, T_WC in zip(self.window.keyframes, self.window.T_WC):
            self._refined[keyframe.id] = (keyframe.stamp_ns, T_WC.clone())
        while len(self._refined) > MOST_KEYFRAMES:
            del self._refined[next(iter(self._refined))]

    def _report_state(self, output: OdometryOutput) -> None:
        if output.map_id != self._map_id:
            self._map_id = output.map_id
            self._report(output.stamp_ns, "restart", frame_id=output.frame_id, map_id=output.map_id)
        if self.odometry.gyroscope.problem != self._imu_problem:
            self._imu_problem = self.odometry.gyroscope.problem
            self._report(output.stamp_ns, "imu", used=not self._imu_problem, reason=self._imu_problem)
        if self.odometry.planar.problem != self._planar_problem:
            self._planar_problem = self.odometry.planar.problem
            self._report(output.stamp_ns, "planar", used=not self._planar_problem, reason=self._planar_problem)
        if output.state is not self._state:
            before, self._state = self._state, output.state
            self._report(
                output.stamp_ns,
                output.state.value,
                frame_id=output.frame_id,
                before=None if before is None else before.value,
                reason=output.reason,
            )

    def _report_fault(self, output: OdometryOutput) -> None:
        """Once for each time that something is wrong: the text may go on to change, as with the seconds of a frozen camera."""
        if output.fault and not self._fault:
            self._report(output.stamp_ns, "warning", text=output.fault)
        self._fault = output.fault

    def _report(self, stamp_ns: int, event: str, **values: Any) -> None:
        if self._on_event is not None:
            self._on_event({"stamp_ns": stamp_ns, "event": event, **values})

    def _pass_events_on(self) -> None:
        while self._learning_events:
            event = self._learning_events.popleft()
            if self._on_event is not None:
                self._on_event({"stamp_ns": self._stamp_ns, **event})
