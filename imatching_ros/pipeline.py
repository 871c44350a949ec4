"""Odometry with learning beside it: what the online node and the offline replay both drive, frame by frame."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .core.timing import Clock
from .core.config import Config, refuse_change
from .core.types import Frame, OdometryOutput, TrackingState, WeightsSnapshot
from .core.errors import ConfigError, SourceError, WeightsError
from .learning.learner import LearningStatus, WeightsUpdate
from .learning.weights_store import CURRENT, WeightsStore
from .learning.worker import Learning, start_learning
from .matching import create_matcher
from .matching.weights import DEFAULT_DIR, hash_state, load_weights, read_header, write_weights
from .odometry.odometry import Odometry
from .learning.sample import next_sample
from .odometry.local_map import Window

log = logging.getLogger(__name__)

Event = dict[str, Any]
MOST_KEYFRAMES = 20_000  # remembered poses of keyframes; a run of any length has bounded memory


class Pipeline:
    """Owned by one thread; only the learner, when its mode is `thread`, works in another.

    Attributes:
        origin: where the weights that it started with came from, their version and hash.
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
        self._store = None if weights_dir is None else WeightsStore(Path(weights_dir), profile)
        self.matcher = create_matcher(config.matcher)
        self._shipped = {name: value.detach().clone() for name, value in self.matcher.state_dict().items()}
        self._base = hash_state(self._shipped)
        self.origin = f"weights '{config.matcher.weights}'" if self.matcher.state_dict() else "no weights"
        if self._store is not None and self.matcher.trainable and self._store.resume(self.matcher, self._base, named):
            self.origin = f"weights of profile '{profile}' resumed from {self._store.path(profile)}"
        self._hash = hash_state(self.matcher.state_dict())  # of the weights in use
        self._ended = LearningStatus()
        if self.matcher.state_dict():
            self.origin += f", version {self.matcher.weights_version}, hash {self._hash}"
        self.odometry = Odometry(config, self.matcher)
        # Events of the background thread wait here until the owning thread passes them on.
        self._learning_events: deque[Event] = deque(maxlen=10_000)
        self._learning = self._start_learning()
        self._previous: WeightsSnapshot | None = None
        self._unconfirmed: tuple[WeightsSnapshot, Event] | None = (
            None  # adopted, not yet the profile; where it comes from
        )
        self._state: TrackingState | None = None
        self._map_id = 0
        self._stamp_ns: int | None = None
        self._writer = ThreadPoolExecutor(1, "imatching-weights")
        self._refined: dict[int, tuple[int, Tensor]] = {}

    def process(
        self, frame: Frame, on_tracked: Callable[[OdometryOutput], None] | None = None, behind: bool = False
    ) -> OdometryOutput:
        """One frame. `on_tracked` gets the pose before the keyframe work; the returned output also holds its result.

        `behind`: frames are waiting or were dropped; learning in the background rests until odometry has caught up.

        Raises:
            SourceError: the stamp does not lie after that of the frame before; the frame is not used.
        """
        if self._stamp_ns is not None and frame.stamp_ns <= self._stamp_ns:
            raise SourceError(
                f"frame {frame.id} has the stamp {frame.stamp_ns} ns, which is not after the one before "
                f"({self._stamp_ns} ns); frames must come in order of time; call reset when time starts again"
            )
        self._stamp_ns = frame.stamp_ns
        clock = Clock()
        if self._adopt_update():
            clock.lap("adopt")
        if self._learning is not None:
            self._learning.begin_frame(behind)
        output = self.odometry.track(frame)
        if self._learning is not None and self.odometry.tracking_failed:
            self._learning.notify_tracking_lost(self.matcher.weights_version, frame.stamp_ns)
        output = replace(output, timings_ms={**output.timings_ms, **clock.laps})
        self._report_state(output)
        if on_tracked is not None:
            on_tracked(output)
        clock = Clock()
        result = self.odometry.extend()
        if output.is_keyframe:
            clock.lap("keyframe")
            self._rescale_keyframes(frame.stamp_ns)
            self._report(
                frame.stamp_ns,
                "keyframe",
                frame_id=frame.id,
                landmarks=len(self.odometry.window.landmarks),
                status=None if result is None else result.status.value,
            )
            output = replace(output, bundle=result, timings_ms={**output.timings_ms, **clock.laps})
            self._remember_keyframes()
            self._submit_window()
        if self._learning is not None:
            self._learning.end_frame()
        return output

    def keyframes(self) -> list[tuple[int, Tensor]]:
        """(stamp_ns, T_WC (7,)) of every keyframe of the run, oldest first, as bundle adjustment last left it."""
        return sorted(self._refined.values(), key=lambda keyframe: keyframe[0])

    def add_odometry(self, stamp_ns: int, T_OC: Tensor) -> None:
        """A pose (7,) of the camera from elsewhere, in any frame that stays; metres. See `external_odometry` in the configuration.

        Raises:
            SourceError: a pose that is not finite, or without a rotation.
        """
        self.odometry.input.add(stamp_ns, T_OC)

    def _rescale_keyframes(self, stamp_ns: int) -> None:
        if self.odometry.rescaled is None:
            return
        factor, centre = self.odometry.rescaled
        for key, (stamp, T_WC) in self._refined.items():
            self._refined[key] = stamp, torch.cat([centre + (T_WC[:3] - centre) * factor, T_WC[3:]])
        self._report(stamp_ns, "scale", factor=factor, centre_m=centre)

    def _remember_keyframes(self) -> None:
        for keyframe, T_WC in zip(self.window.keyframes, self.window.T_WC):
            self._refined[keyframe.id] = (keyframe.stamp_ns, T_WC.clone())
        while len(self._refined) > MOST_KEYFRAMES:
            del self._refined[next(iter(self._refined))]

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
        if self._learning is not None:
            self._learning.configure(config)

    def reset(self) -> None:
        """Starts again with an empty map, whose id is the next one; the weights stay."""
        self.odometry.reset()
        self._state, self._map_id, self._stamp_ns = None, self.odometry.map_id, None
        self._refined.clear()

    def _start_learning(self) -> Learning | None:
        given = max(self._ended.weights_version, 0 if self._store is None else self._store.newest_version())
        return start_learning(self.matcher, self.config, self._learning_events.append, self._shipped, given)

    # -- learning -----------------------------------------------------------------------------------------------------

    def learning_status(self) -> LearningStatus:
        """How learning stands; while it is off, how it stood at its end, with the state `off`. The weights are those in use."""
        status = self._ended if self._learning is None else self._learning.status()
        return replace(status, weights_version=self.matcher.weights_version, weights_hash=self._hash)

    def set_learning(self, on: bool) -> None:
        """Starts learning, from the weights in use, or ends it; weights in post-deployment validation are rolled back then.

        Raises:
            ConfigError: the settings or the matcher rule learning out.
        """
        if not on:
            self._end_learning(roll_back=True)
        elif self._learning is None:
            self._learning = self._start_learning()
            if self._learning is None:
                raise ConfigError(
                    f"learning cannot be switched on: learning.mode is '{self.config.learning.mode}' and the matcher "
                    f"'{self.matcher.name}' {'can' if self.matcher.trainable else 'cannot'} learn; start with "
                    "learning.mode thread or sync and a matcher that learns"
                )

    def save_weights(self, name: str) -> str:
        """Writes the weights in use as a profile, or as a file when the name ends in .safetensors. Returns what it did."""
        path = self._path(name)
        write_weights(
            path,
            self.matcher.name,
            self.matcher.state_dict(),
            self.matcher.weights_version,
            {"kind": "saved by request", "base": self._base},
        )
        return f"wrote version {self.matcher.weights_version} to {path}"

    def load_weights(self, name: str) -> str:
        """Takes a profile, a .safetensors file, `default` or `previous` into use. Returns what it did.

        Raises:
            WeightsError: no such weights, or they do not fit; the weights in use stay.
        """
        if name == "previous":
            if self._previous is None:
                raise WeightsError("there are no previous weights: nothing was promoted or loaded yet")
            state, origin = self._previous.state, f"version {self._previous.version}"
        else:
            path = DEFAULT_DIR / f"{self.matcher.name}.safetensors" if name == "default" else self._path(name)
            loaded = create_matcher(replace(self.config.matcher, device="cpu"))
            load_weights(loaded, path)
            state, origin = loaded.state_dict(), str(path)
        learned = self._learning is not None
        self._end_learning()
        version = (
            max(
                self.matcher.weights_version,
                self._ended.weights_version,
                0 if self._previous is None else self._previous.version,
            )
            + 1
        )
        snapshot = WeightsSnapshot(version, hash_state(state), {k: v.clone() for k, v in state.items()})
        self._take(WeightsUpdate(snapshot, {}))
        self.set_learning(learned)
        return f"took {origin} into use as version {version}{self._warn_of_profile(snapshot.hash)}"

    def _warn_of_profile(self, used: str) -> str:
        """What a restart would do that the user of `load_weights` may not expect."""
        profile = None if self._store is None else self._store.path(self._store.profile)
        if profile is None or not profile.is_file() or read_header(profile).hash == used:
            return ""
        return f"; a restart still resumes {profile.name}, unless ~/save_weights writes these there"

    def close(self) -> None:
        """Ends what runs in the background; promoted weights are on disk then."""
        self._end_learning()
        self._writer.shutdown()
        self._pass_events_on()

    def _submit_window(self) -> None:
        """Hands the newest converged window to the learner."""
        sample = next_sample(self.odometry)
        if self._learning is not None and sample is not None:
            self._learning.submit(sample)
        self._keep_confirmed()
        self._pass_events_on()

    def _adopt_update(self) -> bool:
        """Between two frames: takes weights into use that learning offers, if there are any."""
        update = None if self._learning is None else self._learning.poll(self.window.keyframes)
        if update is None:
            return False
        self._adopt(update)
        return True

    def _adopt(self, update: WeightsUpdate) -> None:
        self._keep_confirmed()  # those before may have passed post-deployment validation with the very window that brought these
        self._take(update)
        self._unconfirmed = (
            update.snapshot,
            {
                "kind": "rollback" if update.rollback else "promotion",
                "base": self._base,
                "stamp_ns": self._stamp_ns,
                "seed": self.config.seed,
            },
        )
        self._write(*self._unconfirmed, confirmed=False)
        self._keep_confirmed()

    def _keep_confirmed(self) -> None:
        """Weights become the profile, which a restart resumes, only once they have passed post-deployment validation."""
        if self._unconfirmed is None or self._learning is None:
            return
        if self._learning.status().confirmed_version == self._unconfirmed[0].version:
            self._write(*self._unconfirmed, confirmed=True)
            self._unconfirmed = None

    def _write(self, snapshot: WeightsSnapshot, provenance: Event, confirmed: bool) -> None:
        if self._store is not None:
            self._writer.submit(self._write_now, self._store, snapshot, provenance, confirmed)

    def _write_now(self, store: WeightsStore, snapshot: WeightsSnapshot, provenance: Event, confirmed: bool) -> None:
        """In a thread of its own: odometry does not wait for a disk, nor end when it is full."""
        try:
            store.write(self.matcher.name, snapshot, provenance, confirmed)
        except OSError as error:
            log.warning(f"weights version {snapshot.version} are in use, but could not be written: {error}")
            self._learning_events.append(
                {"event": "weights_not_written", "version": snapshot.version, "error": str(error)}
            )

    def _take(self, update: WeightsUpdate) -> None:
        self._previous = WeightsSnapshot(
            self.matcher.weights_version,
            self._hash,
            {k: v.detach().clone() for k, v in self.matcher.state_dict().items()},
        )
        self.odometry.adopt(update.snapshot, update.features)
        self._hash = update.snapshot.hash

    def _end_learning(self, roll_back: bool = False) -> None:
        """`roll_back`: odometry goes on without learning."""
        if self._learning is not None:
            self._learning.close()
            update = self._learning.poll()
            if roll_back and update is None:  # else it never came into use, or is the way back itself
                update = self._learning.roll_back_unconfirmed(
                    self._stamp_ns or 0, "learning was switched off in post-deployment validation"
                )
            if (
                update is not None and update.rollback
            ):  # a promotion is not adopted any more, as nothing would validate it
                self._adopt(update)
            self._keep_confirmed()
            if self._unconfirmed is not None:
                log.info(
                    f"weights version {self._unconfirmed[0].version} are still in post-deployment validation as learning ends: the profile stays what it was"
                )
            self._ended = replace(self._learning.status(), state="off")
            self._learning = self._unconfirmed = None

    def _path(self, name: str) -> Path:
        if name.endswith(".safetensors"):
            return Path(name).expanduser()
        if self._store is None:
            raise WeightsError(
                f"a profile needs a weights directory, and none was given; give '{name}' as a .safetensors file"
            )
        return self._store.path(name)

    def _pass_events_on(self) -> None:
        while self._learning_events:
            event = self._learning_events.popleft()
            if self._on_event is not None:
                self._on_event({"stamp_ns": self._stamp_ns, **event})

    # -- events -------------------------------------------------------------------------------------------------

    def _report_state(self, output: OdometryOutput) -> None:
        if output.map_id != self._map_id:
            self._map_id = output.map_id
            self._report(output.stamp_ns, "restart", frame_id=output.frame_id, map_id=output.map_id)
        if output.state is not self._state:
            before, self._state = self._state, output.state
            self._report(
                output.stamp_ns,
                output.state.value,
                frame_id=output.frame_id,
                before=None if before is None else before.value,
                reason=output.reason,
            )

    def _report(self, stamp_ns: int, event: str, **values: Any) -> None:
        if self._on_event is not None:
            self._on_event({"stamp_ns": stamp_ns, "event": event, **values})
