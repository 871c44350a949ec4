"""`python -m imatching_ros COMMAND`: one line of help per command; a command's own module is imported when it is called."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from importlib import import_module

from .core.errors import ImatchingError

# A spinning OpenMP pool is what makes frames late on a busy CPU; it has to be told before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = {
    "replay": ("imatching_ros.offline.cli.replay", "run visual odometry, with or without learning, over a recording"),
    "online": ("imatching_ros.ros.node", "run the ROS 2 node (ROS arguments follow)"),
    "match-eval": ("imatching_ros.offline.cli.match_eval", "score matchers on a recording by depth and poses"),
    "compare": ("imatching_ros.offline.cli.compare", "frozen against adapted weights on a recording"),
    "finetune": (
        "imatching_ros.offline.cli.finetune",
        "fine-tune a matcher on recordings, on one or several processes",
    ),
    "report": ("imatching_ros.offline.cli.report", "write report.html of a replay"),
    "weights": ("imatching_ros.offline.cli.weights", "list, show, compare and export weights"),
    "simulate": ("imatching_ros.offline.cli.simulate", "render a recording with exact truth"),
    "train": ("imatching_ros.offline.cli.train", "train default weights"),
    "bench ba": ("imatching_ros.offline.cli.bench_ba", "time bundle adjustment"),
    "bench matcher": ("imatching_ros.offline.cli.bench_matcher", "time matchers"),
    "bench nees": ("imatching_ros.offline.cli.bench_nees", "compare covariances with errors on rendered scenes"),
    "bench odometry": ("imatching_ros.offline.cli.bench_odometry", "time odometry frame by frame"),
    "bench interference": ("imatching_ros.offline.cli.bench_interference", "time odometry beside the learner"),
    "bench latency": (
        "imatching_ros.offline.ros_tools.latency",
        "time the running node from an image's stamp to its odometry",
    ),
}

ONLINE_HELP = """usage: python -m imatching_ros online [--ros-args ROS_ARGUMENT ...]

Runs the ROS 2 node until SIGINT or SIGTERM. Settings are ROS parameters, topics are remapped:

  --ros-args --params-file config/stereo.yaml      settings of a kind of camera; may be given several times
  --ros-args -p mode:=rgbd -p learning.mode:=off   one setting
  --ros-args -r image:=/camera/image_raw           listens there, and to camera_info beside it
  --ros-args -r __ns:=/robot                       namespace of the node and of its topics

All topics, services and parameters: docs/ros.md, or `ros2 param describe /imatching NAME` while it runs."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Exit codes: 0 done, 1 an expected error (one line on stderr), 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from . import __version__

        print(__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "bench":
        if not rest or rest[0] in ("-h", "--help"):
            print(usage("bench "))
            return 0 if rest else 2
        name, rest = f"bench {rest[0]}", rest[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        print(
            f"error: unknown command '{name}'" + (f"; did you mean '{near[0]}'?" if near else "; see --help"),
            file=sys.stderr,
        )
        return 2
    try:
        if name == "online" and {"-h", "--help"} & set(rest):
            print(ONLINE_HELP)
            return 0
        module = import_module(COMMANDS[name][0])
        if name == "online":
            return module.main(rest) or 0
        parser = argparse.ArgumentParser(
            f"python -m imatching_ros {name}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parser)
        return module.run(parser.parse_args(rest)) or 0
    except ImatchingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name in ("torch", "pypose", "safetensors"):
            advice = f"{sys.executable}; activate the virtual environment that has it, or build with that active"
        elif name in ("online", "bench latency") and error.name in ("rclpy", "imatching_ros.msg", "imatching_ros.srv"):
            advice = "Python; build the package with colcon and source install/setup.bash"
        else:
            raise
        print(
            f"error: {name} needs {error.name}, which is not found by {advice} (in a clone: source scripts/environment)",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again while it exits
        return 1


def usage(prefix: str = "") -> str:
    """The commands that start with `prefix`, one line each."""
    lines = [f"  {name:<20}{text}" for name, (_, text) in COMMANDS.items() if name.startswith(prefix)]
    return "\n".join(
        [f"usage: python -m imatching_ros {prefix}COMMAND [options]; COMMAND --help tells more", "", *lines]
    )


if __name__ == "__main__":
    sys.exit(main())
