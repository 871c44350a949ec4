"""What the small ROS programs of this package have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from rclpy.utilities import remove_ros_args

from ...core.errors import ImatchingError
from ...ros.middleware import use_shipped_profile


def run_program(
    module: str,
    doc: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
) -> int:
    """Runs `python -m module` with the arguments of the process, ROS arguments among them; exit codes as `python -m imatching_ros`."""
    use_shipped_profile()
    parser = argparse.ArgumentParser(f"python -m {module}", description=doc)
    add_arguments(parser)
    try:
        return run(parser.parse_args(remove_ros_args(sys.argv)[1:]))
    except ImatchingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
