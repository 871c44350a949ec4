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
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from .arguments import add_config_options, add_source_options, read_config, source_options


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
        metavar="N",
        help="for --set odometry.planar=true: pose of the camera's optical frame in the base, x y z qx qy qz qw (default: a level "
        "camera that looks along x)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    # A package that is missing is named before anything else.
    from ..evaluation.recorded_run import (
        ReplayOptions,
        replay,
    )

    options = replace(
        source_options(args),
        external_odometry=args.external_odometry,
        external_odometry_topic=args.external_odometry_topic,
        imu_topic=args.imu_topic,
    )
    config = read_config(args)
    more = ReplayOptions(args.quiet, args.view, args.imu == "on")
    if args.base_from_camera is not None:
        more = replace(more, base_from_camera=args.base_from_camera)
    results = []
    for number, path in enumerate(args.sources):
        out = args.out if len(args.sources) == 1 else args.out / f"{number:02d}_{path.resolve().stem}"
        metrics = replay(path, out, config, options, more)
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
