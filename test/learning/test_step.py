"""The gradient of the upper level against the total derivative through the solver."""

import dataclasses

import pytest
import torch
from torch import nn

from imatching_ros.core.config import BundleConfig, LearningConfig
from imatching_ros.core.types import BAStatus, ObservationKind
from imatching_ros.learning.rematching import Rematch, solve_again
from imatching_ros.learning.step import StepResult, Stepper, residual_loss, training_observations
from learning_samples import roll_shutter
from imatching_ros.matching.expectation import FastExpectationMatcher

TIGHT = dict(cost_tolerance=0.0, max_iterations=60)


class Displacement(nn.Module):
    """A stand-in for a network: every matched coordinate moves by a smooth function of where it is and of the weights."""

    def __init__(self, sample):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        w = sample.window
        self.base = sample.uv_px.double()
        self.inputs = torch.cat([w.obs[:, :2] / 300 - 1, w.kf_idx[:, None].double() / 3], 1)
        self.matched = torch.ones(len(w.obs), 1, dtype=torch.float64)
        self.matched[sample.host_obs] = 0  # where a landmark was detected no network has a say

    def rematch(self):
        uv = self.base + self.matched * self.layers(self.inputs)
        return Rematch(uv, torch.ones(len(uv)), torch.full((len(uv),), 0.5), self.matched[:, 0].bool())


def scattered(sample):
    """The sample with a start away from the optimum, as after many steps of the candidate."""
    w = sample.window
    return dataclasses.replace(
        sample,
        held_out=torch.zeros_like(sample.held_out),
        result=dataclasses.replace(sample.result, T_WC=w.T_WC, points_W=w.points_W),
    )


def gradient(sample, model, bundle):
    """Of the window's whole cost with T* and p* held constant, by the loss that learning uses; flat."""
    found = model.rematch()
    solution = solve_again(sample, found, LearningConfig(), bundle)
    matched = model.matched[:, 0].bool()
    loss = residual_loss(sample, found, solution, matched, bundle) * matched.sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]), solution


def optimum(sample, model, weights, bundle):
    """The cost that the solver reaches with other weights of the network."""
    with torch.no_grad():
        nn.utils.vector_to_parameters(weights, model.parameters())
        return solve_again(sample, model.rematch(), LearningConfig(), bundle).result.cost_after


def slopes(sample, model, bundle, directions, h=1e-4):
    """Total derivatives along directions by central differences: the window is solved anew on both sides."""
    home = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    out = [
        (optimum(sample, model, home + h * d, bundle) - optimum(sample, model, home - h * d, bundle)) / (2 * h)
        for d in directions
    ]
    nn.utils.vector_to_parameters(home, model.parameters())
    return torch.tensor(out, dtype=torch.float64)


def compare(sample, bundle):
    model = Displacement(sample)
    used, solution = gradient(sample, model, bundle)
    directions = torch.randn(8, len(used), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    directions = directions / directions.norm(dim=1, keepdim=True)
    true = slopes(sample, model, bundle, directions)
    return float((directions @ used - true).norm() / true.norm()), solution


@pytest.mark.parametrize("kind", list(ObservationKind))
@pytest.mark.parametrize("kernel", ("none", "huber", "cauchy"))
def test_gradient_is_the_total_derivative_where_bundle_adjustment_converged(make_sample, kernel, kind):
    sample = scattered(make_sample(5, 60, outliers=0.03 if kernel != "none" else 0.0, kind=kind))
    error, solution = compare(sample, BundleConfig(kernel=kernel, **TIGHT))
    assert solution.result.cost_after < 0.5 * solution.result.cost_before
    assert error < 1e-4


def test_gradient_is_the_total_derivative_behind_a_rolling_shutter(make_sample):
    """Bundle adjustment of its matches reaches the cost of a global shutter, so that their rows are accounted for."""
    still = scattered(make_sample(5, 60))
    bundle = BundleConfig(kernel="huber", **TIGHT)
    _, expected = compare(still, bundle)
    error, solution = compare(roll_shutter(still), bundle)
    assert solution.result.cost_after == pytest.approx(expected.result.cost_after, rel=0.1)
    assert error < 1e-4


def test_gradient_differs_where_bundle_adjustment_was_stopped(make_sample):
    sample = scattered(make_sample(5, 60))
    error, solution = compare(sample, BundleConfig(kernel="huber", cost_tolerance=0.0, max_iterations=1))
    assert solution.result.status is BAStatus.MAX_ITER
    assert error > 0.1


def test_default_tolerance_of_bundle_adjustment_is_enough(make_sample):
    sample = scattered(make_sample(5, 60))
    bundle = BundleConfig()
    used, solution = gradient(sample, Displacement(sample), bundle)
    exact, _ = gradient(sample, Displacement(sample), dataclasses.replace(bundle, **TIGHT))
    assert solution.result.status is BAStatus.CONVERGED
    assert float((used - exact).norm() / exact.norm()) < 0.02


def test_held_out_host_and_distrusted_observations_are_not_trained_on(make_sample):
    sample = make_sample()
    solution = solve_again(sample, Displacement(sample).rematch(), LearningConfig(), BundleConfig())
    train = training_observations(sample, solution)
    assert train.sum() > 100
    assert not (train & sample.held_out).any()
    assert not train[sample.host_obs].any()
    assert (solution.weight[sample.held_out] == 0).all()
    assert (solution.weight[train] > 0).all()


class Counted(Stepper):
    """Counts how often the residual is asked for; it is refused."""

    asked = 0

    def residual(self, sample, gradient_keyframes):
        self.asked += 1
        return "refused"


def make_stepper(**settings):
    torch.manual_seed(0)
    matcher = FastExpectationMatcher().eval()
    config = dataclasses.replace(LearningConfig(), **settings)
    return Counted(matcher, matcher.state_dict(), config, BundleConfig())


def test_one_step_of_eight_takes_the_residual_and_others_go_on_without_it(make_sample):
    sample, stepper, generator = make_sample(3, 40), make_stepper(pseudo_truth_weight=0.0), torch.Generator()
    results = [stepper.accumulate(sample, generator.manual_seed(k)) for k in range(60)]
    assert 2 <= stepper.asked <= 16
    assert all(isinstance(r, StepResult) and r.warp > 0 and r.observations == 0 for r in results)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in stepper.parameters)


def test_residual_alone_is_taken_in_every_step_and_its_refusal_is_that_of_the_step(make_sample):
    sample, stepper = make_sample(3, 40), make_stepper(pseudo_truth_weight=0.0, warp_weight=0.0)
    assert all(stepper.step(sample, torch.Generator().manual_seed(k)) == "refused" for k in range(4))
    assert stepper.asked == 4 and stepper.taken == 0
    assert all(p.grad is None for p in stepper.parameters)
