"""What CMakeLists.txt does to the library that rosidl makes, with a library of the same name in its place."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from peers import ROOT

pytestmark = [pytest.mark.ros, pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")]

PROJECT = """
cmake_minimum_required(VERSION 3.16)
project(imatching_ros NONE)
add_library(imatching_ros__rosidl_generator_py INTERFACE)
{setting}
{block}
get_target_property(found imatching_ros__rosidl_generator_py INTERFACE_INCLUDE_DIRECTORIES)
message(STATUS "found: ${{found}}")
install(TARGETS imatching_ros__rosidl_generator_py EXPORT messages)
install(EXPORT messages DESTINATION share)
"""


# Jazzy names numpy's folder, which may lie in the clone; Humble names none where it has found numpy by other means.
@pytest.mark.parametrize(
    ("directories", "found"),
    [
        ("", "found-NOTFOUND"),
        ("/usr/include/numpy ${CMAKE_SOURCE_DIR}/.venv/numpy", "/usr/include/numpy"),
        ("${CMAKE_SOURCE_DIR}/.venv/numpy", ""),
    ],
)
def test_the_library_of_the_messages_can_be_exported(tmp_path: Path, directories: str, found: str):
    block = re.search(
        r"^if\(TARGET \$\{PROJECT_NAME\}__rosidl_generator_py\)$.*?^endif\(\)$",
        (ROOT / "CMakeLists.txt").read_text(),
        re.M | re.S,
    )
    setting = (
        f"target_include_directories(imatching_ros__rosidl_generator_py INTERFACE {directories})" if directories else ""
    )
    (tmp_path / "CMakeLists.txt").write_text(PROJECT.format(setting=setting, block=block.group()))
    done = subprocess.run(
        ["cmake", "-S", tmp_path, "-B", tmp_path / "build"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"-- found: {found}\n" in done.stdout
