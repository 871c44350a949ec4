"""A parameter that bundle adjustment leaves out: its step is that of a joint optimum, to first order."""

from dataclasses import replace

import pytest
import torch

from imatching_ros.bundle import estimate_missing, solve
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.types import ObservationKind
from imatching_ros.offline.experiments.ba_windows import make_window

CONFIG = BundleConfig(kernel="none", cost_tolerance=1e-12, max_iterations=100)


def direction_of(window):
    """(O, 2) px a unit: a pattern of the rows that grows from keyframe to keyframe, as in a turn that speeds up."""
    row = (window.obs[:, 1] - 240) / 240
    return torch.stack([row * window.kf_idx.double() ** 2, 0.3 * row], 1)


def shifted(window, direction, step):
    obs = window.obs.clone()
    obs[:, :2] -= step * direction
    if int(window.kind[0]) == ObservationKind.STEREO:
        obs[:, 2] -= step * direction[:, 0]
    return replace(window, obs=obs)


@pytest.mark.parametrize("kind", list(ObservationKind))
def test_step_and_deviation_are_those_of_the_cost_along_the_parameter(kind):
    window = make_window(6, 200, kind=kind, noise_px=0.3).window
    direction, h = direction_of(window), 0.01
    result = solve(window, CONFIG)
    found = estimate_missing(window, result, direction, CONFIG)
    below, above = (solve(shifted(window, direction, s * h), CONFIG).cost_after for s in (-1, 1))
    curvature = (below - 2 * result.cost_after + above) / h**2
    assert found.sigma == pytest.approx(curvature**-0.5, rel=0.05)
    assert found.value == pytest.approx((above - below) / (2 * h) / curvature, rel=0.1, abs=0.1 * found.sigma)


@pytest.mark.parametrize("kind", list(ObservationKind))
def test_what_was_left_out_is_found(kind):
    window = make_window(6, 300, kind=kind, noise_px=0.3).window
    direction = direction_of(window)
    bent = shifted(window, direction, 0.2)
    found = estimate_missing(bent, solve(bent, CONFIG), direction, CONFIG)
    assert found.value == pytest.approx(0.2, abs=5 * found.sigma) and found.value > 10 * found.sigma
    assert 0.05 < found.visible_px < 4


def test_what_poses_can_imitate_is_not_seen():
    """A shift of whole images is a rotation of their cameras, nearly."""
    window = make_window(6, 300, noise_px=0.3).window
    result = solve(window, CONFIG)
    shift = torch.tensor([0.0, 1.0], dtype=torch.float64) * window.kf_idx[:, None]
    rows = direction_of(window)
    imitated, seen = (estimate_missing(window, result, d / d.norm(), CONFIG) for d in (shift, rows))
    assert imitated.sigma > 5 * seen.sigma


def test_a_window_that_determines_nothing_gives_none():
    window = make_window(6, 100).window
    same = replace(window, T_WC=window.T_WC[:1].expand(6, 7).clone())
    assert estimate_missing(same, replace(solve(window, CONFIG), T_WC=same.T_WC), direction_of(window), CONFIG) is None
