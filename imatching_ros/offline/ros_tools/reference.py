"""Writes the tables of docs/ros.md from the code: `python -m imatching_ros.offline.ros_tools.reference docs/ros.md`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from ...ros import inputs, node, outputs, params
from ...ros.middleware import type_name
from ..tables import format_table


def tables() -> dict[str, str]:
    """{name of the section: Markdown}."""
    return {"inputs": _inputs(), "outputs": _outputs(), "services": _services(), "parameters": _parameters()}


def fill(text: str) -> str:
    """The document with the text between each `<!-- begin NAME -->` and `<!-- end NAME -->` replaced."""
    for name, table in tables().items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        section = f"{begin}\n{table}\n{end}"
        text, count = re.subn(f"{begin}.*?{end}", lambda _: section, text, flags=re.DOTALL)
        assert count == 1, f"{begin} ... {end} must be there once"
    return text


def _inputs() -> str:
    rows = [("mode", "topic", "type")]
    for mode, images in inputs.TOPICS.items():
        for image, info in images.items():
            rows.append(
                (
                    mode,
                    f"`{image}`",
                    f"sensor_msgs/msg/Image (or CompressedImage on `{image}/{inputs.compressed_name(image)}`)",
                )
            )
            rows += [(mode, f"`{info}`", "sensor_msgs/msg/CameraInfo")] if info else []
    rows.append(("any, with `mask_topic`", "the parameter's", "sensor_msgs/msg/Image, mono8"))
    rows.append(("any, with `imu_topic`", "the parameter's", "sensor_msgs/msg/Imu"))
    rows.append(("any, with `external_odometry.use`", f"`{inputs.EXTERNAL_ODOMETRY}`", "nav_msgs/msg/Odometry"))
    return format_table(rows)


def _outputs() -> str:
    rows = [("topic", "type", "depth", "what")]
    rows += [
        (f"`{name}`", type_name(kind) if kind else "tf2_msgs/msg/TFMessage", str(depth), text)
        for name, (kind, depth, text) in outputs.TOPICS.items()
    ]
    return format_table(
        [
            *rows,
            (
                "`/diagnostics`",
                "diagnostic_msgs/msg/DiagnosticArray",
                "10",
                "health, rates, latency, memory, learning; once a second",
            ),
        ]
    )


def _services() -> str:
    return format_table(
        [
            ("service", "type", "what it does"),
            *((f"`{name}`", type_name(kind), text) for name, (kind, text) in node.SERVICES.items()),
        ]
    )


def _parameters() -> str:
    """A table for each group: the settings of the node, then those of the core by prefix."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for name, default, meta in params.settings():
        prefix = name.rpartition(".")[0]
        unit = f" [{meta['unit']}]" if meta["unit"] else ""
        row = (f"`{name}`", f"`{_value(default)}`", _range(meta), "yes" if meta["live"] else "", meta["doc"] + unit)
        groups.setdefault(f"`{prefix}.*`" if prefix else "Node", []).append(row)
    head = ("parameter", "default", "range", "at run time", "meaning")
    return "\n\n".join(f"### {title}\n\n{format_table([head, *rows])}" for title, rows in groups.items())


def _range(meta: dict[str, Any]) -> str:
    if meta["choices"]:
        return ", ".join(meta["choices"])
    low, high = meta["low"], meta["high"]
    return (
        ""
        if low is None and high is None
        else f"{'' if low is None else format(low, 'g')} .. {'' if high is None else format(high, 'g')}"
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value) if value != "" else "''"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(fill(path.read_text()))
