"""The life of a candidate: trained on windows, validated on later ones, promoted, and validated again after deployment.

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
from .validation import LOOK_EVERY, Score, Verdict, paired_test, score
from .cooperative_yield import yield_in_layers


REMEMBERED = 1000  # keyframes trained on that are remembered; older ones cannot be in a window any more


@dataclass(frozen=True)
class WeightsUpdate:
    """New weights, adopted at a frame boundary, with those features of the window by them that were extracted by then."""

    snapshot: WeightsSnapshot
    features: dict[int, Features]  # by frame id of the keyframe; odometry makes the others itself
    previous_version: int
    rollback: bool = False


@dataclass
class LearningStatus:
    """What is published about learning."""

    state: str = "off"  # off, learning, validating, failed
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


class Learner:
    """Consumes windows one by one; returns an update when odometry should change its weights."""

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
        self.previous: Matcher | None = None
        self.generator = torch.Generator().manual_seed(config.seed)
        self.replay = ReplayBuffer(self.settings.replay_windows)
        self.version = matcher.weights_version
        self.newest_version = max(self.version, newest_version)
        self.status = LearningStatus(
            "learning",
            weights_version=self.version,
            weights_hash=hash_state(matcher.state_dict()),
            confirmed_version=self.version,
        )
        self.rejected: Counter[str] = Counter()
        self.post_deployment_scores: list[tuple[Score, Score]] = []
        self.post_deployment_ids: set[int] = (
            set()
        )  # frame ids of the keyframes of the last window of post-deployment validation
        self.candidate: Matcher | None = None  # the weights in validation
        self.trained_ids: set[int] = set()  # frame ids of keyframes that it was trained on
        self.validated_ids: set[int] = set()  # of the last window that validated it
        self.steps = 0  # since the last candidate was named
        self._restart_training(self.active)
        self.status.memory_mb = self.held_mb()

    def configure(self, config: Config) -> None:
        """Takes over settings that may change while learning; frozen, so another thread may be reading the old ones."""
        self.config, self.settings = config, config.learning
        self.stepper.configure(config.learning, config.bundle)

    def consume(self, sample: LearningSample) -> WeightsUpdate | None:
        """Trains on a window, after validating weights on it."""
        begin = time.perf_counter()
        try:
            reason = refuse(sample, self.settings)
            if reason is not None:
                self._reject(reason)
                return None
            self.status.samples += 1
            update = self._post_deployment_validation(sample) or self._validate(sample)
            if update is None:  # an update is handed over without delay
                self._train(sample)
            return update
        finally:
            self.status.memory_mb = self.held_mb()
            self.status.busy_s += time.perf_counter() - begin

    def tracking_lost(self, version: int, stamp_ns: int) -> WeightsUpdate | None:
        """Tracking was lost with weights `version`; they are rolled back while in post-deployment validation."""
        return (
            self.roll_back_unconfirmed(stamp_ns, "tracking was lost in post-deployment validation")
            if version == self.version
            else None
        )

    def roll_back_unconfirmed(self, stamp_ns: int, reason: str) -> WeightsUpdate | None:
        """Rolls back weights that are in post-deployment validation; None when there are none."""
        if self.previous is None:
            return None
        return self._roll_back(
            stamp_ns, Verdict("better", reason, float("nan"), float("nan"), len(self.post_deployment_scores))
        )

    def held_mb(self) -> float:
        """Memory of what is kept between two windows, MB: weights and their copies, the optimiser's state, windows for replay."""
        return held_mb(self.pretrained, self.active, self.previous, self.candidate, self.stepper.held(), self.replay)

    def _train(self, sample: LearningSample) -> None:
        """Steps on the window and on replayed ones. Training continues while a candidate, a copy, is validated."""
        self.training_ids.extend(sample.keyframe_ids)
        self.replay.add(sample)
        windows = [sample]
        if len(self.replay) > 1:
            # Expected number of replayed windows for each new one.
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

    def _validate(self, sample: LearningSample) -> WeightsUpdate | None:
        """Validates the candidate on the window; takes a new candidate when there is none and enough steps were taken."""
        if self.candidate is None:
            self.status.state = "learning"
            if self.steps < self.settings.candidate_steps:
                return None
            self.candidate, self.trained_ids, self.steps = self.stepper.ema_matcher(), set(self.training_ids), 0
        self.status.state = "validating"
        if not self.settings.guard:
            return self._promote(sample, Verdict("better", "no guard", float("nan"), float("nan"), 0))
        # One promotion after the other: windows that were queued before it must not validate the next candidate.
        if self.previous is not None and sample.weights_version != self.version:
            return None
        if not _is_independent(sample, self.trained_ids, self.validated_ids):
            return None
        scores = self._compare(sample, self.active, self.candidate)
        if scores is None:
            return None
        self.validated_ids = set(sample.keyframe_ids)
        self.scores_active.append(scores[0])
        self.scores_candidate.append(scores[1])
        verdict = paired_test(self.scores_active, self.scores_candidate, self.settings)
        self.status.validation_before, self.status.validation_after = verdict.before_px, verdict.after_px
        if verdict.outcome == "pending":
            return None
        self.on_event(
            {
                "event": "validation",
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
        # After an undecided test training continues; after a worse one it restarts from the active weights.
        if verdict.outcome == "worse":
            self._restart_training(self.active)
        else:
            self._end_validation()
        return None

    def _promote(self, sample: LearningSample, verdict: Verdict) -> WeightsUpdate:
        assert self.candidate is not None, "only a candidate in validation is promoted"
        self.previous = self.active if self.settings.guard else None
        self.active = self.candidate
        self.post_deployment_scores, self.post_deployment_ids = [], set()
        self.status.promotions += 1
        self._end_validation()
        update = self._update(sample.stamp_ns, "promotion", verdict)
        if not self.settings.guard:
            self.status.confirmed_version = self.version
        return update

    def _post_deployment_validation(self, sample: LearningSample) -> WeightsUpdate | None:
        """Compares the previous weights with the promoted ones, and rolls back when the previous are better."""
        # A window from before the promotion was matched by other weights.
        if (
            self.previous is None
            or sample.weights_version != self.version
            or not _is_independent(sample, set(), self.post_deployment_ids)
        ):
            return None
        scores = self._compare(sample, self.active, self.previous)
        if scores is None:
            return None
        self.post_deployment_ids = set(sample.keyframe_ids)
        self.post_deployment_scores.append(scores)
        most = self.settings.post_deployment_windows
        least = min(self.settings.validation_windows, max(most - LOOK_EVERY, 2))
        verdict = paired_test(
            [a for a, _ in self.post_deployment_scores],
            [p for _, p in self.post_deployment_scores],
            replace(self.settings, validation_windows=least, validation_windows_max=most),
        )
        if verdict.outcome == "better":
            return self._roll_back(sample.stamp_ns, verdict)
        if len(self.post_deployment_scores) >= most:
            self.previous = None
            self.status.confirmed_version = self.version
            self.on_event(
                {
                    "event": "promotion_confirmed",
                    "stamp_ns": sample.stamp_ns,
                    "version": self.version,
                    "hash": self.status.weights_hash,
                    "windows": len(self.post_deployment_scores),
                }
            )
        return None

    def _compare(self, sample: LearningSample, one: Matcher, other: Matcher) -> tuple[Score, Score] | None:
        """The scores of two sets of weights on the same queries and the same warp; None, counted, where nothing is held out."""
        seed = self.config.seed + sample.stamp_ns % 1_000_003
        first = score(one, sample, self.settings, self.config.bundle, seed)
        second = score(other, sample, self.settings, self.config.bundle, seed) if first.has_held_out else first
        if not second.has_held_out:
            self._reject("nothing held out to validate with")
            return None
        return first, second

    def _roll_back(self, stamp_ns: int, verdict: Verdict) -> WeightsUpdate:
        assert self.previous is not None, "only weights in post-deployment validation are rolled back"
        self.active, self.previous = self.previous, None
        self.status.rollbacks += 1
        self._restart_training(self.active)
        update = self._update(stamp_ns, "rollback", verdict)
        self.status.confirmed_version = self.version
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

    def _restart_training(self, origin: Matcher) -> None:
        self.stepper = Stepper(self._copy(origin), self.pretrained, self.settings, self.config.bundle)
        self.training_ids: deque[int] = deque(maxlen=REMEMBERED)  # frame ids of keyframes
        self.steps = 0
        self._end_validation()

    def _end_validation(self) -> None:
        self.candidate, self.trained_ids, self.validated_ids = None, set(), set()
        self.scores_active: list[Score] = []
        self.scores_candidate: list[Score] = []

    @staticmethod
    def _copy(matcher: Matcher) -> Matcher:
        twin = copy.deepcopy(matcher)
        twin.weights_version = matcher.weights_version
        return twin.eval()


def _is_independent(sample: LearningSample, trained: set[int], validated: set[int]) -> bool:
    """Whether a window may validate: none of its keyframes was trained on, and at least half of them were not in the last
    validation window. Windows in a row share most keyframes; their scores are not independent.
    """
    own = set(sample.keyframe_ids)
    return not own & trained and 2 * len(own & validated) <= len(own)
