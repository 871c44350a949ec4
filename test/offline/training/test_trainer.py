"""Offline training: it learns, it resumes exactly, and what it ships is the trained function."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from imatching_ros.core.errors import ConfigError, WeightsError
from imatching_ros.matching.weights import read_weights, write_weights
from imatching_ros.offline.simulation.pairs import PairRenderer
from imatching_ros.offline.training import trainer as trainer_module
from imatching_ros.offline.training.photographs import HomographyPairs, load_photographs, warp_homography
from imatching_ros.offline.training.supervision import map_distance, matching_loss, sample_queries
from imatching_ros.offline.training.trainer import MATCHERS, Trainer, TrainingPlan, load_teacher

CPU = torch.device("cpu")


def tiny(matcher="expectation", steps=6, **more):
    return TrainingPlan(
        matcher,
        steps,
        **{"batch": 2, "height": 64, "width": 96, "queries": 32, "photograph_share": 0.5, "seed": 3, **more},
    )


@pytest.fixture(scope="module")
def photographs():
    found, names = load_photographs([])
    assert found and all(p.shape[0] == 3 and 0 <= p.min() and p.max() <= 1 for p in found) and len(names) == len(found)
    return found[:2]


@pytest.fixture(scope="module")
def renderer():
    return PairRenderer(CPU, [])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, renderer):
    """These tests take few steps: few pairs are rendered at a time, and the textures are made once."""
    monkeypatch.setattr(trainer_module, "BLOCK_STEPS", 1)
    monkeypatch.setattr(trainer_module, "PairRenderer", lambda device, photographs: renderer)


def run(trainer, until=None):
    losses = []
    take = trainer.take_step
    trainer.take_step = lambda: losses.append(take()) or losses[-1]
    trainer.train(lambda step, parts: None, until=until)
    return [float(parts["loss"]) for parts in losses]


def test_a_stopped_training_resumes_with_the_very_same_steps(tmp_path, photographs):
    plan = tiny(steps=5)
    straight = Trainer(plan, photographs, tmp_path / "straight", CPU)
    losses = run(straight)
    first = run(Trainer(plan, photographs, tmp_path / "stopped", CPU), until=2)
    resumed = Trainer(plan, photographs, tmp_path / "stopped", CPU)
    assert resumed.step == 2
    assert first + run(resumed) == pytest.approx(losses, rel=1e-6)
    for name, tensor in straight.matcher.state_dict().items():
        assert torch.allclose(tensor, resumed.matcher.state_dict()[name], atol=1e-7), name


def test_another_plan_does_not_go_on_from_a_checkpoint(tmp_path, photographs):
    run(Trainer(tiny(steps=2), photographs, tmp_path, CPU), until=1)
    with pytest.raises(
        ConfigError, match="was begun with queries = 32, now 16, seed = 3, now 4; give the same again, or another --out"
    ):
        Trainer(tiny(steps=2, queries=16, seed=4), photographs, tmp_path, CPU)
    assert Trainer(tiny(steps=3), photographs, tmp_path, CPU).step == 1


def test_a_seed_decides_everything(tmp_path, photographs):
    one, two, other = (
        run(Trainer(tiny(steps=2, seed=s), photographs, tmp_path / str(i), CPU)) for i, s in enumerate((3, 3, 4))
    )
    assert one == two and one != other


@pytest.mark.parametrize("matcher", sorted(MATCHERS))
def test_the_loss_falls_on_pairs_seen_again(matcher, photographs):
    torch.manual_seed(0)
    network = MATCHERS[matcher](batch_norm=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    image_a, image_b, H_BA = HomographyPairs(photographs, CPU).draw(2, (64, 96), np.random.default_rng(0))
    uv_a = sample_queries(image_a, 48, torch.Generator().manual_seed(0))
    uv_b = warp_homography(H_BA, uv_a)
    visible = ((uv_b >= 0) & (uv_b <= torch.tensor([95.0, 63.0]))).all(-1)
    assert visible.sum() > 20
    history = []
    for step in range(25):
        loss, parts = matching_loss(
            network,
            network.backbone(torch.cat([image_a, image_b])),
            uv_a,
            uv_b,
            visible,
            torch.Generator().manual_seed(1),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(parts)
    for name in ("coarse", "fine"):
        assert history[-1][name] < 0.8 * history[0][name], name
    assert {"coordinate", "score", "sigma", "within_1px", "within_5px"} <= set(history[0])
    assert history[-1]["within_5px"] > history[0]["within_5px"]


def test_finished_weights_are_the_trained_function_without_batch_norm(tmp_path, photographs):
    trainer = Trainer(tiny(steps=3), photographs, tmp_path, CPU)
    run(trainer)
    finished, trained = trainer.finished(), trainer.matcher.eval()
    image = photographs[0].mean(0, keepdim=True)[None, :, :64, :96]
    with torch.no_grad():
        for before, after in zip(trained.backbone(image), finished.backbone(image)):
            assert torch.allclose(before, after, atol=1e-4)
    assert not [n for n, _ in finished.named_buffers() if "running" in n]


@pytest.fixture
def teacher(tmp_path):
    """A weights file of the larger network, with heads that differ from fresh ones."""
    torch.manual_seed(1)
    state = MATCHERS["expectation"]().state_dict()
    path = tmp_path / "teacher.safetensors"
    moved = {k: v if k.startswith("backbone.") else v + 1 for k, v in state.items()}
    write_weights(path, "expectation", moved, 1, {})
    return path


def test_the_fast_network_approaches_its_teacher(tmp_path, photographs, teacher):
    plan = tiny("expectation_fast", steps=25, teacher=str(teacher), matching_weight=0.1, learning_rate=3e-3)
    trainer = Trainer(plan, photographs, tmp_path / "out", CPU)
    assert torch.equal(trainer.matcher.fine_log_temperature, read_weights(teacher)[1]["fine_log_temperature"])
    before = {k: v.clone() for k, v in trainer.teacher.state_dict().items()}
    steps = [trainer.take_step() for _ in range(25)]
    for part in ("teacher_coarse", "teacher_fine"):
        assert 0 < steps[-1][part] < 0.8 * steps[0][part], part
    assert all(torch.equal(v, before[k]) for k, v in trainer.teacher.state_dict().items())


@torch.no_grad()
def test_both_networks_give_maps_of_the_same_places():
    image = torch.rand(1, 1, 70, 101)
    for own, other in zip(MATCHERS["expectation_fast"]().backbone(image), MATCHERS["expectation"]().backbone(image)):
        assert own.shape == other.shape
        assert map_distance(other, other) == pytest.approx(0, abs=1e-5)
        assert map_distance(other, -other) == pytest.approx(2, abs=1e-5)


def test_weights_of_another_network_are_named_errors(tmp_path, photographs, teacher):
    with pytest.raises(WeightsError, match="has another backbone than"):
        Trainer(tiny("expectation_fast", init=str(teacher)), photographs, tmp_path, CPU)
    fast = tmp_path / "fast.safetensors"
    write_weights(fast, "expectation_fast", MATCHERS["expectation_fast"]().state_dict(), 1, {})
    with pytest.raises(WeightsError, match="holds no teacher's network"):
        load_teacher(fast)


def test_training_in_bfloat16_takes_the_steps_of_float32(tmp_path, photographs):
    full, half = (Trainer(tiny(bfloat16=b), photographs, tmp_path / str(b), CPU).take_step() for b in (False, True))
    assert full["loss"] != half["loss"] and half["loss"] == pytest.approx(float(full["loss"]), rel=0.02)


def test_queries_lie_in_the_image_and_mostly_on_corners():
    image = torch.zeros(1, 1, 96, 128)
    image[..., 40:60, 50:80] = 1.0
    uv = sample_queries(image, 16, torch.Generator().manual_seed(0))
    assert uv.shape == (1, 16, 2) and (uv >= -0.5).all() and (uv <= torch.tensor([127.5, 95.5])).all()
    corners = torch.tensor([[50.0, 40.0], [79.0, 40.0], [50.0, 59.0], [79.0, 59.0]])
    assert (torch.cdist(uv[0], corners).min(0).values < 4).sum() >= 2


def test_the_command_trains_writes_and_resumes(tmp_path, capsys):
    from imatching_ros.__main__ import main

    arguments = [
        "train",
        "--matcher",
        "regression",
        "--out",
        str(tmp_path),
        "--steps",
        "2",
        "--batch",
        "2",
        "--size",
        "96x64",
    ]
    assert main(arguments) == 0
    header, state = read_weights(tmp_path / "regression.safetensors")
    assert header.matcher == "regression" and header.provenance["steps_taken"] == 2 and header.provenance["photographs"]
    assert all(torch.isfinite(t).all() for t in state.values())
    assert header.provenance["plan"]["teacher"] == ""
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 and "within_3px" in lines[-1]
    assert main([*arguments[:6], "3", *arguments[7:]]) in (0, 1)
    assert "resuming at step 2" in capsys.readouterr().out
