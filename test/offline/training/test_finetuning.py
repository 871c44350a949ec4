"""The finetune command as a user calls it, on one process: from a recording to weights, stopped and gone on with."""

import json
import shutil
import signal
import time

import pytest
import torch
from finetuning_runs import SETTINGS, start

from imatching_ros.__main__ import main
from imatching_ros.core.config import MatcherConfig
from imatching_ros.matching import create_matcher
from imatching_ros.matching.weights import DEFAULT_DIR, hash_state, load_weights, read_header
from imatching_ros.offline.training.plan import Plan
from imatching_ros.offline.training.windows import last_training_frame, read_recording, read_window, split_windows

pytestmark = pytest.mark.slow


def call(scene, out, *more):
    return main(["finetune", str(scene), "--out", str(out), "--quiet", *SETTINGS, *more])


def test_run_leaves_weights_that_tell_where_they_come_from(straight, scene):
    header = read_header(straight / "finetuned.safetensors")
    matcher = create_matcher(MatcherConfig())
    load_weights(matcher, straight / "finetuned.safetensors")
    assert header.hash == hash_state(matcher.state_dict()) != read_header(DEFAULT_DIR / "expectation.safetensors").hash
    provenance = header.provenance
    assert (
        provenance["kind"] == "fine-tuning"
        and provenance["sources"] == [scene.name]
        and provenance["steps"] == 4
        and provenance["seed"] == 3
    )
    assert provenance["origin"] == read_header(DEFAULT_DIR / "expectation.safetensors").hash
    for path in (straight / "finetuned.safetensors", straight / "result.json", straight / "plan.json"):
        assert str(scene.parent).encode() not in path.read_bytes(), "paths of this computer are nobody's business"
    assert not list(straight.glob("*.partial")) + list(straight.glob(".*.partial"))


def test_weights_without_enough_windows_are_not_called_better(straight, scene, capsys):
    result = json.loads((straight / "result.json").read_text())
    assert result["finished"] and not result["better"] and result["verdict"]["outcome"] == "undecided"
    assert call(scene, straight, "--steps", "4") == 0
    out = capsys.readouterr().out
    assert "NOT BETTER" in out and "keep those" in out
    assert call(scene, straight, "--steps", "4", "--require-better") == 3


def test_finished_run_says_so_and_does_nothing(straight, scene, capsys):
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*") if p.name != ".lock"}
    assert call(scene, straight, "--steps", "4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["already_finished"]
    assert before == {p: p.stat().st_mtime_ns for p in straight.rglob("*") if p.name != ".lock"}


def test_more_steps_go_on_and_end_where_a_straight_run_does(collected, straight, scene):
    assert call(scene, collected, "--steps", "2") == 0
    first = read_header(collected / "finetuned.safetensors").hash
    assert call(scene, collected, "--steps", "4") == 0
    assert (
        first
        != read_header(collected / "finetuned.safetensors").hash
        == read_header(straight / "finetuned.safetensors").hash
    )
    assert json.loads((collected / "result.json").read_text())["looks"] == 2


def test_windows_of_the_second_epoch_are_those_of_the_weights_by_then(straight, scene):
    """Collected from the frames that may be trained on, by what the first epoch made of the weights."""
    first = read_recording(straight / "windows" / "00_scene")
    in_epoch = Plan([scene], batch=3).steps_of_epoch(len(split_windows(first, 0.3)[0]))
    assert in_epoch < json.loads((straight / "result.json").read_text())["steps"] <= 2 * in_epoch
    again = read_recording(straight / "windows" / "epoch1" / "00_scene")
    assert 0 < again.windows[-1][-1] <= last_training_frame(first, 0.3) < first.windows[-1][-1]
    before, after = (read_window(recording.path(0)) for recording in (first, again))
    assert before.keyframe_ids[0] == after.keyframe_ids[0] and torch.equal(before.images[0], after.images[0])
    shared = [{uv for uv in map(tuple, s.uv_px[s.host_obs].tolist())} for s in (before, after)]
    assert shared[0] & shared[1], "corners do not depend on weights"
    assert not torch.equal(before.uv_px, after.uv_px), "matches do"


def test_killed_run_goes_on_to_the_same_end(collected, straight, scene):
    process = start(scene, collected, "--steps", "4", "--save-every", "0")
    state = collected / "state.safetensors"
    while process.poll() is None and not state.is_file():
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert state.is_file() and not (collected / "result.json").exists(), "it was to be killed in the middle"
    assert read_header(collected / "candidate.safetensors").provenance["verdict"] == "not validated"
    assert call(scene, collected, "--steps", "4") == 0
    assert read_header(collected / "finetuned.safetensors").hash == read_header(straight / "finetuned.safetensors").hash


def test_interrupted_run_tells_where_it_stands(collected, scene):
    process = start(scene, collected, "--steps", "100000", "--save-every", "0")
    while process.poll() is None and not (collected / "state.safetensors").is_file():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted after" in out and "of 100000 steps" in out and "The same command resumes" in out
    load_weights(create_matcher(MatcherConfig()), collected / "candidate.safetensors")


def test_interrupted_collection_keeps_complete_recordings(collected, scene, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(scene, second)
    (collected / "plan.json").unlink()
    half = collected / "windows" / "01_second"
    process = start(scene, collected, str(second), "--steps", "1")
    while process.poll() is None and not half.is_dir():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "while collecting" in out, err
    assert (collected / "windows" / "00_scene" / "recording.json").is_file() and not (half / "recording.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--set", "learning.learning_rate=0.001"],
            "started with settings.learning.learning_rate = 0.0003, now it is 0.001",
        ),
        (["--batch", "5"], "started with batch = 3, now it is 5"),
        (["--steps", "0"], "expected numbers above zero"),
        (["--hold-back", "1"], "expected 0 to 0.9"),
        (["--matcher", "regression"], "started with weights"),
        (["--matcher", "klt"], "has no weights that could learn"),
    ],
)
def test_what_cannot_be_is_one_line(collected, scene, capsys, arguments, says):
    assert call(scene, collected, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error


def test_recording_without_training_windows_is_refused_with_the_reasons(scene, tmp_path, capsys):
    assert call(scene, tmp_path / "out", "--set", "learning.min_landmarks=10000") == 1
    assert "can be trained on (too few landmarks: " in capsys.readouterr().err


def test_second_run_in_one_folder_is_refused(collected, scene, capsys):
    import fcntl

    with open(collected / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert call(scene, collected, "--steps", "1") == 1
    assert "another run works in" in capsys.readouterr().err


def test_other_recordings_need_another_folder(collected, scene, capsys):
    assert main(["finetune", str(scene), str(scene), "--out", str(collected), "--quiet", *SETTINGS]) == 1
    assert "was started with sources = ['scene'], now it is ['scene', 'scene']" in capsys.readouterr().err


def test_another_recording_of_the_same_name_needs_another_folder(collected, scene, tmp_path, capsys):
    other = tmp_path / "other" / "scene"
    shutil.copytree(scene, other)
    image = sorted((other / "rgb").iterdir())[3]
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    assert call(other, collected, "--steps", "1") == 1
    assert "windows of another recording" in capsys.readouterr().err
    moved = tmp_path / "moved" / "scene"
    shutil.copytree(scene, moved)
    assert call(moved, collected, "--steps", "1") == 0
    shutil.rmtree(moved)
    assert call(moved, collected, "--steps", "2") == 0  # its windows are all that is needed


def test_missing_recording_is_found_out_before_the_others_are_played(scene, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["finetune", str(scene), str(tmp_path / "nothing"), "--out", str(out), "--quiet", *SETTINGS]) == 1
    assert "does not exist" in capsys.readouterr().err and not (out / "windows").exists()
    # Not held to the first attempt.
    assert main(["finetune", str(tmp_path), "--out", str(out), "--quiet", *SETTINGS]) == 1
    assert "is not a known recording" in capsys.readouterr().err
