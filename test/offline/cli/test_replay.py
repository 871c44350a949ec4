"""replay, match-eval and report as a user calls them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from imatching_ros.__main__ import main
from imatching_ros.core.config import MatcherConfig
from imatching_ros.matching import create_matcher
from imatching_ros.matching.weights import write_weights
from imatching_ros.offline.recordings.truth import read_trajectory


@pytest.fixture(scope="module")
def wall(tmp_path_factory):
    """A camera that slides past two textured walls at 1.5 and 3 m, 14 frames, with depth."""
    folder = tmp_path_factory.mktemp("wall")
    for name in ("rgb", "depth"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    height, width, focal, step = 120, 160, 120.0, 0.05
    walls = [
        cv2.GaussianBlur(
            cv2.resize(rng.integers(0, 256, (90, 300), dtype=np.uint8), (900, 270), interpolation=cv2.INTER_NEAREST),
            (0, 0),
            1.0,
        )
        for _ in range(2)
    ]
    lines, truth = ["index,timestamp,rgb,depth"], []
    for k in range(14):
        image, depth = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint16)
        for rows, texture, z in ((slice(0, 60), walls[0], 3.0), (slice(60, 120), walls[1], 1.5)):
            shift = np.float32([[1, 0, -(focal * step * k / z)], [0, 1, 0]])
            moved = cv2.warpAffine(texture, shift, (width, 60), flags=cv2.INTER_LINEAR)
            image[rows], depth[rows] = moved, int(z * 1000)
        cv2.imwrite(str(folder / f"rgb/{k}.png"), image)
        cv2.imwrite(str(folder / f"depth/{k}.png"), depth)
        lines.append(f"{k},{k * 0.1:.1f},rgb/{k}.png,depth/{k}.png")
        truth.append(f"{k * 0.1:.1f} {step * k} 0 0 0 0 0 1")
    (folder / "frames.csv").write_text("\n".join(lines))
    (folder / "groundtruth.txt").write_text("\n".join(truth))
    (folder / "camera.json").write_text(
        json.dumps(
            {"cameras": [dict(width=width, height=height, fx=focal, fy=focal, cx=79.5, cy=59.5)], "depth_scale": 1000}
        )
    )
    return folder


def test_the_plane_of_a_wheeled_robot_takes_the_mounting(wall, tmp_path, capsys):
    options = [str(wall), "--learning", "off", "--matcher", "klt", "--quiet", "--set", "odometry.planar=true"]
    mounted = ["--base-from-camera", *"0 0 1 -0.5 0.5 -0.5".split()]
    assert main(["replay", *options, "--out", str(tmp_path / "run"), *mounted, "0.5"]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["planar"] == "used"
    assert "planar       used" in capsys.readouterr().out
    assert main(["replay", *options, "--out", str(tmp_path / "none"), *mounted, "5"]) == 1
    assert "--base-from-camera: the quaternion has the length 5.07, expected 1" in capsys.readouterr().err
    assert (
        main(["replay", *options, "--out", str(tmp_path / "none"), "--base-from-camera", "nan", *mounted[2:], "0.5"])
        == 1
    )
    assert "expected finite numbers" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_replay_leaves_everything_and_is_right(wall, tmp_path, capsys):
    code = main(
        [
            "replay",
            str(wall),
            "--out",
            str(tmp_path / "run"),
            "--matcher",
            "klt",
            "--learning",
            "off",
            "--seed",
            "3",
            "--json",
            "--quiet",
        ]
    )
    metrics = json.loads(capsys.readouterr().out)
    run = tmp_path / "run"
    assert code == 0 and metrics == json.loads((run / "metrics.json").read_text())
    assert (
        metrics["frames"] == 14 and metrics["seed"] == 3 and metrics["metric"] and metrics["ate"]["alignment"] == "se3"
    )
    assert metrics["ate"]["rmse"] < 0.01 and metrics["tracked_frames"] >= 13
    assert {
        "mode",
        "steps",
        "samples",
        "rejected",
        "promotions",
        "rollbacks",
        "validation_before",
        "validation_after",
    } <= metrics["learning"].keys()
    assert {"matcher", "version", "hash"} <= metrics["weights"].keys()
    assert {"p50", "p95", "p99", "max"} <= metrics["latency_ms"].keys()
    assert len(read_trajectory(run / "trajectory.txt")) == metrics["tracked_frames"]
    assert (run / "config.yaml").is_file() and (run / "keyframes.txt").is_file()
    assert all("stamp_ns" in json.loads(line) for line in (run / "events.jsonl").read_text().splitlines())
    assert main(["report", str(run), "--no-matches"]) == 0 and (run / "report.html").is_file()


def test_mono_ignores_depth(wall, tmp_path, capsys):
    main(["replay", str(wall), "--out", str(tmp_path), "--matcher", "klt", "--mode", "mono", "--json", "--quiet"])
    metrics = json.loads(capsys.readouterr().out)
    assert not metrics["metric"] and metrics["source"]["mode"] == "mono"


def test_runs_are_repeatable(wall, tmp_path):
    for name in ("a", "b"):
        assert (
            main(
                ["replay", str(wall), "--out", str(tmp_path / name), "--matcher", "klt", "--learning", "off", "--quiet"]
            )
            == 0
        )
    assert (tmp_path / "a/trajectory.txt").read_text() == (tmp_path / "b/trajectory.txt").read_text()


def test_several_recordings_at_once(wall, tmp_path, capsys):
    assert (
        main(
            [
                "replay",
                str(wall),
                str(wall),
                "--out",
                str(tmp_path),
                "--matcher",
                "klt",
                "--duration",
                "0.5",
                "--json",
                "--quiet",
            ]
        )
        == 0
    )
    assert [m["frames"] for m in json.loads(capsys.readouterr().out)] == [6, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{k:02d}_{wall.name}" for k in range(2)]


def test_weights_of_an_earlier_run_are_kept_and_not_used(wall, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/current.safetensors").write_bytes(b"from before")
    assert main(["replay", str(wall), "--out", str(tmp_path), "--matcher", "klt", "--quiet"]) == 0
    assert (tmp_path / "weights.1/current.safetensors").read_bytes() == b"from before"


def test_a_run_that_cannot_begin_leaves_the_earlier_one_whole(wall, tmp_path, capsys):
    command = ["replay", str(wall), "--out", str(tmp_path / "run"), "--learning", "off", "--quiet"]
    assert main([*command, "--matcher", "klt"]) == 0
    (tmp_path / "run/weights").mkdir(exist_ok=True)
    (tmp_path / "run/weights/current.safetensors").write_bytes(b"from before")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    for name in ("nothing.safetensors", "run/weights/current.safetensors"):
        assert main([*command, "--weights", str(tmp_path / name)]) == 1
    assert main([*command, "--matcher", "klt", "--groundtruth", str(tmp_path / "nothing.txt")]) == 1
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    capsys.readouterr()
    assert main(["replay", str(wall), "--out", str(wall), "--matcher", "klt"]) == 1
    assert "is the recording itself" in capsys.readouterr().err


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_file_where_a_folder_is_expected_is_one_line(wall, tmp_path, capsys):
    (tmp_path / "run").touch()
    assert main(["replay", str(wall), "--out", str(tmp_path / "run"), "--quiet", "--matcher", "klt"]) == 1
    assert capsys.readouterr().err == f"error: File exists: {tmp_path / 'run'}\n"


def test_a_recording_without_usable_frames_leaves_the_earlier_run_whole(wall, tmp_path, capsys):
    command = ["--out", str(tmp_path / "run"), "--learning", "off", "--matcher", "klt", "--quiet"]
    assert main(["replay", str(wall), *command]) == 0
    before = contents(tmp_path / "run")
    recording = tmp_path / "wall"
    shutil.copytree(wall, recording)
    for file in recording.glob("rgb/*.png"):
        file.write_bytes(b"no image")
    assert main(["replay", str(recording), *command]) == 1
    assert "yields no frames" in capsys.readouterr().err and contents(tmp_path / "run") == before


def test_truth_that_cannot_be_read_costs_no_run(wall, tmp_path, capsys):
    recording = tmp_path / "wall"
    shutil.copytree(wall, recording)
    (recording / "groundtruth.txt").write_text("these are notes and no trajectory\n")
    command = ["replay", str(recording), "--out", str(tmp_path / "run"), "--matcher", "klt", "--duration", "0.5"]
    assert main([*command, "--learning", "off", "--quiet"]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["tracked_frames"] and metrics["ate"] is None
    assert "groundtruth.txt" in metrics["no_truth_because"] and "groundtruth.txt" in metrics["warnings"][0]


def test_a_run_that_tracked_nothing_says_why_and_fails(wall, tmp_path, capsys):
    recording = tmp_path / "wall"
    shutil.copytree(wall, recording)
    for file in recording.glob("rgb/*.png"):
        cv2.imwrite(str(file), np.full((120, 160), 3, np.uint8))
    command = ["replay", str(recording), "--out", str(tmp_path / "run"), "--matcher", "klt", "--quiet"]
    assert main([*command, "--learning", "off"]) == 1
    assert "nothing was tracked: the image is dark, covered or empty (14 of 14 frames)" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/metrics.json").read_text())["without_pose"][0]["frames"] == 14


@pytest.mark.parametrize("scale, complaint", [(0, "the depth image is empty"), (1000, "is the unit right")])
def test_depth_that_cannot_be_used_is_named(wall, tmp_path, capsys, scale, complaint):
    """Depth of zeros, and in metres where millimetres are expected."""
    recording = tmp_path / "wall"
    shutil.copytree(wall, recording)
    camera = json.loads((recording / "camera.json").read_text())
    camera["depth_scale"] = 1
    (recording / "camera.json").write_text(json.dumps(camera))
    if not scale:
        for file in recording.glob("depth/*.png"):
            cv2.imwrite(str(file), np.zeros((120, 160), np.uint16))
    command = ["replay", str(recording), "--out", str(tmp_path / "run"), "--matcher", "klt", "--quiet"]
    assert main([*command, "--learning", "off"]) == 1
    error = capsys.readouterr().err
    assert "0 corners with a measured depth" in error and complaint in error


def test_a_clock_that_jumps_back_begins_another_stretch(wall, tmp_path):
    recording = tmp_path / "wall"
    shutil.copytree(wall, recording)
    lines = (recording / "frames.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    for k, row in enumerate(rows):
        row[1] = f"{k * 0.1 + (1000 if k < 4 else 0):.1f}"
    (recording / "frames.csv").write_text("\n".join([lines[0], *map(",".join, rows)]))
    command = ["replay", str(recording), "--out", str(tmp_path / "run"), "--matcher", "klt", "--quiet"]
    assert main([*command, "--learning", "off"]) == 0
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["stretches"] == 2 and metrics["frames"] == 13 and metrics["ate"]["poses"] == 9
    assert metrics["ate"]["rmse"] < 0.01
    assert len(read_trajectory(run / "trajectory.txt")) == 9
    assert len(read_trajectory(run / "trajectory_stretch1.txt")) == 4
    assert (read_trajectory(run / "keyframes.txt").stamps_ns < 10**11).all()


def test_a_run_may_begin_with_the_weights_of_the_one_before(wall, tmp_path, capsys):
    out = tmp_path / "run"
    write_weights(
        out / "weights/current.safetensors", "expectation", create_matcher(MatcherConfig()).state_dict(), 7, {}
    )
    command = ["replay", str(wall), "--out", str(out), "--learning", "off", "--duration", "0.3", "--quiet", "--json"]
    assert main([*command, "--weights", str(out / "weights/current.safetensors")]) == 0
    assert json.loads(capsys.readouterr().out)["weights"]["version"] == 7
    assert str(out / "weights.1/current.safetensors") in (out / "config.yaml").read_text()


def test_nothing_of_an_earlier_run_is_left_for_the_report(wall, tmp_path):
    recording, out = tmp_path / "wall", tmp_path / "run"
    shutil.copytree(wall, recording)
    command = ["replay", str(recording), "--out", str(out), "--matcher", "klt", "--learning", "off", "--quiet"]
    assert main([*command, "--report"]) == 0
    (out / "mine.txt").write_text("kept")
    stale = {"groundtruth.txt", "matches.json", "report.html", "report.json"}
    assert stale < {p.name for p in out.iterdir()} and list(out.glob("matches/*.jpg"))
    (recording / "groundtruth.txt").unlink()
    assert main(command) == 0
    assert not stale & {p.name for p in out.iterdir()} and (out / "mine.txt").is_file()
    assert not list(out.glob("matches/*.jpg")) and not list(out.glob("figures/*.png"))


def test_interrupted_runs_keep_their_results(wall, tmp_path):
    """SIGINT in the middle of a replay: exit code 130, and every file is there."""
    code = (
        # A shell that starts the tests in the background makes its children ignore SIGINT.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time; from imatching_ros import pipeline; p = pipeline.Pipeline.process\n"
        "def slow(self, *a, **k): time.sleep(0.4); return p(self, *a, **k)\n"
        "pipeline.Pipeline.process = slow\n"
        "from imatching_ros.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "replay", str(wall), "--out", str(tmp_path), "--matcher", "klt"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    trajectory = tmp_path / "trajectory.txt"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (trajectory.is_file() and trajectory.read_text().count("\n") >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert process.returncode == 130 and metrics["interrupted"] and 2 <= metrics["tracked_frames"] < 14


def test_match_eval_writes_table_json_and_images(wall, tmp_path, capsys):
    code = main(
        [
            "match-eval",
            str(wall),
            "--matcher",
            "klt",
            "--matcher",
            "klt-chained",
            "--gap",
            "1,3",
            "--pairs",
            "4",
            "--out",
            str(tmp_path),
            "--quiet",
        ]
    )
    assert code == 0 and "klt-chained" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["matcher"] for r in results] == ["klt", "klt-chained"] and results[0]["gaps"]["1"]["mma"]["1"] > 0.8
    assert (tmp_path / "table.md").is_file() and len(list(tmp_path.glob("*.jpg"))) == 4


def test_images_of_two_weights_with_one_file_name_are_both_kept(wall, tmp_path):
    for folder in "ab":
        write_weights(
            tmp_path / folder / "current.safetensors",
            "expectation",
            create_matcher(MatcherConfig()).state_dict(),
            1,
            {},
        )
    matchers = [
        part for folder in "ab" for part in ("--matcher", f"expectation:{tmp_path / folder / 'current.safetensors'}")
    ]
    assert (
        main(
            [
                "match-eval",
                str(wall),
                *matchers,
                "--gap",
                "1",
                "--pairs",
                "1",
                "--out",
                str(tmp_path / "out"),
                "--quiet",
                "--no-pose",
            ]
        )
        == 0
    )
    assert len(list((tmp_path / "out").glob("gap01_*.jpg"))) == 2


@pytest.mark.parametrize(
    "arguments, complaint",
    [(["--gap", "0"], "at least 1"), (["--gap", "a,b"], "whole numbers"), (["--matcher", "nope"], "nope")],
)
def test_match_eval_refuses_nonsense(wall, capsys, arguments, complaint):
    assert main(["match-eval", str(wall), "--quiet", *arguments]) == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.data
@pytest.mark.slow
def test_kitti_with_klt(data_folder, tmp_path, capsys):
    assert (
        main(
            [
                "replay",
                str(data_folder / "kitti_mono_turn"),
                "--out",
                str(tmp_path),
                "--matcher",
                "klt",
                "--learning",
                "off",
                "--duration",
                "6",
                "--json",
                "--quiet",
            ]
        )
        == 0
    )
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["ate"]["percent_of_path"] < 3 and metrics["initialized_at_frame"] <= 15
    assert metrics["tracked_share_after_initialization"] >= 0.95


@pytest.mark.parametrize("file", [True, False])
def test_replay_with_odometry_is_metric_in_mono(wall, tmp_path, capsys, file):
    """Poses in a frame of their own, ten times as often as images; without them the unit is arbitrary."""
    given = tmp_path / "wheels.txt"
    given.write_text(
        "\n".join(f"{k * 0.01:.2f} 7 {0.5 * k * 0.01} 1 0 0 0.70710678 0.70710678" for k in range(-5, 140))
    )
    command = [
        "replay",
        str(wall),
        "--out",
        str(tmp_path / "run"),
        "--matcher",
        "klt",
        "--learning",
        "off",
        "--mode",
        "mono",
        "--quiet",
    ]
    assert main([*command, *(["--external-odometry", str(given)] if file else [])]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["metric"] is file and metrics["scale"] == ("odometry" if file else "unknown")
    poses = read_trajectory(tmp_path / "run" / "trajectory.txt")
    step = np.linalg.norm(np.diff(poses.T_WC[:, :3], axis=0), axis=1).mean()
    assert bool(step == pytest.approx(0.05, rel=0.05)) is file
    assert ("use: both" in (tmp_path / "run" / "config.yaml").read_text()) is file
    assert ("scale        odometry" in capsys.readouterr().out) is file
