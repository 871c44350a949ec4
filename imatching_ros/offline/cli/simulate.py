"""Renders a textured scene with exact poses and depth into a rosbag2 (mcap) or a folder in the TUM RGB-D layout."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields

import torch

from ..simulation.imu import SENSORS
from ..simulation.kinds import KINDS
from ..simulation.recording import DEPTHS, FORMATS, write_recording
from ..simulation.sequence import SimulatedSequence
from ..simulation.shifts import SHIFTS
from ..simulation.trajectories import MOTIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simulate`."""
    defaults = {f.name: f.default for f in fields(SimulatedSequence)}
    parser.add_argument(
        "out", help="what to write: NAME.mcap (one file), a rosbag2 folder, or a folder for --format tum"
    )
    parser.add_argument("--format", choices=FORMATS, default="mcap")
    for name, choices, text in (
        ("kind", KINDS, "kind of scene"),
        ("shift", tuple(SHIFTS), "domain shift of camera and surroundings"),
        ("motion", MOTIONS, "how the camera moves"),
        ("imu", ("none", *SENSORS), "gyroscope and accelerometer at 200 Hz, with the noise of this one"),
        ("device", ("cpu", "cuda"), "where to render"),
    ):
        parser.add_argument(
            f"--{name}", choices=choices, default=defaults[name], help=f"{text} (default {defaults[name]})"
        )
    for name, kind, text in (
        ("frames", int, "number of frames"),
        ("seed", int, "seed of scene, path and effects"),
        ("width", int, "pixels"),
        ("height", int, "pixels"),
        ("rate-hz", float, "frames per second"),
        ("supersample", int, "rays per pixel and axis, against jagged edges"),
        ("baseline-m", float, "distance of a second camera on the right, --format tum only; 0: none"),
        ("depth-noise", float, "standard deviation of the inverse depth, 1/m"),
        ("exposure-ms", float, "motion blur: how long each row is exposed; 0: as the shift has it"),
        ("readout-ms", float, "rolling shutter: from the first row to the last; the recording does not name it"),
        ("turn-deg-s", float, "of the fast turns of --motion sweep, degrees/s"),
    ):
        default = defaults[name.replace("-", "_")]
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} (default {default})")
    cores = min(os.cpu_count() or 1, 4)
    parser.add_argument(
        "--workers", type=int, default=cores, metavar="N", help=f"frames rendered at the same time (default {cores})"
    )
    parser.add_argument("--path-seed", type=int, metavar="N", help="another path through the same scene")
    parser.add_argument(
        "--speed", type=float, metavar="M_PER_S", dest="speed_mps", help="mean speed (default: by kind)"
    )
    walls = parser.add_mutually_exclusive_group()
    walls.add_argument(
        "--low-texture",
        action="store_true",
        default=None,
        dest="low_texture",
        help="nearly white walls (room, corridor)",
    )
    walls.add_argument(
        "--rich-texture",
        action="store_false",
        default=None,
        dest="low_texture",
        help="patterned walls (room, corridor)",
    )
    parser.add_argument(
        "--depth",
        choices=DEPTHS,
        default="16UC1",
        help="depth images of a bag: millimetres, metres, or none (default 16UC1)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUT")


def run(args: argparse.Namespace) -> int:
    """Renders; exit code 0."""
    from ..progress import Progress

    torch.set_num_threads(1)  # the workers share the cores by frames
    names = [f.name for f in fields(SimulatedSequence)]
    sequence = SimulatedSequence(**{name: getattr(args, name) for name in names if hasattr(args, name)})
    with Progress(f"simulate {sequence.kind}", sequence.frames) as bar:
        path = write_recording(args.out, sequence, args.format, args.depth, args.overwrite, bar.update)
    print(
        f"{path}: {sequence.frames} frames, {sequence.width} x {sequence.height}, {sequence.kind}, shift {sequence.shift}",
        file=sys.stderr,
    )
    return 0
