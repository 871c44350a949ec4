"""The steps: which windows, which gradient, and that nothing moves without a loss."""

import copy

import pytest
import torch

from imatching_ros.core.config import Config
from imatching_ros.offline.training.tuner import Processes, StoredWindow, Tuner
from imatching_ros.offline.training.windows import read_recording, read_window
from imatching_ros.learning import step
from imatching_ros.learning.step import Stepper

RESIDUAL_ALONE = {"learning.pseudo_truth_weight": 0, "learning.warp_weight": 0}  # then a window may be refused
CONFIG = Config().with_values({"learning.keyframes_per_step": 2, "seed": 3, **RESIDUAL_ALONE})


@pytest.fixture
def windows(straight):
    recording = read_recording(straight / "windows" / "00_scene")
    return [StoredWindow(recording.path(k), len(ids)) for k, ids in enumerate(recording.windows)]


def make(windows, batch=3, config=CONFIG):
    return Tuner(config, windows, batch, Processes("cpu", 10))


def weights(tuner):
    return torch.cat([p.detach().flatten().clone() for p in tuner.stepper.parameters])


def test_all_windows_have_their_turn_in_another_order_every_time(windows):
    tuner = make(windows, batch=1)
    count = len(windows)
    turns = [tuner.draw(k).windows[0] for k in range(3 * count)]
    epochs = [turns[k * count : (k + 1) * count] for k in range(3)]
    assert all(sorted(e) == list(range(count)) for e in epochs) and epochs[0] != epochs[1]
    together = make(windows, batch=3)
    assert [w for k in range(count) for w in together.draw(k).windows] == turns


@pytest.mark.slow
def test_gradient_of_a_step_is_the_mean_over_the_windows_with_a_loss(windows):
    tuner = make(windows, batch=6)
    start = weights(tuner)
    batch = tuner.draw(0)
    gradients = []
    for window, position in zip(batch.windows, batch.positions):
        tuner.stepper.optimizer.zero_grad(set_to_none=True)
        result = tuner.stepper.accumulate(read_window(windows[window].path), tuner.generator_at(position))
        if not isinstance(result, str):
            gradients.append(
                torch.cat(
                    [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in tuner.stepper.parameters]
                )
            )
    assert 2 <= len(gradients) < len(batch.windows), "one is to be refused and several are to be accepted"
    seen = []
    tuner.stepper.update = lambda: seen.append(torch.cat([p.grad.flatten() for p in tuner.stepper.parameters])) or 1.0
    statistics = tuner.take_step(stop=False)
    mean = torch.stack(gradients).mean(0)
    assert statistics.accepted == len(gradients)
    assert float((seen[0] - mean).norm() / mean.norm()) < 1e-5
    # Single numbers, such as temperatures, would be lost in the norm of all.
    assert torch.allclose(seen[0], mean, rtol=1e-3, atol=1e-6 * float(mean.abs().max()))
    assert torch.equal(weights(tuner), start)


@pytest.mark.slow
def test_step_without_a_lesson_moves_nothing(windows, monkeypatch):
    tuner = make(windows, config=CONFIG.with_values({"learning.keyframes_per_step": 4}))
    statistics = tuner.take_step(stop=False)
    assert statistics.accepted > 0
    after = weights(tuner)
    monkeypatch.setattr(step, "MIN_OBSERVATIONS", 10**6)
    statistics = tuner.take_step(stop=False)
    assert (
        statistics.accepted == 0 and statistics.step == 2 and sum(tuner.refused.values()) >= len(tuner.draw(1).windows)
    )
    assert torch.equal(weights(tuner), after), "Adam's momentum alone would have moved them"


@pytest.mark.slow
def test_step_on_one_window_is_the_step_of_the_robot(windows):
    tuner = make(windows, batch=1)
    online = Stepper(
        copy.deepcopy(tuner.origin),
        {k: v.clone() for k, v in tuner.origin.state_dict().items()},
        CONFIG.learning,
        CONFIG.bundle,
    )
    taken = 0
    for number in range(4):
        batch = tuner.draw(number)
        generator = tuner.generator_at(batch.positions[0])
        result = online.step(read_window(windows[batch.windows[0]].path), generator)
        statistics = tuner.take_step(stop=False)
        assert statistics.accepted == (not isinstance(result, str))
        taken += statistics.accepted
        # Not to the last bit: a long gradient is shortened by a norm that is summed in another order.
        robots = torch.cat([p.detach().flatten() for p in online.parameters])
        assert torch.allclose(weights(tuner), robots, rtol=1e-6, atol=1e-7)
    assert taken >= 2
    tuned = tuner.tuned().state_dict()
    for name, value in online.ema_matcher().state_dict().items():
        assert name.startswith("confidence.") or torch.allclose(value, tuned[name], rtol=1e-6, atol=1e-7)
