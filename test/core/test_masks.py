"""Which pixels a mask leaves out."""

import torch

from imatching_ros.core.masks import cover, is_masked, unite

MASK = torch.zeros(4, 6, dtype=torch.bool)
MASK[1:3, 2:5] = True


def test_pixels_are_masked_where_their_nearest_pixel_is():
    uv = torch.tensor([[2.0, 1.0], [1.6, 0.6], [1.4, 1.0], [4.4, 2.4], [4.6, 2.0], [-3.0, 1.0], [float("nan"), 1.0]])
    assert is_masked(MASK, uv).tolist() == [True, True, False, True, False, False, False]
    assert not is_masked(None, uv).any()


def test_masks_unite():
    other = torch.zeros_like(MASK)
    other[0, 0] = True
    assert unite(None, None) is None and unite(MASK, None) is MASK and unite(None, MASK) is MASK
    assert int(unite(MASK, other).sum()) == 7


def test_what_is_masked_is_filled_by_what_is_around_it():
    image = torch.full((1, 96, 128), 60, dtype=torch.uint8)
    image[:, :, 64:] = 180
    mask = torch.zeros(96, 128, dtype=torch.bool)
    mask[:, 40:100] = True
    hidden = image.clone()
    hidden[:, mask] = 255
    filled = cover(hidden, mask)
    assert filled.dtype == torch.uint8 and torch.equal(filled[:, ~mask], image[:, ~mask])
    assert torch.equal(filled, cover(image, mask)), "nothing of what is masked is left"
    row = filled[0, 48].int()
    assert row[45] < 100 and row[95] > 140 and 60 <= row[40:100].min() and row[40:100].max() <= 180
    assert not cover(image, torch.ones_like(mask)).any()
