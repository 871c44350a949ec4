"""The backbone: sizes, look-ups, and batch norm merged into convolutions."""

from __future__ import annotations

import torch

from imatching_ros.matching.backbone import Backbone, fold_batch_norm, sample_map


def test_folding_batch_norm_does_not_change_the_function():
    torch.manual_seed(0)
    trained = Backbone(batch_norm=True)
    images = torch.rand(3, 1, 64, 96)
    trained.train()
    for _ in range(3):  # statistics and scales that matter
        trained(torch.rand(4, 1, 64, 96) ** 2)
    with torch.no_grad():
        for module in trained.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5), module.bias.normal_(0, 0.2)
    trained.eval()
    folded = fold_batch_norm(trained)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for before, after in zip(trained(images), folded(images)):
        assert torch.allclose(before, after, atol=1e-4)


def test_maps_cover_the_image_at_any_size():
    network = Backbone()
    for height, width in ((32, 32), (33, 47), (100, 64), (95, 129)):
        coarse, fine = network(torch.rand(1, 1, height, width))
        assert coarse.shape == (1, 64, -(-height // 8), -(-width // 8)) and fine.shape == (
            1,
            16,
            -(-height // 2),
            -(-width // 2),
        )
        assert torch.allclose(coarse.norm(dim=1), torch.ones(()), atol=1e-3)


def test_exposure_and_contrast_do_not_matter():
    torch.manual_seed(0)
    network = Backbone()
    image = torch.rand(1, 1, 64, 64)
    for before, after in zip(network(image), network(0.3 * image + 0.2)):
        assert torch.allclose(before, after, atol=5e-2)


def test_cells_are_centred_where_the_convention_says():
    for stride in (2, 8):
        values = torch.arange(12.0).expand(1, 1, 10, 12)  # the column's number
        u = torch.tensor([[[stride * 3 + (stride - 1) / 2, 20.0], [stride * 3.5 + (stride - 1) / 2, 20.0]]])
        assert torch.allclose(sample_map(values, u, stride)[0, :, 0], torch.tensor([3.0, 3.5]), atol=1e-4)
