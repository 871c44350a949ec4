"""Procedural textures and their filtered lookup."""

import numpy as np
import pytest
import torch

from imatching_ros.offline.simulation.textures import HELD_OUT_FAMILIES, TRAIN_FAMILIES, TextureBank, build_bank

FAMILIES = {**TRAIN_FAMILIES, **HELD_OUT_FAMILIES}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_painter_gives_a_image_by_its_seed(name):
    paint = FAMILIES[name][0]
    first, again, other = (paint(np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3) and first.dtype == np.float32
    assert np.isfinite(first).all() and first.min() >= 0 and first.max() <= 1
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_held_out_families_are_not_in_a_training_bank():
    assert not set(TRAIN_FAMILIES) & set(HELD_OUT_FAMILIES)
    train, held_out = build_bank(0, variants=1, size=32), build_bank(0, variants=1, size=32, held_out=True)
    assert set(train.families) == set(TRAIN_FAMILIES)
    assert set(held_out.families) == set(HELD_OUT_FAMILIES) | {"sky"}


def bank_of(image):
    """A bank of one texture (S, S, 3)."""
    from imatching_ros.offline.simulation.textures import _mip_levels

    return TextureBank(
        _mip_levels(torch.as_tensor(image).permute(2, 0, 1)), image.shape[0], {"one": (0,)}, ((1.0, 1.0),)
    )


def test_lookup_hits_texel_centres_blends_between_and_repeats():
    image = torch.zeros(4, 4, 3)
    image[1, 2] = 1.0  # row 1, column 2
    bank = bank_of(image)
    uv = torch.tensor([[2.5 / 4, 1.5 / 4], [3.0 / 4, 1.5 / 4], [2.5 / 4 + 3, 1.5 / 4 - 2], [0.1, 0.1]])
    colour = bank.sample(torch.zeros(4, dtype=torch.int64), uv, torch.full((4,), 1e-6))
    assert colour[:, 0].tolist() == pytest.approx([1.0, 0.5, 1.0, 0.0], abs=1e-3)


def test_a_wide_footprint_sees_the_mean():
    rng = np.random.default_rng(0)
    image = torch.as_tensor(rng.random((32, 32, 3)), dtype=torch.float32)
    colour = bank_of(image).sample(torch.zeros(5, dtype=torch.int64), torch.rand(5, 2), torch.full((5,), 1.0))
    assert torch.allclose(colour, image.mean((0, 1)).expand(5, 3), atol=2e-2)


def test_photographs_become_a_family_that_repeats_without_a_seam():
    ramp = torch.linspace(0, 255, 200).to(torch.uint8).expand(3, 150, 200)
    bank = build_bank(0, variants=1, size=64, photos=[ramp], photo_crops=2)
    first = bank.families["photo"][0]
    assert len(bank.families["photo"]) == 2
    row = bank.texels.view(-1, bank.stride, 3)[first, : 64 * 64].float().view(64, 64, 3)[32, :, 0]
    around = torch.cat([row, row[:1]])
    assert (around[1:] - around[:-1]).abs().max() < 0.25


def test_less_contrast_keeps_the_mean_colour():
    bank = build_bank(0, variants=1, size=32)
    plain, faded = (b.texels.float().view(-1, bank.stride, 3) for b in (bank, bank.with_contrast(0.15)))
    assert torch.allclose(faded[:, -1], plain[:, -1], atol=1e-3)
    finest = slice(0, 32 * 32)
    assert torch.allclose(faded[:, finest].std(1), 0.15 * plain[:, finest].std(1), rtol=0.05, atol=1e-3)
