"""Feature matchers behind one protocol; see `base`.

A matcher of another package is found by its entry point in the group `imatching_ros.matchers`: a class derived from
`base.Matcher` whose constructor takes a `MatcherConfig`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from ..core.config import MatcherConfig
    from .base import Matcher

MATCHERS = {
    "expectation": "imatching_ros.matching.expectation:ExpectationMatcher",
    "expectation_fast": "imatching_ros.matching.expectation:FastExpectationMatcher",
    "regression": "imatching_ros.matching.regression:RegressionMatcher",
    "klt": "imatching_ros.matching.klt:KltMatcher",
    "sift": "imatching_ros.matching.sift:SiftMatcher",
    "xfeat": "imatching_ros.matching.xfeat:XFeatMatcher",
    "aliked": "imatching_ros.matching.aliked:AlikedMatcher",
    "loftr": "imatching_ros.matching.loftr:LoftrMatcher",
}
ENTRY_POINTS = "imatching_ros.matchers"


def create_matcher(config: MatcherConfig) -> Matcher:
    """The matcher named in the configuration; only its own module is imported.

    Raises:
        ConfigError: no matcher of that name is built in or installed as an entry point, or torch has no such device.
    """
    from .weights import choose_matcher

    _check_device(config.device)
    config = choose_matcher(config)
    cls = _find_class(config.name)
    if not config.max_width:
        return cls(config)
    from .halving import halved

    matcher = halved(cls)(config)
    matcher.max_width = config.max_width
    return matcher


def _find_class(name: str) -> type[Matcher]:
    if name in MATCHERS:
        module, _, cls = MATCHERS[name].partition(":")
        return getattr(import_module(module), cls)
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in installed:
        return installed[name].load()
    known = ", ".join([*MATCHERS, *installed])
    raise ConfigError(
        f"matcher.name is '{name}', expected one of {known}; a package adds its own by an entry point "
        f"in the group {ENTRY_POINTS}"
    )


def _check_device(device: str) -> None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"matcher.device is '{device}', but torch {torch.__version__} finds no CUDA device; install a torch with CUDA (on a Jetson "
            "NVIDIA's own) and look at nvidia-smi, or set matcher.device to 'cpu'"
        )
