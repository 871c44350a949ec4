"""What all tests share: where the real sequences are, and what may be skipped."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

_DATA = Path(os.environ["IMATCHING_DATA"]) if os.environ.get("IMATCHING_DATA") else None
_HAS_DATA = _DATA is not None and _DATA.is_dir()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the real sequences; for tests marked `data`."""
    assert _HAS_DATA, "mark the test with `data`"
    return _DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    has_ros = importlib.util.find_spec("rclpy") is not None
    for item in items:
        if item.get_closest_marker("data") and not _HAS_DATA:
            item.add_marker(
                pytest.mark.skip(reason="the real sequences are not here; name their folder in IMATCHING_DATA")
            )
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("ros") and not has_ros:
            item.add_marker(pytest.mark.skip(reason="rclpy is not installed; run scripts/test"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """With the data there, a skipped data test hides something: it fails."""
    report = (yield).get_result()
    if report.skipped and _HAS_DATA and item.get_closest_marker("data") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although the data is there: {report.longrepr}"
