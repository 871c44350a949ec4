"""The life of a candidate: it learns from windows, is tried on later ones, is promoted, and stays on probation.

Synchronous and single-threaded; `worker.LearningWorker` runs it in the background, `pipeline.Pipeline` in line.
"""

from __future__ import annotations

import copy
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.config import Config
from ..core.types import LearningSample, WeightsSnapshot
from ..matching.base import Features, Matcher
from ..matching.weights import hash_state
from .gate import refuse
from .memory import held_mb
from .replay_buffer import ReplayBuffer
from .step import Stepper
from .validation import LOOK_EVERY, Score, Verdict, judge, score
from .cooperative_yield import give_way_in_layers


REMEMBERED = 1000  # keyframes that taught a candidate; older ones cannot be in a window any more


@dataclass(frozen=True)
class WeightsUpdate:
    """New weights, adopted at a frame boundary, with what is known by then of the window's features by them."""

    snapshot: WeightsSnapshot
    features: dict[int, Features]  # by frame id of the keyframe; odometry makes the others itself
    previous_version: int
    rollback: bool = False


@dataclass
class LearningStatus:
    """What is published about learning."""

    state: str = "off"  # off, learning, trial, failed
    step: int = 0
    loss: float = float("nan")
    probe_before: float = float("nan")
    probe_after: float = float("nan")
    samples: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    promotions: int = 0
    rollbacks: int = 0
    weights_version: int = 0
    weights_hash: str = ""
    proven_version: int = 0  # the newest that is not on probation
    busy_s: float = 0.0
    memory_mb: float = 0.0  # of the learner's tensors between two windows


class Learner:
    """Consumes windows one by one; returns an update when odometry should change its weights."""

    def __init__(
        self,
        matcher: Matcher,
        config: Config,
        on_event: Callable[[dict], None],
        shipped: dict[str, Tensor] | None = None,
        newest_version: int = 0,
    ) -> None:
        """`matcher` is the active one; it is copied, never touched. The anchor pulls towards `shipped`, when not given to its weights.
        New weights get versions above `newest_version`, those of earlier runs."""
        self.config, self.settings, self.on_event = config, config.learning, on_event
        self.shipped = {k: v.detach().clone() for k, v in (shipped or matcher.state_dict()).items()}
        self.active = self._copy(matcher)
        give_way_in_layers(self.active)  # and in all copies of it
        self.previous: Matcher | None = None
        self.generator = torch.Generator().manual_seed(config.seed)
        self.replay = ReplayBuffer(self.settings.replay_windows)
        self.version = matcher.weights_version
        self.newest_version = max(self.version, newest_version)
        self.status = LearningStatus(
            "learning",
            weights_version=self.version,
            weights_hash=hash_state(matcher.state_dict()),
            proven_version=self.version,
        )
        self.rejected: Counter[str] = Counter()
        self.probation: list[tuple[Score, Score]] = []
        self.watched: set[int] = set()  # frame ids of the keyframes of the last window on probation
        self.contender: Matcher | None = None  # the weights on trial
        self.taught: set[int] = set()  # frame ids of keyframes that taught it
        self.judged: set[int] = set()  # of those that judged it last
        self.steps = 0  # since the last contender was named
        self._begin_candidate(self.active)
        self.status.memory_mb = self.held_mb()

    def configure(self, config: Config) -> None:
        """Takes over settings that may change while learning; frozen, so another thread may be reading the old ones."""
        self.config, self.settings = config, config.learning
        self.stepper.configure(config.learning, config.bundle)

    def consume(self, sample: LearningSample) -> WeightsUpdate | None:
        """Learns from a window, or tries on it what was learned."""
        begin = time.perf_counter()
        try:
            reason = refuse(sample, self.settings)
            if reason is not None:
                self._reject(reason)
                return None
            self.status.samples += 1
            update = self._watch(sample) or self._try(sample)
            if update is None:  # else it waits for nothing
                self._learn(sample)
            return update
        finally:
            self.status.memory_mb = self.held_mb()
            self.status.busy_s += time.perf_counter() - begin

    def lose_tracking(self, version: int, stamp_ns: int) -> WeightsUpdate | None:
        """Told that odometry lost its way with weights `version`; on probation they do not stay."""
        return self.end_probation(stamp_ns, "tracking was lost on probation") if version == self.version else None

    def end_probation(self, stamp_ns: int, reason: str) -> WeightsUpdate | None:
        """The weights from before those on probation, if any are, to be taken back at once."""
        if self.previous is None:
            return None
        return self._roll_back(stamp_ns, Verdict("better", reason, float("nan"), float("nan"), len(self.probation)))

    def held_mb(self) -> float:
        """Memory of what is kept between two windows, MB: weights and their copies, the optimiser's state, windows for replay."""
        return held_mb(self.shipped, self.active, self.previous, self.contender, self.stepper.held(), self.replay)

    def _learn(self, sample: LearningSample) -> None:
        """Steps on the window and on replayed ones. Learning goes on while a contender, which is not touched by it, is tried."""
        self.learned_from.extend(sample.keyframe_ids)
        self.replay.add(sample)
        windows = [sample]
        if len(self.replay) > 1:
            # Expected share of replayed windows among those learned from.
            share = self.settings.replay_share / max(1 - self.settings.replay_share, 1e-3)
            extra = int(share) + (float(torch.rand((), generator=self.generator)) < share - int(share))
            windows += [self.replay.draw(self.generator) for _ in range(min(extra, 4))]
        for window in windows:
            result = self.stepper.step(window, self.generator)
            if isinstance(result, str):
                self._reject(result)
                continue
            self.steps += 1
            self.status.step += 1
            self.status.loss = result.residual
            self.on_event(
                {
                    "event": "learning_step",
                    "stamp_ns": sample.stamp_ns,
                    "step": self.status.step,
                    "residual": result.residual,
                    "auxiliary": result.auxiliary,
                    "observations": result.observations,
                    "gradient_norm": result.gradient_norm,
                }
            )

    def _reject(self, reason: str) -> None:
        self.rejected[reason] += 1
        self.status.rejected = dict(self.rejected)

    def _try(self, sample: LearningSample) -> WeightsUpdate | None:
        """Tries the contender on the window; names a new one when there is none and enough was learned."""
        if self.contender is None:
            self.status.state = "learning"
            if self.steps < self.settings.candidate_steps:
                return None
            self.contender, self.taught, self.steps = self.stepper.averaged(), set(self.learned_from), 0
        self.status.state = "trial"
        if not self.settings.guard:
            return self._promote(sample, Verdict("better", "no guard", float("nan"), float("nan"), 0))
        # One promotion after the other: the windows that waited for it would try the next before those in use are on probation at all.
        if self.previous is not None and sample.weights_version != self.version:
            return None
        if not _is_news(sample, self.taught, self.judged):
            return None
        scores = self._compare(sample, self.active, self.contender)
        if scores is None:
            return None
        self.judged = set(sample.keyframe_ids)
        self.scores_active.append(scores[0])
        self.scores_candidate.append(scores[1])
        verdict = judge(self.scores_active, self.scores_candidate, self.settings)
        self.status.probe_before, self.status.probe_after = verdict.before_px, verdict.after_px
        if verdict.outcome == "pending":
            return None
        self.on_event(
            {
                "event": "trial",
                "stamp_ns": sample.stamp_ns,
                "outcome": verdict.outcome,
                "reason": verdict.reason,
                "before_px": verdict.before_px,
                "after_px": verdict.after_px,
                "windows": verdict.windows,
                "step": self.status.step,
            }
        )
        if verdict.outcome == "better":
            return self._promote(sample, verdict)
        # Undecided candidates learn on; those that lost something start again from the active weights.
        if verdict.outcome == "worse":
            self._begin_candidate(self.active)
        else:
            self._end_trial()
        return None

    def _promote(self, sample: LearningSample, verdict: Verdict) -> WeightsUpdate:
        assert self.contender is not None, "only what is on trial is promoted"
        self.previous = self.active if self.settings.guard else None
        self.active = self.contender
        self.probation, self.watched = [], set()
        self.status.promotions += 1
        self._end_trial()
        update = self._update(sample.stamp_ns, "promotion", verdict)
        if not self.settings.guard:
            self.status.proven_version = self.version
        return update

    def _watch(self, sample: LearningSample) -> WeightsUpdate | None:
        """Probation: the previous weights are tried against the promoted ones, and come back when they are better."""
        # A window from before the promotion says nothing of the weights on probation.
        if self.previous is None or sample.weights_version != self.version or not _is_news(sample, set(), self.watched):
            return None
        scores = self._compare(sample, self.active, self.previous)
        if scores is None:
            return None
        self.watched = set(sample.keyframe_ids)
        self.probation.append(scores)
        most = self.settings.probation_windows
        least = min(self.settings.trial_windows, max(most - LOOK_EVERY, 2))
        verdict = judge(
            [a for a, _ in self.probation],
            [p for _, p in self.probation],
            replace(self.settings, trial_windows=least, trial_windows_max=most),
        )
        if verdict.outcome == "better":
            return self._roll_back(sample.stamp_ns, verdict)
        if len(self.probation) >= most:
            self.previous = None
            self.status.proven_version = self.version
            self.on_event(
                {
                    "event": "probation_passed",
                    "stamp_ns": sample.stamp_ns,
                    "version": self.version,
                    "hash": self.status.weights_hash,
                    "windows": len(self.probation),
                }
            )
        return None

    def _compare(self, sample: LearningSample, one: Matcher, other: Matcher) -> tuple[Score, Score] | None:
        """The scores of two sets of weights on the same queries and the same warp; None, counted, where nothing can be judged."""
        seed = self.config.seed + sample.stamp_ns % 1_000_003
        first = score(one, sample, self.settings, self.config.bundle, seed)
        second = score(other, sample, self.settings, self.config.bundle, seed) if first.judges else first
        if not second.judges:
            self._reject("nothing held out to judge by")
            return None
        return first, second

    def _roll_back(self, stamp_ns: int, verdict: Verdict) -> WeightsUpdate:
        assert self.previous is not None, "there is a way back on probation only"
        self.active, self.previous = self.previous, None
        self.status.rollbacks += 1
        self._begin_candidate(self.active)
        update = self._update(stamp_ns, "rollback", verdict)
        self.status.proven_version = self.version
        return update

    def _update(self, stamp_ns: int, event: str, verdict: Verdict) -> WeightsUpdate:
        """The active weights as an update."""
        before = self.version
        self.version = self.newest_version = self.newest_version + 1
        self.active.weights_version = self.version
        state = {k: v.detach().clone() for k, v in self.active.state_dict().items()}
        snapshot = WeightsSnapshot(
            self.version, hash_state(state), state, verdict.before_px, verdict.after_px, self.status.step
        )
        self.status.weights_version, self.status.weights_hash = snapshot.version, snapshot.hash
        self.on_event(
            {
                "event": event,
                "stamp_ns": stamp_ns,
                "version": snapshot.version,
                "hash": snapshot.hash,
                "reason": verdict.reason,
                "before_px": verdict.before_px,
                "after_px": verdict.after_px,
                "step": self.status.step,
            }
        )
        return WeightsUpdate(snapshot, {}, before, event == "rollback")

    def _begin_candidate(self, origin: Matcher) -> None:
        self.stepper = Stepper(self._copy(origin), self.shipped, self.settings, self.config.bundle)
        self.learned_from: deque[int] = deque(maxlen=REMEMBERED)  # frame ids of keyframes
        self.steps = 0
        self._end_trial()

    def _end_trial(self) -> None:
        self.contender, self.taught, self.judged = None, set(), set()
        self.scores_active: list[Score] = []
        self.scores_candidate: list[Score] = []

    @staticmethod
    def _copy(matcher: Matcher) -> Matcher:
        twin = copy.deepcopy(matcher)
        twin.weights_version = matcher.weights_version
        return twin.eval()


def _is_news(sample: LearningSample, taught: set[int], judged: set[int]) -> bool:
    """Whether a window may judge: none of its keyframes taught, and at least half of them did not judge the last time.

    Windows in a row share most keyframes, and numbers from them would look like independent witnesses without being so.
    """
    own = set(sample.keyframe_ids)
    return not own & taught and 2 * len(own & judged) <= len(own)
