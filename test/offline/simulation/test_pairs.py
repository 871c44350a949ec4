"""Training pairs and the exact correspondence between them."""

import pytest
import torch

from imatching_ros.learning.augmentation import add_noise, augment, blur, vignette
from imatching_ros.offline.simulation.pairs import DIFFICULTIES, PairRenderer, sample_depth, warp


@pytest.fixture(scope="module")
def renderer():
    return PairRenderer("cpu", variants=1, texture_size=64)


def test_pairs_have_the_documented_shapes_and_overlap(renderer):
    pairs = renderer.pairs(0, 6, (60, 80))
    assert pairs["image_A"].shape == pairs["image_B"].shape == (6, 1, 60, 80)
    assert pairs["depth_A"].shape == (6, 60, 80)
    assert pairs["K"].shape == (6, 4) and pairs["T_WA"].shape == (6, 7) and pairs["T_WA"].dtype == torch.float64
    assert all(0 <= pairs[k].min() and pairs[k].max() <= 1 for k in ("image_A", "image_B"))
    assert set(pairs["difficulty"].tolist()) <= set(range(len(DIFFICULTIES)))
    uv = (
        torch.stack(torch.meshgrid(torch.arange(0, 80, 4), torch.arange(0, 60, 4), indexing="xy"), -1)
        .reshape(1, -1, 2)
        .expand(6, -1, -1)
    )
    _, visible = warp(uv, pairs["depth_A"], pairs["K"], pairs["T_WA"], pairs["T_WB"], pairs["depth_B"])
    assert visible.float().mean() > 0.4


def test_a_seed_repeats_and_another_does_not(renderer):
    first, again, other = (renderer.pairs(seed, 2, (32, 48)) for seed in (3, 3, 4))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["image_A"], other["image_A"])


def test_a_wall_is_interpolated_exactly_and_an_edge_is_refused():
    # A slanted wall: inverse depth linear in u.
    u = torch.arange(20.0)
    depth = (1 / (0.2 + 0.01 * u)).expand(1, 10, 20).contiguous()
    uv = torch.tensor([[[3.3, 4.7], [10.0, 2.0]]])
    z, smooth = sample_depth(depth, uv)
    assert smooth.all()
    assert torch.allclose(z, 1 / (0.2 + 0.01 * uv[..., 0]), atol=1e-6)
    depth[:, :, 10:] = 20.0
    assert sample_depth(depth, torch.tensor([[[9.5, 4.0], [8.5, 4.0], [12.5, 4.0]]]))[1].tolist() == [
        [False, True, True]
    ]
    depth[:, :, 10:] = 0.0
    assert sample_depth(depth, torch.tensor([[[9.5, 4.0], [15.0, 4.0]]]))[1].tolist() == [[False, False]]


def test_warp_knows_what_is_hidden():
    K = torch.tensor([[50.0, 50.0, 24.5, 19.5]])
    still = torch.tensor([[0.0, 0, 0, 0, 0, 0, 1]], dtype=torch.float64)
    moved = still.clone()
    moved[0, 0] = 0.2  # to the right: the wall moves 2 px to the left at 5 m
    wall = torch.full((1, 40, 50), 5.0)
    uv = torch.tensor([[[10.0, 10.0], [1.0, 10.0], [30.0, 20.0]]])
    uv_B, visible = warp(uv, wall, K, still, moved, wall)
    assert torch.allclose(uv_B - uv, torch.tensor([-2.0, 0.0]).expand(1, 3, 2), atol=1e-5)
    assert visible.tolist() == [[True, False, True]]
    hidden = wall.clone()
    hidden[:, 15:25, 25:31] = 2.0
    assert warp(uv, wall, K, still, moved, hidden)[1].tolist() == [[True, False, False]]


def test_effects_are_seeded_and_stay_in_range():
    images = torch.rand(8, 1, 24, 32)
    first, again, other = augment(images, 1), augment(images, 1), augment(images, 2)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1


def test_blur_does_not_move_the_image():
    image = torch.zeros(2, 1, 21, 21)
    image[:, :, 10, 10] = 1.0
    out = blur(image, torch.tensor([0.1, 2.0]), torch.tensor([0.1, 0.5]), torch.tensor([0.0, 0.7]))
    assert out[0, 0, 10, 10] > 0.99
    v, u = torch.meshgrid(torch.arange(21.0), torch.arange(21.0), indexing="ij")
    total = out[1, 0].sum()
    assert total == pytest.approx(1.0, abs=1e-5)
    assert ((out[1, 0] * u).sum() / total).item() == pytest.approx(10, abs=1e-4)
    assert ((out[1, 0] * v).sum() / total).item() == pytest.approx(10, abs=1e-4)


def test_vignetting_darkens_corners_and_noise_has_the_stated_deviation():
    grey = torch.full((1, 1, 101, 101), 0.5)
    dark = vignette(grey, torch.tensor([0.8]))
    assert dark[0, 0, 50, 50] == pytest.approx(0.5, abs=1e-4) and dark[0, 0, 0, 0] == pytest.approx(0.1, abs=1e-3)
    noisy = add_noise(grey, torch.tensor([0.03]), torch.tensor([0.0]), 0)
    assert noisy.std().item() == pytest.approx(0.03, rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_draws_the_same_pairs(renderer):
    cpu = renderer.pairs(0, 4, (60, 80), effects=False)
    cuda = PairRenderer("cuda", variants=1, texture_size=64).pairs(0, 4, (60, 80), effects=False)
    assert torch.allclose(cpu["T_WB"], cuda["T_WB"].cpu(), atol=1e-4)
    assert ((cpu["depth_A"] - cuda["depth_A"].cpu()).abs() > 1e-2).float().mean() < 1e-2
