"""The upper level: one step of the matcher on the reprojection residual, with T* and p* held constant.

One forward pass matches the window with the candidate's weights, bundle adjustment (the lower level) finds T* and p* for just
these matches, and the residual flows back into the weights: dR/dtheta = dR/df * df/dtheta (iMatching, arXiv 2312.02141).
The terms through T* and p* vanish, because both levels share one residual and one robust kernel (`residuals`) and the lower
level has converged. T* and p* are always those of the weights being updated.

Beside the residual, a step descends costs that are no gradient of it: `supervision.correspondence_loss` on pseudo-truth of odometry's
own bundle adjustment, augmented, and on warps of live images (`pseudo_truth`). It also decays to the pretrained weights (L2-SP; Li et
al., ICML 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import residuals
from ..core.config import BundleConfig, LearningConfig
from ..core.types import BAStatus, LearningSample
from ..matching.base import Matcher
from .confidence import refit_sigma
from .cooperative_yield import cooperative_yield
from .pseudo_truth import (
    MIN_TRUSTED_VIEWS,
    MIN_WEIGHT,
    TrainingPair,
    augment_pair,
    count_views,
    draw_pairs,
    draw_warp,
)
from .rematching import Rematch, Solution, measurements, observe, rematch, solve_again
from .supervision import correspondence_loss

Solver = Callable[[LearningSample, Rematch, LearningConfig, BundleConfig], Solution]

MIN_OBSERVATIONS = 30  # the gradient of fewer is mostly noise
PAIRS = 2  # of keyframes with pseudo-truth in a step, beside one warp
# So many of the steps take the residual, with as much more weight: to match and solve a window again costs more than all other terms.
RESIDUAL_SHARE = 0.125

# Why a window that passed the gate has no loss.
NOT_SOLVED = {
    status: f"candidate's bundle adjustment {status.value}" for status in (BAStatus.MAX_ITER, BAStatus.DEGENERATE)
}
TOO_FEW = "too few training observations"
NOT_FINITE = "gradient not finite"


@dataclass(frozen=True)
class Residual:
    """The residual of one window."""

    cost: Tensor  # () mean robust cost of the observations used, in squared sigmas; with its graph
    observations: int


@dataclass(frozen=True)
class StepResult:
    """The terms of one step, without their weights; NaN where a term was not due."""

    residual: float  # mean robust cost of the observations used, in squared sigmas
    pseudo_truth: float  # mean over pairs
    warp: float
    observations: int  # of the residual
    gradient_norm: float = float("nan")


def training_observations(sample: LearningSample, solution: Solution) -> Tensor:
    """(O,) bool: matched (not detected) observations of landmarks with three or more trusted views, never held out."""
    train = (
        (solution.weight > MIN_WEIGHT)
        & ~sample.held_out
        & (count_views(sample, solution.weight)[sample.window.pt_idx] >= MIN_TRUSTED_VIEWS)
    )
    train[sample.host_obs] = False
    return train


def draw_gradient_keyframes(count: int, config: LearningConfig, generator: torch.Generator) -> list[int]:
    """The keyframes of a window of `count` through whose matches a step takes its gradient."""
    return torch.randperm(count, generator=generator)[: config.keyframes_per_step].tolist()


def match_window(
    matcher: Matcher, sample: LearningSample, config: LearningConfig, gradient_keyframes: list[int]
) -> Rematch:
    """The window's matches; those between the keyframes `gradient_keyframes` have gradients, from both of their images."""
    features = []
    for k, image in enumerate(sample.images):
        if (
            k in gradient_keyframes
        ):  # one by one: the backward pass through all of them would be long for odometry to wait for
            features += matcher.extract(image[None].to(matcher.device).float() / 255)
        else:
            features.append(observe(matcher, image))
    return rematch(matcher, sample, features, config, gradient_keyframes)


def residual_loss(
    sample: LearningSample, found: Rematch, solution: Solution, train: Tensor, bundle: BundleConfig
) -> Tensor:
    """Mean of rho(s) / 2 over the observations `train` (O,), exactly the summand of the lower level's cost; T*, p* constant."""
    window = sample.window
    rows = torch.nonzero(train)[:, 0]
    obs, sigma = measurements(sample, found, rows)
    part = replace(
        window, kf_idx=window.kf_idx[rows], pt_idx=window.pt_idx[rows], obs=obs, kind=window.kind[rows], sigma=sigma
    )
    s = residuals.squared_norm(part, solution.T_WC, solution.points_W)
    return residuals.RobustKernel(bundle.kernel, bundle.kernel_width).cost(s).mean() / 2


class Stepper:
    """Owns the optimizer of weights in training, and their exponential moving average (EMA)."""

    def __init__(
        self,
        matcher: Matcher,
        pretrained: dict[str, Tensor],
        config: LearningConfig,
        bundle: BundleConfig,
        solve: Solver = solve_again,
    ) -> None:
        """`solve` is the lower level; experiments replace it by the truth."""
        self.matcher, self.solve = matcher, solve
        self.configure(config, bundle)
        # Steps leave the match confidence alone: the residual could lower itself by turning sigma up. Candidates have sigma refitted.
        named = [(n, p) for n, p in matcher.named_parameters() if not n.startswith("confidence.")]
        self.names = [n for n, _ in named]
        self.parameters = [p for _, p in named]
        self._pretrained_state = pretrained
        self.pretrained = [pretrained[n].to(matcher.device) for n, _ in named]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate)
        self.taken = 0
        self.ema = [p.detach().clone() for p in self.parameters]

    def configure(self, config: LearningConfig, bundle: BundleConfig) -> None:
        """Takes other settings over, from the next step on."""
        self.config = config
        # Three times the iterations of odometry: no frame waits for it, and only a converged solution is used.
        self.bundle = replace(bundle, max_iterations=3 * bundle.max_iterations)

    def held(self) -> tuple:
        """What it keeps: weights with their gradients, their EMA, optimizer state."""
        return self.matcher, self.ema, self.pretrained, list(self.optimizer.state.values())

    def step(self, sample: LearningSample, generator: torch.Generator) -> StepResult | str:
        """One step on a window, or the reason why none was taken (a step without a gradient would still move the weights, by
        Adam's momentum)."""
        self.optimizer.zero_grad(set_to_none=True)
        result = self.accumulate(sample, generator)
        if isinstance(result, str):
            return result
        norm = self.update()
        return NOT_FINITE if norm is None else replace(result, gradient_norm=norm)

    def accumulate(self, sample: LearningSample, generator: torch.Generator) -> StepResult | str:
        """Adds the gradient of a window's loss to what the weights hold, or returns the reason why it has none.

        Term by term, pair by pair, so that no more than one graph is in memory.
        """
        settings = self.config
        residual = self._residual_term(sample, generator)
        pseudo_truth, warps = [], []
        for pair in draw_pairs(sample, PAIRS if settings.pseudo_truth_weight > 0 else 0, generator):
            augmented = augment_pair(pair, generator) if settings.augment else pair
            pseudo_truth.append(self._descend_pair(augmented, settings.pseudo_truth_weight / PAIRS, generator))
        if settings.warp_weight > 0:
            warps.append(self._descend_pair(draw_warp(sample, generator), settings.warp_weight, generator))
        if isinstance(residual, str) and not pseudo_truth and not warps:
            return residual
        cost, observations = (float("nan"), 0) if isinstance(residual, str) else residual
        return StepResult(cost, _mean(pseudo_truth), _mean(warps), observations)

    def _residual_term(self, sample: LearningSample, generator: torch.Generator) -> tuple[float, int] | str:
        """Value and observations of the term, or the reason why this step does without it."""
        settings = self.config
        alone = settings.pseudo_truth_weight == 0 and settings.warp_weight == 0
        share = 1.0 if alone else RESIDUAL_SHARE
        due = float(torch.rand((), generator=generator)) < share
        if settings.residual_weight == 0 or not due:
            return TOO_FEW
        result = self.residual(sample, draw_gradient_keyframes(len(sample.images), settings, generator))
        if isinstance(result, str):
            return result
        return self._descend(result.cost, settings.residual_weight / share), result.observations

    def _descend_pair(self, pair: TrainingPair, weight: float, generator: torch.Generator) -> float:
        return self._descend(correspondence_loss(self.matcher, pair, generator), weight)

    def _descend(self, loss: Tensor, weight: float) -> float:
        cooperative_yield()
        (weight * loss).backward()
        return float(loss.detach())

    def residual(self, sample: LearningSample, gradient_keyframes: list[int]) -> Residual | str:
        """The residual of a window with the weights as they are, or the reason why it has none.

        All of the window is matched and solved; the gradient passes through the matches between the gradient keyframes alone. Drawn
        at random, they give an unbiased part of it at a part of the cost.
        """
        found = match_window(self.matcher, sample, self.config, gradient_keyframes)
        solution = self.solve(sample, found, self.config, self.bundle)
        if solution.result.status is not BAStatus.CONVERGED:
            return NOT_SOLVED[solution.result.status]
        train = training_observations(sample, solution) & found.has_gradient
        if int(train.sum()) < MIN_OBSERVATIONS:
            return TOO_FEW
        return Residual(residual_loss(sample, found, solution, train, self.bundle), int(train.sum()))

    def update(self) -> float | None:
        """Moves the weights by the gradients that they hold; returns their norm, or None, and moves nothing, when it is not finite."""
        norm = torch.nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], self.config.clip_norm)
        if not torch.isfinite(norm):
            return None
        self.taken += 1
        # Linear warm-up over 8 steps: Adam's first steps move every weight by the full step size, whatever the gradient.
        rate = self.config.learning_rate * min(1.0, self.taken / 8)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            pull = self.config.l2_sp * rate / 1e-3
            share = max(1 - self.config.ema_decay, 1 / (self.taken + 1))
            for parameter, origin, mean in zip(self.parameters, self.pretrained, self.ema):
                parameter.lerp_(origin, pull)
                mean.lerp_(parameter, share)
        return float(norm)

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on, as tensors: weights, their EMA, Adam's moments, the number of steps taken."""
        state = {f"model.{k}": v for k, v in self.matcher.state_dict().items()}
        state |= {f"ema.{name}": mean for name, mean in zip(self.names, self.ema)}
        for name, parameter in zip(self.names, self.parameters):
            state |= {
                f"adam.{key}.{name}": torch.as_tensor(v) for key, v in self.optimizer.state.get(parameter, {}).items()
            }
        return state | {"taken": torch.tensor(self.taken)}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes back to a `state`: the steps that follow are those that would have followed then."""
        self.matcher.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        for name, mean in zip(self.names, self.ema):
            mean.copy_(state[f"ema.{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(self.names):
            found = {
                key: state[f"adam.{key}.{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"adam.{key}.{name}" in state
            }
            if found:
                moments[index] = found
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.taken = int(state["taken"])

    @torch.no_grad()
    def ema_matcher(self) -> Matcher:
        """A copy of the matcher with the exponential moving average (EMA) of its weights.

        A step on a few keyframes shakes the weights; the mean keeps what the steps agree on (Polyak and Juditsky 1992).
        """
        twin = copy.deepcopy(self.matcher)
        own = dict(twin.named_parameters())
        for name, mean in zip(self.names, self.ema):
            own[name].copy_(mean)
        twin.weights_version = self.matcher.weights_version
        return twin.eval()

    def candidate(self, samples: Sequence[LearningSample], generator: torch.Generator) -> Matcher:
        """`ema_matcher` with its sigma refitted on warps of the samples' images: what is validated and deployed."""
        matcher, pretrained = self.ema_matcher(), copy.deepcopy(self.matcher).eval()
        pretrained.load_state_dict(self._pretrained_state)
        refit_sigma(matcher, pretrained, samples, generator)
        return matcher


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
