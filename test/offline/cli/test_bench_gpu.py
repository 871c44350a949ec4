"""The command for a CUDA machine: its code on the CPU, its verdicts, and its run of the marked tests."""

import json

import pytest
import torch

from imatching_ros.__main__ import main
from imatching_ros.offline.cli.bench_gpu import line
from imatching_ros.offline.experiments.gpu import Result, run_gpu_tests


def test_the_same_code_runs_on_the_cpu_and_says_so(tmp_path, capsys):
    assert main(["bench", "gpu", "--device", "cpu", "--out", str(tmp_path / "gpu.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("device: CPU (no GPU was used") and "results agree with the CPU's" in printed
    found = json.loads((tmp_path / "gpu.json").read_text())
    values = {r["name"]: r["value"] for r in found["results"]}
    assert all(r["within"] for r in found["results"] if r["required"])
    assert values["learning step: cosine of the gradients"] == pytest.approx(1.0)
    assert values["learning steps per second, odometry at rest"] > 0
    for learning in ("off", "on"):
        assert values[f"160 x 120, learning {learning}: latency p99, ms"] > 0
        assert f"160 x 120, learning {learning}: memory growth, MB" in values


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_is_one_line(capsys):
    assert main(["bench", "gpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "finds no CUDA device" in error and error.count("\n") == 1


def test_a_wrong_result_is_told_from_a_missed_goal():
    assert line(Result("cost", 0.2, limit=0.1, required=True)).startswith("WRONG")
    assert line(Result("p99", 30.0, limit=25.0)).startswith("missed") and "<= 25" in line(
        Result("p99", 3.0, limit=25.0)
    )
    assert Result("share", 0.5, limit=0.9, higher_is_better=True).within is False
    assert Result("ms", 3.0).within is None and Result("off", None, limit=1.0).within is False


def test_failures_among_the_marked_tests_are_counted(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a CUDA device\n")
    text = "import pytest\n\n@pytest.mark.gpu\n@pytest.mark.parametrize('n', range(3))\ndef test_n(n):\n    assert n < {}\n"
    (tmp_path / "test" / "test_small.py").write_text(text.format(3))
    assert run_gpu_tests(tmp_path, 100.0).within is True
    (tmp_path / "test" / "test_small.py").write_text(text.format("0 + 1"))
    failed = run_gpu_tests(tmp_path, 100.0)
    assert failed.value == 2.0 and failed.within is False and "2 failed" in failed.note
    assert run_gpu_tests(tmp_path / "elsewhere", 100.0).value is None
