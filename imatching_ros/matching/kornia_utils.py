"""Networks of other authors: their packages, which are optional, and their weights, which a user names as a local file."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.config import MatcherConfig
from ..core.errors import ConfigError, WeightsError
from .base import Matcher
from .weights import load_weights


class SigmaScale(nn.Module):
    """A factor of the sigma that a network's distributions give, 1 at first; learning fits it."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()))

    def forward(self, variance_px2: Tensor) -> Tensor:
        """Variances px^2 of one coordinate, any shape -> sigma_px, at least .3 px times the factor; neither has a gradient."""
        return variance_px2.detach().sqrt().clamp_min(0.3) * self.log.detach().exp()


class PublishedMatcher(Matcher):
    """A matcher around a network of kornia; weights are its authors' file, named in `matcher.weights`."""

    address: ClassVar[str]  # of the published file
    prefix: ClassVar[str] = ""  # of the published names, taken off

    def __init__(self, config: MatcherConfig | None = None) -> None:
        """With a configuration: weights loaded, on its device. Without: random weights."""
        super().__init__()
        self.network = self.build(import_kornia(self.name))
        self.confidence = SigmaScale()
        if config is not None:
            _load_published(self, config)
            self.to(config.device)
        self.eval()

    @staticmethod
    @abstractmethod
    def build(kornia_feature: ModuleType) -> nn.Module:
        """The network, with random weights; parts that matching does not use are frozen, so that no optimizer moves them."""

    def log_sigma_bias(self) -> Tensor:
        return self.confidence.log

    def train(self, mode: bool = True) -> PublishedMatcher:
        """Stays in evaluation mode: the statistics of batch norm are those of the published weights, also while learning."""
        return super().train(False)


def import_kornia(name: str) -> ModuleType:
    """kornia.feature, or a ConfigError with the command that installs it."""
    try:
        import kornia.feature
    except ImportError as error:
        raise ConfigError(
            f"matcher '{name}' needs the package kornia ({error}); install it with: pip install kornia"
        ) from None
    return kornia.feature


def _load_published(matcher: PublishedMatcher, config: MatcherConfig) -> None:
    """Loads weights from a file that the authors published or that this project wrote. Nothing is ever downloaded.

    Raises:
        WeightsError: no file is named or there, it cannot be read as plain tensors, or it does not fit.
    """
    address = matcher.address
    if config.weights == "default":
        raise WeightsError(
            f"no weights are shipped for matcher '{matcher.name}'; download {address} and set matcher.weights to the file"
        )
    path = Path(config.weights).expanduser()
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}; download {address} and set matcher.weights to the file")
    try:
        if path.suffix == ".safetensors":
            state = load_file(str(path))
        else:  # plain tensors only: a pickle could run any code
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as a state dict of plain tensors ({reason}); get {address} again"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if (
        isinstance(state, dict) and state.keys() == matcher.state_dict().keys()
    ):  # written by this project while learning
        load_weights(matcher, path)
        return
    matcher.network.load_state_dict(_checked(state, matcher, path))
    matcher.weights_version = 1


def _checked(state: object, matcher: PublishedMatcher, path: Path) -> dict[str, Tensor]:
    address = matcher.address
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} holds {type(state).__name__}, expected a state dict of tensors; get {address}")
    state = {name.removeprefix(matcher.prefix): tensor for name, tensor in state.items()}
    own = matcher.network.state_dict()
    wrong = sorted(set(own) ^ set(state)) or [k for k in own if own[k].shape != state[k].shape]
    if wrong:
        raise WeightsError(f"{path} does not fit the network: {wrong[0]} differs ({len(wrong)} tensors); get {address}")
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise WeightsError(
            f"{path} holds numbers that are not finite in {bad[0]} ({len(bad)} tensors); get {address} again"
        )
    return state
