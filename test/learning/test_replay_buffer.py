"""The replay buffer keeps what is diverse."""

import dataclasses

import pytest
import torch

from imatching_ros.learning.replay_buffer import ReplayBuffer


@pytest.fixture
def sample(make_sample):
    return make_sample(landmarks=20)


def looking_at(sample, place, view):
    """A window in one of several places; the views of a place differ little."""
    generator = torch.Generator().manual_seed(place)
    scene = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 8, generator=generator), (64, 96), mode="bilinear")[0]
    noise = torch.rand(1, 64, 96, generator=torch.Generator().manual_seed(100 + view)) * 0.1
    return dataclasses.replace(
        sample,
        images=((scene * 0.9 + noise) * 255).byte().unbind(0)[:0] + (((scene * 0.9 + noise) * 255).byte(),),
        stamp_ns=1000 * place + view,
    )


def places(buffer):
    generator = torch.Generator().manual_seed(0)
    return {buffer.draw(generator).stamp_ns // 1000 for _ in range(300)}


def test_other_places_survive_a_long_stay_in_one(sample):
    buffer = ReplayBuffer(6)
    for place in range(4):
        buffer.add(looking_at(sample, place, 0))
    for view in range(60):
        buffer.add(looking_at(sample, 9, view))
    assert len(buffer) == 6
    assert places(buffer) == {0, 1, 2, 3, 9}


def test_never_holds_more_than_it_may(sample):
    buffer = ReplayBuffer(3)
    for view in range(10):
        buffer.add(looking_at(sample, view, view))
        assert len(buffer) <= 3


def test_every_window_is_drawn_in_the_order_of_the_seed(sample):
    buffer = ReplayBuffer(4)
    for place in range(4):
        buffer.add(looking_at(sample, place, 0))
    first, second = (
        [buffer.draw(g).stamp_ns for g in [torch.Generator().manual_seed(5)] for _ in range(20)] for _ in range(2)
    )
    assert first == second and len(set(first)) == 4
