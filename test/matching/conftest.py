"""Fixtures of the matcher tests."""

from __future__ import annotations

import pytest
from known_pairs import Pair, build, make_pair

from imatching_ros.matching.base import Matcher


@pytest.fixture(scope="session")
def pair() -> Pair:
    return make_pair()


_built: dict[str, Matcher] = {}


@pytest.fixture
def matcher(request: pytest.FixtureRequest) -> Matcher:
    """The matcher named by the test's parameter, built once."""
    name = request.param
    if name not in _built:
        _built[name] = build(name)
    return _built[name]
