"""`python -m imatching_ros COMMAND`: one line of help per command. A command's module is imported when it is called."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module

from .core.errors import ImatchingError

# A spinning OpenMP pool is what makes frames late on a busy CPU; torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = {
    "replay": ("imatching_ros.offline.cli.replay", "run visual odometry, with or without learning, over a recording"),
    "online": ("imatching_ros.ros.node", "run the ROS 2 node (ROS arguments follow)"),
    "match-eval": ("imatching_ros.offline.cli.match_eval", "score matchers on a recording by depth and poses"),
    "compare": ("imatching_ros.offline.cli.compare", "frozen vs. adapted weights on a recording"),
    "finetune": (
        "imatching_ros.offline.cli.finetune",
        "fine-tune a matcher on recordings, on one or several processes",
    ),
    "view": ("imatching_ros.offline.ros_tools.view", "show a running node in the Rerun viewer"),
    "report": ("imatching_ros.offline.cli.report", "write report.html of a replay"),
    "weights": ("imatching_ros.offline.cli.weights", "list, show, compare and export weights"),
    "simulate": ("imatching_ros.offline.cli.simulate", "render a recording with exact truth"),
    "train": ("imatching_ros.offline.cli.train", "train default weights"),
    "bench kpi": ("imatching_ros.offline.cli.bench_kpi", "key figures of this version beside the committed baseline"),
    "bench gpu": ("imatching_ros.offline.cli.bench_gpu", "correctness, time and memory on a CUDA device, in one table"),
    "bench ba": ("imatching_ros.offline.cli.bench_ba", "time bundle adjustment"),
    "bench matcher": ("imatching_ros.offline.cli.bench_matcher", "time matchers"),
    "bench guard": ("imatching_ros.offline.cli.bench_guard", "error rates of promotions on windows of recordings"),
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


# What `pip install .` brings, and what its extra "offline" adds: name of the import -> name of the package.
ROBOT_PACKAGES = {name: name for name in ("torch", "pypose", "safetensors", "numpy", "scipy")} | {"yaml": "PyYAML"}
OFFLINE_PACKAGES = {"rosbags": "rosbags", "evo": "evo", "matplotlib": "matplotlib", "skimage": "scikit-image"}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Exit codes: 0 done, 1 an expected error (one line on stderr), 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    words = 2 if arguments[:1] == ["bench"] else 1
    name = " ".join(arguments[:words])
    return _report_errors(name, lambda: _dispatch(name, arguments[words:]))


def _dispatch(name: str, arguments: list[str]) -> int:
    group, _, word = name.rpartition(" ")
    if word in ("", "-h", "--help", "bench"):
        print(usage("bench " if name.startswith("bench") else ""))
        return 0 if word.startswith("-") else 2
    if word == "--version" and not group:
        from . import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "; see --help"
        print(f"error: unknown command '{name}'{hint}", file=sys.stderr)
        return 2
    if name == "online" and {"-h", "--help"} & set(arguments):
        print(ONLINE_HELP)
        return 0
    return _run(name, arguments)


def _end_on_signals() -> None:
    """SIGINT and SIGTERM end the process, with code 0, until the program handles them itself.

    Imports take seconds. Python's KeyboardInterrupt may be swallowed there, or become an error of another name.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))


def run_program(module: str) -> int:
    """Runs the `main` of a program that takes the arguments of the process; errors as `main`."""
    _end_on_signals()
    return _report_errors(module.rpartition(".")[2], lambda: import_module(module).main())


def _run(name: str, arguments: list[str]) -> int:
    if name == "online":
        _end_on_signals()
        return import_module(COMMANDS[name][0]).main(arguments) or 0
    module = import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser(
        f"python -m imatching_ros {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return module.run(parser.parse_args(arguments)) or 0


def _report_errors(name: str, run: Callable[[], int]) -> int:
    try:
        return run()
    except ImatchingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        advice = _install_advice(error.name or "")
        if advice is None:
            raise
        print(f"error: {name} needs {advice} (in a clone: source scripts/environment)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again while it exits
        return 1
    except OSError as error:  # a full disk, a folder of another user, a file where a folder is expected
        if error.strerror is None:
            raise
        print(f"error: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        return 1


def _install_advice(module: str) -> str | None:
    """What is missing and how to get it; None for a module that is nobody's requirement."""
    top = module.partition(".")[0]
    if top in OFFLINE_PACKAGES:
        return f'{OFFLINE_PACKAGES[top]}, which is not installed: pip install "imatching_ros[offline]"'
    if top in ROBOT_PACKAGES:
        return (
            f"{ROBOT_PACKAGES[top]}, which is not found by {sys.executable}; "
            "activate the virtual environment that has it, or build with that active"
        )
    if top == "cv2":
        return "OpenCV, which is not installed: apt install python3-opencv beside ROS, else pip install 'opencv-python-headless<5'"
    if top == "rclpy" or module in ("imatching_ros.msg", "imatching_ros.srv"):
        return f"{module}, which is not found by Python; build the package with colcon and source install/setup.bash"
    return None


def usage(prefix: str = "") -> str:
    """The commands that start with `prefix`, one line each."""
    lines = [f"  {name:<20}{text}" for name, (_, text) in COMMANDS.items() if name.startswith(prefix)]
    return "\n".join([f"usage: python -m imatching_ros {prefix}COMMAND [options]; see COMMAND --help", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
