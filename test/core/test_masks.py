"""Which pixels a mask leaves out."""

import torch

from imatching_ros.core.masks import is_masked, unite

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
