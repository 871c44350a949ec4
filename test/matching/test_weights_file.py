"""Weights files: what is written is read, what is wrong is refused by name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from known_pairs import build_random
from safetensors import safe_open
from safetensors.torch import save_file

from imatching_ros.core.config import MatcherConfig
from imatching_ros.core.errors import WeightsError
from imatching_ros.matching import create_matcher
from imatching_ros.matching.weights import (
    DEFAULT_DIR,
    choose_matcher,
    hash_state,
    load_weights,
    read_header,
    read_weights,
    resolve_weights,
    write_weights,
)


@pytest.fixture
def state():
    return build_random("expectation").state_dict()


@pytest.fixture
def path(tmp_path, state):
    write_weights(tmp_path / "some.safetensors", "expectation", state, 7, {"kind": "test", "steps": 3})
    return tmp_path / "some.safetensors"


def test_a_round_trip_keeps_everything(path, state):
    header, back = read_weights(path)
    assert header == read_header(path) and header.matcher == "expectation" and header.version == 7
    assert header.provenance == {"kind": "test", "steps": 3} and header.hash == hash_state(state)
    assert all(torch.equal(state[k], v) for k, v in back.items()) and set(back) == set(state)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half written lies about
    matcher = build_random("expectation", seed=5)
    load_weights(matcher, path)
    assert matcher.weights_version == 7 and hash_state(matcher.state_dict()) == header.hash


@pytest.mark.parametrize(
    "device, precision, name",
    [("cpu", "float32", "expectation_fast"), ("cpu", "bfloat16", "expectation"), ("cuda", "float32", "expectation")],
)
def test_auto_is_the_larger_network_where_it_is_fast(device, precision, name):
    config = MatcherConfig(device=device, precision=precision)
    assert config.name == "auto" and choose_matcher(config).name == name
    assert resolve_weights(config) == DEFAULT_DIR / f"{name}.safetensors"
    assert choose_matcher(MatcherConfig(name="klt")).name == "klt"


def test_auto_is_the_matcher_of_given_weights(tmp_path):
    write_weights(tmp_path / "own.safetensors", "regression", build_random("regression").state_dict(), 2, {})
    matcher = create_matcher(MatcherConfig(weights=str(tmp_path / "own.safetensors")))
    assert (matcher.name, matcher.weights_version) == ("regression", 2)
    with pytest.raises(WeightsError, match="there is no weights file"):
        create_matcher(MatcherConfig(weights=str(tmp_path / "none.safetensors")))


def test_the_hash_does_not_depend_on_memory_layout(state):
    matcher = build_random("expectation").to(memory_format=torch.channels_last)
    assert hash_state(matcher.state_dict()) == hash_state(state)


def test_a_channels_last_matcher_writes_what_a_plain_one_reads(tmp_path, state):
    matcher = build_random("expectation").to(memory_format=torch.channels_last)
    write_weights(tmp_path / "w.safetensors", "expectation", matcher.state_dict(), 1, {})
    assert all(torch.equal(v, state[k]) for k, v in read_weights(tmp_path / "w.safetensors")[1].items())


def test_weights_of_another_matcher(path):
    with pytest.raises(WeightsError, match="made for matcher 'expectation'"):
        load_weights(build_random("regression"), path)


def test_weights_of_another_architecture(tmp_path, state):
    for wrong in (
        {k: v for k, v in state.items() if "decode2" not in k},
        {**state, "more": torch.zeros(3)},
        {**state, "backbone.fine_head.bias": torch.zeros(5)},
    ):
        write_weights(tmp_path / "w.safetensors", "expectation", wrong, 1, {})
        with pytest.raises(WeightsError, match="does not fit"):
            load_weights(build_random("expectation"), tmp_path / "w.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, state, value):
    state["backbone.fine_head.bias"][3] = value
    write_weights(tmp_path / "w.safetensors", "expectation", state, 1, {})
    with pytest.raises(WeightsError, match="not finite in backbone.fine_head.bias"):
        create_matcher(MatcherConfig(weights=str(tmp_path / "w.safetensors")))


def test_damaged_weights(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged"):
        read_weights(path)


@pytest.mark.parametrize("keep", [0, 5, 400, 20000])
def test_truncated_weights(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="not a readable"):
        read_weights(path)


def test_files_that_are_not_ours(tmp_path, state):
    with pytest.raises(WeightsError, match="there is no weights file"):
        read_weights(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="there is no weights file"):
        read_weights(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match="no header of this project"):
        read_weights(tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("weights")
    with pytest.raises(WeightsError, match="not a readable"):
        read_weights(tmp_path / "text.safetensors")
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="not a readable"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "field, value", [("version", None), ("version", "x"), ("provenance", "{"), ("provenance", "[1]")]
)
def test_a_header_without_a_field_or_with_another_value(path, state, field, value):
    with safe_open(str(path), "pt") as file:
        header = file.metadata()
    header.pop(field)
    save_file(state, path, header if value is None else {**header, field: value})
    with pytest.raises(WeightsError, match="the header of .* is damaged"):
        read_weights(path)


def test_two_threads_that_write_one_file_leave_a_whole_one(tmp_path):
    states = [{"a": torch.full((100_000,), float(k))} for k in range(2)]

    def write(state) -> None:
        for version in range(20):
            write_weights(tmp_path / "w.safetensors", "expectation", state, version, {})

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(write, state) for state in states]:
            future.result()
    assert read_weights(tmp_path / "w.safetensors")[0].version == 19
    assert len(list(tmp_path.iterdir())) == 1


def test_the_shipped_weights_are_whole_and_small():
    files = sorted(DEFAULT_DIR.glob("*.safetensors"))
    assert DEFAULT_DIR / "expectation.safetensors" in files
    for file in files:
        header, _ = read_weights(file)
        assert file.stat().st_size < 4e6 and header.matcher == file.stem and header.provenance
        load_weights(build_random(file.stem), file)


def test_the_setting_names_the_file(tmp_path):
    assert resolve_weights(MatcherConfig()) == DEFAULT_DIR / "expectation.safetensors"
    assert resolve_weights(MatcherConfig(name="regression", weights=str(tmp_path / "x"))) == tmp_path / "x"
