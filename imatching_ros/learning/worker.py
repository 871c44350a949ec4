"""The two ways a learner runs beside odometry: in sync mode (deterministic) and in a background thread."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from ..core.config import Config
from ..core.types import LearningSample
from ..matching.base import Matcher
from ..odometry.local_map import Keyframe
from .learner import Learner, LearningStatus, WeightsUpdate
from .rematching import observe
from .cooperative_yield import YIELD

LEAST_SHARE = 0.5  # of the budget: granted even on a computer where odometry is never idle
PATIENCE_S = 0.2  # rest taken in advance, about two frames' work
SWITCH_INTERVAL_S = 5e-4  # of the interpreter
MOST_POLLS = 30  # that an update waits for features; where every frame is a keyframe they are never complete


class InlineLearning:
    """Learns inside `submit` (sync mode): slow, but two runs with one seed are identical."""

    def __init__(
        self,
        matcher: Matcher,
        config: Config,
        on_event: Callable[[dict], None],
        pretrained: dict[str, Tensor] | None = None,
        newest_version: int = 0,
    ) -> None:
        self.learner = Learner(matcher, config, on_event, pretrained, newest_version)
        self._update: WeightsUpdate | None = None

    def submit(self, sample: LearningSample) -> None:
        """Learns from a window; returns when it is done."""
        self.offer(self.learner.consume(sample))

    def notify_tracking_lost(self, version: int, stamp_ns: int) -> None:
        """Tracking was lost with weights `version`; they are rolled back while in post-deployment validation."""
        self.offer(self.learner.tracking_lost(version, stamp_ns))

    def offer(self, update: WeightsUpdate | None) -> None:
        """Makes an update the next one that `poll` returns."""
        self._update = update or self._update

    def poll(self, keyframes: Sequence[Keyframe] = ()) -> WeightsUpdate | None:
        """The newest update that was not returned yet; odometry extracts the features of `keyframes` by it."""
        update, self._update = self._update, None
        return update

    def status(self) -> LearningStatus:
        """How learning stands."""
        return self.learner.status

    def configure(self, config: Config) -> None:
        """Takes over settings that may change while learning."""
        self.learner.configure(config)

    def begin_frame(self, behind: bool) -> None:
        """Nothing runs beside odometry."""

    def end_frame(self) -> None:
        """Nothing runs beside odometry."""

    def close(self, timeout_s: float | None = None) -> None:
        """No thread to end."""

    def roll_back_unconfirmed(self, stamp_ns: int, reason: str) -> WeightsUpdate | None:
        """After `close`: the weights to roll back to, as nothing validates the deployed ones any more."""
        return self.learner.roll_back_unconfirmed(stamp_ns, reason)


class _Closed(Exception):
    """Ends the thread from within a window."""


class WorkTime:
    """Work and rest on one window after the other, s.

    Attributes:
        busy_s: work on the windows before the one at hand.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun_s, self._rested_s = clock(), 0.0
        self.busy_s = 0.0

    def begin(self) -> None:
        """The next window."""
        self._begun_s, self._rested_s = self._clock(), 0.0

    def end(self) -> None:
        """The window at hand is done, rest included."""
        self.busy_s += self.worked_s

    @contextmanager
    def rest(self) -> Iterator[None]:
        """The time within is rest."""
        begin = self._clock()
        yield
        self._rested_s += self._clock() - begin

    @property
    def worked_s(self) -> float:
        """On the window at hand."""
        return self._clock() - self._begun_s - self._rested_s

    def owed_s(self, budget: float, advance_s: float = 0.0) -> float:
        """What is left of the rest that the work on this window costs when it may take the share `budget`, and of an advance."""
        return max(self.worked_s * (1 / budget - 1) + advance_s - self._rested_s, 0.0)


class LearningWorker:
    """Learns in its own thread, on its own copy of the weights, for a share of the time; odometry never waits for it.

    The rest of the time it sleeps. While odometry processes a frame it waits, as the two share caches, the interpreter and memory
    bandwidth; where frames leave it less than a part of its budget it works beside them.

    Any error in the thread ends learning, not odometry: the state becomes `failed`, an event has the reason, and the weights in
    use stay.
    """

    def __init__(
        self,
        matcher: Matcher,
        config: Config,
        on_event: Callable[[dict], None],
        pretrained: dict[str, Tensor] | None = None,
        newest_version: int = 0,
    ) -> None:
        self._config, self._on_event = config, on_event
        self.learner = Learner(matcher, config, on_event, pretrained, newest_version)
        self._device = matcher.device
        self._waiting: deque[LearningSample] = deque(maxlen=config.learning.queue)
        self._changed = threading.Condition()
        self._update: WeightsUpdate | None = None
        self._wanted: list[Keyframe] = []  # whose features are to be extracted by the update
        self._polls = 0  # of the update at hand, while odometry was not behind
        self._status = replace(self.learner.status)
        self._tracking_lost: tuple[int, int] | None = None  # weights version and stamp
        self._dropped = 0
        self._behind = False
        self._in_frame = False
        self._time = WorkTime()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="imatching-learning", daemon=True)
        self._thread.start()

    def submit(self, sample: LearningSample) -> None:
        """Never blocks; the oldest waiting window is dropped, and counted, when there are too many."""
        with self._changed:
            self._dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(sample)
            self._changed.notify()

    def notify_tracking_lost(self, version: int, stamp_ns: int) -> None:
        """Tracking was lost with weights `version`; they are rolled back while in post-deployment validation."""
        with self._changed:
            self._tracking_lost = version, stamp_ns
            self._changed.notify()

    def offer(self, update: WeightsUpdate | None) -> None:
        """Makes an update the next one that `poll` returns."""
        with self._changed:
            self._update = update or self._update
            self._publish()

    def poll(self, keyframes: Sequence[Keyframe] = ()) -> WeightsUpdate | None:
        """The newest update that was not returned yet, once the thread has extracted the features of `keyframes`, the window, by it.

        If odometry extracted them, the frame that adopts the update would be late. A rollback does not wait while odometry is
        behind: lost tracking may be the cause of that, and the thread rests meanwhile.
        """
        with self._changed:
            if self._update is None:
                return None
            done = self._update.features
            self._wanted = [keyframe for keyframe in keyframes if keyframe.id not in done]
            self._polls += not self._behind
            urgent = self._update.rollback and self._behind
            if self._wanted and self._polls <= MOST_POLLS and not urgent and self._thread.is_alive():
                self._changed.notify()
                return None
            update, self._update, self._wanted, self._polls = self._update, None, [], 0
            self._changed.notify()
            return update

    def status(self) -> LearningStatus:
        """How learning stands; for any thread."""
        with self._changed:
            return replace(self._status, dropped=self._dropped)

    def configure(self, config: Config) -> None:
        """Takes over settings that may change while learning."""
        self._config = config
        self.learner.configure(config)

    def begin_frame(self, behind: bool) -> None:
        """Called before every frame. `behind`: odometry is late; the thread does nothing meanwhile."""
        with self._changed:
            self._in_frame, self._behind = True, behind
            self._changed.notify()

    def end_frame(self) -> None:
        """Called after every frame."""
        with self._changed:
            self._in_frame = False
            self._changed.notify()

    def close(self, timeout_s: float | None = None) -> None:
        """Ends the thread, within the window at hand, which is discarded. `timeout_s`: the longest wait for that; None: any."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout_s)

    def roll_back_unconfirmed(self, stamp_ns: int, reason: str) -> WeightsUpdate | None:
        """After `close`: the weights to roll back to, as nothing validates the deployed ones any more."""
        update = self.learner.roll_back_unconfirmed(stamp_ns, reason)
        self._status = replace(self.learner.status, busy_s=self._status.busy_s)
        return update

    def _run(self) -> None:
        # Two OMP threads on a busy CPU spin at barriers and stall everybody; one each costs odometry next to nothing.
        torch.set_num_threads(1)
        # With Python's 5 ms a thread that comes back from a tensor operation waits long for its turn: odometry's median rises by a tenth.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(min(interval, SWITCH_INTERVAL_S))
        YIELD.set(self._yield_to_odometry)
        try:
            self._learn()
        except _Closed:
            return
        except Exception as error:  # out of memory, a defect: odometry continues with the last good weights
            with self._changed:
                self._publish(state="failed")
            self._on_event(
                {
                    "event": "learning_failed",
                    "error": f"{type(error).__name__}: {error}",
                    "traceback": traceback.format_exc(),
                }
            )
            self._take_back()
        finally:
            sys.setswitchinterval(interval)

    def _learn(self) -> None:
        """Takes one task after the other until closed."""
        # A stream of its own, or odometry's work would queue behind that of learning.
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            while (task := self._next()) is not None:
                self._time.begin()
                if isinstance(task, LearningSample):
                    update = self.learner.consume(task)
                else:
                    update = self.learner.tracking_lost(*task)
                if stream is not None:
                    stream.synchronize()  # what is handed over must be finished
                self.offer(update)
                self._rest(stream)

    def _take_back(self) -> None:
        """Rolls back weights in post-deployment validation, which ends with the learner; if that fails too, odometry keeps its weights."""
        with self._changed:
            if self._update is not None and not self._update.rollback:
                self._update = None  # was never adopted
                return
        try:
            update = self.learner.roll_back_unconfirmed(0, "learning failed")
        except Exception as error:
            self._on_event({"event": "rollback_failed", "error": f"{type(error).__name__}: {error}"})
            return
        with self._changed:
            self._update = update or self._update
            self._publish(state="failed")

    def _next(self) -> LearningSample | tuple[int, int] | None:
        """Waits for lost tracking (version, stamp), or for a window, the oldest that was kept; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._tracking_lost or (self._waiting and not self._behind))
            if self._closed:
                return None
            lost, self._tracking_lost = self._tracking_lost, None
            return lost or self._waiting.popleft()

    def _yield_to_odometry(self) -> None:
        """Cooperative yield: rests, within what the budget demands anyway, while odometry processes a frame.

        Raises:
            _Closed: learning ends.
        """
        with self._changed:
            owed_s = self._time.owed_s(LEAST_SHARE * self._config.learning.budget, PATIENCE_S)
            with self._time.rest():
                if self._behind:
                    self._changed.wait_for(lambda: self._closed or not self._behind)
                elif self._in_frame:
                    self._changed.wait_for(lambda: self._closed or not self._in_frame, timeout=owed_s)
            if self._closed:
                raise _Closed

    def _rest(self, stream: torch.cuda.Stream | None = None) -> None:
        """Sleeps so that the share of time worked stays within the budget; and until an update is taken, whose features it makes.

        Lost tracking ends it: bad weights must not stay until a small budget is kept.
        """
        while True:
            with self._changed:
                offered, owed_s = self._update is not None, self._time.owed_s(self._config.learning.budget)
                with self._time.rest():
                    woken = self._changed.wait_for(
                        lambda: (
                            self._closed or self._tracking_lost or self._wanted or (offered and self._update is None)
                        ),
                        timeout=None if offered else owed_s,
                    )
                if self._closed or self._tracking_lost or not woken:
                    self._time.end()
                    return
                update, wanted = self._update, self._wanted
            if update is not None and wanted:
                self._describe(update, wanted[-1], stream)

    def _describe(self, update: WeightsUpdate, keyframe: Keyframe, stream: torch.cuda.Stream | None) -> None:
        """Adds the features of one keyframe to the update at hand."""
        features = observe(self.learner.active, keyframe.image)
        if stream is not None:
            stream.synchronize()
        with self._changed:
            if self._update is update:
                self._update = replace(update, features={**update.features, keyframe.id: features})
                self._wanted = [other for other in self._wanted if other.id != keyframe.id]
            self._publish()

    def _publish(self, state: str = "") -> None:
        status = self.learner.status
        busy_s = self._time.busy_s + self._time.worked_s
        self._status = replace(status, busy_s=busy_s, state=state or status.state)


Learning = InlineLearning | LearningWorker


def start_learning(
    matcher: Matcher,
    config: Config,
    on_event: Callable[[dict], None],
    pretrained: dict[str, Tensor] | None = None,
    newest_version: int = 0,
) -> Learning | None:
    """The learner of `learning.mode`; None when learning is off or the matcher cannot learn. See `Learner` for the arguments."""
    if config.learning.mode == "off" or not matcher.trainable:
        return None
    return (InlineLearning if config.learning.mode == "sync" else LearningWorker)(
        matcher, config, on_event, pretrained, newest_version
    )
