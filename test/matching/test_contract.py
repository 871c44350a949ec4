"""What every matcher promises, whatever it is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from known_pairs import SHIFT, CLASSIC, LEARNED, as_float, build_random, make_pair

from imatching_ros.core.config import MatcherConfig
from imatching_ros.core.errors import ConfigError, MatcherError
from imatching_ros.matching import MATCHERS, create_matcher
from imatching_ros.matching.base import Queries


ALL = (*LEARNED, *CLASSIC)
every = pytest.mark.parametrize("matcher", ALL, indirect=True)
learned = pytest.mark.parametrize("matcher", LEARNED, indirect=True)


def suited(matcher, pair):
    """The pair, asked at the points that suit the matcher: SIFT finds its own keypoints only."""
    points = matcher.points(matcher.observe(pair.a))
    if points is None:
        return pair
    inside = ((points > 28) & (points < torch.tensor([pair.a.shape[2] - 28, pair.a.shape[1] - 28]))).all(1)
    return replace(pair, uv=points[inside][:60], uv_b=points[inside][:60] + torch.tensor(SHIFT))


def ask(matcher, pair, targets, predicted=None, radius_px=None, uv=None):
    queries = matcher.describe(matcher.observe(pair.a), pair.uv if uv is None else uv)
    return matcher.estimate(queries, [matcher.observe(t) for t in targets], predicted, radius_px)


@every
def test_estimate_finds_points_and_keeps_the_shapes(matcher, pair):
    pair = suited(matcher, pair)
    found = ask(matcher, pair, [pair.b, pair.a])
    count = len(pair.uv)
    assert found.uv.shape == (2, count, 2) and found.score.shape == found.sigma_px.shape == (2, count)
    assert found.uv.dtype == found.score.dtype == found.sigma_px.dtype == torch.float32
    assert found.uv.device == matcher.device and found.uv.isfinite().all() and (found.sigma_px > 0).all()
    assert ((found.score >= 0) & (found.score <= 1)).all() and not found.uv.requires_grad
    error = (found.uv[0] - pair.uv_b).norm(dim=-1)
    assert (found.score[0] > 0.3).sum() > 0.5 * count
    assert error[found.score[0] > 0.3].median() < 0.7
    assert (found.uv[1] - pair.uv).norm(dim=-1)[found.score[1] > 0.3].median() < 0.5


@every
@pytest.mark.parametrize("shift", [(0.0, 0.0), SHIFT])
def test_an_image_and_its_shifted_copy_give_no_offset(matcher, pair, shift):
    pair = suited(matcher, pair)
    found = ask(matcher, pair, [pair.b if any(shift) else pair.a])
    error = (found.uv[0] - pair.uv - torch.tensor(shift))[found.score[0] > 0.3]
    assert (error.median(0).values.abs() < 0.1).all()


@every
def test_forward_agrees_with_estimate(matcher, pair):
    if matcher.name in LEARNED:
        # `estimate` may run in bfloat16, forward never does.
        matcher = create_matcher(MatcherConfig(name=matcher.name, precision="float32"))
    through = matcher(as_float(pair.a), pair.uv, as_float(pair.b)[None])
    cached = ask(matcher, pair, [pair.b])
    sure = cached.score[0] > 0.3
    assert torch.allclose(through.uv[0][sure], cached.uv[0][sure], atol=1e-2)
    assert torch.allclose(through.score, cached.score, atol=1e-2)


@every
def test_targets_in_one_call_equal_a_loop(matcher, pair):
    targets = [pair.b, pair.unrelated, pair.a]
    predicted = torch.stack([pair.uv_b, pair.uv, pair.uv])
    for around, radius in ((None, None), (predicted, 20.0), (predicted, torch.full(predicted.shape[:2], 20.0))):
        together = ask(matcher, pair, targets, around, radius)
        for t, target in enumerate(targets):
            own_radius = radius[t : t + 1] if isinstance(radius, torch.Tensor) else radius
            alone = ask(matcher, pair, [target], None if around is None else around[t : t + 1], own_radius)
            assert torch.allclose(together.uv[t], alone.uv[0], atol=1e-3)
            assert torch.allclose(together.score[t], alone.score[0], atol=1e-4)


@every
def test_hidden_points_get_low_scores(matcher, pair):
    pair = suited(matcher, pair)
    seen = ask(matcher, pair, [pair.b]).score[0]
    hidden = ask(matcher, pair, [pair.unrelated]).score[0]
    assert hidden.median() < 0.3 and seen.median() > hidden.median() + 0.2


@every
def test_points_that_left_the_view_get_low_scores(matcher):
    big = make_pair(160, 320)
    left, right = big.a[:, :, :160].contiguous(), big.a[:, :, 160:].contiguous()
    queries = matcher.describe(matcher.observe(left), big.uv[big.uv[:, 0] < 130])
    assert matcher.estimate(queries, [matcher.observe(right)]).score.median() < 0.3


@every
def test_no_queries_give_an_empty_prediction(matcher, pair):
    found = ask(matcher, pair, [pair.b, pair.a], uv=torch.zeros(0, 2))
    assert found.uv.shape == (2, 0, 2) and found.score.shape == found.sigma_px.shape == (2, 0)
    near = ask(matcher, pair, [pair.b], torch.zeros(1, 0, 2), 5.0, uv=torch.zeros(0, 2))
    assert near.uv.shape == (1, 0, 2)


@every
def test_no_targets_give_an_empty_prediction(matcher, pair):
    found = ask(matcher, pair, [])
    assert found.uv.shape == (0, len(pair.uv), 2) and found.score.shape == (0, len(pair.uv))


@every
def test_a_search_region_is_respected(matcher, pair):
    wrong = (pair.uv_b + torch.tensor([40.0, 30.0]))[None]
    found = ask(matcher, pair, [pair.b], wrong, 10.0)
    good = found.score[0] > 0.3
    size = torch.tensor([pair.a.shape[2], pair.a.shape[1]])
    inside = (wrong[0] < size).all(-1)  # a region outside the image is pulled back to its border
    # The region is a square for the coarse search; a cell of 8 px and the window of the fine one go beyond it.
    assert ((found.uv[0] - wrong[0]).abs().amax(-1)[good & inside] <= 10 + 4 + 9).all()
    right = (found.uv[0] - pair.uv_b).norm(dim=-1) < 3
    assert not (good & right).any()


@every
def test_a_prediction_of_nan_searches_everywhere(matcher, pair):
    predicted = pair.uv_b[None].clone()
    predicted[0, ::2] = torch.nan
    found, free = ask(matcher, pair, [pair.b], predicted, 6.0), ask(matcher, pair, [pair.b])
    assert found.uv.isfinite().all() and found.score.isfinite().all()
    if matcher.wide_baseline:  # one that follows small motion starts elsewhere, and may end elsewhere
        assert torch.allclose(found.uv[0, ::2], free.uv[0, ::2], atol=1e-3)
    near = found.score[0, 1::2] > 0.3
    assert ((found.uv[0, 1::2] - pair.uv_b[1::2]).norm(dim=-1)[near] < 20).all()


@every
def test_queries_can_be_chosen_and_joined(matcher, pair):
    features, target = matcher.observe(pair.a), matcher.observe(pair.b)
    queries = matcher.describe(features, pair.uv)
    whole = matcher.estimate(queries, [target])
    index = torch.arange(0, len(pair.uv), 3)
    assert torch.allclose(matcher.estimate(queries.select(index), [target]).score, whole.score[:, index], atol=1e-4)
    joined = Queries.cat([queries.select(index[:4]), matcher.describe(target, pair.uv_b[:5])])
    assert len(joined) == 9
    # What only dropped queries came from is not held on to.
    assert len(joined.select(torch.arange(4)).sources) == min(1, len(joined.sources))
    found = matcher.estimate(joined, [target])
    assert torch.allclose(found.score[:, :4], whole.score[:, index[:4]], atol=1e-4)


@every
def test_colour_small_and_mixed_images_are_named_errors(matcher, pair):
    colour = pair.a.expand(3, -1, -1)
    with pytest.raises(MatcherError, match="grey"):
        matcher.observe(colour)
    with pytest.raises(MatcherError, match="grey"):
        matcher.extract(as_float(colour)[None])
    with pytest.raises(MatcherError, match="one size"):
        matcher(as_float(pair.a), pair.uv, as_float(colour)[None])
    with pytest.raises(MatcherError, match="one size"):
        matcher(as_float(pair.a), pair.uv, as_float(pair.b)[None, :, :100])


@learned
def test_a_image_below_the_receptive_field_is_a_named_error(matcher):
    with pytest.raises(MatcherError, match="at least 32 px"):
        matcher.observe(torch.zeros(1, 31, 200, dtype=torch.uint8))
    assert matcher.observe(torch.zeros(1, 32, 32, dtype=torch.uint8)).height == 32


@every
@pytest.mark.parametrize("size", [(113, 150), (97, 161)])
def test_sizes_that_no_stride_divides(matcher, size):
    odd = suited(matcher, make_pair(*size))
    found = ask(matcher, odd, [odd.b])
    good = found.score[0] > 0.3
    assert good.sum() >= 3 and (found.uv[0] - odd.uv_b).norm(dim=-1)[good].median() < 0.7


@every
def test_images_without_texture_have_no_matches(matcher, pair):
    grey = torch.full_like(pair.a, 90)
    found = ask(matcher, pair, [grey])
    assert found.uv.isfinite().all() and found.score.median() < 0.3


@every
def test_matches_of_targets_of_several_sizes(matcher, pair):
    small = pair.b[:, :120, :150].contiguous()
    if matcher.name == "klt":
        with pytest.raises(MatcherError, match="one size"):
            ask(matcher, pair, [pair.b, small])
        return
    found = ask(matcher, pair, [pair.b, small])
    alone = ask(matcher, pair, [small])
    assert torch.allclose(found.uv[1], alone.uv[0], atol=1e-3)


@pytest.mark.parametrize("name", LEARNED)
def test_gradients_reach_every_parameter_of_the_features(name, pair):
    matcher = build_random(name)
    found = matcher(as_float(pair.a), pair.uv, torch.stack([as_float(pair.b), as_float(pair.unrelated)]))
    assert found.distributions and found.uv.requires_grad
    entropy = sum(d.cross_entropy(pair.uv_b.expand(2, -1, -1))[0].mean() for d in found.distributions)
    (found.uv.square().mean() * 1e-3 + entropy + found.score.mean() + found.sigma_px.mean()).backward()
    for parameter_name, parameter in matcher.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", LEARNED)
def test_a_coordinate_alone_carries_a_gradient_to_both_images(name, pair):
    matcher = build_random(name)
    image, target = as_float(pair.a).requires_grad_(), as_float(pair.b)[None].requires_grad_()
    matcher(image, pair.uv, target).uv.sum().backward()
    assert image.grad.abs().sum() > 0 and target.grad.abs().sum() > 0


def test_classic_matchers_have_nothing_to_train():
    for name in CLASSIC:
        matcher = create_matcher(MatcherConfig(name=name))
        assert not matcher.trainable and not list(matcher.parameters())


@pytest.mark.gpu
@learned
def test_results_on_the_gpu_equal_those_of_the_cpu(matcher, pair):
    import copy

    on_gpu = copy.deepcopy(matcher).cuda()
    here, there = ask(matcher, pair, [pair.b]), ask(on_gpu, pair, [pair.b])
    assert there.uv.is_cuda and torch.allclose(there.uv.cpu()[here.score > 0.5], here.uv[here.score > 0.5], atol=0.05)


def test_an_unknown_matcher_is_a_named_error():
    with pytest.raises(ConfigError, match="'surf', expected one of expectation"):
        create_matcher(MatcherConfig(name="surf"))
    assert set(ALL) <= set(MATCHERS)
