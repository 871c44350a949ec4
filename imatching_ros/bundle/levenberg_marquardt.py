"""Levenberg-Marquardt: damping, acceptance and stopping, for a window and for a single pose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from ..core.config import BundleConfig


@dataclass(frozen=True)
class Attempt:
    """One damped step from the current state, evaluated."""

    cost: float  # of the current state
    trial_cost: float  # after the step; inf when it was not evaluated
    predicted_decrease: float  # of the cost, by the linear model: half of step . (gradient + damping * step)
    feasible: bool = True  # False when a landmark went behind its camera


class LeastSquares(Protocol):
    """A robust least-squares problem that holds its current state."""

    def attempt(self, damping: float) -> Attempt:
        """Solves the system with `damping` * diag(H) added and evaluates the step; leaves the current state as it is."""
        ...

    def accept(self, near_optimum: bool) -> None:
        """Makes the last attempt the current state. `near_optimum`: steps lower the cost by little and as predicted."""
        ...

    def reject(self) -> None:
        """The last attempt is not taken; the next one comes with more damping, or with less freedom of the problem's choice."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How the loop ended."""

    cost_before: float
    cost: float
    iterations: int
    converged: bool
    reason: str  # why it has not converged; empty otherwise


def negligible_decrease(cost: float, config: BundleConfig, rounding: float) -> float:
    """Decreases of the cost up to this count as none. `rounding`: cost that rounding errors of the residuals make."""
    return config.cost_tolerance * cost + rounding


def minimize(problem: LeastSquares, config: BundleConfig, damping: float, rounding: float) -> Outcome:
    """Steps until the cost stops falling, at most `config.max_iterations` attempts; `damping` is the first one."""
    # A bad model (a decrease below a quarter of the predicted one) keeps its damping; rejections grow it ever faster (Nielsen 1999).
    lowest, highest, first_growth = 1e-9, 1e6, 4.0
    # A step under more damping than this is short for that reason, and proves no convergence.
    undamped = 1e-2
    growth = first_growth
    cost_before = cost = math.nan
    for iteration in range(1, config.max_iterations + 1):
        attempt = problem.attempt(damping)
        cost = attempt.cost
        if iteration == 1:
            cost_before = cost
        if not math.isfinite(cost):
            return Outcome(cost_before, cost, iteration, False, "the cost of the start is not finite")
        predicted, floor = attempt.predicted_decrease, negligible_decrease(cost, config, rounding)
        if attempt.feasible and attempt.trial_cost <= cost and math.isfinite(attempt.trial_cost):
            decrease, cost = cost - attempt.trial_cost, attempt.trial_cost
            as_predicted = decrease > 0.25 * predicted
            problem.accept(near_optimum=as_predicted and decrease < 0.05 * attempt.cost)
            damping, growth = max(damping * 0.1, lowest) if as_predicted else damping, first_growth
            if decrease <= floor and predicted <= 4 * floor and damping < undamped:
                return Outcome(cost_before, cost, iteration, True, "")
            continue
        if 0 <= predicted <= floor and damping < undamped:
            return Outcome(cost_before, cost, iteration, True, "")
        problem.reject()
        # Landmarks that go behind cameras are damped by the problem itself first.
        if attempt.feasible or iteration % 2 == 0:
            damping, growth = damping * growth, growth * 2
        if damping > highest:
            return Outcome(cost_before, cost, iteration, False, "no step lowers the cost any more")
    reason = f"{config.max_iterations} iterations were not enough"
    return Outcome(cost_before, cost, config.max_iterations, False, reason)
