"""The commands of the documents, run as they stand, one after the other, on a small recording; those that are not, and why."""

import json
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_documents import NOT_RUN, commands

from imatching_ros.__main__ import main

# Commands of the package that are not run as they stand. Those without `imatching_ros` are in NOT_RUN of test_documents.py.
LONG = {
    "compare": "hours; its parts are tested in test/offline/experiments/test_learning_comparison.py",
    "finetune": "an hour; run with few steps in test/offline/training",
    "train": "hours; the trainer takes some steps in test/offline/training",
    "simulate": "minutes; smaller recordings are written in test/offline/simulation",
    "bench kpi": "minutes; run smaller in test/offline/cli/test_bench_kpi.py",
    "bench gpu": "needs a CUDA device; run on the CPU in test/offline/cli/test_bench_gpu.py",
    "bench ba": "minutes; run smaller in test/offline/cli/test_bench_ba.py",
    "bench guard": "minutes; run smaller in test/offline/cli/test_bench_guard.py",
    "bench nees": "minutes; run smaller in test/offline/cli/test_bench_nees.py",
    "bench interference": "ten minutes; run smaller in test/offline/cli/test_bench_interference.py",
    "bench odometry": "minutes; run smaller in test/offline/cli/test_bench_odometry.py",
    "bench latency": "minutes; run smaller in test/offline/ros_tools/test_latency.py",
    "bench matcher": "minutes; run smaller in test/offline/cli/test_bench_matcher.py",
    "view": "shows a running node; run in test/offline/ros_tools/test_view.py",
    "online": "waits for a camera; the node runs over DDS in test/ros",
    "match-eval my_sequence/": "needs the package that the page writes, which test/matching/test_adding_a_matcher.py installs and uses",
    "replay my_sequence/": "as the line before it",
    "replay sweep": "reads what the line before it renders",
    "replay R": "reads a recording whose rendering the page describes",
}


def written():
    """(document, arguments) of every command of the package; placeholders of prose, such as `bench ...`, are none."""
    return [
        (document, text.removeprefix("python -m imatching_ros ").strip())
        for document, text in commands()
        if text.startswith("python -m imatching_ros ") and "..." not in text
    ]


def reason(text):
    return next((why for start, why in LONG.items() if text == start or text.startswith(f"{start} ")), None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the commands run: one recording under the names that the documents give theirs, and weights that they speak of."""
    recording = tmp_path / "SOURCE"
    recording.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (30, 60), dtype=np.uint8)
    texture = cv2.resize(noise, (480, 240), interpolation=cv2.INTER_CUBIC)
    lines = ["timestamp,rgb,depth"]
    for k in range(8):
        cv2.imwrite(str(recording / f"{k}.png"), texture[:120, 4 * k : 4 * k + 160])
        cv2.imwrite(str(recording / f"{k}_depth.png"), np.full((120, 160), 2000, np.uint16))
        lines.append(f"{k * 0.1:.1f},{k}.png,{k}_depth.png")
    (recording / "frames.csv").write_text("\n".join(lines))
    (recording / "groundtruth.txt").write_text("\n".join(f"{k * 0.1:.1f} {0.08 * k} 0 0 0 0 0 1" for k in range(8)))
    (recording / "camera.json").write_text(
        json.dumps({"cameras": [dict(width=160, height=120, fx=100, fy=100, cx=79.5, cy=59.5)]})
    )
    for name in ("my_bag", "FOLDER"):
        (tmp_path / name).symlink_to(recording)
    (tmp_path / "truth.txt").write_text((recording / "groundtruth.txt").read_text())
    monkeypatch.chdir(tmp_path)
    for path in ("training/expectation.safetensors", "FILE.safetensors"):
        assert main(["weights", "export", "default", path]) == 0
    (tmp_path / "FILE.safetensors").rename("FILE")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("document", sorted({document for document, text in written() if reason(text) is None}))
def test_commands_run_as_they_stand(document, folder, capsys):
    for text in [text for own, text in written() if own == document and reason(text) is None]:
        if "run/weights" in text and not Path("run/weights/current.safetensors").is_file():
            # Eight frames promote nothing: the shipped weights stand in for promoted ones.
            Path("run/weights").mkdir(parents=True, exist_ok=True)
            assert main(["weights", "export", "default", "run/weights/current.safetensors"]) == 0
        assert main(shlex.split(text)) == 0, f"{text}\n{capsys.readouterr().err}"
    if "--report" in " ".join(text for own, text in written() if own == document):
        assert Path("run/report.html").is_file()
        assert json.loads(Path("run/matches.json").read_text())["unseen"] is False, "the run's own images were seen"


def test_list_of_what_is_not_run_is_true():
    """Each entry names a command that some document has, and a place that exists."""
    texts = [text for _, text in written()]
    words = {text.split()[0] for _, text in commands()}
    root = Path(__file__).parents[1]
    for start, why in LONG.items():
        assert any(text == start or text.startswith(f"{start} ") for text in texts), (
            f"no document has '{start}': take it out"
        )
    for start, why in NOT_RUN.items():
        assert start in words, f"no document has '{start}': take it out of NOT_RUN"
    for why in [*LONG.values(), *NOT_RUN.values()]:
        for place in [word.strip(",;.") for word in why.split() if word.startswith("test/")]:
            assert (root / place.strip()).exists() or (root / f"{place}.py").exists(), (
                f"{place} of '{why}' does not exist"
            )


def test_most_commands_are_run():
    run = [text for _, text in written() if reason(text) is None and " " in text]
    assert len(run) >= 15
