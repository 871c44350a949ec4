"""Weights on disk: who may resume them, what is kept, what is never lost."""

import errno
import logging
import os
import subprocess
import sys

import pytest
import torch

from imatching_ros.core.config import Config
from imatching_ros.core.types import WeightsSnapshot
from imatching_ros.core.errors import WeightsError
from imatching_ros.learning.weights_store import KEPT, WeightsStore
from imatching_ros.matching import create_matcher
from imatching_ros.matching.weights import DEFAULT_DIR, hash_state, read_header, read_weights, write_weights
from imatching_ros.pipeline import Pipeline

SHIPPED = DEFAULT_DIR / "expectation.safetensors"


def changed(by: float) -> dict[str, torch.Tensor]:
    """The shipped weights, a little different."""
    state = read_weights(SHIPPED)[1]
    name = sorted(state)[0]
    return {**state, name: state[name] + by}


def start(weights, folder, profile="mine_adapted", named=False) -> Pipeline:
    return Pipeline(
        Config().with_values({"matcher.weights": str(weights), "learning.mode": "'off'"}), None, folder, profile, named
    )


def write_adapted(weights, folder, by, profile="mine_adapted") -> str:
    """What the pipeline writes when learning from `weights` promotes; returns its hash."""
    base, state = read_header(weights), changed(by)
    snapshot = WeightsSnapshot(base.version + 1, hash_state(state), state)
    for confirmed in (False, True):
        provenance = {"kind": "promotion", "base": base.hash}
        WeightsStore(folder, profile).write("expectation", snapshot, provenance, confirmed)
    return snapshot.hash


@pytest.fixture
def mine(tmp_path):
    """A file of the user's and a folder with weights adapted from it."""
    path = tmp_path / "mine.safetensors"
    write_weights(path, "expectation", changed(0.1), 1, {})
    return path


def hash_of(pipeline) -> str:
    return hash_state(pipeline.matcher.state_dict())


def test_adapted_weights_are_resumed_while_their_base_is_given(mine, tmp_path):
    adapted = write_adapted(mine, tmp_path / "kept", 0.2)
    pipeline = start(mine, tmp_path / "kept")
    assert (
        hash_of(pipeline) == adapted
        and "profile 'mine_adapted' resumed from" in pipeline.weights.origin
        and f"hash {adapted}" in pipeline.weights.origin
    )
    assert read_header(tmp_path / "kept" / "mine_adapted.safetensors").provenance["base"] == read_header(mine).hash


def test_an_unconfirmed_promotion_is_kept_and_not_resumed(mine, tmp_path):
    folder = tmp_path / "kept"
    adapted = write_adapted(mine, folder, 0.2)
    later = changed(0.4)
    pipeline = start(mine, folder)
    store = WeightsStore(folder, "mine_adapted")
    snapshot = WeightsSnapshot(3, hash_state(later), later)
    store.write("expectation", snapshot, {"base": read_header(mine).hash}, confirmed=False)
    assert hash_of(start(mine, folder)) == adapted
    assert store.newest_version() == 3 and WeightsStore(folder, "other").newest_version() == 0
    pipeline.load_weights(str(folder / "mine_adapted.v00003.safetensors"))
    assert hash_of(pipeline) == hash_state(later)


def test_given_weights_that_have_changed_are_used_and_the_adapted_ones_renamed(mine, tmp_path, caplog):
    folder = tmp_path / "kept"
    adapted = write_adapted(mine, folder, 0.2)
    write_weights(mine, "expectation", changed(0.3), 1, {})
    with caplog.at_level(logging.WARNING):
        pipeline = start(mine, folder)
    assert hash_of(pipeline) == read_header(mine).hash and f"weights '{mine}'" in pipeline.weights.origin
    renamed = f"mine_adapted_{adapted}"
    assert (
        len(caplog.records) == 1 and renamed in caplog.text and "mine_adapted.safetensors is not resumed" in caplog.text
    )
    assert {p.name for p in folder.iterdir()} == {f"{renamed}.safetensors", f"{renamed}.v00002.safetensors"}
    pipeline.load_weights(renamed)
    assert hash_of(pipeline) == adapted


def test_adapted_weights_that_cannot_be_renamed_do_not_keep_a_robot_from_starting(mine, tmp_path, caplog):
    """As on a disk that is read-only; here a folder has the new name."""
    folder = tmp_path / "kept"
    adapted = write_adapted(mine, folder, 0.2)
    (folder / f"mine_adapted_{adapted}.safetensors" / "in use").mkdir(parents=True)
    write_weights(mine, "expectation", changed(0.3), 1, {})
    pipeline = start(mine, folder)
    assert hash_of(pipeline) == read_header(mine).hash and "it could not be renamed (Is a directory)" in caplog.text


def test_a_profile_that_the_user_named_is_resumed_from_any_base(mine, tmp_path, caplog):
    adapted = write_adapted(mine, tmp_path / "kept", 0.2, "yard")
    write_weights(mine, "expectation", changed(0.3), 1, {})
    for weights in (mine, "default"):
        pipeline = start(weights, tmp_path / "kept", "yard", named=True)
        assert hash_of(pipeline) == adapted and "profile 'yard' resumed" in pipeline.weights.origin
    assert not caplog.records


def test_weights_saved_by_request_under_the_profile_are_resumed(mine, tmp_path):
    pipeline = start(mine, tmp_path / "kept")
    with torch.no_grad():
        next(pipeline.matcher.parameters()).add_(0.01)
    pipeline.save_weights("mine_adapted")
    assert hash_of(start(mine, tmp_path / "kept")) == hash_of(pipeline)


def test_promotions_are_kept_and_pruned_by_profile(tmp_path):
    state = create_matcher(Config().matcher).state_dict()
    stores = {profile: WeightsStore(tmp_path, profile) for profile in ("front", "front_v00001", "rear")}
    for store, count in zip(stores.values(), (KEPT + 3, 2, 2)):
        for version in range(99_995, 99_995 + count):
            store.write("expectation", WeightsSnapshot(version, "", state), {}, confirmed=False)
    kept = {
        profile: sorted(int(p.name.split(".v")[1].split(".")[0]) for p in tmp_path.glob(f"{profile}.v*"))
        for profile in stores
    }
    assert kept == {
        "front": list(range(99_998, 99_998 + KEPT)),
        "front_v00001": [99_995, 99_996],
        "rear": [99_995, 99_996],
    }


@pytest.mark.parametrize("name", ["default", "previous"])
def test_names_that_load_takes_for_other_weights_are_refused(mine, tmp_path, name):
    pipeline = start(mine, tmp_path / "kept")
    with pytest.raises(WeightsError, match=f"'{name}' cannot be the name of a profile"):
        pipeline.save_weights(name)
    assert not (tmp_path / "kept").exists()
    with pytest.raises(WeightsError, match="cannot be the name"):
        start(mine, tmp_path / "kept", name, named=True)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:5000], "is not a readable safetensors file"),
        (lambda data: data[:-100] + bytes(100), "is damaged: its contents do not match its hash"),
    ],
)
def test_a_damaged_profile_is_set_aside_and_the_given_weights_used(mine, tmp_path, caplog, named, damage, reason):
    folder = tmp_path / "kept"
    write_adapted(mine, folder, 0.2)
    profile = folder / "mine_adapted.safetensors"
    content = damage(profile.read_bytes())
    profile.write_bytes(content)
    pipeline = start(mine, folder, named=named)
    assert hash_of(pipeline) == read_header(mine).hash
    assert not profile.exists() and (folder / "mine_adapted.safetensors.damaged").read_bytes() == content
    assert f"learned weights are not resumed: {profile} {reason}" in caplog.text
    pipeline.close()


def test_half_written_files_of_killed_processes_are_removed_at_start(mine, tmp_path):
    folder = tmp_path / "kept"
    write_adapted(mine, folder, 0.2)
    running = folder / ".mine_adapted.safetensors.1.1.partial"
    for file in (".mine_adapted.v00002.safetensors.1.1.partial", ".other.safetensors.2.1.partial", running.name):
        (folder / file).write_bytes(b"half")
        os.utime(folder / file, (0, 0))
    os.utime(running)
    start(mine, folder).close()
    assert list(folder.glob(".*.partial")) == [running]  # another node may be writing it


def test_a_process_killed_while_it_writes_leaves_whole_files(mine, tmp_path):
    """Two of them, with one profile: what the last one finished is resumed."""
    folder = tmp_path / "kept"
    write_adapted(mine, folder, 0.2)
    code = (
        "import sys, torch; from pathlib import Path; from imatching_ros.core.types import WeightsSnapshot; "
        "from imatching_ros.learning.weights_store import WeightsStore; from imatching_ros.matching.weights import *\n"
        "header, state = read_weights(Path(sys.argv[1])); store = WeightsStore(Path(sys.argv[2]), 'mine_adapted')\n"
        "for version in range(2, 10**6):\n"
        "    for confirmed in (False, True):\n"
        "        snapshot = WeightsSnapshot(version, header.hash, state)\n"
        "        store.write('expectation', snapshot, {'base': header.hash}, confirmed)\n"
        "    print(version, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(mine), str(folder)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        for _ in range(KEPT + 3):  # so that old ones are removed too
            assert writer.stdout.readline()
    for writer in writers:
        writer.kill()
        writer.communicate()
    for file in folder.glob("*.safetensors"):
        read_weights(file)
    assert len(list(folder.glob("*.v*.safetensors"))) <= KEPT + 2
    pipeline = start(mine, folder)
    assert "resumed from" in pipeline.weights.origin
    pipeline.close()


def test_a_folder_that_cannot_be_written_to_is_reported_at_start(mine, tmp_path, caplog):
    """A file in its place, since root may write to any folder; saving names the path and the reason."""
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "kept"
    pipeline = start(mine, folder)
    assert (
        f"learned weights cannot be kept: {folder} cannot be written to, because {tmp_path / 'file'} is no folder"
        in caplog.text
    )
    with pytest.raises(WeightsError, match="kept/site.safetensors cannot be written .Not a directory.; give a folder"):
        pipeline.save_weights("site")
    pipeline.close()


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WeightsError, match="full.safetensors cannot be written .No space left on device."):
        write_weights(tmp_path / "full.safetensors", "expectation", changed(0.1), 1, {})
    assert not list(tmp_path.iterdir())
