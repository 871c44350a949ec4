"""Learning from windows: a candidate is trained, validated on later windows, promoted, and validated again after deployment.

A window trains or it validates. While weights are validated nothing is trained; the windows of that time are trained on after the verdict.

Synchronous and single-threaded; `worker` runs it in sync mode or in a background thread.
"""

from __future__ import annotations

import copy
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ..core.config import Config
from ..core.types import LearningSample, WeightsSnapshot
from ..matching.base import Features, Matcher
from ..matching.weights import hash_state
from .cooperative_yield import yield_in_layers
from .gate import refuse
from .replay_buffer import ReplayBuffer
from .sample import hold_out
from .sequential_test import AlphaSpending, enough_new
from .step import Stepper
from .validation import PairedTest, Verdict, candidate_test, post_deployment_test, score


@dataclass(frozen=True)
class WeightsUpdate:
    """New weights, adopted at a frame boundary, with those features of the window by them that were extracted by then."""

    snapshot: WeightsSnapshot
    features: dict[int, Features]  # by frame id of the keyframe; odometry extracts the others itself
    rollback: bool = False


@dataclass
class LearningStatus:
    """What is published about learning."""

    state: str = "off"  # off, learning, validating, failed
    mode: str = "off"  # off, sync, thread: how what runs now was started
    step: int = 0
    loss: float = float("nan")
    validation_before: float = float("nan")
    validation_after: float = float("nan")
    samples: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    promotions: int = 0
    rollbacks: int = 0
    weights_version: int = 0
    weights_hash: str = ""
    confirmed_version: int = 0  # the newest that passed post-deployment validation
    busy_s: float = 0.0
    memory_mb: float = 0.0  # of the learner's tensors between two windows


@dataclass
class Comparison:
    """A paired test between the active weights and others: a candidate, or after deployment the previous weights."""

    other: Matcher
    test: PairedTest
    used_ids: frozenset[int] = frozenset()  # frame ids of keyframes that trained or promoted one of the two
    last_ids: frozenset[int] = frozenset()  # of the last window compared

    def accepts(self, sample: LearningSample) -> bool:
        """Whether none of a window's keyframes was used before, and enough of them are new since the last window compared."""
        ids = sample.keyframe_ids
        return not self.used_ids.intersection(ids) and enough_new(ids, self.last_ids)


class Learner:
    """Consumes windows one by one; returns an update when odometry should change its weights.

    Attributes:
        active: a copy of the weights that odometry uses, or is about to adopt.
        candidate: validation of a candidate; None while there is none.
        deployed: post-deployment validation of the active weights against the previous ones; None once confirmed.
    """

    def __init__(
        self,
        matcher: Matcher,
        config: Config,
        on_event: Callable[[dict], None],
        pretrained: dict[str, Tensor] | None = None,
        newest_version: int = 0,
    ) -> None:
        """`matcher` is the active one; it is copied, never touched. L2-SP decays to `pretrained`, by default its own weights.
        New weights get versions above `newest_version`, those of earlier runs."""
        self.config, self.settings, self.on_event = config, config.learning, on_event
        self.pretrained = {k: v.detach().clone() for k, v in (pretrained or matcher.state_dict()).items()}
        self.active = self._copy(matcher)
        yield_in_layers(self.active)  # and in all copies of it
        self.generator = torch.Generator().manual_seed(config.seed)
        self.replay = ReplayBuffer(self.settings.replay_windows)
        # Windows that came while weights were validated; no more than replay keeps.
        self.postponed: deque[LearningSample] = deque(maxlen=self.settings.replay_windows)
        self.spending = AlphaSpending(1 - self.settings.confidence)
        self.version = matcher.weights_version
        self.newest_version = max(self.version, newest_version)
        self.status = LearningStatus(
            "learning",
            weights_version=self.version,
            weights_hash=hash_state(matcher.state_dict()),
            confirmed_version=self.version,
        )
        self.rejected: Counter[str] = Counter()
        self.deployed: Comparison | None = None
        self.candidate: Comparison | None = None
        self.steps = 0  # since the last candidate
        self._restart_training()
        self.status.memory_mb = self.held_mb()

    def configure(self, config: Config) -> None:
        """Takes over settings that may change while learning; frozen, so another thread may be reading the old ones."""
        self.config, self.settings = config, config.learning
        self.stepper.configure(config.learning, config.bundle)

    def consume(self, sample: LearningSample) -> WeightsUpdate | None:
        """Validates weights on a window, or trains on it."""
        begin = time.perf_counter()
        try:
            reason = refuse(sample, self.settings)
            if reason is not None:
                self._reject(reason)
                return None
            self.status.samples += 1
            update = self._validate_deployed(sample) if self.deployed else self._validate_candidate(sample)
            if self.deployed or self.candidate:
                self.status.state = "validating"
                self.postponed.append(sample)
            elif update is None:  # an update is handed over without delay
                self.status.state = "learning"
                self._train(sample)
            return update
        finally:
            self.status.memory_mb = self.held_mb()
            self.status.busy_s += time.perf_counter() - begin

    def promote(self, matcher: Matcher, stamp_ns: int, verdict: Verdict) -> WeightsUpdate:
        """Makes a matcher the active one, to be confirmed by post-deployment validation, or at once without the guard."""
        # On the windows that promoted them, weights look better than they are.
        used = self.candidate.used_ids | self.candidate.last_ids if self.candidate else frozenset()
        test = post_deployment_test(self.settings)
        self.deployed = Comparison(self.active, test, used) if self.settings.guard else None
        self.active, self.candidate = matcher, None
        self.status.promotions += 1
        update = self._activate("promotion", stamp_ns, verdict)
        if self.deployed is None:
            self.status.confirmed_version = self.version
        return update

    def tracking_lost(self, version: int, stamp_ns: int) -> WeightsUpdate | None:
        """Tracking was lost with weights `version`: while in post-deployment validation they are rolled back."""
        if version != self.version:
            return None
        return self.roll_back_unconfirmed(stamp_ns, "tracking was lost in post-deployment validation")

    def roll_back_unconfirmed(self, stamp_ns: int, reason: str) -> WeightsUpdate | None:
        """Rolls back weights that are in post-deployment validation; None when there are none."""
        if self.deployed is None:
            return None
        windows = self.deployed.test.windows
        return self._roll_back(self.deployed, stamp_ns, Verdict("better", reason, float("nan"), float("nan"), windows))

    def held_mb(self) -> float:
        """Memory of what is kept between two windows, MB: weights and their copies, optimizer state, windows for replay."""
        return held_mb(
            self.pretrained,
            self.active,
            self.deployed,
            self.candidate,
            self.stepper.held(),
            self.replay,
            self.postponed,
        )

    def _train(self, sample: LearningSample) -> None:
        """Steps on the window and on replayed ones; those that came during a validation are among these from now on."""
        for window in [*self.postponed, sample]:
            self.training_ids.extend(window.keyframe_ids)
            self.replay.add(window)
        self.postponed.clear()
        for window in [sample, *self._draw_replay()]:
            result = self.stepper.step(window, self.generator)
            if isinstance(result, str):
                self._reject(result)
                continue
            self.steps += 1
            self.status.step += 1
            if isfinite(result.residual):
                self.status.loss = result.residual
            self._emit("learning_step", sample.stamp_ns, step=self.status.step, **vars(result))

    def _draw_replay(self) -> list[LearningSample]:
        """Replayed windows for one new window: at most four, on average as many as `replay_share` demands."""
        if len(self.replay) <= 1:
            return []
        expected = self.settings.replay_share / max(1 - self.settings.replay_share, 1e-3)
        count = int(expected) + (float(torch.rand((), generator=self.generator)) < expected - int(expected))
        return [self.replay.draw(self.generator) for _ in range(min(count, 4))]

    def _validate_candidate(self, sample: LearningSample) -> WeightsUpdate | None:
        """Compares the candidate with the active weights on the window; names a candidate after enough steps."""
        if self.candidate is None:
            if self.steps < self.settings.candidate_steps:
                return None
            test = candidate_test(self.settings, self.spending, sample.stamp_ns)
            candidate = self.stepper.candidate([*self.replay], self.generator)
            self.candidate = Comparison(candidate, test, frozenset(self.training_ids))
            self.steps = 0
        if not self.settings.guard:
            no_test = Verdict("better", "no guard", float("nan"), float("nan"), 0)
            return self.promote(self.candidate.other, sample.stamp_ns, no_test)
        verdict = self._compare(sample, self.candidate)
        if verdict is None:
            return None
        self.status.validation_before, self.status.validation_after = verdict.before_px, verdict.after_px
        if verdict.outcome == "pending":
            return None
        self._emit("validation", sample.stamp_ns, **vars(verdict), step=self.status.step)
        if verdict.outcome == "better":
            self.spending.give_back()
            return self.promote(self.candidate.other, sample.stamp_ns, verdict)
        # What was not better keeps its progress, and training continues; after a worse one it restarts from the active weights.
        self.candidate = None
        if verdict.outcome == "worse":
            self._restart_training()
        return None

    def _validate_deployed(self, sample: LearningSample) -> WeightsUpdate | None:
        """Compares the previous weights with the deployed ones, and rolls back when the previous are better."""
        # A window from before the promotion was matched by other weights.
        if self.deployed is None or sample.weights_version != self.version:
            return None
        verdict = self._compare(sample, self.deployed)
        if verdict is None:
            return None
        if verdict.outcome == "better":
            return self._roll_back(self.deployed, sample.stamp_ns, verdict)
        if verdict.windows >= self.deployed.test.most:
            self.deployed = None
            self.status.confirmed_version = self.version
            self._emit(
                "promotion_confirmed",
                sample.stamp_ns,
                version=self.version,
                hash=self.status.weights_hash,
                windows=verdict.windows,
            )
        return None

    def _compare(self, sample: LearningSample, comparison: Comparison) -> Verdict | None:
        """Scores the active and the other weights on the same queries and the same warp; None where that shows nothing new."""
        if not comparison.accepts(sample):
            return None
        seed = self.config.seed + sample.stamp_ns % 1_000_003
        sample = hold_out(sample, self.config.seed)
        active = score(self.active, sample, self.settings, self.config.bundle, seed)
        other = (
            score(comparison.other, sample, self.settings, self.config.bundle, seed) if active.has_held_out else active
        )
        if not other.has_held_out:
            self._reject("nothing held out to validate with")
            return None
        comparison.last_ids = frozenset(sample.keyframe_ids)
        return comparison.test.add(active, other)

    def _roll_back(self, deployed: Comparison, stamp_ns: int, verdict: Verdict) -> WeightsUpdate:
        self.active, self.deployed = deployed.other, None
        self.status.rollbacks += 1
        self._restart_training()
        update = self._activate("rollback", stamp_ns, verdict)
        self.status.confirmed_version = self.version
        return update

    def _activate(self, event: str, stamp_ns: int, verdict: Verdict) -> WeightsUpdate:
        """The active weights as an update, under a new version."""
        self.version = self.newest_version = self.newest_version + 1
        self.active.weights_version = self.version
        state = {k: v.detach().clone() for k, v in self.active.state_dict().items()}
        snapshot = WeightsSnapshot(
            self.version, hash_state(state), state, verdict.before_px, verdict.after_px, self.status.step
        )
        self.status.weights_version, self.status.weights_hash = snapshot.version, snapshot.hash
        self._emit(
            event,
            stamp_ns,
            version=snapshot.version,
            hash=snapshot.hash,
            reason=verdict.reason,
            before_px=verdict.before_px,
            after_px=verdict.after_px,
            step=self.status.step,
        )
        return WeightsUpdate(snapshot, {}, event == "rollback")

    def _restart_training(self) -> None:
        """From the active weights, with a new optimizer state and without a candidate."""
        self.stepper = Stepper(self._copy(self.active), self.pretrained, self.settings, self.config.bundle)
        # Frame ids of keyframes trained on; older than the last thousand, they have left every window.
        self.training_ids: deque[int] = deque(maxlen=1000)
        self.candidate, self.steps = None, 0

    def _reject(self, reason: str) -> None:
        self.rejected[reason] += 1
        self.status.rejected = dict(self.rejected)

    def _emit(self, event: str, stamp_ns: int, **values: Any) -> None:
        self.on_event({"event": event, "stamp_ns": stamp_ns, **values})

    @staticmethod
    def _copy(matcher: Matcher) -> Matcher:
        twin = copy.deepcopy(matcher)
        twin.weights_version = matcher.weights_version
        return twin.eval()


def held_mb(*roots: Any) -> float:
    """MB (2**20 bytes) of all tensors in modules, dataclasses, mappings and sequences, on any device; each storage once."""
    sizes = {}
    for tensor in _tensors(roots):
        storage = tensor.untyped_storage()
        sizes[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values()) / 2**20


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach()
        if value.is_leaf and value.grad is not None:
            yield value.grad
    elif isinstance(value, nn.Module):
        yield from _tensors([*value.parameters(), *value.buffers()])
    elif isinstance(value, Mapping):
        yield from _tensors(value.values())
    elif is_dataclass(value):
        yield from _tensors([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from _tensors(item)
