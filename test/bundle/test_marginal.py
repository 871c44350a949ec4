"""A marginalisation prior says what the eliminated part said, as long as nothing moves away from where it was made."""

import dataclasses

import pytest
import torch

from imatching_ros import bundle
from imatching_ros.core import geometry
from imatching_ros.offline.experiments.ba_windows import make_window
from imatching_ros.core.config import BundleConfig
from imatching_ros.core.types import BAStatus, ObservationKind

CONFIG = BundleConfig(kernel="none", cost_tolerance=1e-10, max_iterations=200)


def without(window, leaving, lost, prior):
    """The window after `leaving` keyframes and `lost` observations are gone."""
    keep = ~lost
    row = (~leaving).long().cumsum(0) - 1
    return dataclasses.replace(
        window,
        T_WC=window.T_WC[~leaving],
        fixed=window.fixed[~leaving],
        kf_idx=row[window.kf_idx[keep]],
        pt_idx=window.pt_idx[keep],
        obs=window.obs[keep],
        kind=window.kind[keep],
        sigma=window.sigma[keep],
        priors=(prior,) if prior else (),
    )


def solved(kind, **options):
    made = make_window(7, 300, kind=kind, **options)
    result = bundle.solve(made.window, CONFIG)
    assert result.status is BAStatus.CONVERGED
    return made, dataclasses.replace(made.window, T_WC=result.T_WC, points_W=result.points_W), result


@pytest.mark.parametrize("kind", list(ObservationKind))
@pytest.mark.parametrize("rows", ([0], [1], [0, 1]))
def test_optimum_and_covariance_stay_when_keyframes_leave(kind, rows):
    made, window, full = solved(kind)
    leaving = torch.zeros(7, dtype=torch.bool).index_fill(0, torch.tensor(rows), True)
    prior, lost = bundle.marginalize(window, leaving, CONFIG)
    rest = without(window, leaving, lost, prior)
    assert not leaving[window.kf_idx[~lost]].any() and lost.any() and not lost.all()
    start = dataclasses.replace(rest, T_WC=rest.T_WC.clone())
    free = ~rest.fixed
    start.T_WC[free] = geometry.retract(
        rest.T_WC[free],
        0.003 * torch.randn(int(free.sum()), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    result = bundle.solve(start, CONFIG)
    assert result.status is BAStatus.CONVERGED
    if kind == ObservationKind.MONO and 0 not in rows:
        scale = full.T_WC[-1, :3].norm() / result.T_WC[-1, :3].norm()
    elif kind == ObservationKind.MONO:
        result = bundle.solve(rest, CONFIG)  # its scale is that of the start
        scale = 1.0
    else:
        scale = 1.0
    assert (result.T_WC[:, :3] * scale - full.T_WC[~leaving][:, :3]).abs().max() < 1e-4
    assert (geometry.local(result.T_WC, full.T_WC[~leaving])[:, 3:]).abs().max() < 1e-4
    if kind != ObservationKind.MONO:
        a, b = result.covariance_newest, full.covariance_newest
        assert torch.allclose(a / a.trace(), b / b.trace(), atol=1e-3)


def test_dropping_instead_loses_what_the_prior_keeps():
    made, window, full = solved(ObservationKind.STEREO)
    leaving = torch.arange(7) < 2
    prior, lost = bundle.marginalize(window, leaving, CONFIG)
    kept, dropped = (bundle.solve(without(window, leaving, lost, p), CONFIG) for p in (prior, None))

    def error(result):
        return geometry.local(result.T_WC, full.T_WC[2:]).norm(dim=1).max()

    assert error(kept) < 1e-4 < 1e-3 < error(dropped)


def test_prior_is_handed_on_when_the_next_keyframe_leaves():
    made, window, full = solved(ObservationKind.STEREO)
    both = torch.arange(7) < 2
    at_once, lost = bundle.marginalize(window, both, CONFIG)
    first, lost_first = bundle.marginalize(window, torch.arange(7) == 0, CONFIG)
    rest = without(window, torch.arange(7) == 0, lost_first, first)
    second, _ = bundle.marginalize(rest, torch.arange(6) == 0, CONFIG)
    assert torch.equal(at_once.keyframes, second.keyframes)
    scale = at_once.information.diagonal().sqrt()
    assert ((at_once.information - second.information) / scale[:, None] / scale).abs().max() < 1e-6
    assert ((at_once.vector - second.vector) / scale).abs().max() < 1e-3


def test_landmarks_kept_alive_stay_in_the_window():
    made, window, full = solved(ObservationKind.STEREO)
    leaving = torch.arange(7) == 0
    alive = torch.zeros(300, dtype=torch.bool)
    alive[window.pt_idx[window.kf_idx == 3]] = True
    prior, lost = bundle.marginalize(window, leaving, CONFIG, alive)
    assert not (lost & alive[window.pt_idx] & (window.kf_idx != 0)).any()
    result = bundle.solve(without(window, leaving, lost, prior), CONFIG)
    assert result.status is BAStatus.CONVERGED
    assert geometry.local(result.T_WC, full.T_WC[1:]).norm(dim=1).max() < 0.05


def test_prior_is_positive_and_mono_leaves_the_scale_open():
    made, window, full = solved(ObservationKind.MONO)
    prior, _ = bundle.marginalize(window, torch.arange(7) == 0, CONFIG)
    values = torch.linalg.eigvalsh(prior.information)
    assert values.min() > -1e-9 * values.max() and not prior.anchors_scale
    t = prior.T_WC[:, :3] - window.T_WC[0, :3]
    growth = torch.cat([t, torch.zeros_like(t)], 1).flatten()
    across = torch.randn(len(growth), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    across *= growth.norm() / across.norm()
    assert growth @ prior.information @ growth < 1e-6 * (across @ prior.information @ across)


def test_nothing_known_is_no_prior():
    made, window, full = solved(ObservationKind.STEREO)
    prior, lost = bundle.marginalize(window, torch.zeros(7, dtype=torch.bool), CONFIG)
    assert prior is None and not lost.any()
