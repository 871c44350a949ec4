"""The weights command."""

import json
import subprocess
import sys

import pytest
import torch

from imatching_ros.__main__ import main
from imatching_ros.matching.weights import read_weights, write_weights


@pytest.fixture
def files(tmp_path):
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
    changed = {"a.weight": state["a.weight"] * 1.1, "a.bias": state["a.bias"]}
    write_weights(tmp_path / "one.safetensors", "expectation", state, 1, {"kind": "shipped"})
    write_weights(
        tmp_path / "two.safetensors",
        "expectation",
        changed,
        2,
        {"kind": "promotion", "validation_before_px": 1.5, "validation_after_px": 1.0},
    )
    return tmp_path


def output(capsys, *arguments):
    code = main(["weights", *map(str, arguments)])
    return code, capsys.readouterr()


def test_list_tells_where_each_came_from(files, capsys):
    (files / "broken.safetensors").write_bytes(b"no")
    code, text = output(capsys, "list", files)
    assert (
        code == 0
        and "expectation version 2" in text.out
        and "validation_before_px 1.5" in text.out
        and "broken.safetensors" in text.out
    )
    _, text = output(capsys, "list", files, "--json")
    assert [e["sound"] for e in json.loads(text.out)] == [False, True, True]


def test_diff_is_relative(files, capsys):
    _, text = output(capsys, "diff", files / "one.safetensors", files / "two.safetensors", "--json")
    result = json.loads(text.out)
    assert (
        result["tensors"]["a.weight"] == pytest.approx(0.1, rel=1e-5)
        and result["tensors"]["a.bias"] == 0
        and not result["identical"]
    )
    code, text = output(capsys, "diff", files / "one.safetensors", files / "one.safetensors")
    assert code == 0 and "identical" in text.out


def test_show_and_damage(files, capsys):
    code, text = output(capsys, "show", files / "two.safetensors")
    assert code == 0 and "promotion" in text.out
    data = bytearray((files / "two.safetensors").read_bytes())
    data[-1] ^= 0xFF
    (files / "two.safetensors").write_bytes(data)
    code, text = output(capsys, "show", files / "two.safetensors")
    assert code == 1 and "damaged" in text.out
    assert output(capsys, "export", files / "two.safetensors", files / "x.safetensors")[0] == 1


def test_export_keeps_weights_and_provenance(files, capsys):
    assert output(capsys, "export", files / "two.safetensors", files / "robot.safetensors")[0] == 0
    header, state = read_weights(files / "robot.safetensors")
    assert header.provenance["kind"] == "promotion" and header.version == 2
    assert header.hash == read_weights(files / "two.safetensors")[0].hash


@pytest.mark.parametrize(
    "arguments", [("show", "nothing"), ("export", "one.safetensors", "x.txt"), ("list", "/nonexistent")]
)
def test_errors_are_one_line(files, capsys, arguments):
    arguments = [files / a if a == "one.safetensors" else a for a in arguments]
    code, text = output(capsys, *arguments)
    assert code == 1 and text.err.startswith("error: ") and text.err.count("\n") == 1


@pytest.mark.slow
def test_onnx_computes_the_same_and_prints_one_line(tmp_path):
    """The export command itself refuses a network that is farther than 0.01 px from torch.

    In a process of its own, for torch's log goes past what pytest captures.
    """
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    command = ["-m", "imatching_ros", "weights", "export", "default", str(tmp_path / "m.onnx"), "--size", "96x64"]
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert "px from torch" in run.stdout and (tmp_path / "m.onnx").stat().st_size > 100_000
    assert run.stderr == "" and run.stdout.count("\n") == 1
