"""`matcher.max_width`: matching at half of the resolution, with coordinates in pixels of the camera."""

from __future__ import annotations

import copy

import pytest
import torch
from known_pairs import CLASSIC, LEARNED, SHIFT, Pair, as_float, make_pair

from imatching_ros.core.config import Config, MatcherConfig
from imatching_ros.core.errors import ConfigError
from imatching_ros.matching import create_matcher
from imatching_ros.matching.base import Matcher, Prediction

every = pytest.mark.parametrize("name", (*LEARNED, *CLASSIC))
learned = pytest.mark.parametrize("name", LEARNED)


@pytest.fixture(scope="module")
def large() -> Pair:
    return make_pair(320, 400)


def build(name: str, max_width: int) -> Matcher:
    return create_matcher(MatcherConfig(name=name, precision="float32", max_width=max_width)).eval()


def find(matcher: Matcher, pair: Pair, predicted: torch.Tensor | None = None) -> tuple[torch.Tensor, Prediction]:
    """The queries (N, 2) px, and where they were found in image b."""
    features = matcher.observe(pair.a)
    points = matcher.points(features)
    uv = pair.uv if points is None else points[:80]
    radius = None if predicted is None else 24.0
    return uv, matcher.estimate(matcher.describe(features, uv), [matcher.observe(pair.b)], predicted, radius)


@every
@pytest.mark.parametrize(("max_width", "tolerance_px"), [(200, 0.8), (399, 0.8)])
def test_coordinates_stay_those_of_the_camera(name, large, max_width, tolerance_px):
    """A shift of (7, -4) px is measured to a fraction of a pixel, without a bias of the half pixel between the two grids."""
    uv, found = find(build(name, max_width), large)
    used = found.score[0] > 0.3
    error = (found.uv[0] - uv - torch.tensor(SHIFT))[used]
    assert used.sum() > 0.4 * len(uv)
    assert error.norm(dim=1).median() < tolerance_px and error.median(dim=0).values.abs().max() < 0.3
    whole = find(build(name, 0), large)[1]
    assert found.sigma_px[0][used].median() > whole.sigma_px[0][whole.score[0] > 0.3].median()


@every
def test_nothing_changes_below_the_width(name, large):
    (_, limited), (_, whole) = (find(build(name, width), large) for width in (400, 0))
    assert torch.equal(limited.uv, whole.uv) and torch.equal(limited.sigma_px, whole.sigma_px)


def test_images_are_halved_until_they_fit(large):
    scales = {width: build("klt", width).observe(large.a).scale for width in (400, 399, 200, 199, 160)}
    assert scales == {400: 1, 399: 2, 200: 2, 199: 4, 160: 4}


@learned
def test_the_search_is_around_the_prediction(name, large):
    uv, found = find(build(name, 200), large, large.uv_b[None] + 5.0)
    assert (found.uv[0] - large.uv_b).norm(dim=1)[found.score[0] > 0.3].median() < 0.8


@learned
def test_learning_sees_the_same_coordinates(name, large):
    """Through the door with gradients, and by the distributions that auxiliary losses are taken on."""
    matcher = build(name, 200)
    uv, cached = find(matcher, large)
    found = matcher(as_float(large.a), uv, as_float(large.b)[None])
    sure = cached.score[0] > 0.3
    # `estimate` gets the very same halved images, up to the order of sums.
    assert (found.uv[0] - cached.uv[0])[sure].norm(dim=1).median() < 0.05
    found.uv.sum().backward()
    assert all(p.grad.isfinite().all() for p in matcher.parameters() if p.grad is not None)
    right, wrong = (
        found.distributions[0].cross_entropy(found.uv.new_tensor(at))[0][0][sure].mean()
        for at in ((large.uv_b[None]).tolist(), (large.uv_b[None] + 24.0).tolist())
    )
    assert right < wrong


@learned
def test_weights_and_copies_are_those_of_the_matcher_itself(name):
    limited, whole = build(name, 200), build(name, 0)
    assert list(limited.state_dict()) == list(whole.state_dict()) and isinstance(limited, type(whole))
    assert copy.deepcopy(limited).max_width == 200


def test_a_width_that_shows_too_little_is_refused():
    with pytest.raises(ConfigError, match="matcher.max_width is 64, expected 0, or at least 160 px"):
        Config().with_values({"matcher.max_width": 64})
