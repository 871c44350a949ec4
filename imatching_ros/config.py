"""Every setting, its default, unit, bounds and meaning, once. The ROS parameters and the command line are made from it."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from .errors import ConfigError


def setting(default: Any, doc: str, *, unit: str = "", low: float | None = None, high: float | None = None,
            choices: tuple[str, ...] = (), live: bool = False) -> Any:
    """A dataclass field with what a person must know of it. `live`: may be changed while the node runs."""
    return field(default=default, metadata={"doc": doc, "unit": unit, "low": low, "high": high, "choices": choices, "live": live})


@dataclass(frozen=True)
class MatcherConfig:
    name: str = setting("expectation", "matcher: expectation, regression, klt, sift, or the name of an entry point")
    weights: str = setting("default", "'default' for the shipped weights, or a .safetensors file")
    device: str = setting("cpu", "where the network runs", choices=("cpu", "cuda"))
    threads: int = setting(1, "torch threads of the odometry; more than 1 stalls on a busy CPU", low=1, high=64)


@dataclass(frozen=True)
class BundleConfig:
    kernel: str = setting("huber", "robust kernel of the reprojection residual", choices=("huber", "cauchy", "geman_mcclure", "none"))
    kernel_width: float = setting(2.0, "where the kernel starts to bend", unit="sigma", low=0.1, high=100.0)
    max_iterations: int = setting(20, "accepted and rejected Levenberg-Marquardt steps", low=1, high=1000)
    cost_tolerance: float = setting(1e-4, "relative decrease of the cost below which BA has converged", low=0.0, high=1.0)
    precision: str = setting("float64", "number type of the solver", choices=("float32", "float64"))


@dataclass(frozen=True)
class OdometryConfig:
    pass


@dataclass(frozen=True)
class LearningConfig:
    mode: str = setting("thread", "off, sync (in line, deterministic) or thread (in the background)", choices=("off", "sync", "thread"))


@dataclass(frozen=True)
class Config:
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    bundle: BundleConfig = field(default_factory=BundleConfig)
    odometry: OdometryConfig = field(default_factory=OdometryConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    seed: int = setting(0, "seed of everything random", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        for path, value, meta in walk(self):
            check(path, value, meta)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Config:
        """Nested or dotted keys; an unknown key or a value out of bounds is a ConfigError."""
        return _build(cls, _nested(data), "")

    @classmethod
    def from_file(cls, path: str | Path) -> Config:
        try:
            data = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read the configuration file {path}: {error}") from None
        if not isinstance(data, dict):
            raise ConfigError(f"the configuration file {path} must hold keys and values, found {type(data).__name__}")
        return cls.from_dict(data)

    def with_values(self, values: dict[str, Any]) -> Config:
        """A copy with dotted keys replaced; strings are read as YAML scalars."""
        data = self.to_dict()
        for key, value in values.items():
            node = data
            *parents, leaf = key.split(".")
            for name in parents:
                node = node.get(name) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node:
                raise ConfigError(_unknown(key, [path for path, _, _ in walk(self)]))
            node[leaf] = yaml.safe_load(value) if isinstance(value, str) else value
        return Config.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def walk(config: Any, prefix: str = ""):
    """Yields (dotted key, value, metadata) of every setting."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from walk(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value, {**f.metadata, "type": type(f.default)}


def check(path: str, value: Any, meta: Any) -> None:
    """Raises ConfigError when a value has the wrong type or lies outside its bounds."""
    if not isinstance(value, meta["type"]) or (isinstance(value, bool) and meta["type"] is not bool):
        raise ConfigError(f"{path} is {value!r}, expected {meta['type'].__name__}")
    if meta["choices"] and value not in meta["choices"]:
        raise ConfigError(f"{path} is '{value}', expected one of {', '.join(meta['choices'])}")
    low, high = meta["low"], meta["high"]
    # "not within" rather than "outside", so that NaN is refused.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise ConfigError(f"{path} is {value}, expected {low} to {high} {meta['unit']}".rstrip())


def _nested(data: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in data.items():
        node = tree
        *parents, leaf = str(key).split(".")
        for name in parents:
            node = node.setdefault(name, {})
        if isinstance(value, dict):
            node.setdefault(leaf, {}).update(_nested(value))
        else:
            node[leaf] = value
    return tree


def _build(cls: type, data: dict[str, Any], prefix: str) -> Any:
    types = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    values = {}
    for key, value in data.items():
        if key not in known:
            raise ConfigError(_unknown(prefix + key, [prefix + name for name in known]))
        kind = types[key]
        if is_dataclass(kind):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{key} is {value!r}, expected a section with the keys {', '.join(f.name for f in fields(kind))}")
            value = _build(kind, value, f"{prefix}{key}.")
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif kind is float and isinstance(value, str):
            try:  # YAML 1.1 reads 1e-4 as a string
                value = float(value)
            except ValueError:
                pass
        values[key] = value
    return cls(**values)


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
    return f"unknown configuration key '{key}'; {hint}"
