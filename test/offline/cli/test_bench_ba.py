"""The benchmark measures what it says: no times are judged here."""

import argparse
import json

import pytest
import torch

from imatching_ros.offline.experiments import other_solvers
from imatching_ros.offline.cli import bench_ba
from imatching_ros.offline.experiments.ba_timing import measure_memory
from imatching_ros.offline.experiments.ba_windows import make_window


def run(tmp_path, *options):
    parser = argparse.ArgumentParser()
    bench_ba.add_arguments(parser)
    path = tmp_path / "ba.json"
    threads = torch.get_num_threads()
    assert bench_ba.run(parser.parse_args([*options, "--json", str(path)])) == 0
    assert torch.get_num_threads() == threads
    return json.loads(path.read_text())


def test_every_solver_is_stopped_at_the_same_cost(tmp_path, capsys):
    found = run(tmp_path, "--keyframes", "4", "--landmarks", "40,80", "--threads", "1", "--repeats", "1", "--no-memory")
    expected = {"ours float64", "ours float32"} | ({"ceres", "gtsam"} - set(other_solvers.missing()))
    assert len(found["rows"]) == 2 and "L" in found["growth"]
    for row in found["rows"]:
        assert set(row["ms"]) == expected
        assert row["observations"] == len(make_window(4, row["landmarks"], outliers=0.05, seed=1).window.kf_idx)
        for name, iterations in row["iterations"].items():
            assert iterations is None or (iterations >= 1 and row["ms"][name] > 0), name
        assert row["iterations"]["ours float64"] and row["final_cost"]["ours float64"] >= row["best_cost"]
    table = capsys.readouterr().out
    assert "4 x   40" in table and "4 x   80" in table


def test_solvers_can_be_left_out(tmp_path):
    found = run(
        tmp_path,
        "--keyframes",
        "3",
        "--landmarks",
        "30",
        "--threads",
        "1",
        "--repeats",
        "1",
        "--no-memory",
        "--without",
        "gtsam,ceres",
    )
    assert set(found["rows"][0]["ms"]) == {"ours float64", "ours float32"}


def test_memory_is_linear_in_the_observations_and_small():
    measured = [measure_memory(12, n) for n in (300, 3000)]
    if None in measured:
        pytest.skip("this system does not tell the peak of resident memory")
    assert measured[1] < 200 and measured[1] < 20 * max(measured[0], 2.0)


@pytest.mark.gpu
def test_one_synchronisation_per_iteration_on_cuda(tmp_path):
    found = run(tmp_path, "--keyframes", "5", "--landmarks", "300", "--repeats", "1", "--no-memory", "--device", "cuda")
    for name, counts in found["rows"][0]["synchronisations"].items():
        assert 0 < counts["synchronisations"] <= counts["iterations"], name
