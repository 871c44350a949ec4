"""Fine-tuning over two real processes: the same result as over one, and a dead or silent process ends the run."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from finetuning_runs import ROOT, arguments, start
from safetensors.torch import load_file

from imatching_ros.__main__ import main
from imatching_ros.matching.weights import DEFAULT_DIR, read_weights

pytestmark = pytest.mark.slow


def pair(scene, out, *more):
    """Two processes as torchrun would start them, but with nobody who ends the one when the other fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start(
            scene,
            out,
            *more,
            RANK=str(k),
            LOCAL_RANK=str(k),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        for k in (0, 1)
    ]


def wait(processes, seconds=120):
    """Exit codes and what was printed; none may outlive the time."""
    try:
        printed = [p.communicate(timeout=seconds) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [p.returncode for p in processes], printed


def wait_for(path, processes):
    while not path.is_file():
        assert any(p.poll() is None for p in processes), wait(processes)
        time.sleep(0.02)


def distance(a, b):
    return sum(float((a[k].double() - b[k].double()).norm() ** 2) for k in a) ** 0.5


def test_two_processes_end_where_one_does(collected, straight, scene):
    """Under torchrun. Batches of three windows: one process has two of them, the other one."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            *arguments(scene, collected, "--steps", "4", "--json"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    result, alone = json.loads(run.stdout), json.loads((straight / "result.json").read_text())
    assert result["processes"] == 2 and alone["processes"] == 1
    for key in ("steps", "updates", "refused_in_steps", "windows"):
        assert result[key] == alone[key]
    _, one = read_weights(straight / "finetuned.safetensors")
    _, two = read_weights(collected / "finetuned.safetensors")
    _, pretrained = read_weights(DEFAULT_DIR / "expectation.safetensors")
    assert distance(one, pretrained) > 1e-3
    assert distance(one, two) < 0.02 * distance(one, pretrained)


# The residual is then due in every step, and a window with too few observations for it has no other term: one of six or more.
RESIDUAL_ALONE = ("--set", "learning.pseudo_truth_weight=0", "--set", "learning.warp_weight=0", "--batch", "6")


@pytest.mark.parametrize("terms", [(), RESIDUAL_ALONE])
def test_gradient_of_a_step_does_not_depend_on_the_processes(collected, scene, tmp_path, terms):
    """Adam's first moment after one step is a tenth of the gradient. It is the mean over the windows that were not refused."""
    if terms:  # a run of other settings collects its own windows
        collected = tmp_path / "one"
    assert main(arguments(scene, collected, "--steps", "1", *terms)[2:]) == 0
    other = tmp_path / "two"
    shutil.copytree(collected / "windows", other / "windows")
    shutil.copy(collected / "plan.json", other / "plan.json")
    codes, printed = wait(pair(scene, other, "--steps", "1", *terms))
    assert codes == [0, 0], printed
    refused = [json.loads((out / "result.json").read_text())["refused_in_steps"] for out in (collected, other)]
    assert refused[0] == refused[1] and (0 < sum(refused[0].values()) < 6) == (terms == RESIDUAL_ALONE), refused
    one, two = (
        {k: v for k, v in load_file(out / "state.safetensors").items() if k.startswith("adam.exp_avg.")}
        for out in (collected, other)
    )
    assert sum(float(v.norm() ** 2) for v in one.values()) > 0
    assert distance(one, two) < 1e-5 * sum(float(v.double().norm() ** 2) for v in one.values()) ** 0.5
    assert printed[1][0] == "", "rank 0 alone prints"


def test_failure_of_one_ends_the_other(collected, scene):
    processes = pair(scene, collected, "--steps", "100000", "--save-every", "0", "--timeout", "60")
    wait_for(collected / "state.safetensors", processes)
    shutil.rmtree(collected / "windows" / "00_scene" / "images")
    begin = time.monotonic()
    codes, printed = wait(processes)
    assert codes == [1, 1] and time.monotonic() - begin < 40, "no waiting for the timeout"
    errors = [err.strip().splitlines()[-1] for _, err in printed]
    assert all(e.startswith("error: ") for e in errors) and any("missing or damaged" in e for e in errors), errors
    assert torch.isfinite(load_file(collected / "candidate.safetensors")["coarse_log_temperature"]).all()


def test_killed_process_ends_the_other(collected, scene):
    processes = pair(scene, collected, "--steps", "100000", "--save-every", "0", "--timeout", "60")
    wait_for(collected / "state.safetensors", processes)
    processes[1].kill()
    codes, printed = wait(processes)
    assert codes == [1, -signal.SIGKILL]
    assert "another process ended" in printed[0][1] and "the same command resumes" in printed[0][1]
    assert (collected / "state.safetensors").is_file()


def test_silent_process_ends_the_run(collected, scene):
    processes = pair(scene, collected, "--steps", "100000", "--save-every", "0", "--timeout", "8")
    wait_for(collected / "state.safetensors", processes)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        out, err = processes[0].communicate(timeout=90)
    finally:
        processes[1].kill()
        processes[0].kill()
    assert processes[0].returncode == 1 and "did not answer within 8 s" in err
    processes[1].communicate()


def test_interruption_of_one_stops_both_after_the_same_step(collected, scene):
    processes = pair(scene, collected, "--steps", "100000", "--save-every", "0")
    wait_for(collected / "state.safetensors", processes)
    processes[1].send_signal(signal.SIGINT)
    codes, printed = wait(processes)
    assert codes == [130, 0], printed
    assert "interrupted after" in printed[0][0] and printed[1][0] == ""


def test_more_processes_than_windows_in_a_step_are_refused(collected, scene, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(arguments(scene, collected)[2:]) == 1
    assert "at least one window to each" in capsys.readouterr().err
