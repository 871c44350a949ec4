"""The pipeline over one recording, as the node would drive it, with all results in a folder."""

from __future__ import annotations

import platform
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import __version__
from ...core.config import Config
from ...core.errors import ConfigError, SourceError
from ...core.types import Frame, OdometryOutput
from ...learning.weights_store import CURRENT
from ...matching.weights import hash_state, resolve_weights
from ...pipeline import Pipeline
from ..progress import Progress
from ..recordings import open_source
from ..recordings.base import Source, SourceOptions
from .run_writer import RunWriter

LEVEL_CAMERA = (0.0, 0.0, 0.0, -0.5, 0.5, -0.5, 0.5)  # looks along x of the base
_RECENT_NS = 1_000_000_000
_WARNINGS_SHOWN = 5  # a recording with one fault often has it in every frame


@dataclass(frozen=True)
class ReplayOptions:
    """What a replay does beside odometry."""

    quiet: bool = False
    view: str = ""  # `window`, or a file for the Rerun viewer
    imu: bool = True  # the gyroscope of the recording is used
    base_from_camera: Sequence[float] = LEVEL_CAMERA  # (7,) x y z qx qy qz qw


def replay(
    path: Path, out: Path, config: Config, source_options: SourceOptions, options: ReplayOptions
) -> dict[str, Any]:
    """Runs odometry over a recording and returns what metrics.json holds. Ctrl-C ends it early with all files in place.

    Raises:
        ImatchingError: the recording, its calibration or the weights cannot be used. An earlier run in `out` is then as it was.
    """
    torch.set_num_threads(config.matcher.threads)
    # What cannot be used is found out while an earlier run in this folder is still whole.
    T_BC = _read_mounting(options.base_from_camera)
    source = _open(path, out, config, source_options)
    truth, given = _read_truth(source), source.odometry()
    rates = _read_imu(source) if options.imu else None
    config = config.with_values({"odometry.mode": source.mode})
    if given is not None and config.external_odometry.use == "off":
        config = config.with_values({"external_odometry.use": "both"})
    viewer = _open_viewer(options.view, source.camera)
    run, frames = _begin(source, out, config, given, rates, options.quiet)
    run.pipeline.mount_camera(T_BC)
    start, interrupted = time.perf_counter(), False
    try:
        _process_all(run, frames, viewer, Progress(f"replay {source.name}", source.length, quiet=options.quiet))
    except KeyboardInterrupt:
        interrupted = True
        run.writer.add_event({"stamp_ns": run.stamp_ns, "event": "interrupted"})
    finally:
        # Whatever goes wrong in the middle, the results so far are worth keeping.
        run.pipeline.close()
        more = {"wall_s": time.perf_counter() - start, "interrupted": interrupted, "warnings": source.warnings[:100]}
        metrics = _finish(run, truth, _provenance(path, source, run.pipeline) | more)
        if len(source.warnings) > _WARNINGS_SHOWN:
            hidden = len(source.warnings) - _WARNINGS_SHOWN
            print(f"warning: {hidden} more are in {out / 'events.jsonl'}", file=sys.stderr)
    return metrics


def _process_all(run: _Run, frames: Iterator[Frame], viewer: Any, progress: Progress) -> None:
    with progress:
        for frame in frames:
            output = run.process(frame)
            if viewer is not None:
                viewer.add(frame, output, run.pipeline)
            progress.update(frame.id + 1, output.state.value)


def _open(path: Path, out: Path, config: Config, options: SourceOptions) -> Source:
    """The recording.

    Raises:
        ConfigError: it would be overwritten.
    """
    if options.mode == "auto" and config.odometry.mode != "auto":
        options = replace(options, mode=config.odometry.mode)
    source = open_source(path, options)
    if out.resolve() == path.resolve():
        raise ConfigError(
            f"--out {out} is the recording itself, whose files the results would overwrite; give another folder"
        )
    return source


def _open_viewer(view: str, camera: Any) -> Any:
    """The Rerun viewer of `--view`, or None."""
    if not view:
        return None
    from .viewer import Viewer  # rerun-sdk is optional

    return Viewer(camera, None if view == "window" else Path(view))


def _begin(
    source: Source, out: Path, config: Config, external: Any, imu: Any, quiet: bool
) -> tuple[_Run, Iterator[Frame]]:
    """A run whose files are in `out`, and its frames. Its settings and the first frame are known to be usable by then."""
    Pipeline(config).close()
    run: _Run
    source.on_jump = lambda: run.restart()  # set before the first frame is read
    frames = iter(source)
    frames = chain([next(frames)], frames)
    config = _put_aside(out / "weights", config)
    writer = RunWriter(out, config)
    for text in source.warnings:
        writer.add_event({"stamp_ns": None, "event": "warning", "text": text})

    def warn(stamp_ns: int | None, text: str) -> None:
        writer.add_event({"stamp_ns": stamp_ns, "event": "warning", "text": text})
        if len(source.warnings) <= _WARNINGS_SHOWN:
            print(f"\nwarning: {text}", file=sys.stderr)

    def report(event: dict[str, Any]) -> None:
        writer.add_event(event)
        if event["event"] == "warning" and not quiet:
            print(f"\nwarning: {event['text']}", file=sys.stderr)

    source.on_warning = warn
    run = _Run(Pipeline(config, on_event=report, weights_dir=out / "weights"), writer, external, imu)
    return run, frames


def _finish(run: _Run, truth: tuple[Any, str], more: dict[str, Any]) -> dict[str, Any]:
    """Writes what is known at the end; returns what metrics.json holds."""
    metrics = run.writer.finish(truth[0], run.pipeline.keyframes(), more, truth[1])
    if run.pipeline.learning_status().promotions:
        run.pipeline.save_weights(CURRENT)  # those in use at the end, even while in post-deployment validation
    return metrics


class _Run:
    """The pipeline over one recording; it starts again where the node does."""

    def __init__(self, pipeline: Pipeline, writer: RunWriter, external: Any, imu: Any) -> None:
        self.pipeline, self.writer, self._external, self._imu = pipeline, writer, external, imu
        self.stamp_ns = 0
        self._camera: Any = None
        self._fill()

    def process(self, frame: Frame) -> OdometryOutput:
        """One frame with the external odometry that had arrived by then."""
        if self._camera is not None and not frame.camera.is_like(self._camera):
            self.restart()
        self._camera, self.stamp_ns = frame.camera, frame.stamp_ns
        self._pass_odometry(frame.stamp_ns)
        self._pass_rates(frame.stamp_ns)
        clock = time.perf_counter()
        posed: list[float] = []
        output = self.pipeline.process(frame, on_tracked=lambda _: posed.append(time.perf_counter()))
        self.writer.add_frame(output, (posed[0] - clock) * 1e3, (time.perf_counter() - clock) * 1e3)
        return output

    def restart(self) -> None:
        """An empty map at the origin: time has started again, or another camera."""
        self.writer.begin_stretch(self.pipeline.keyframes())
        self.pipeline.reset()
        self._fill()

    def _fill(self) -> None:
        given, self._next_rate = self._external, None
        self._waiting = deque() if given is None else deque(zip(given.stamps_ns.tolist(), torch.from_numpy(given.T_WC)))

    def _pass_odometry(self, until_ns: int) -> None:
        """Gives the pipeline what has arrived by the time of an image: up to the first pose that is not older."""
        while self._waiting:
            stamp_ns, T_OC = self._waiting.popleft()
            self.pipeline.add_external_odometry(stamp_ns, T_OC)
            if stamp_ns >= until_ns:
                break

    def _pass_rates(self, until_ns: int) -> None:
        """The same of the gyroscope; after a new beginning, only what is recent."""
        if self._imu is None:
            return
        until_ns -= round(self.pipeline.config.imu.time_offset_ms * 1e6)
        first, end = self._imu.stamps_ns.searchsorted([until_ns - _RECENT_NS, until_ns]).tolist()
        first = first if self._next_rate is None else self._next_rate
        for k in range(first, end + 1):
            if k < len(self._imu.stamps_ns):
                self.pipeline.add_angular_rate(int(self._imu.stamps_ns[k]), self._imu.rates[k])
        self._next_rate = max(first, end + 1)


def _read_mounting(base_from_camera: Sequence[float]) -> Tensor:
    """(7,) pose.

    Raises:
        ConfigError: numbers that are not finite, or a quaternion that is none.
    """
    T_BC = torch.tensor(base_from_camera, dtype=torch.float64)
    length = float(T_BC[3:].norm())
    if not T_BC.isfinite().all():
        raise ConfigError(f"--base-from-camera is {base_from_camera}, expected finite numbers")
    if not 0.9 < length < 1.1:
        raise ConfigError(f"--base-from-camera: the quaternion has the length {length:.3g}, expected 1")
    return torch.cat([T_BC[:3], T_BC[3:] / length])


def _read_imu(source: Source) -> Any:
    """Angular rates, or None: an imu0/ that nobody named and that cannot be read costs no run."""
    try:
        return source.imu()
    except SourceError as error:
        if source.options.imu_topic is not None:
            raise
        source.warn(f"the IMU is left aside: {error}")
        return None


def _read_truth(source: Source) -> tuple[Any, str]:
    """The true trajectory, or None and why there is none: wrong truth costs no run."""
    try:
        return source.groundtruth(), "the recording has no truth"
    except SourceError as error:
        source.warn(f"the truth is left aside: {error}")
        return None, f"the truth cannot be used: {error}"


def _provenance(path: Path, source: Source, pipeline: Pipeline) -> dict[str, Any]:
    learned = pipeline.learning_status()
    return {
        "source": {
            "path": str(path.resolve()),
            "name": source.name,
            "mode": source.mode,
            "camera": {
                k: getattr(source.camera, k)
                for k in ("width", "height", "fx", "fy", "cx", "cy", "model", "distortion", "baseline_m")
            },
        },
        "learning": {
            "mode": pipeline.config.learning.mode if pipeline.matcher.trainable else "off",
            "steps": learned.step,
            **{
                name: getattr(learned, name)
                for name in (
                    "samples",
                    "rejected",
                    "dropped",
                    "promotions",
                    "rollbacks",
                    "validation_before",
                    "validation_after",
                    "busy_s",
                )
            },
        },
        "weights": {
            "matcher": pipeline.matcher.name,
            "version": pipeline.matcher.weights_version,
            "hash": hash_state(pipeline.matcher.state_dict()),
        },
        "imu": pipeline.odometry.gyroscope.describe(),
        "planar": pipeline.odometry.planar.describe(),
        "seed": pipeline.config.seed,
        "versions": versions(),
    }


def _put_aside(folder: Path, config: Config) -> Config:
    """Renames weights of an earlier run: the pipeline would resume from them, and a replay starts from the configured weights.

    Returns:
        The settings, which follow the weights that they name where these were among the renamed.
    """
    if not (folder.is_dir() and any(folder.iterdir())):
        return config
    named, inside = resolve_weights(config.matcher).resolve(), folder.resolve()
    number = next(n for n in range(1, 100_000) if not folder.with_name(f"{folder.name}.{n}").exists())
    aside = folder.rename(folder.with_name(f"{folder.name}.{number}"))
    if not named.is_relative_to(inside):
        return config
    return replace(config, matcher=replace(config.matcher, weights=str(aside / named.relative_to(inside))))


def versions() -> dict[str, str]:
    """What the results depend on."""
    found = {"imatching_ros": __version__, "python": platform.python_version(), "machine": platform.platform()}
    for name in ("torch", "pypose", "numpy", "opencv-python-headless", "evo", "rosbags"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # OpenCV has several names, and apt's packages have none
            continue
    return found
