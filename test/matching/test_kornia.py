"""XFeat, ALIKED and LoFTR by kornia, with random weights: nothing is downloaded."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from known_pairs import SHIFT, as_float, make_pair

from imatching_ros.core.config import MatcherConfig
from imatching_ros.core.errors import ConfigError, MatcherError, WeightsError
from imatching_ros.matching import create_matcher, kornia_utils
from imatching_ros.matching.weights import write_weights

NAMES = ("xfeat", "aliked", "loftr")


def random_matcher(name, seed=0):
    pytest.importorskip("kornia", reason="kornia is optional: pip install kornia")
    from imatching_ros.matching.aliked import AlikedMatcher
    from imatching_ros.matching.loftr import LoftrMatcher
    from imatching_ros.matching.xfeat import XFeatMatcher

    torch.manual_seed(seed)
    return {"xfeat": XFeatMatcher, "aliked": AlikedMatcher, "loftr": LoftrMatcher}[name]()


@pytest.fixture(scope="module", params=NAMES)
def matcher(request):
    return random_matcher(request.param)


@pytest.fixture(scope="module", params=[("xfeat", "xfeat_half.safetensors"), ("aliked", "aliked-t16.pth")])
def published(request):
    """With the authors' weights, which lie beside the real sequences."""
    pytest.importorskip("kornia", reason="kornia is optional: pip install kornia")
    name, file = request.param
    folder = os.environ.get("IMATCHING_DATA")
    weights = Path(folder).parent / "weights" / file if folder else Path()
    if not weights.is_file():
        pytest.skip(f"the published weights of {name} are not here")
    return create_matcher(MatcherConfig(name=name, weights=str(weights)))


@pytest.fixture(scope="module")
def small(pair):
    """Images small enough for LoFTR in a test."""
    return (
        as_float(pair.a[:, :72, :104]),
        as_float(pair.b[:, :72, :104]),
        torch.tensor([[20.0, 18], [50, 30], [77.5, 40.25], [33, 60]]),
    )


def test_shapes_and_both_doors_agree(matcher, small):
    a, b, uv = small
    with torch.no_grad():
        through = matcher(a, uv, torch.stack([b, a]))
        first, *others = matcher.extract(torch.stack([a, b, a]))
        cached = matcher.estimate(matcher.describe(first, uv), others)
    assert through.uv.shape == (2, 4, 2) and through.score.shape == through.sigma_px.shape == (2, 4)
    assert (
        torch.allclose(through.uv, cached.uv, atol=1e-3)
        and cached.distributions == ()
        and len(through.distributions) == 2
    )
    assert (
        through.uv.isfinite().all()
        and (through.sigma_px > 0).all()
        and ((through.score >= 0) & (through.score <= 1)).all()
    )
    assert through.uv.dtype == torch.float32
    for t in range(2):
        alone = matcher.estimate(matcher.describe(first, uv), others[t : t + 1])
        same = torch.isclose(alone.uv[0], cached.uv[t], atol=1e-3).all(1)
        assert same.sum() >= 3, "random weights may leave one query with two places that rounding decides between"
        assert torch.allclose(alone.score[0], cached.score[t], atol=1e-4)


def test_a_image_is_found_in_itself(matcher, small):
    """Random features are unlike enough from place to place: the coarse cell is right, so the error is within a cell."""
    a, _, uv = small
    features = matcher.extract(a[None])[0]
    with torch.no_grad():
        found = matcher.match(matcher.describe(features, uv), [features], uv[None].clone(), 3.0)
    assert (found.uv[0] - uv).abs().max() < 3 + 4 + 5


def test_published_weights_give_no_offset(published):
    """XFeat shortens offsets within a cell by a quarter: only a shift and its reverse together show an offset of its own."""
    big = make_pair(240, 320)
    a, b = published.observe(big.a), published.observe(big.b)

    def offset(first, second, uv, shift):
        error = published.estimate(published.describe(first, uv), [second]).uv[0] - uv - shift
        near = error.norm(dim=-1) < 4
        assert near.float().mean() > 0.5
        return error[near].median(0).values

    shift = torch.tensor(SHIFT)
    assert (offset(a, a, big.uv, 0 * shift).abs() < 0.2).all()
    there_and_back = offset(a, b, big.uv, shift) + offset(b, a, big.uv_b, -shift)
    assert (there_and_back.abs() / 2 < 0.2).all()


def test_sigma_is_scaled_by_what_learning_fits_and_by_nothing_else(matcher, small):
    a, b, uv = small
    scaled = copy.deepcopy(matcher)
    with torch.no_grad():
        scaled.log_sigma_bias().add_(1.0)
    before, after = (m.estimate(m.describe(m.extract(a[None])[0], uv), m.extract(b[None])) for m in (matcher, scaled))
    torch.testing.assert_close(after.sigma_px, before.sigma_px * torch.e)
    assert torch.equal(after.uv, before.uv) and torch.equal(after.score, before.score)


def test_gradients_reach_the_network_and_not_its_statistics(matcher, small):
    a, b, uv = small
    matcher.zero_grad()
    before = {k: v.clone() for k, v in matcher.named_buffers()}
    matcher.train()
    assert not matcher.training
    found = matcher(a, uv, b[None])
    entropy = sum(d.cross_entropy(uv[None])[0].sum() for d in found.distributions)
    found.uv.sum().backward(retain_graph=True)
    through_uv = {n for n, p in matcher.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    entropy.backward()
    reached = {n for n, p in matcher.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {n for n, p in matcher.named_parameters() if p.requires_grad}
    assert len(reached) > 0.9 * len(wanted), wanted - reached
    assert any("block1" in n or "backbone.conv1" in n for n in through_uv)  # down to the first layer
    assert all(torch.equal(before[k], v) for k, v in matcher.named_buffers())


def test_search_regions_unknown_predictions_and_nothing_to_do(matcher, small):
    a, b, uv = small
    first, second = matcher.extract(torch.stack([a, b]))
    queries = matcher.describe(first, uv)
    predicted = uv[None].flip(1).clone()
    found = matcher.estimate(queries, [second], predicted, 9.0)
    assert ((found.uv[0] - predicted[0]).abs().amax(-1) <= 9 + 4 + 8).all()
    free = matcher.estimate(queries, [second])
    predicted[:, 1] = torch.nan
    assert torch.allclose(matcher.estimate(queries, [second], predicted, 9.0).uv[0, 1], free.uv[0, 1], atol=1e-3)
    assert matcher.estimate(queries, []).uv.shape == (0, 4, 2)
    assert matcher.estimate(matcher.describe(first, uv[:0]), [second]).score.shape == (1, 0)
    joined = matcher.estimate(type(queries).cat([queries, matcher.describe(second, uv[:2])]), [second])
    assert torch.allclose(joined.uv[0, :4], free.uv[0], atol=1e-3)


def test_colour_and_small_images_are_named_errors(matcher):
    with pytest.raises(MatcherError, match="grey"):
        matcher.observe(torch.zeros(3, 64, 64, dtype=torch.uint8))
    with pytest.raises(MatcherError, match="at least 32"):
        matcher.observe(torch.zeros(1, 30, 64, dtype=torch.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_weights_as_published_and_as_written_while_learning(name, tmp_path):
    theirs = random_matcher(name, seed=5)
    prefix = "matcher." if name == "loftr" else ""
    state = {prefix + k: v for k, v in theirs.network.state_dict().items()}
    torch.save({"state_dict": state} if name == "loftr" else state, tmp_path / "published.pt")
    write_weights(tmp_path / "ours.safetensors", name, theirs.state_dict(), 4, {})
    for file, version in (("published.pt", 1), ("ours.safetensors", 4)):
        loaded = create_matcher(MatcherConfig(name=name, weights=str(tmp_path / file)))
        assert loaded.weights_version == version
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in theirs.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_absent_and_wrong_weights_say_what_to_do(name, tmp_path):
    network = random_matcher(name).network
    with pytest.raises(WeightsError, match="download http"):
        create_matcher(MatcherConfig(name=name))
    with pytest.raises(WeightsError, match="download http"):
        create_matcher(MatcherConfig(name=name, weights=str(tmp_path / "none.pt")))
    file = tmp_path / "w.pt"
    file.write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        create_matcher(MatcherConfig(name=name, weights=str(file)))
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match="does not fit"):
        create_matcher(MatcherConfig(name=name, weights=str(file)))
    torch.save([1, 2], file)
    with pytest.raises(WeightsError, match="state dict"):
        create_matcher(MatcherConfig(name=name, weights=str(file)))
    state = network.state_dict()
    next(iter(state.values())).view(-1)[0] = torch.nan
    torch.save(state, file)
    with pytest.raises(WeightsError, match="not finite"):
        create_matcher(MatcherConfig(name=name, weights=str(file)))


class _Code:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    random_matcher("xfeat")
    torch.save(_Code(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="cannot be read"):
        create_matcher(MatcherConfig(name="xfeat", weights=str(tmp_path / "w.pt")))
    assert "ran code" not in capsys.readouterr().out


def test_without_kornia_the_error_says_how_to_install_it(monkeypatch):
    import builtins

    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("kornia"):
            raise ImportError("No module named 'kornia'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match="pip install kornia"):
        kornia_utils.import_kornia("xfeat")
