"""The learned matchers: the lean look-up of odometry against the differentiable one, gradients, precision."""

from __future__ import annotations

import pytest
import torch
from known_pairs import LEARNED, as_float, build, build_random, make_pair

from imatching_ros.core.config import MatcherConfig
from imatching_ros.core.errors import MatcherError
from imatching_ros.matching import coarse_to_fine, create_matcher
from imatching_ros.matching.backbone import COARSE_STRIDE
from imatching_ros.matching.coarse import coarse_estimate, search_region
from imatching_ros.matching.coarse_to_fine import WINDOW, slide
from imatching_ros.matching.precision import cpu_has_bfloat16, use_bfloat16


@pytest.fixture(params=LEARNED)
def matcher(request):
    return build_random(request.param, seed=1)


@pytest.mark.parametrize("search", ["everywhere", "around", "some unknown", "wide", "one radius each"])
@pytest.mark.parametrize("at_once", [300_000, 7 * 500])
# Cells gathered around the prediction wherever possible, nowhere.
@pytest.mark.parametrize("map_per_window", [0, 10**6])
@torch.no_grad()
def test_the_lean_look_up_equals_the_differentiable_one(matcher, pair, search, at_once, map_per_window, monkeypatch):
    monkeypatch.setattr(coarse_to_fine, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(coarse_to_fine, "GATHERED_AT_ONCE", at_once)
    monkeypatch.setattr(coarse_to_fine, "MAP_PER_WINDOW", map_per_window)
    features = matcher.extract(torch.stack([as_float(pair.a), as_float(pair.b), as_float(pair.unrelated)]))
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([pair.a.shape[2] - 1.0, pair.a.shape[1] - 1.0])
    # Anywhere in the image, up to its very corners, where the fine window is cut off.
    uv = torch.cat([torch.rand(50, 2, generator=generator), torch.eye(2), torch.zeros(1, 2), torch.ones(1, 2)]) * size
    predicted = torch.rand(2, len(uv), 2, generator=generator) * size * 1.2 - 0.1 * size
    radius = {
        "everywhere": None,
        "around": 20.0,
        "some unknown": 20.0,
        "wide": 90.0,
        "one radius each": 5 + 40 * torch.rand(2, len(uv), generator=generator),
    }[search]
    if search == "some unknown":
        predicted[:, ::3] = torch.nan
    around = None if search == "everywhere" else predicted
    queries = matcher.describe(features[0], uv)
    lean = matcher.match(queries, features[1:], around, radius)
    whole = matcher.match(queries, features[1:], around, radius, differentiable=True)
    assert torch.allclose(lean.uv, whole.uv, atol=1e-3)
    assert torch.allclose(lean.score, whole.score, atol=1e-4) and torch.allclose(
        lean.sigma_px, whole.sigma_px, rtol=1e-3
    )


@torch.no_grad()
def test_a_search_window_equals_the_whole_map_without_what_lies_outside_the_region():
    """At borders, outside the image, with one radius each, and where the search region is larger than the image."""
    generator = torch.Generator().manual_seed(0)
    logits = 20 * torch.randn(1, 200, 30, 40, generator=generator)
    size = torch.tensor([40.0, 30.0]) * COARSE_STRIDE
    cells = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(30.0), indexing="xy"), -1) * COARSE_STRIDE + 3.5
    for radius in (0.0, 3.0, 12.0, 20.0, 28.5, 77.0, 400.0, 4 + 30 * torch.rand(1, 200, generator=generator)):
        predicted = (torch.rand(1, 200, 2, generator=generator) * 1.4 - 0.2) * size
        predicted[:, :40] = predicted[:, :40].round()  # search regions that end at a cell's edge
        search = search_region(predicted, radius)
        middle = torch.minimum(predicted.clamp_min(3.5), size - 4.5)
        far = ((cells - middle[:, :, None, None]).abs() > search[1][..., None, None, None] + 4).any(-1)
        expected = coarse_estimate(logits.masked_fill(far, -torch.inf), 20.0)
        for one, other in zip(coarse_estimate(logits, 20.0, search), expected):
            assert torch.allclose(one, other, atol=1e-3), radius


@torch.no_grad()
def test_the_lean_look_up_leaves_the_features_alone(matcher, pair):
    features = matcher.extract(torch.stack([as_float(pair.a), as_float(pair.b)]))
    before = [{k: v.clone() for k, v in f.maps.items()} for f in features]
    queries = matcher.describe(features[0], pair.uv)
    first = matcher.match(queries, features[1:])
    assert torch.equal(first.uv, matcher.match(queries, features[1:]).uv)
    assert all(torch.equal(v, f.maps[k]) for f, maps in zip(features, before) for k, v in maps.items())


@torch.no_grad()
def test_distributions_kept_under_no_grad_stay_whole(matcher, pair):
    found = matcher(as_float(pair.a), pair.uv, as_float(pair.b)[None])
    coarse = found.distributions[0].logits
    assert coarse.abs().max() <= matcher.coarse_log_temperature.exp() * 1.001 and coarse.amax((-2, -1)).min() > 0.1


def test_the_gradient_of_a_coordinate_is_the_slope_of_the_coordinate(pair):
    """Against finite differences, in float64: the coordinate is differentiable, not merely connected."""
    matcher = build("expectation").double()
    a, b = as_float(pair.a).double(), as_float(pair.b)[None].double()
    uv = pair.uv[:12].double()
    features = matcher.extract(torch.cat([a[None], b]))
    coarse = torch.stack([f.maps["coarse"] for f in features]).detach().double()
    fine = torch.stack([f.maps["fine"] for f in features]).detach().double()
    query_coarse, query_fine = matcher.describe_batch(coarse[:1], fine[:1], uv[None])
    direction = torch.randn(fine[1:].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def located(step):
        surface = matcher.correlate(query_fine, fine[1:] + step * direction, pair.uv_b[None, :12] + 1.3)
        return matcher.locate(surface, torch.zeros(1, len(uv), 3, dtype=torch.float64))[0]

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    slopes = torch.stack([torch.autograd.grad(c, step, retain_graph=True)[0] for c in located(step).flatten()])
    # The second window follows the first mean without a gradient (an approximation of order curvature), so: close, not equal.
    numeric = ((located(torch.tensor(1e-6)) - located(torch.tensor(-1e-6))) / 2e-6).flatten()
    assert torch.nn.functional.cosine_similarity(slopes, numeric.detach(), dim=0) > 0.95


def test_the_fine_distribution_peaks_where_the_descriptors_agree(pair):
    """An image matched to itself: coarse and fine coordinates are those of the queries, at every stride's convention."""
    matcher = build_random("expectation")
    with torch.no_grad():
        (
            matcher.coarse_log_temperature.fill_(6.0),
            matcher.fine_log_temperature.fill_(6.0),
            matcher.refine_log_temperature.fill_(6.0),
        )
        # At centres of fine cells, the ones next to the centres of coarse cells.
        uv = (
            torch.cartesian_prod(torch.arange(5, 18), torch.arange(5, 15)).float() * COARSE_STRIDE
            + COARSE_STRIDE / 2
            + 0.5
        )
        features = matcher.extract(as_float(make_pair(160, 208, seed=8).a)[None])[0]
        queries = matcher.describe(features, uv)
        for around, radius in ((None, None), (uv[None], 4.0)):
            found = matcher.match(queries, [features], around, radius)
            assert (found.uv[0] - uv).abs().median() < 0.1


def test_slide_interpolates_the_surface():
    y, x = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
    plane = (2.0 * x + 7.0 * y)[None, None]
    start = torch.tensor([[[1.25, 2.5]]])
    assert torch.allclose(slide(plane, start)[0, 0, 0, 0], torch.tensor(2 * 1.25 + 7 * 2.5))
    assert torch.allclose(slide(plane, start)[0, 0, 4, 4], torch.tensor(2 * 5.25 + 7 * 6.5))


def test_cross_entropy_is_least_at_the_peak():
    from imatching_ros.matching.base import Distribution

    logits = torch.full((1, 1, 6, 8), -5.0)
    logits[0, 0, 2, 3] = 5.0
    distribution = Distribution(logits, torch.tensor([3.5, 3.5]), 8)
    loss, inside = distribution.cross_entropy(torch.tensor([[[3 * 8 + 3.5, 2 * 8 + 3.5]]]))
    worse, _ = distribution.cross_entropy(torch.tensor([[[5 * 8 + 3.5, 2 * 8 + 3.5]]]))
    assert inside.all() and loss < 0.01 and worse > 5
    outside, inside = distribution.cross_entropy(
        torch.tensor([[[200.0, 3.5], [torch.nan, 3.5]]]).expand(1, 2, 2)[:, :1]
    )
    assert not inside.any() and outside == 0


def test_several_sizes_at_once_are_a_named_error_for_learning(matcher, pair):
    features = matcher.extract(as_float(pair.a)[None]) + matcher.extract(as_float(pair.b)[None, :, :100])
    with pytest.raises(MatcherError, match="one size"):
        matcher.match(matcher.describe(features[0], pair.uv), features, differentiable=True)


def test_features_of_other_weights_are_refused(matcher, pair):
    old = matcher.observe(pair.a)
    matcher.weights_version = 2
    with pytest.raises(AssertionError, match="different weights"):
        matcher.estimate(matcher.describe(old, pair.uv), [matcher.observe(pair.b)])


def test_bfloat16_says_the_same_as_float32(pair):
    full, half = (create_matcher(MatcherConfig("expectation", precision=p)) for p in ("float32", "bfloat16"))
    assert not full.in_bfloat16 and half.in_bfloat16
    one, two = (m.estimate(m.describe(m.observe(pair.a), pair.uv), [m.observe(pair.b)]) for m in (full, half))
    assert two.uv.dtype == torch.float32
    assert ((one.uv - two.uv).norm(dim=-1).median() < 0.05) and ((one.score - two.score).abs().median() < 0.02)


def test_bfloat16_teaches_the_same_as_float32(pair):
    def gradient(precision):
        matcher = create_matcher(MatcherConfig("expectation", precision=precision))
        here, there = matcher.extract(torch.stack([as_float(pair.a), as_float(pair.b)]))
        found = matcher.match(matcher.describe(here, pair.uv), [there], differentiable=True)
        (found.uv[0] - pair.uv).square().log1p().mean().backward()
        return torch.cat([p.grad.flatten() for p in matcher.backbone.parameters() if p.grad is not None])

    full, half = gradient("float32"), gradient("bfloat16")
    assert (
        not torch.equal(full, half)
        and torch.cosine_similarity(full, half, dim=0) > 0.97
        and 0.9 < half.norm() / full.norm() < 1.1
    )


def test_automatic_precision_asks_the_processor(tmp_path, monkeypatch):
    capability = "AVX512"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert cpu_has_bfloat16.__wrapped__(tmp_path / "none") is False
    for text, expected in (
        ("flags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu avx2\n", False),
        ("Features\t: fp asimd bf16\n", True),
        ("processor : 0\n", False),
    ):
        (tmp_path / "cpuinfo").write_text(text)
        assert cpu_has_bfloat16.__wrapped__(tmp_path / "cpuinfo") is expected
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512f avx512_bf16\n")
    capability = "AVX2"  # what torch may use, as after ATEN_CPU_CAPABILITY=avx2
    assert cpu_has_bfloat16.__wrapped__(tmp_path / "cpuinfo") is False
    assert use_bfloat16(MatcherConfig()) == cpu_has_bfloat16() and not use_bfloat16(MatcherConfig(device="cuda"))
    assert use_bfloat16(MatcherConfig(precision="bfloat16")) and not use_bfloat16(MatcherConfig(precision="float32"))
