"""The commands of docs/evaluation.md, run as they stand, one after the other, on a small recording."""

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from imatching_ros.__main__ import main

_PAGE = Path(__file__).parent.parent / "docs" / "evaluation.md"
# Takes half a minute in the exporter; test/commands/test_weights.py runs it on a smaller size.
_ELSEWHERE = (".onnx",)


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", _PAGE.read_text(), re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("python -m imatching_ros ")]


@pytest.fixture
def recording(tmp_path):
    folder = tmp_path / "SOURCE"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (30, 60), dtype=np.uint8)
    texture = cv2.resize(noise, (480, 240), interpolation=cv2.INTER_CUBIC)
    lines = ["timestamp,rgb,depth"]
    for k in range(8):
        cv2.imwrite(str(folder / f"{k}.png"), texture[:120, 4 * k : 4 * k + 160])
        cv2.imwrite(str(folder / f"{k}_depth.png"), np.full((120, 160), 2000, np.uint16))
        lines.append(f"{k * 0.1:.1f},{k}.png,{k}_depth.png")
    (folder / "frames.csv").write_text("\n".join(lines))
    (folder / "groundtruth.txt").write_text("\n".join(f"{k * 0.1:.1f} {0.08 * k} 0 0 0 0 0 1" for k in range(8)))
    (folder / "camera.json").write_text(json.dumps({"cameras": [dict(width=160, height=120, fx=100, fy=100, cx=79.5, cy=59.5)]}))
    return folder


@pytest.mark.slow
def test_every_command_runs(recording, monkeypatch, capsys):
    monkeypatch.chdir(recording.parent)
    assert len(commands()) >= 8
    for line in commands():
        if line.endswith(_ELSEWHERE) or ".onnx " in line:
            continue
        arguments = shlex.split(line)[3:]
        if "run/weights/current.safetensors" in line or "run/weights" in arguments:
            # Eight frames promote nothing: the shipped weights stand in for promoted ones.
            Path("run/weights").mkdir(exist_ok=True)
            main(["weights", "export", "default", "run/weights/current.safetensors"])
        assert main(arguments) == 0, f"{line}\n{capsys.readouterr().err}"
    assert Path("run/report.html").is_file() and Path("figures/table.md").is_file()
