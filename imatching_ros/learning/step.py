"""The upper level: one step of the matcher on the reprojection residual, with T* and p* held constant.

One forward pass matches the window with the candidate's weights, bundle adjustment (the lower level) finds T* and p* for just
these matches, and the residual flows back into the weights: dR/dtheta = dR/df * df/dtheta (iMatching, arXiv 2312.02141).
The terms through T* and p* vanish, because both levels share one residual and one robust kernel (`residuals`) and the lower
level has converged. T* and p* are always those of the weights being updated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import residuals
from ..core.config import BundleConfig, LearningConfig
from ..core.types import BAStatus, LearningSample
from ..matching.base import Matcher
from .rematching import Rematch, Solution, expected_uv, measurements, observe, rematch, solve_again
from .cooperative_yield import give_way, give_way_backwards

Solver = Callable[[LearningSample, Rematch, LearningConfig, BundleConfig], Solution]

MIN_WEIGHT = 0.25  # observations that the robust kernel trusts less than this teach nothing
WARM_UP = 8  # steps until the full step size: Adam's first steps move every weight by all of it, whatever the gradient
PATIENCE = 3  # times the iterations that odometry allows
MIN_VIEWS = 3  # two views of a landmark say nothing along the epipolar line
MIN_OBSERVATIONS = 30  # fewer make a step of noise


# Why a window teaches nothing, besides what the gate says of it.
NOT_SOLVED = {
    status: f"candidate's bundle adjustment {status.value}" for status in (BAStatus.MAX_ITER, BAStatus.DEGENERATE)
}
TOO_FEW = "too few teaching observations"
NOT_FINITE = "gradient not finite"


@dataclass(frozen=True)
class Lesson:
    """What one window asks of the weights."""

    loss: Tensor  # (), with its graph
    residual: Tensor  # () mean robust cost of the observations used, in squared sigmas
    auxiliary: Tensor  # ()
    observations: int


@dataclass(frozen=True)
class StepResult:
    residual: float  # mean robust cost of the observations used, in squared sigmas
    auxiliary: float
    observations: int
    gradient_norm: float


def teaching_observations(sample: LearningSample, solution: Solution) -> Tensor:
    """(O,) bool: matched (not detected) observations of landmarks with three or more trusted views, never held out."""
    teach = (
        (solution.weight > MIN_WEIGHT)
        & ~sample.held_out
        & (count_views(sample, solution)[sample.window.pt_idx] >= MIN_VIEWS)
    )
    teach[sample.host_obs] = False
    return teach


def count_views(sample: LearningSample, solution: Solution) -> Tensor:
    """(P,) int64: trusted observations of every landmark."""
    views = torch.zeros(len(sample.window.points_W), dtype=torch.long)
    return views.index_add_(0, sample.window.pt_idx, (solution.weight > MIN_WEIGHT).long())


def draw_keyframes(count: int, config: LearningConfig, generator: torch.Generator) -> list[int]:
    """The keyframes of a window of `count` through whose matches a step takes its gradient."""
    return torch.randperm(count, generator=generator)[: config.keyframes_per_step].tolist()


def match_window(matcher: Matcher, sample: LearningSample, config: LearningConfig, live: list[int]) -> Rematch:
    """The window's matches; those between the keyframes `live` have gradients, from both of their images."""
    features = []
    for k, image in enumerate(sample.images):
        if k in live:  # one by one: the backward pass through all of them would be long for odometry to wait for
            features += matcher.extract(image[None].to(matcher.device).float() / 255)
        else:
            features.append(observe(matcher, image))
    return rematch(matcher, sample, features, config, live)


def residual_loss(
    sample: LearningSample, found: Rematch, solution: Solution, teach: Tensor, bundle: BundleConfig
) -> Tensor:
    """Mean of rho(s) / 2 over the observations `teach` (O,), exactly the summand of the lower level's cost; T*, p* constant."""
    window = sample.window
    rows = torch.nonzero(teach)[:, 0]
    obs, sigma = measurements(sample, found, rows)
    s = residuals.squared(
        window.camera,
        solution.T_WC,
        solution.points_W,
        window.kf_idx[rows],
        window.pt_idx[rows],
        obs,
        window.kind[rows],
        sigma,
    )
    return residuals.kernel_cost(bundle.kernel, s, bundle.kernel_width).mean() / 2


def auxiliary_loss(sample: LearningSample, found: Rematch, solution: Solution) -> Tensor:
    """Mean cross-entropy of the matching distributions at the reprojected landmarks, those included that were not found.

    Not the gradient of anything that bundle adjustment minimises: an approximation, which pulls where the residual is blind, in a
    wrong coarse cell. Zero for matchers without distributions.
    """
    expected = expected_uv(sample, solution.T_WC, solution.points_W)
    views = count_views(sample, solution)
    total, count = torch.zeros(()), 0
    for part in found.live:
        # A wrong match of a landmark that others have fixed is what this term is for; what is held out stays out.
        known = views[part.points] >= MIN_VIEWS
        known[: len(part.observations)] &= ~sample.held_out[part.observations]
        at = expected[part.keyframe, part.points].nan_to_num(-1e6)
        for distribution in part.prediction.distributions:
            loss, inside = distribution.cross_entropy(at[None].to(part.prediction.uv))
            give_way_backwards(loss)
            total = total + (loss[0] * (known.to(inside.device) & inside[0])).sum().cpu()
        count += int(known.sum())
    return total / max(count, 1)


class Stepper:
    """Owns the optimiser of a candidate."""

    def __init__(
        self,
        matcher: Matcher,
        shipped: dict[str, Tensor],
        config: LearningConfig,
        bundle: BundleConfig,
        solve: Solver = solve_again,
    ) -> None:
        """`solve` is the lower level; experiments put the truth in its place."""
        self.matcher, self.solve = matcher, solve
        self.configure(config, bundle)
        # What judges a match stays as shipped: the residual alone could lower itself by turning sigma up.
        named = [(n, p) for n, p in matcher.named_parameters() if not n.startswith("confidence.")]
        self.names = [n for n, _ in named]
        self.parameters = [p for _, p in named]
        self.shipped = [shipped[n].to(matcher.device) for n, _ in named]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate)
        self.taken = 0
        self._average = [p.detach().clone() for p in self.parameters]

    def configure(self, config: LearningConfig, bundle: BundleConfig) -> None:
        """Takes other settings over, from the next step on."""
        self.config = config
        # Nobody waits for the learner's bundle adjustment, and only a converged one teaches.
        self.bundle = replace(bundle, max_iterations=PATIENCE * bundle.max_iterations)

    def held(self) -> tuple:
        """What it keeps: weights with their gradients, the running mean, the optimiser's state."""
        return self.matcher, self._average, self.shipped, list(self.optimizer.state.values())

    def step(self, sample: LearningSample, generator: torch.Generator) -> StepResult | str:
        """One step on a window, or the reason why none was taken (a step without a gradient would still move the weights, by
        Adam's momentum)."""
        lesson = self.read(sample, draw_keyframes(len(sample.images), self.config, generator))
        if isinstance(lesson, str):
            return lesson
        self.optimizer.zero_grad(set_to_none=True)
        give_way()
        lesson.loss.backward()
        norm = self.update()
        if norm is None:
            return NOT_FINITE
        return StepResult(float(lesson.residual), float(lesson.auxiliary), lesson.observations, norm)

    def read(self, sample: LearningSample, live: list[int]) -> Lesson | str:
        """The loss of a window with the weights as they are, or the reason why it teaches nothing.

        All of the window is matched and solved; the gradient is taken through the matches between the keyframes `live`: drawn by
        lot they give an unbiased share of it at a part of the price.
        """
        found = match_window(self.matcher, sample, self.config, live)
        solution = self.solve(sample, found, self.config, self.bundle)
        if solution.result.status is not BAStatus.CONVERGED:
            return NOT_SOLVED[solution.result.status]
        teach = teaching_observations(sample, solution)
        taught = torch.zeros_like(teach)
        for part in found.live:
            taught[part.observations] = True
        teach &= taught
        if int(teach.sum()) < MIN_OBSERVATIONS:
            return TOO_FEW
        residual = residual_loss(sample, found, solution, teach, self.bundle)
        auxiliary = auxiliary_loss(sample, found, solution)
        loss = self.config.residual_weight * residual + self.config.auxiliary_weight * auxiliary
        return Lesson(loss, residual.detach(), auxiliary.detach(), int(teach.sum()))

    def update(self) -> float | None:
        """Moves the weights by the gradients that they hold; returns their norm, or None, and moves nothing, when it is not finite."""
        norm = torch.nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], self.config.clip_norm)
        if not torch.isfinite(norm):
            return None
        self.taken += 1
        rate = self.config.learning_rate * min(1.0, self.taken / WARM_UP)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            pull = self.config.anchor * rate / 1e-3
            share = max(1 - self.config.averaging, 1 / (self.taken + 1))
            for parameter, home, average in zip(self.parameters, self.shipped, self._average):
                parameter.lerp_(home, pull)
                average.lerp_(parameter, share)
        return float(norm)

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on, as tensors: weights, their running mean, Adam's moments, the number of steps taken."""
        state = {f"model.{k}": v for k, v in self.matcher.state_dict().items()}
        state |= {f"average.{name}": average for name, average in zip(self.names, self._average)}
        for name, parameter in zip(self.names, self.parameters):
            state |= {
                f"adam.{key}.{name}": torch.as_tensor(v) for key, v in self.optimizer.state.get(parameter, {}).items()
            }
        return state | {"taken": torch.tensor(self.taken)}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes back to a `state`: the steps that follow are those that would have followed then."""
        self.matcher.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        for name, average in zip(self.names, self._average):
            average.copy_(state[f"average.{name}"])
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
    def averaged(self) -> Matcher:
        """A copy of the matcher with the running mean of its weights over the last steps: what is tried and used.

        A step on a few keyframes shakes the weights; the mean keeps what the steps agree on (Polyak and Juditsky 1992).
        """
        twin = copy.deepcopy(self.matcher)
        own = dict(twin.named_parameters())
        for name, average in zip(self.names, self._average):
            own[name].copy_(average)
        twin.weights_version = self.matcher.weights_version
        return twin.eval()
