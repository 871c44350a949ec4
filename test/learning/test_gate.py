"""Every reason for which a window is refused, and a healthy window that is not."""

import dataclasses

import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.core.config import LearningConfig
from imatching_ros.core.types import BAStatus
from imatching_ros.learning.gate import refuse
from learning_samples import roll_shutter

CONFIG = LearningConfig()


def with_result(sample, **fields):
    return dataclasses.replace(sample, result=dataclasses.replace(sample.result, **fields))


def half(values, low):
    return torch.where(torch.arange(len(values)) % 2 == 0, torch.as_tensor(low, dtype=values.dtype), values)


def test_healthy_window_passes(make_sample):
    assert refuse(make_sample(), CONFIG) is None


def test_window_of_a_rolling_shutter_passes_where_its_readout_time_is_known(make_sample):
    sample = roll_shutter(make_sample())
    assert float((sample.uv_px - sample.window.obs[:, :2]).norm(dim=1).median()) > 2
    assert refuse(sample, CONFIG) is None


@pytest.mark.parametrize(
    "reason, corrupt",
    [
        ("tracking not healthy", lambda s: dataclasses.replace(s, tracking_healthy=False)),
        ("rolling shutter not known well", lambda s: dataclasses.replace(s, skew_px=1.5)),
        ("bundle adjustment max_iter", lambda s: with_result(s, status=BAStatus.MAX_ITER)),
        ("bundle adjustment degenerate", lambda s: with_result(s, status=BAStatus.DEGENERATE)),
        ("too few inliers", lambda s: with_result(s, weight=half(s.result.weight, 0.1))),
        ("residual too large", lambda s: with_result(s, residual_px=s.result.residual_px + 5)),
    ],
)
def test_refusals_of_a_corrupted_window(make_sample, reason, corrupt):
    assert refuse(corrupt(make_sample()), CONFIG) == reason


def test_too_few_landmarks(make_sample):
    assert refuse(make_sample(landmarks=30), CONFIG) == "too few landmarks"


def test_landmarks_of_two_views_do_not_count(make_sample):
    sample = make_sample(landmarks=200)
    views = torch.zeros(200, dtype=torch.long).index_add_(
        0, sample.window.pt_idx, torch.ones_like(sample.window.pt_idx)
    )
    second = torch.cat([torch.arange(int(n)) for n in views]) < 2
    weight = torch.where(second, 1.0, 0.4)
    config = dataclasses.replace(CONFIG, min_inlier_share=0.0)
    assert refuse(sample, config) is None
    assert refuse(with_result(sample, weight=weight), config) == "too few landmarks"


def test_camera_that_stands_still(make_sample):
    sample = make_sample()
    assert refuse(with_result(sample, T_WC=sample.result.T_WC[:1].expand(6, 7)), CONFIG) == "no translation"


def test_far_landmarks_have_no_parallax(make_sample):
    sample = make_sample()
    far = sample.result.points_W * 100
    assert refuse(with_result(sample, points_W=far), dataclasses.replace(CONFIG, min_baseline=0.0)) == "no parallax"


def test_a_mono_camera_that_turns_much_and_moves_little_is_refused_a_walk_is_not(make_sample):
    sample = make_sample()
    T_WC = sample.result.T_WC

    def refused(step_deg, share):
        """The window turned about y by so much from keyframe to keyframe, its positions scaled by `share`."""
        turn = torch.zeros(6, 6, dtype=torch.float64)
        turn[:, 4] = torch.arange(6) * step_deg * torch.pi / 180
        T = torch.cat([T_WC[:, :3] * share, geometry.exp(turn)[:, 3:]], 1)
        return refuse(with_result(sample, T_WC=T), dataclasses.replace(CONFIG, min_baseline=0.0, min_parallax_deg=0.0))

    assert refused(4.0, 0.02) == "turned much, moved little"
    assert refused(0.5, 0.02) is None and refused(4.0, 1.0) is None
