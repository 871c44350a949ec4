"""Every setting, its default, unit, bounds and meaning, once. The ROS parameters and the command line are made from it."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from .errors import ConfigError


def setting(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
    expose: bool = False,
) -> Any:
    """A dataclass field with its documentation.

    Args:
        live: may be changed while the node runs.
        expose: also a ROS parameter of the node; the others are set by a configuration file or --set of the offline commands.
    """
    return field(
        default=default,
        metadata={
            "doc": doc,
            "unit": unit,
            "low": low,
            "high": high,
            "choices": choices,
            "live": live,
            "expose": expose,
        },
    )


@dataclass(frozen=True)
class MatcherConfig:
    name: str = setting(
        "auto",
        "matcher: expectation, expectation_fast, regression, klt, sift, xfeat, aliked, loftr, or the name of an entry point; auto: that of "
        "the weights file if one is given, else expectation on a GPU or in bfloat16, and expectation_fast in float32",
        expose=True,
    )
    weights: str = setting(
        "default",
        "'default' for the shipped weights, or a .safetensors file; xfeat, aliked and loftr: the authors' file",
        expose=True,
    )
    device: str = setting("cpu", "where the network runs", choices=("cpu", "cuda"), expose=True)
    precision: str = setting(
        "auto",
        "number type of the network: bfloat16 takes two thirds of the time on processors that have it, and slow on others; "
        "auto: bfloat16 where the CPU has it, else float32",
        choices=("auto", "float32", "bfloat16"),
        expose=True,
    )
    max_width: int = setting(
        1280,
        "wider images are halved for matching until they fit, which is faster and less accurate; coordinates stay in pixels of the "
        "camera; 0: never",
        unit="px",
        low=0,
        high=100000,
        expose=True,
    )
    threads: int = setting(
        1, "torch threads of the odometry; more than 1 stalls on a busy CPU", low=1, high=64, expose=True
    )


@dataclass(frozen=True)
class CameraConfig:
    """Properties of the camera that CameraInfo lacks."""

    readout_ms: float = setting(
        0.0,
        "rolling shutter: time from the exposure of the first row to that of the last; 0: what the calibration file holds, else, "
        "but for stereo, what the residuals of turns show, which is none for a global shutter",
        unit="ms",
        low=0.0,
        high=200.0,
        expose=True,
    )


@dataclass(frozen=True)
class BundleConfig:
    kernel: str = setting(
        "huber",
        "robust kernel of the reprojection residual",
        choices=("huber", "cauchy", "geman_mcclure", "none"),
        expose=True,
    )
    kernel_width: float = setting(
        2.0, "whitened residual beyond which the kernel reduces weights", unit="sigma", low=0.1, high=100.0
    )
    max_iterations: int = setting(20, "accepted and rejected Levenberg-Marquardt steps", low=1, high=1000, live=True)
    cost_tolerance: float = setting(
        1e-4, "relative decrease of the cost below which BA has converged", low=0.0, high=1.0, live=True
    )
    precision: str = setting("float64", "number type of the solver", choices=("float32", "float64"))
    shared_error: float = setting(
        5.0,
        "factor on the covariance of poses for errors that all matches of an image share, which residuals do not "
        "show; measured on rendered scenes",
        low=1.0,
        high=1000.0,
        live=True,
    )
    min_parallax_deg: float = setting(
        0.3, "median parallax of a mono window below which it is degenerate", unit="deg", low=0.0, high=90.0, live=True
    )
    max_baseline_error: float = setting(
        0.1,
        "median standard deviation of a mono window's positions, relative to its longest baseline, "
        "above which it is degenerate",
        low=0.0,
        high=1000.0,
        live=True,
    )
    min_support: float = setting(
        0.3,
        "share of the observations within twice the kernel width below which a window is degenerate",
        low=0.0,
        high=1.0,
        live=True,
    )


@dataclass(frozen=True)
class OdometryConfig:
    mode: str = setting(
        "auto", "mono, stereo, rgbd, or auto: what the first frame carries", choices=("auto", "mono", "stereo", "rgbd")
    )
    window_keyframes: int = setting(8, "keyframes in bundle adjustment", low=3, high=30, live=True, expose=True)
    stored_keyframes: int = setting(20, "older keyframes kept to relocalize when lost", low=0, high=200, live=True)
    landmarks_per_frame: int = setting(
        400, "landmarks searched in a frame, and corners kept in a keyframe", low=50, high=5000, live=True, expose=True
    )
    corner_quality: float = setting(
        0.005, "weakest corner, relative to the strongest", low=1e-5, high=1.0, live=True, expose=True
    )
    corner_distance: float = setting(
        0.016, "least distance between two landmarks", unit="image widths", low=0.001, high=0.2, live=True, expose=True
    )
    corner_sigma_px: float = setting(
        0.5, "standard deviation of a corner where it was detected", unit="px", low=0.01, high=10.0, live=True
    )
    min_score: float = setting(0.3, "matches below this score are not used", low=0.0, high=1.0, live=True)
    search_radius: float = setting(
        0.05, "search around the predicted place", unit="image widths", low=0.005, high=1.0, live=True, expose=True
    )
    new_search_radius: float = setting(
        0.12, "search for a point whose depth is not known yet", unit="image widths", low=0.005, high=2.0, live=True
    )
    inlier_px: float = setting(3.0, "reprojection error of an inlier", unit="px", low=0.5, high=20.0, live=True)
    min_inliers: int = setting(
        15, "a pose needs so many inliers among the frame's own matches", low=6, high=1000, live=True, expose=True
    )
    min_inlier_share: float = setting(0.15, "and so large a share of the frame's matches", low=0.0, high=1.0, live=True)
    verified_inliers: int = setting(
        30, "TRACKING becomes UNVERIFIED below so many inliers", low=6, high=1000, live=True, expose=True
    )
    min_parallax_px: float = setting(
        3.0,
        "a landmark is triangulated from so much parallax where its surroundings say nothing of its depth",
        unit="px",
        low=0.5,
        high=100.0,
        live=True,
    )
    start_parallax: float = setting(
        0.015, "median parallax at which mono starts", unit="image widths", low=0.001, high=0.5, live=True
    )
    start_precision: float = setting(
        0.02,
        "mono starts when the first motion is known to this share of itself; twice that after a wait",
        low=0.001,
        high=1.0,
        live=True,
    )
    start_landmarks: int = setting(50, "landmarks that a start needs", low=8, high=1000, live=True)
    keyframe_share: float = setting(
        0.9,
        "new keyframe when a frame finds a smaller share of its landmarks than the best frame before",
        low=0.1,
        high=1.0,
        live=True,
    )
    keyframe_parallax: float = setting(
        0.03, "new keyframe at this median parallax", unit="image widths", low=0.001, high=1.0, live=True, expose=True
    )
    keyframe_interval_s: float = setting(
        1.0, "new keyframe after this time, if the camera has moved", unit="s", low=0.05, high=60.0, live=True
    )
    restart_frames: int = setting(
        3, "lost for so many usable frames, a new map is started", low=1, high=1000, live=True
    )
    depth_min_m: float = setting(
        0.2, "nearer depths are not used", unit="m", low=0.0, high=100.0, live=True, expose=True
    )
    depth_max_m: float = setting(
        20.0, "farther depths are not used", unit="m", low=0.1, high=1000.0, live=True, expose=True
    )
    depth_sigma: float = setting(
        0.003,
        "standard deviation of inverse depth from an RGB-D camera",
        unit="1/m",
        low=1e-6,
        high=1.0,
        live=True,
        expose=True,
    )
    max_disparity: float = setting(
        0.15,
        "largest disparity searched in a stereo pair",
        unit="image widths",
        low=0.01,
        high=0.5,
        live=True,
        expose=True,
    )
    stereo_far: float = setting(
        35.0, "stereo depth is used up to this distance", unit="baselines", low=1.0, high=1e6, live=True
    )
    planar: bool = setting(
        False,
        "a wheeled robot on level floors: soft prior on height, roll and pitch of the base, whose z axis is up; needs the "
        "mounting of the camera",
        expose=True,
    )
    first_baseline_m: float = setting(
        0.0,
        "mono: known distance between the first and the last image of the start; 0 = scale unknown",
        unit="m",
        low=0.0,
        high=1000.0,
        expose=True,
    )


@dataclass(frozen=True)
class ExternalOdometryConfig:
    """External odometry: wheels, an inertial filter, a file."""

    use: str = setting(
        "off",
        "what external odometry (wheels, inertial) is used for: to predict the motion between images, to give "
        "one camera its scale, or both",
        choices=("off", "prediction", "scale", "both"),
        expose=True,
    )
    min_translation_m: float = setting(
        0.1,
        "two keyframes are used for the scale when odometry moved so far between them",
        unit="m",
        low=1e-3,
        high=1000.0,
        live=True,
        expose=True,
    )
    max_gap_s: float = setting(
        0.25,
        "longest hole between two of its poses that is interpolated, and longest time by which the newest is "
        "extrapolated",
        unit="s",
        low=1e-3,
        high=10.0,
        live=True,
        expose=True,
    )


@dataclass(frozen=True)
class ImuConfig:
    """A gyroscope beside the camera."""

    time_offset_ms: float = setting(
        0.0,
        "added to the stamps of the IMU to give those of the images (Kalibr's timeshift_cam_imu with the other sign)",
        unit="ms",
        low=-1000.0,
        high=1000.0,
        live=True,
        expose=True,
    )
    noise_density: float = setting(
        2.4e-4,
        "of the gyroscope, of its data sheet; the default is that of the BMI055 and BMI088",
        unit="rad/s/sqrt(Hz)",
        low=1e-6,
        high=0.1,
        live=True,
    )


@dataclass(frozen=True)
class LearningConfig:
    mode: str = setting(
        "thread",
        "off, sync (in line, deterministic) or thread (in the background)",
        choices=("off", "sync", "thread"),
        expose=True,
    )
    guard: bool = setting(
        True, "validate candidates before and after deployment; false promotes every candidate, for experiments only"
    )
    budget: float = setting(
        0.5, "largest share of time that the background thread works", low=0.01, high=1.0, live=True, expose=True
    )
    queue: int = setting(4, "windows waiting for the background thread; the oldest is dropped", low=1, high=100)
    learning_rate: float = setting(3e-4, "step size of Adam", low=1e-7, high=1e-1, live=True, expose=True)
    clip_norm: float = setting(1.0, "gradients longer than this are shortened to it", low=1e-3, high=1e3, live=True)
    l2_sp: float = setting(
        0.03,
        "decay to the pretrained weights (L2-SP) with each step, times the learning rate / 1e-3",
        low=0.0,
        high=1.0,
        live=True,
        expose=True,
    )
    ema_decay: float = setting(
        0.95,
        "decay per step of the exponential moving average of the weights, which is what is validated and deployed",
        low=0.0,
        high=0.9999,
        live=True,
    )
    residual_weight: float = setting(
        1.0, "weight of the reprojection residual (the upper level itself)", low=0.0, high=100.0, live=True
    )
    pseudo_truth_weight: float = setting(
        1.0,
        "weight of the cross-entropy and coordinate cost at the landmarks of the window's own bundle adjustment, over pairs of its "
        "keyframes (an approximation: it pulls the wrong matches that the residual cannot see)",
        low=0.0,
        high=100.0,
        live=True,
    )
    augment: bool = setting(
        True, "other light, noise, blur and views of the pairs of pseudo-truth; false for experiments only"
    )
    warp_weight: float = setting(
        1.0, "weight of the same cost on random homographies of live images", low=0.0, high=100.0, live=True
    )
    keyframes_per_step: int = setting(
        4, "keyframes of a window between which matches carry the gradient of a step", low=2, high=30, live=True
    )
    replay_windows: int = setting(24, "windows kept for replay", low=1, high=1000, expose=True)
    replay_share: float = setting(0.5, "share of steps on replayed windows", low=0.0, high=1.0, live=True)
    candidate_steps: int = setting(32, "steps of a candidate before its validation", low=1, high=100000, live=True)
    validation_windows: int = setting(6, "fewest windows of a validation", low=3, high=100, expose=True)
    validation_windows_max: int = setting(
        15,
        "a validation that is still undecided ends after so many windows; the k-th candidate of an hour gets 1 + log2(k) / 3 times as many",
        low=3,
        high=1000,
    )
    post_deployment_windows: int = setting(
        6, "windows of post-deployment validation, in which a promotion may be rolled back", low=3, high=1000, live=True
    )
    confidence: float = setting(
        0.95,
        "confidence that no candidate without a gain is promoted in an hour of driving",
        low=0.5,
        high=0.9999,
        expose=True,
    )
    search_radius: float = setting(
        0.05, "search around the reprojected landmark", unit="image widths", low=0.005, high=1.0
    )
    min_score: float = setting(0.3, "matches below this score do not enter the window", low=0.0, high=1.0)
    error_cap_px: float = setting(
        4.0, "held-out errors count up to this; a missing match counts as this", unit="px", low=0.5, high=100.0
    )
    min_landmarks: int = setting(40, "gate: landmarks seen in three or more keyframes", low=8, high=10000, live=True)
    min_parallax_deg: float = setting(
        0.5, "gate: median parallax of the landmarks", unit="deg", low=0.0, high=45.0, live=True
    )
    min_baseline: float = setting(
        0.02,
        "gate: extent of the keyframes over the median depth (no pure rotation, no standing still)",
        low=0.0,
        high=10.0,
        live=True,
    )
    min_inlier_share: float = setting(
        0.6, "gate: observations with a robust weight above one half", low=0.0, high=1.0, live=True
    )
    max_residual_px: float = setting(
        2.0, "gate: median reprojection residual", unit="px", low=0.1, high=100.0, live=True
    )


@dataclass(frozen=True)
class Config:
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    bundle: BundleConfig = field(default_factory=BundleConfig)
    odometry: OdometryConfig = field(default_factory=OdometryConfig)
    external_odometry: ExternalOdometryConfig = field(default_factory=ExternalOdometryConfig)
    imu: ImuConfig = field(default_factory=ImuConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    seed: int = setting(0, "seed of everything random", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        for path, value, meta in walk(self):
            check(path, value, meta)
        if self.odometry.depth_min_m >= self.odometry.depth_max_m:
            raise ConfigError(
                f"odometry.depth_min_m is {self.odometry.depth_min_m:g} m, expected less than odometry.depth_max_m "
                f"({self.odometry.depth_max_m:g} m): no depth would be used"
            )
        if 0 < self.matcher.max_width < 160:
            raise ConfigError(
                f"matcher.max_width is {self.matcher.max_width}, expected 0, or at least 160 px: less shows too little"
            )
        if self.learning.validation_windows_max < self.learning.validation_windows:
            raise ConfigError(
                f"learning.validation_windows_max is {self.learning.validation_windows_max}, expected learning.validation_windows "
                f"({self.learning.validation_windows}) or more"
            )

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
            node: Any = data
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


def refuse_change(before: Config, after: Config) -> None:
    """Raises ConfigError when a setting differs that may not change while running."""
    for (path, old, meta), (_, new, _) in zip(walk(before), walk(after)):
        if old != new and not meta["live"]:
            raise ConfigError(
                f"{path} is {old!r} and cannot become {new!r} while running; start again with the new value"
            )


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
        kind: Any = types[key]
        section: Any = kind if is_dataclass(kind) else None
        if section is not None:
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{prefix}{key} is {value!r}, expected a section with the keys {', '.join(f.name for f in fields(section))}"
                )
            value = _build(section, value, f"{prefix}{key}.")
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif kind is float and isinstance(value, str):
            try:  # YAML 1.1 reads 1e-4 as a string
                value = float(value)
            except ValueError:
                pass
        elif value is False and "off" in (known[key].metadata.get("choices") or ()):
            value = "off"  # which YAML 1.1 reads as a truth value
        values[key] = value
    return cls(**values)


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
    return f"unknown configuration key '{key}'; {hint}"
