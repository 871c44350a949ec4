"""The comparison of frozen and adapted weights: parts of a recording, saved cells, corrupted input, the oracle's truth."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.__main__ import main
from imatching_ros.camera.model import Camera
from imatching_ros.core.config import BundleConfig, Config, LearningConfig
from imatching_ros.core.types import Frame
from imatching_ros.core.errors import ConfigError
from imatching_ros.offline.experiments import corrupted_input
from imatching_ros.offline.experiments.learning_comparison import CellStore, ComparisonPlan
from imatching_ros.offline.experiments.learning_runs import describe, learn_in_turn, learn_live, learn_offline
from imatching_ros.offline.experiments.division import GAP_FRAMES, divide
from imatching_ros.offline.experiments.oracle import Oracle
from imatching_ros.learning.rematching import Rematch
from imatching_ros.offline.recordings.base import Source, SourceOptions
from imatching_ros.offline.recordings import open_source
from imatching_ros.offline.simulation.recording import write_recording
from imatching_ros.offline.simulation.sequence import SimulatedSequence
from imatching_ros.offline.recordings.truth import Trajectory
from imatching_ros.offline.training import trainer

CAMERA = Camera(96, 64, 80.0, 80.0, 47.5, 31.5)


class Wall(Source):
    """A camera that moves sideways in front of a wall 2 m away."""

    name, mode, camera, options = "wall", "rgbd", CAMERA, SourceOptions()

    def __init__(self, count=60):
        super().__init__()
        self.count = count

    def read(self):
        for k in range(self.count):
            image = torch.full((1, 64, 96), k, dtype=torch.uint8)
            yield Frame(k, 10**8 * (k + 1), image, CAMERA, torch.full((64, 96), 2.0))

    def groundtruth(self):
        T = np.zeros((self.count, 7))
        T[:, 0], T[:, 6] = 0.05 * np.arange(self.count), 1
        return Trajectory(10**8 * (np.arange(self.count) + 1), T)

    @property
    def length(self):
        return self.count


def test_parts_do_not_overlap_and_leave_a_gap():
    division = divide(Wall(), mono=True)
    learned, unseen = [f.stamp_ns for f in division.learning], [f.stamp_ns for f in division.for_odometry("unseen")]
    assert len(learned) == 30 and len(unseen) == 60 - 30 - GAP_FRAMES
    assert unseen[0] - learned[-1] == 10**8 * (GAP_FRAMES + 1)
    scored = division.scored["unseen"]
    assert [f.stamp_ns for f in scored] == unseen
    assert all(f.depth is None for f in division.learning) and all(f.depth is not None for f in scored)


def test_recording_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="too short"):
        divide(Wall(10), mono=True)


def test_saved_cell_is_not_worked_out_again_unless_the_settings_changed(tmp_path):
    calls = []

    def work(weights):
        calls.append(weights)
        return {"value": float("nan"), "learning": {}}

    config, plan = Config(), ComparisonPlan(tmp_path, pairs=40, quick=False, mode="mono", passes=2)

    def get(plan, regime="repeated", config=config, **more):
        return CellStore(plan, **more).get(("fog", regime, "adapted"), config, work)

    for settings in (config, config, config.with_values({"learning.learning_rate": 1e-5})):
        assert get(plan, config=settings)["value"] is None  # not a number has no place in JSON
    assert len(calls) == 2
    get(plan)
    for count, plan in (
        (4, replace(plan, passes=3)),
        (5, replace(plan, pairs=10)),
        (6, replace(plan, quick=True)),
    ):
        get(plan)
        assert len(calls) == count, plan
    get(plan, then="dark_noise")
    get(plan, then="dark_noise")
    assert len(calls) == 7
    for passes in (2, 3):  # frozen weights play nothing
        get(replace(plan, passes=passes), "-")
    assert len(calls) == 8


@pytest.mark.parametrize("name", corrupted_input.CORRUPTIONS)
def test_corruption_changes_what_it_should_and_nothing_else(name):
    frames = [
        Frame(
            k,
            k,
            torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(k)),
            CAMERA,
        )
        for k in range(12)
    ]
    corrupted = corrupted_input.CORRUPTIONS[name](frames)
    assert [f.stamp_ns for f in corrupted] == [f.stamp_ns for f in frames]
    assert all(f.image.shape == g.image.shape for f, g in zip(frames, corrupted))
    changed_camera = any(f.camera != g.camera for f, g in zip(frames, corrupted))
    changed_image = any(not torch.equal(f.image, g.image) for f, g in zip(frames, corrupted))
    assert changed_camera == (name == "wrong_focal_length") and changed_image != changed_camera


def test_oracle_places_landmarks_where_landmarks_truly_are(make_sample_of_wall):
    sample, points = make_sample_of_wall
    oracle = Oracle(Wall(), {10**8 * (k + 1): k for k in sample.keyframe_ids})
    assert oracle.covers(sample)
    found = Rematch(sample.window.obs[:, :2].float(), torch.ones(9), torch.ones(9), torch.zeros(9, dtype=torch.bool))
    solution = oracle.solve(sample, found, LearningConfig(), BundleConfig())
    assert torch.allclose(solution.points_W, points, atol=1e-9)
    inside = torch.tensor(
        [bool(((uv >= -0.5) & (uv <= uv.new_tensor([95.5, 63.5]))).all()) for uv in sample.window.obs[:, :2]]
    )
    assert torch.equal(solution.weight.bool(), inside)


@pytest.fixture
def make_sample_of_wall():
    """Three views of a wall, with landmarks whose queries lie in the first; one of them leaves the image."""
    T = geometry.identity(3)
    T[:, 0] = torch.tensor([0.0, 0.5, 1.0])
    points = torch.tensor([[0.2, 0.1, 2.0], [0.5, -0.2, 2.0], [-0.7, 0.0, 2.0]], dtype=torch.float64)
    kf, pt = torch.arange(3).repeat_interleave(3), torch.arange(3).repeat(3)
    uv = geometry.project(CAMERA, geometry.act(geometry.inverse(T)[kf], points[pt]))
    window = SimpleNamespace(
        camera=CAMERA,
        points_W=points,
        kf_idx=kf,
        pt_idx=pt,
        obs=torch.cat([uv, torch.zeros(9, 1, dtype=torch.float64)], 1),
    )
    sample = SimpleNamespace(
        window=window,
        keyframe_ids=(0, 10, 20),
        host_obs=torch.arange(3),
        uv_px=uv,
        twist=torch.zeros(3, 6, dtype=torch.float64),
        result=SimpleNamespace(T_WC=T, points_W=points),
    )
    return sample, points


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A walk of 26 frames with depth and true poses."""
    sequence = SimulatedSequence(
        kind="clutter", frames=26, seed=7, width=160, height=120, supersample=1, texture_size=128, speed_mps=0.9
    )
    return write_recording(tmp_path_factory.mktemp("monday") / "walk", sequence, format="tum")


SMALL = ["--regime", "repeated", "--passes", "1", "--pairs", "2", "--set", "odometry.landmarks_per_frame=100"]


@pytest.mark.parametrize("depth", [True, False])
def test_recording_without_truth_is_compared_by_its_own_consistency(recording, tmp_path, capsys, depth):
    robot = tmp_path / "robot"
    shutil.copytree(recording, robot)
    (robot / "groundtruth.txt").unlink()
    if not depth:
        index = (robot / "frames.csv").read_text().splitlines()
        (robot / "frames.csv").write_text("\n".join(line.rsplit(",", 1)[0] for line in index))
    assert (
        main(["compare", str(robot), "--out", str(tmp_path / "out"), *SMALL, "--variants", "frozen,adapted,oracle"])
        == 0
    )
    told = capsys.readouterr().out
    assert "no oracle, which needs depth and true poses" in told and "epipolar, own" in told
    assert ("scored without depth" in told) is not depth
    cells = json.loads((tmp_path / "out/comparison.json").read_text())["cells"]
    assert [c["variant"] for c in cells] == ["frozen", "adapted"]
    assert all(0 < c["columns"]["unseen"]["matching"]["1"]["own_within_1"] <= 1 for c in cells)


def test_recordings_of_one_name_are_told_apart(recording, tmp_path, capsys):
    other = tmp_path / "tuesday" / "walk"
    sequence = SimulatedSequence(
        kind="clutter", frames=26, seed=8, width=160, height=120, supersample=1, texture_size=128, speed_mps=0.9
    )
    write_recording(other, sequence, format="tum")
    command = ["compare", "--out", str(tmp_path / "out"), *SMALL, "--variants", "frozen"]
    found = []
    for path, more in ((recording, []), (other, []), (other, []), (other, ["--duration", "2.4"])):
        assert main([*command, str(path), *more]) == 0
        found.append(
            (
                json.loads((tmp_path / "out/comparison.json").read_text())["cells"][0],
                "worked out again" in capsys.readouterr().out,
            )
        )
    assert found[0][0]["columns"] != found[1][0]["columns"] and found[1][0] == found[2][0]
    assert [again for _, again in found] == [False, True, False, True]
    assert main([*command, str(recording), str(other)]) == 1
    assert "are both called 'walk'" in capsys.readouterr().err
    assert main([*command, "fog", "fog"]) == 1


def test_part_keeps_to_the_time_range_of_its_recording(recording):
    whole = open_source(recording, SourceOptions(start_s=0.5, duration_s=1.7))
    division = divide(whole, mono=False)
    stamps, learned = [f.stamp_ns for f in whole], division.learning.length
    assert [f.stamp_ns for f in division.learning] == stamps[:learned]
    assert [f.stamp_ns for f in division.scored["unseen"]] == stamps[learned + GAP_FRAMES :]


def test_frames_are_played_as_they_are_read(recording):
    config = Config().with_values({"matcher.name": "klt", "odometry.mode": "mono"})
    part = divide(open_source(recording, SourceOptions(duration_s=1.3)), mono=True).learning
    assert learn_in_turn(config, [iter(part), iter(part)])[1]["lost"] == 0
    live = learn_live(config, [part, part])[1]
    assert live["frames"] == 4 and live["frames_dropped"] == 0
    assert all(0 < delays["p50"] <= delays["p95"] for delays in live["pose_delay_ms"].values())


def test_control_begins_anew_and_its_steps_belong_to_its_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "BLOCK_STEPS", 1)
    config = Config()
    (tmp_path / "control").mkdir()
    (tmp_path / "control/checkpoint.safetensors").write_bytes(b"of another control")
    assert learn_offline(config, 1, tmp_path, (64, 96))[1]["steps"] == 1
    store = CellStore(ComparisonPlan(tmp_path, pairs=40, quick=False, mode="mono", passes=2))
    for value, steps in ((1, 10), (2, 10), (3, 11)):
        found = store.get(("fog", "live", "offline"), config, lambda weights, v=value: {"value": v}, steps=steps)
        assert found["value"] == (1 if steps == 10 else 3)


def test_how_to_learn_is_the_regimes_to_say(tmp_path):
    assert describe(Config()) == describe(Config().with_values({"learning.mode": "sync"}))
    with pytest.raises(SystemExit):
        main(["compare", "fog", "--learning", "sync", "--out", str(tmp_path)])


def corrupted_cell(source, variant, promotions, mma, seed=0):
    return {
        "source": source,
        "regime": "repeated",
        "variant": variant,
        "seed": seed,
        "learning": {"promotions": promotions},
        "columns": {"revisit": {"matching": {"1": {"mma": {"1": mma}}, "5": {"mma": {"1": 0.5}}}}},
    }


def test_corrupted_input_counts_only_where_its_clean_twin_promotes():
    def lines(twin_promotions):
        cells = [
            corrupted_cell("clean", "frozen", 0, 0.8),
            corrupted_cell("clean", "guarded", twin_promotions, 0.9),
            corrupted_cell("black_frames", "guarded", 1, 0.7),
            corrupted_cell("black_frames", "unguarded", 5, 0.1),
        ]
        return corrupted_input.summarise_corrupted(cells)

    assert lines(0) == ["black_frames: shows nothing, as its clean twin promoted nothing; learn longer"]
    (line,) = lines(2)
    assert "1 promotions in 1 of 1 runs" in line and line.endswith("0.100")  # at gap 1; nothing is lost at gap 5


def test_corrupted_input_runs_every_seed(tmp_path, monkeypatch):
    """Whole runs take minutes; only what they would be asked is looked at."""
    seeds = []
    monkeypatch.setattr(corrupted_input, "corrupted_input_cells", lambda config, *more: seeds.append(config.seed) or [])
    assert main(["compare", "--corrupted-input", "--quick", "--seeds", "3", "--out", str(tmp_path)]) == 0
    assert seeds == [0, 1, 2]
