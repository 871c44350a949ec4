"""Commands, options, settings, links and files that the documents name exist."""

from __future__ import annotations

import argparse
import operator
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from imatching_ros.__main__ import COMMANDS
from imatching_ros.core.config import Config, walk

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Commands outside the package that no test runs, and why. Those of the package are run by test_docs_commands.py, save the ones in its list.
NOT_RUN = {
    "ros2": "needs a ROS 2 installation with launch, or a camera; the node itself is tested over DDS in test/ros",
    "sudo": "changes the system",
    "docker": "needs a Docker daemon and the official images",
    "source": "makes an environment: ./scripts/test does it before these tests run",
    "cd": "changes the folder",
    "python3": "makes an environment",
    "pip": "installs",
    "pre-commit": "installs a hook into the clone",
    "touch": "part of making an environment",
    "./scripts/demo": "takes minutes; its parts are tested in test/ros",
    "./scripts/test": "runs these tests",
    "./scripts/lint": "run by continuous integration",
    "torchrun": "starts processes of its own: run with two of them in test/offline/training/test_processes.py",
}


def commands() -> list[tuple[str, str]]:
    """(document, command) of every line in a bash block, and of every inline `python -m imatching_ros ...`."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for block in re.findall(r"```bash\n(.*?)```", text, re.S):
            for line in block.replace("\\\n", " ").splitlines():
                found += [(document.name, part) for part in split(line)]
        prose = re.sub(r"```.*?```", "", text, flags=re.S)
        found += [
            (document.name, c) for c in re.findall(r"`((?:python -m imatching_ros|docker|pip install)\b[^`]*)`", prose)
        ]
    return found


def split(line: str) -> list[str]:
    """The commands of a shell line, without its comment."""
    line = re.sub(r"(^|\s)#.*", "", line).strip()
    return [part.strip() for part in re.split(r"&&|;", line) if part.strip()]


def parser_of(name: str) -> argparse.ArgumentParser:
    module = import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser(name, exit_on_error=False)
    module.add_arguments(parser)
    return parser


def test_there_is_something_to_check():
    assert len([c for _, c in commands() if "imatching_ros" in c]) > 15


@pytest.mark.parametrize(("document", "command"), commands())
def test_commands_of_the_documents_parse(document, command):
    words = shlex.split(command.replace("...", ""))
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[:3] != ["python", "-m", "imatching_ros"]:
        if words[:2] == ["python", "-m"]:
            assert words[2] in {
                "ruff",
                "mypy",
                "pytest",
                "colcon",
                "imatching_ros.offline.ros_tools.reference",
                "imatching_ros.offline.ros_tools.demo",
            }, command
            return
        assert words[0] in NOT_RUN, f"{document}: say in NOT_RUN why '{command}' is not run"
        return
    words = words[3:]
    if not words:
        return
    name, rest = (f"bench {words[1]}", words[2:]) if words[0] == "bench" and len(words) > 1 else (words[0], words[1:])
    if name == "online" or words == ["bench"]:
        return  # ROS arguments follow
    assert name in COMMANDS, f"{document}: there is no command '{name}'"
    if not rest:  # named in prose
        return
    if name == "weights":
        assert rest[0] in {"list", "show", "diff", "export"}
    if name == "bench latency":
        pytest.importorskip("rclpy")
    parsed = parser_of(name).parse_args(rest)
    for setting in getattr(parsed, "set", None) or []:
        Config().with_values(dict([setting.split("=", 1)]) if isinstance(setting, str) else dict([setting]))


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", document.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_to_headings_lead_somewhere():
    links = [
        (document, target, anchor)
        for document in DOCUMENTS
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", document.read_text())
        if not target.startswith("http") and (not target or target.endswith(".md"))
    ]
    assert len(links) > 10
    for document, target, anchor in links:
        assert anchor in anchors(document.parent / target if target else document), (
            f"{document.name}: {target}#{anchor}"
        )


def test_settings_that_the_documents_name_exist():
    known = {path for path, _, _ in walk(Config())}
    sections = {path.split(".")[0] for path in known} - {"seed"}
    for document in DOCUMENTS:
        for section, name in re.findall(r"`(\w+)\.(\w+)(?=[`:= ])", document.read_text()):
            if section in sections and not (ROOT / "imatching_ros" / section).with_suffix(".py").exists():
                if (ROOT / "imatching_ros" / section / f"{name}.py").exists() or name in {"solve", "estimate"}:
                    continue
                assert f"{section}.{name}" in known, f"{document.name} names {section}.{name}"


def test_code_that_the_documents_name_exists():
    """`room/file.py`, and `room/file.py: name` or `room/file.py: Class.name`, relative to the package or to the repository."""
    for document in DOCUMENTS:
        for path, names in re.findall(r"`((?:\w+/)*\w+\.py)(?:: ([\w., ]+))?`", document.read_text()):
            file = next((folder / path for folder in (ROOT / "imatching_ros", ROOT) if (folder / path).is_file()), None)
            assert file or path == "my_matcher.py", f"{document.name} names {path}"
            for name in filter(None, names.split(", ")):
                module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
                assert operator.attrgetter(name)(module) is not None
