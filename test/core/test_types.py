import math

import pypose as pp
import torch

from imatching_ros import bundle
from imatching_ros.core import geometry
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.types import TrackingState, as_grey, to_json_value
from imatching_ros.offline.experiments.ba_windows import make_window


def test_json_values_are_finite_and_of_its_types():
    assert to_json_value({"a": torch.tensor([1.0, math.inf]), 2: TrackingState.LOST, "p": (1, None)}) == {
        "a": [1.0, None],
        "2": "lost",
        "p": [1, None],
    }


def test_poses_of_a_result_are_pypose_poses():
    result = bundle.solve(make_window(4, 60).window, BundleConfig())
    assert isinstance(result.poses, pp.LieTensor) and result.poses.ltype is pp.SE3_type and result.poses.lshape == (4,)
    moved = result.poses[-1].Inv() @ result.poses[0]
    expected = geometry.relative(result.T_WC[-1], result.T_WC[0])
    assert torch.allclose(moved.tensor(), expected, atol=1e-12)


def test_grey_is_the_luma_of_bt_601():
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = (image.double() * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(0)
    grey = as_grey(image)
    assert grey.shape == (1, 40, 50) and grey.dtype == torch.uint8 and as_grey(grey) is grey
    assert (grey[0] - expected).abs().max() < 0.5 + 1e-4
