"""The example of docs/adding_a_matcher.md: installed as a package of its own, found by its entry point, and trained."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from known_pairs import as_float

from imatching_ros.offline.cli.match_eval import make_pair_matcher
from imatching_ros.core.config import MatcherConfig
from imatching_ros.core.errors import ConfigError, MatcherError
from imatching_ros.matching import create_matcher
from imatching_ros.matching.weights import write_weights

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding_a_matcher.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which the document's package is installed by pip."""
    text = DOCUMENT.read_text()
    source, target = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("site")
    for name, language in (("my_matcher.py", "python"), ("pyproject.toml", "toml")):
        (source / name).write_text(re.search(rf"`{name}`[^`]*```{language}\n(.*?)```", text, re.S)[1])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--target",
            str(target),
            str(source),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def matcher(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    torch.manual_seed(0)
    return create_matcher(MatcherConfig(name="patch"))


def test_it_is_found_by_its_entry_point_only(matcher, pair, monkeypatch, tmp_path):
    assert type(matcher).__module__ == "my_matcher" and make_pair_matcher("patch").matcher.name == "patch"
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="'patch', expected one of"):
        create_matcher(MatcherConfig(name="patch"))


def test_it_keeps_the_promises_of_the_document(matcher, pair):
    features = [matcher.observe(image) for image in (pair.a, pair.b, pair.unrelated)]
    queries = matcher.describe(features[0], pair.uv)
    both = matcher.estimate(queries, features[1:])
    assert both.uv.shape == (2, len(pair.uv), 2) and both.uv.isfinite().all()
    assert torch.allclose(both.uv[1], matcher.estimate(queries, features[2:]).uv[0], atol=1e-3)
    through = matcher(as_float(pair.a), pair.uv, torch.stack([as_float(pair.b), as_float(pair.unrelated)]))
    assert torch.allclose(through.uv, both.uv, atol=1e-2)
    near = matcher.estimate(queries, features[1:2], pair.uv_b[None], 5.0)
    assert (near.uv[0] - pair.uv_b).norm(dim=-1).max() <= 6
    unknown = matcher.estimate(queries, features[1:2], torch.full_like(pair.uv_b[None], torch.nan), 5.0)
    assert torch.allclose(unknown.uv[0], both.uv[0], atol=1e-3)
    assert matcher.estimate(queries, []).uv.shape == (0, len(pair.uv), 2)
    assert matcher.estimate(matcher.describe(features[0], pair.uv[:0]), features[1:]).score.shape == (2, 0)
    with pytest.raises(MatcherError):
        matcher.observe(pair.a.expand(3, -1, -1))


def test_it_learns_and_its_weights_travel(matcher, pair, tmp_path):
    optimizer = torch.optim.Adam(matcher.parameters(), lr=3e-3)
    errors = []
    for _ in range(15):
        found = matcher(as_float(pair.a), pair.uv, as_float(pair.b)[None], pair.uv_b[None], 12.0)
        error = (found.uv[0] - pair.uv_b).norm(dim=-1).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error))
    assert errors[-1] < 0.8 * errors[0]
    write_weights(tmp_path / "patch.safetensors", "patch", matcher.state_dict(), 2, {})
    other = create_matcher(MatcherConfig(name="patch", weights=str(tmp_path / "patch.safetensors")))
    assert other.weights_version == 2 and torch.equal(other.filters.weight, matcher.filters.weight)


def test_the_example_is_short():
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 45
