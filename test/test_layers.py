"""The rules of the house: which room may import which, read from the sources (imports for type checking included)."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from imatching_ros.__main__ import OFFLINE_PACKAGES, ROBOT_PACKAGES

ROOT = Path(__file__).parents[1]
PACKAGE = "imatching_ros"
# Room -> the rooms that it may import besides itself. "" is the package's __init__ and __main__, which name modules as text.
MAY_IMPORT = {
    "": {"core"},
    "core": set(),
    "camera": {"core"},
    "matching": {"core", "camera"},
    "bundle": {"core", "camera"},
    "odometry": {"core", "camera", "matching", "bundle"},
    "learning": {"core", "camera", "matching", "bundle", "odometry"},
    "pipeline": {"core", "camera", "matching", "bundle", "odometry", "learning"},
    "ros": {"", "core", "camera", "matching", "bundle", "odometry", "learning", "pipeline"},
}
ROBOT = {*MAY_IMPORT}
LIBRARY = {"offline.progress", "offline.tables", "offline.recordings", "offline.simulation"}
MAY_IMPORT |= {
    "offline": set(),
    "offline.progress": set(),
    "offline.tables": set(),
    "offline.recordings": ROBOT - {"ros"},
    "offline.simulation": ROBOT - {"ros"} | LIBRARY,
    "offline.training": ROBOT - {"ros"} | LIBRARY,
    "offline.evaluation": ROBOT - {"ros"} | LIBRARY | {"offline.training"},
    "offline.experiments": ROBOT - {"ros"} | LIBRARY | {"offline.training", "offline.evaluation"},
    "offline.cli": ROBOT - {"ros"} | LIBRARY | {"offline.training", "offline.evaluation", "offline.experiments"},
    "offline.ros_tools": ROBOT | LIBRARY | {"offline.evaluation", "offline.experiments", "offline.cli"},
}
# `Frame` and `WindowSnapshot` hold a camera, and the residual projects by it: the one type of `camera` that `core` speaks of.
EXCEPTIONS = {("core", "camera.model")}
ROS = {"rclpy", "cv_bridge", "tf2_ros", "sensor_msgs_py", "builtin_interfaces", "rcl_interfaces", "std_srvs", "bondpy"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def imports_of(name: str) -> set[str]:
    """Everything that a module imports anywhere: modules of this package by their full name, others as written."""
    path, found = MODULES[name], set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in MODULES or base == PACKAGE else base)
    return found


IMPORTS = {name: imports_of(name) for name in MODULES}


def room_of(module: str) -> str:
    parts = module.split(".")[1:]
    if not parts or parts[0].startswith("__"):
        return ""
    return ".".join(parts[:2]) if parts[0] == "offline" else parts[0]


def closure_of(*start: str) -> set[str]:
    """The modules that are imported sooner or later, packages on the way included."""
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name not in found and name in MODULES:
            found.add(name)
            waiting += [*IMPORTS[name], name.rpartition(".")[0]]
    return found


def robot() -> set[str]:
    """What the node may run: its own imports, and the matchers, which a table names as text."""
    return closure_of(f"{PACKAGE}.ros.node", f"{PACKAGE}.pipeline", *(m for m in MODULES if room_of(m) == "matching"))


def test_the_robot_never_imports_the_laboratory():
    assert not [name for name in robot() if room_of(name).startswith("offline")]


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_arrows_point_one_way(room):
    wrong = []
    for name in (m for m in MODULES if room_of(m) == room):
        for imported in IMPORTS[name] & MODULES.keys():
            other = room_of(imported)
            exception = (room, imported.removeprefix(f"{PACKAGE}.")) in EXCEPTIONS
            if other != room and other not in MAY_IMPORT[room] and not exception:
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_every_room_is_in_the_table():
    assert {room_of(name) for name in MODULES} <= MAY_IMPORT.keys()


def test_no_two_modules_import_each_other():
    inside = {name: (IMPORTS[name] & MODULES.keys()) - {name} for name in MODULES}
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_two_rooms_import_ros():
    wrong = []
    for name in MODULES:
        for imported in IMPORTS[name]:
            top = imported.split(".")[0]
            message = top.endswith("_msgs") or imported.startswith((f"{PACKAGE}.msg", f"{PACKAGE}.srv"))
            if (top in ROS or message) and room_of(name) not in ("ros", "offline.ros_tools"):
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_pip_installs_what_the_robot_imports():
    """Nothing less, and of what only the laboratory imports nothing. OpenCV is ROS's own or the wheel: an extra."""
    imported = {i.partition(".")[0] for name in robot() for i in IMPORTS[name]} - {PACKAGE}
    others = {i for i in imported if i not in ROS and not i.endswith("_msgs")} - sys.stdlib_module_names - {"cv2"}
    optional = {"kornia"}  # of two matchers; their extra
    planned = {"pypose"}  # the poses of the public seams
    assert {ROBOT_PACKAGES.get(i) for i in others - optional | planned} == requirements("robot")


def test_the_extra_brings_what_the_laboratory_imports_besides():
    imported = {i.partition(".")[0] for name in MODULES for i in IMPORTS[name] if room_of(name).startswith("offline")}
    assert OFFLINE_PACKAGES.keys() - imported <= {"skimage"}  # its photographs are read as files
    assert set(OFFLINE_PACKAGES.values()) == requirements("offline")


def requirements(name: str) -> set[str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return {re.split(r"[<>=]", line)[0] for line in lines if line and not line.startswith("#")}
