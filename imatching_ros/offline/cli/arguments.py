"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ...core.config import Config
from ...core.errors import ConfigError
from ...core.timing import SYNC_SLOP_S
from ..recordings.base import MODES, Source, SourceOptions


def add_source_options(parser: argparse.ArgumentParser, *, truth: bool = True, mode: str = "auto") -> None:
    """Options of a recording; of its true trajectory only for commands that read it. `mode` is the default."""
    group = parser.add_argument_group("recording")
    group.add_argument(
        "--mode",
        choices=MODES,
        default=mode,
        help=f"mono ignores depth and right images (default: {mode}; auto: what is there)",
    )
    group.add_argument(
        "--camera",
        type=Path,
        metavar="FILE",
        help="calibration: camera.json, ROS camera_calibration yaml, EuRoC or Kalibr",
    )
    group.add_argument(
        "--mask", type=Path, metavar="FILE", help="image of the frames' size, non-zero where they are not used"
    )
    if truth:
        group.add_argument(
            "--groundtruth",
            type=Path,
            metavar="FILE",
            help="poses of the camera: TUM or KITTI format; for a folder of EuRoC also its csv",
        )
        group.add_argument(
            "--no-groundtruth", action="store_true", default=None, help="leave the true trajectory aside"
        )
        group.add_argument("--groundtruth-topic", metavar="TOPIC", help="PoseStamped, Odometry, TransformStamped or TF")
    group.add_argument("--start", type=float, default=0.0, metavar="S", help="leave out the first seconds")
    group.add_argument("--duration", type=float, metavar="S", help="stop after so many seconds")
    group.add_argument("--image-topic", metavar="TOPIC", help="bags: needed only when there are several cameras")
    group.add_argument("--camera-info-topic", metavar="TOPIC")
    group.add_argument("--right-topic", metavar="TOPIC")
    group.add_argument("--depth-topic", metavar="TOPIC")
    group.add_argument(
        "--rectified",
        choices=("yes", "no"),
        help="bags: whether images are rectified (P of CameraInfo applies); default: when the topic's last part contains 'rect'",
    )
    group.add_argument(
        "--sync-slop-s",
        type=_seconds,
        metavar="S",
        help=f"bags: largest difference of the stamps of an image and its right image or depth (default: {SYNC_SLOP_S:g}, as of the node)",
    )


def _seconds(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise ValueError
    return value


def source_options(args: argparse.Namespace) -> SourceOptions:
    """The options of `add_source_options` as parsed."""
    camera = None
    if args.camera is not None:
        from ...camera.calibration import read_camera

        camera = read_camera(args.camera)
    truth = getattr(args, "groundtruth", None)
    if truth is not None and not truth.is_file():
        raise ConfigError(f"--groundtruth {truth} is no file")
    return SourceOptions(
        mode=args.mode,
        camera=camera,
        groundtruth=truth,
        start_s=args.start,
        duration_s=args.duration,
        image_topic=args.image_topic,
        info_topic=args.camera_info_topic,
        right_topic=args.right_topic,
        depth_topic=args.depth_topic,
        truth_topic=getattr(args, "groundtruth_topic", None),
        rectified=args.rectified,
        sync_slop_s=args.sync_slop_s,
        no_groundtruth=getattr(args, "no_groundtruth", None),
        mask=args.mask,
    )


def open_recordings(args: argparse.Namespace) -> Iterator[tuple[str, Source]]:
    """(name, recording) of every SOURCE[=MODE] in `args.sources`, and of the rendered ones below the folder `args.rendered`.

    Raises:
        ConfigError: no recording, or an unknown mode.
    """
    from ..experiments.scenes import ACCURACY, render
    from ..recordings import open_source

    options = source_options(args)
    paths = []
    for text in args.sources:
        path, equals, mode = text.rpartition("=")
        if equals and mode not in MODES:
            raise ConfigError(f"{text}: expected SOURCE=MODE with one of the modes {', '.join(MODES)}")
        paths.append((Path(path if equals else text), mode if equals else options.mode))
    if args.rendered is not None:
        for name, rendering in ACCURACY.items():
            paths += [(render(args.rendered, name, rendering), mode) for mode in rendering.modes]
    if not paths:
        raise ConfigError("nothing to run on; give recordings, or --rendered FOLDER")
    for path, mode in paths:
        yield path.name, open_source(path, replace(options, mode=mode))


def add_config_options(parser: argparse.ArgumentParser, *, learning: bool = True) -> None:
    """Settings: a file, single keys, and short forms for the most used; how to learn only for commands that play recordings."""
    group = parser.add_argument_group("settings")
    group.add_argument("--config", type=Path, metavar="FILE", help="YAML, nested or dotted keys")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="values", help="one setting, may be repeated"
    )
    group.add_argument("--matcher", metavar="NAME", help="short for --set matcher.name=NAME")
    group.add_argument("--weights", metavar="FILE", help="short for --set matcher.weights=FILE")
    group.add_argument("--device", choices=("cpu", "cuda"), help="short for --set matcher.device=...")
    if learning:
        group.add_argument(
            "--learning",
            choices=("off", "sync", "thread"),
            help="short for --set learning.mode=...; sync is deterministic",
        )
    group.add_argument("--seed", type=int, help="short for --set seed=N")


def read_config(args: argparse.Namespace) -> Config:
    """The configuration that `add_config_options` describes.

    Raises:
        ConfigError: unknown key, value out of bounds, unreadable file.
    """
    config = Config() if args.config is None else Config.from_file(args.config)
    values = {}
    for item in args.values:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item}: expected KEY=VALUE")
        values[key.strip()] = value
    short = {
        "matcher.name": args.matcher,
        "matcher.weights": args.weights,
        "matcher.device": args.device,
        "learning.mode": getattr(args, "learning", None),
        "seed": args.seed,
    }
    # YAML would read the mode `off` as False.
    typed = {key: value for key, value in short.items() if value is not None}
    return _with_typed(config.with_values(values), typed)


def _with_typed(config: Config, values: dict) -> Config:
    data = config.to_dict()
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = data
        for name in parents:
            node = node[name]
        node[leaf] = value
    return Config.from_dict(data)
