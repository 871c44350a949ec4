"""Runs visual odometry over a recording: rosbag2 (folder, .mcap, .db3), ROS 1 .bag, TUM RGB-D, EuRoC, KITTI odometry, frames.csv.

Every frame is processed, however long it takes. The output folder gets trajectory.txt (TUM format, camera to world, one line
per tracked frame, as published and never revised), keyframes.txt (refined), metrics.json, events.jsonl, frames.csv,
config.yaml and weights/ (promoted weights; current: those in use at the end).

examples:
  python -m imatching_ros replay my_bag/ --out run
  python -m imatching_ros replay rgbd_dataset_freiburg1_desk --out run --mode mono --learning off
  python -m imatching_ros replay monday.mcap tuesday.mcap --out week --report
  python -m imatching_ros replay run.mcap --out run --groundtruth truth.txt --learning sync --seed 1
  python -m imatching_ros replay run.mcap --out run --mode mono --external-odometry-topic /wheel_odometry
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from .arguments import add_config_options, add_source_options, read_config, source_options

_LEVEL_CAMERA = [0.0, 0.0, 0.0, -0.5, 0.5, -0.5, 0.5]
_RECENT_NS = 1_000_000_000
_WARNINGS_SHOWN = 5  # a recording with one fault often has it in every frame


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="bag file or folder, or a data set's sequence folder"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where the results go; several sources get folders in it"
    )
    parser.add_argument(
        "--report", action="store_true", help="also write report.html, with matches of frozen and adapted weights drawn"
    )
    parser.add_argument(
        "--view",
        default="",
        metavar="WHERE",
        help="the run in the Rerun viewer: `window`, or a file that `rerun FILE.rrd` shows (pip install rerun-sdk)",
    )
    parser.add_argument("--json", action="store_true", help="print metrics.json instead of the table")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_config_options(parser)
    add_source_options(parser)
    group = parser.add_argument_group("external odometry")
    group.add_argument(
        "--external-odometry",
        type=Path,
        metavar="FILE",
        help="poses of the camera, in metres: TUM format. Predicts the motion between "
        "images and gives one camera its scale, unless --set external_odometry.use=... names one",
    )
    group.add_argument(
        "--external-odometry-topic", metavar="TOPIC", help="the same from the bag: Odometry, PoseStamped or TF"
    )
    group = parser.add_argument_group("IMU")
    group.add_argument(
        "--imu",
        choices=("on", "off", "offset"),
        default="on",
        help="the gyroscope in imu0/ (EuRoC, TUM-VI) or on --imu-topic: used, left out, or left out and its time offset estimated",
    )
    group.add_argument("--imu-topic", metavar="TOPIC", help="sensor_msgs/Imu of the bag")
    group = parser.add_argument_group("mounting")
    group.add_argument(
        "--base-from-camera",
        type=float,
        nargs=7,
        default=_LEVEL_CAMERA,
        metavar="N",
        help="for --set odometry.planar=true: pose of the camera's optical frame in the base, x y z qx qy qz qw (default: a level "
        "camera that looks along x)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    options = replace(
        source_options(args),
        external_odometry=args.external_odometry,
        external_odometry_topic=args.external_odometry_topic,
        imu_topic=args.imu_topic,
    )
    config = read_config(args)
    results = []
    for number, path in enumerate(args.sources):
        out = args.out if len(args.sources) == 1 else args.out / f"{number:02d}_{path.resolve().stem}"
        metrics = replay(
            path,
            out,
            config,
            options,
            quiet=args.quiet,
            view=args.view,
            imu=args.imu == "on",
            base_from_camera=args.base_from_camera,
        )
        if args.imu == "offset":
            print(_describe_offset(path, out, options))
        results.append(metrics)
        if args.report:
            from ..evaluation.report import write_report
            from .report import add_matches

            add_matches(out, path, options, quiet=args.quiet)
            write_report(out)
        if not args.json:
            print(f"{summary(metrics)}\nresults are in {out}")
        if not metrics["tracked_frames"]:
            print(f"error: {path}: nothing was tracked: {_reasons(metrics)}", file=sys.stderr)
        if metrics["interrupted"]:
            break
    if args.json:
        print(json.dumps(results[0] if len(args.sources) == 1 else results, indent=2))
    if results[-1]["interrupted"]:
        return 130
    return 0 if all(metrics["tracked_frames"] for metrics in results) else 1


def _describe_offset(path: Path, out: Path, options: Any) -> str:
    """The time offset between the images of a run and the gyroscope of its recording."""
    from ..evaluation.time_offset import estimate_time_offset
    from ..recordings import open_source
    from ..recordings.truth import read_trajectory

    recording = open_source(path, options).imu()
    if recording is None:
        return "imu offset   none: the recording has no IMU; name its topic with --imu-topic"
    found = estimate_time_offset(read_trajectory(out / "trajectory.txt"), recording)
    if isinstance(found, str):
        return f"imu offset   none: {found}"
    return f"imu offset   --set imu.time_offset_ms={found[0]:.1f} (correlation {found[1]:.3f})"


def _reasons(metrics: dict[str, Any]) -> str:
    """Why frames have no pose, the most frequent reason first."""
    found = [f"{r['reason']} ({r['frames']} of {metrics['frames']} frames)" for r in metrics["without_pose"]]
    return "; ".join(found) or "no frame was processed"


def replay(
    path: Path,
    out: Path,
    config: Any,
    options: Any,
    *,
    quiet: bool = False,
    view: str = "",
    imu: bool = True,
    base_from_camera: Sequence[float] = _LEVEL_CAMERA,
) -> dict[str, Any]:
    """Runs odometry over a recording and returns what metrics.json holds. Ctrl-C ends it early with all files in place.

    Raises:
        ImatchingError: the recording, its calibration or the weights cannot be used. An earlier run in `out` is then as it was.
    """
    import torch

    from ..progress import Progress

    for module in ("...pipeline", "..evaluation.run_writer"):  # a package that is missing is named before anything else
        import_module(module, __package__)
    torch.set_num_threads(config.matcher.threads)
    # What cannot be used is found out while an earlier run in this folder is still whole.
    T_BC = _read_mounting(base_from_camera)
    source = _open(path, out, config, options)
    truth, given, rates = _read_truth(source), source.odometry(), _read_imu(source) if imu else None
    config = config.with_values({"odometry.mode": source.mode})
    if given is not None and config.external_odometry.use == "off":
        config = config.with_values({"external_odometry.use": "both"})
    viewer = _open_viewer(view, source.camera)
    run, frames = _begin(source, out, config, given, rates, quiet)
    run.pipeline.mount_camera(T_BC)
    interrupted = False
    start = time.perf_counter()
    try:
        with Progress(f"replay {source.name}", source.length, quiet=quiet) as progress:
            for frame in frames:
                output = run.process(frame)
                if viewer is not None:
                    viewer.add(frame, output, run.pipeline)
                progress.update(frame.id + 1, output.state.value)
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


def _open(path: Path, out: Path, config: Any, options: Any) -> Any:
    """The recording.

    Raises:
        ConfigError: it would be overwritten.
    """
    from ...core.errors import ConfigError
    from ..recordings import open_source

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
    from ..evaluation.viewer import Viewer

    return Viewer(camera, None if view == "window" else Path(view))


def _begin(source: Any, out: Path, config: Any, external: Any, imu: Any, quiet: bool) -> tuple[_Run, Iterator[Any]]:
    """A run whose files are in `out`, and its frames. Its settings and the first frame are known to be usable by then."""
    from ...pipeline import Pipeline
    from ..evaluation.run_writer import RunWriter

    Pipeline(config).close()
    source.on_jump = lambda: run.restart()
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
    from ...learning.weights_store import CURRENT

    metrics = run.writer.finish(truth[0], run.pipeline.keyframes(), more, truth[1])
    if run.pipeline.learning_status().promotions:
        run.pipeline.save_weights(CURRENT)  # those in use at the end, even while in post-deployment validation
    return metrics


class _Run:
    """The pipeline over one recording; it starts again where the node does."""

    def __init__(self, pipeline: Any, writer: Any, external: Any, imu: Any) -> None:
        self.pipeline, self.writer, self._external, self._imu = pipeline, writer, external, imu
        self.stamp_ns = 0
        self._camera: Any = None
        self._fill()

    def process(self, frame: Any) -> Any:
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
        import torch

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


def _read_mounting(base_from_camera: Sequence[float]) -> Any:
    """(7,) pose.

    Raises:
        ConfigError: a quaternion that is none.
    """
    import torch

    from ...core.errors import ConfigError

    T_BC = torch.tensor(base_from_camera, dtype=torch.float64)
    length = float(T_BC[3:].norm())
    if not 0.9 < length < 1.1:
        raise ConfigError(f"--base-from-camera: the quaternion has the length {length:.3g}, expected 1")
    return torch.cat([T_BC[:3], T_BC[3:] / length])


def _read_imu(source: Any) -> Any:
    """Angular rates, or None: an imu0/ that nobody named and that cannot be read costs no run."""
    from ...core.errors import SourceError

    try:
        return source.imu()
    except SourceError as error:
        if source.options.imu_topic is not None:
            raise
        source.warn(f"the IMU is left aside: {error}")
        return None


def _read_truth(source: Any) -> tuple[Any, str]:
    """The true trajectory, or None and why there is none: wrong truth costs no run."""
    from ...core.errors import SourceError

    try:
        return source.groundtruth(), "the recording has no truth"
    except SourceError as error:
        source.warn(f"the truth is left aside: {error}")
        return None, f"the truth cannot be used: {error}"


def _provenance(path: Path, source: Any, pipeline: Any) -> dict[str, Any]:
    from ...matching.weights import hash_state

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


def _put_aside(folder: Path, config: Any) -> Any:
    """Renames weights of an earlier run: the pipeline would resume from them, and a replay starts from the configured weights.

    Returns:
        The settings, which follow the weights that they name where these were among the renamed.
    """
    from ...matching.weights import resolve_weights

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
    from importlib.metadata import PackageNotFoundError, version

    from ... import __version__

    found = {"imatching_ros": __version__, "python": platform.python_version(), "machine": platform.platform()}
    for name in ("torch", "pypose", "numpy", "opencv-python-headless", "evo", "rosbags"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # OpenCV has several names, and apt's packages have none
            continue
    return found


def summary(metrics: dict[str, Any]) -> str:
    """A small table."""
    m, learning, latency, ate = metrics, metrics["learning"], metrics["latency_ms"], metrics["ate"]
    own = m["self_consistency"]
    accuracy = f"none: {m.get('no_truth_because')}"
    if own["median_residual_px"] is not None:
        accuracy += f"; self-consistency only: residual {own['median_residual_px']:.2f} px"
        accuracy += f", tracks of {own['mean_track_length_frames']:.1f} frames"
    if ate:
        share = (
            ""
            if ate["percent_of_path"] is None
            else f" ({ate['percent_of_path']:.2f} % of {ate['path_length_m']:.1f} m)"
        )
        accuracy = f"{ate['rmse']:.4f} m{share}, {ate['alignment']}, scale {ate['scale']:.4g}"
    tracked = 100 * m["tracked_share_after_initialization"]
    times = " / ".join(f"{latency[k] or 0:.1f}" for k in ("p50", "p95", "p99", "max"))
    changes = f"{learning['promotions']} promotions, {learning['rollbacks']} rollbacks"
    rows = {
        "frames": f"{m['frames']}, tracked {m['tracked_frames']}, lost {m['lost_frames']}, keyframes {m['keyframes']}",
        "initialised": f"at frame {m['initialized_at_frame']}, then {tracked:.1f} % tracked",
        "scale": m["scale"]
        if m["metric"] or m["scale"].startswith("unknown")
        else f"{m['scale']}, but not from the first pose on",
        "ATE": accuracy,
        "latency": f"{times} ms (p50/p95/p99/max, image to pose)",
        "learning": f"{learning['mode']}: {learning['steps']} steps, {changes}",
        "weights": f"{m['weights']['matcher']} version {m['weights']['version']}",
        **{name: m[name] for name in ("imu", "planar") if m[name] != "off"},
    }
    return "\n".join(f"{name:<12} {text}" for name, text in rows.items())
