"""Learning in line with odometry on a short rendered sequence: repeatable, adopted between frames, kept on disk, undone when it harms."""

import dataclasses

import pytest
import torch

from imatching_ros.core.config import Config
from imatching_ros.core.types import TrackingState, WeightsSnapshot
from imatching_ros.core.errors import SourceError, WeightsError
from imatching_ros.learning.learner import Learner, WeightsUpdate
from imatching_ros.learning.validation import Verdict
from imatching_ros.matching import create_matcher
from imatching_ros.matching.weights import hash_state, read_header
from imatching_ros.odometry.state import Lost
from imatching_ros.pipeline import Pipeline
from imatching_ros.offline.simulation.sequence import simulated_frames

SETTINGS = {
    "learning.mode": "sync",
    "learning.guard": False,
    "learning.candidate_steps": 2,
    "learning.min_landmarks": 15,
    "learning.keyframes_per_step": 2,
    "odometry.mode": "mono",
    "odometry.landmarks_per_frame": 150,
}
CONFIG = Config().with_values(SETTINGS)
FRAMES = 20


@pytest.fixture(scope="module")
def frames():
    sequence = simulated_frames("clutter", FRAMES, 7, (240, 320), supersample=1, texture_size=256, speed_mps=0.9)
    return [frame for frame, _ in sequence]


@dataclasses.dataclass
class Run:
    events: list
    outputs: list
    hash: str
    promotions: int
    weights: object


def drive(frames, config=CONFIG, weights_dir=None, watch=None):
    events, outputs = [], []
    pipeline = Pipeline(config, events.append, weights_dir)
    for frame in frames:
        outputs.append(pipeline.process(frame))
        if watch is not None:
            watch(pipeline)
    status = pipeline.learning_status()
    pipeline.close()
    return Run(events, outputs, hash_state(pipeline.matcher.state_dict()), status.promotions, weights_dir)


def versions(pipeline):
    """The weights versions that made what the window holds, and the matcher's own."""
    window = pipeline.window
    made = {k.features.weights_version for k in window.keyframes}
    if len(window.landmarks):
        made.add(window.queries.weights_version)
    return made, pipeline.matcher.weights_version


@pytest.fixture(scope="module")
def promoted(frames, tmp_path_factory):
    """A run in which every candidate is promoted; features are looked at after every frame."""
    mixed = []

    def watch(pipeline):
        made, own = versions(pipeline)
        if made - {own}:
            mixed.append((made, own))

    run = drive(frames, weights_dir=tmp_path_factory.mktemp("weights"), watch=watch)
    assert run.promotions >= 2, "the sequence must make candidates, else these tests show nothing"
    assert not mixed, "features of several versions were kept together"
    return run


def test_two_runs_are_identical(frames, promoted):
    again = drive(frames)
    assert again.hash == promoted.hash
    assert again.promotions == promoted.promotions
    for a, b in zip(promoted.outputs, again.outputs):
        assert a.state is b.state and a.weights_version == b.weights_version
        assert (a.T_WC is None) == (b.T_WC is None) and (a.T_WC is None or torch.equal(a.T_WC, b.T_WC))


def test_weights_change_between_frames_and_tracking_goes_on(promoted):
    used = [o.weights_version for o in promoted.outputs]
    assert used == sorted(used) and used[-1] > used[0]
    assert all(
        "adopt" in b.timings_ms
        for a, b in zip(promoted.outputs, promoted.outputs[1:])
        if a.weights_version != b.weights_version
    )
    first = next(k for k, o in enumerate(promoted.outputs) if o.state is TrackingState.TRACKING)
    assert all(o.T_WC is not None for o in promoted.outputs[first:])


def test_promotions_are_reported_and_on_disk(promoted):
    reported = [e for e in promoted.events if e["event"] == "promotion"]
    assert len(reported) == promoted.promotions
    current = read_header(promoted.weights / "current.safetensors")
    adopted = max(o.weights_version for o in promoted.outputs)
    assert current.version == adopted
    assert current.hash == next(e["hash"] for e in reported if e["version"] == adopted)
    assert current.provenance["kind"] == "promotion" and current.provenance["steps"] >= 2


@pytest.mark.parametrize("confirmed", [True, False])
def test_only_confirmed_weights_become_the_profile(frames, tmp_path, confirmed):
    pipeline = Pipeline(CONFIG.with_values({"learning.guard": True}), weights_dir=tmp_path)
    assert pipeline.matcher.weights_version == 1
    state = {k: v + 0.01 for k, v in pipeline.matcher.state_dict().items()}
    pipeline.weights.learning.offer(WeightsUpdate(WeightsSnapshot(2, hash_state(state), state), {}))
    pipeline.process(frames[0])
    pipeline.weights.flush()
    assert [p.name for p in tmp_path.iterdir()] == ["current.v00002.safetensors"]
    if confirmed:
        pipeline.weights.learning.learner.status.confirmed_version = 2
    pipeline.close()
    assert hash_state(pipeline.matcher.state_dict()) == hash_state(state)
    assert (tmp_path / "current.safetensors").is_file() == confirmed
    assert not confirmed or read_header(tmp_path / "current.safetensors").hash == hash_state(state)


def test_weights_that_wait_for_their_features_are_not_in_use(frames):
    events = []
    pipeline = Pipeline(CONFIG.with_values({"learning.guard": True, "learning.mode": "thread"}), events.append)
    home = hash_state(pipeline.matcher.state_dict())
    for frame in frames[:6]:
        pipeline.process(frame)
    learning, learner = pipeline.weights.learning, pipeline.weights.learning.learner
    candidate = learner.stepper.ema_matcher()
    with torch.no_grad():
        next(candidate.parameters()).add_(0.01)
    learner.newest_version = 6
    learning.begin_frame(behind=True)
    learning.offer(learner.promote(candidate, frames[5].stamp_ns, Verdict("better", "for the test", 1.0, 0.9, 5)))
    assert not pipeline.weights.begin_frame(frames[6].stamp_ns, behind=True)
    status = pipeline.learning_status()
    assert (status.weights_version, status.weights_hash) == (pipeline.matcher.weights_version, home)
    pipeline.set_learning(False)
    assert (
        hash_state(pipeline.matcher.state_dict()) == home and pipeline.matcher.weights_version == status.weights_version
    )
    assert not any(e["event"] == "rollback" for e in events)
    assert "version 8" in pipeline.load_weights("default"), "a version that was given is not given again"
    pipeline.close()


def test_weights_that_were_rolled_back_never_become_the_profile(frames, tmp_path):
    """They are rolled back by the very last window, with no frame after it."""
    pipeline = Pipeline(CONFIG.with_values({"learning.guard": True}), weights_dir=tmp_path)
    home = {k: v.clone() for k, v in pipeline.matcher.state_dict().items()}
    worse = {k: v + 0.01 for k, v in home.items()}
    pipeline.weights.learning.offer(WeightsUpdate(WeightsSnapshot(2, hash_state(worse), worse), {}))
    pipeline.process(frames[0])
    assert hash_state(pipeline.matcher.state_dict()) == hash_state(worse)
    pipeline.weights.learning.offer(WeightsUpdate(WeightsSnapshot(3, hash_state(home), home), {}, rollback=True))
    pipeline.weights.learning.learner.status.confirmed_version = 3
    pipeline.weights.learn(None)
    pipeline.weights.flush()
    assert not (tmp_path / "current.safetensors").exists()
    pipeline.close()
    assert hash_state(pipeline.matcher.state_dict()) == hash_state(home)
    assert read_header(tmp_path / "current.safetensors").hash == hash_state(home)


def test_restart_resumes_from_the_last_good_weights(promoted):
    header = read_header(promoted.weights / "current.safetensors")
    pipeline = Pipeline(CONFIG, weights_dir=promoted.weights)
    assert pipeline.matcher.weights_version == header.version
    assert hash_state(pipeline.matcher.state_dict()) == header.hash
    pipeline.close()


def test_l2_sp_decays_to_the_shipped_weights_after_a_restart(promoted):
    pretrained = create_matcher(CONFIG.matcher).state_dict()
    pipeline = Pipeline(CONFIG, weights_dir=promoted.weights)
    for _ in range(2):
        learner = pipeline.weights.learning.learner
        assert hash_state(learner.pretrained) == hash_state(pretrained) != hash_state(learner.active.state_dict())
        assert all(torch.equal(a, pretrained[n]) for n, a in zip(learner.stepper.names, learner.stepper.pretrained))
        pipeline.set_learning(False)
        pipeline.set_learning(True)
    pipeline.close()


def test_a_disk_that_refuses_weights_costs_no_frame(frames, tmp_path, monkeypatch, promoted):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imatching_ros.learning.weights_store.write_weights", refuse)
    run = drive(frames, weights_dir=tmp_path)
    assert run.hash == promoted.hash and run.promotions == promoted.promotions
    reported = [e for e in run.events if e["event"] == "weights_not_written"]
    assert reported and "No space left" in reported[0]["error"] and not list(tmp_path.glob("*.safetensors"))


def test_save_and_load_by_name(frames, tmp_path):
    pipeline = Pipeline(CONFIG.with_values({"learning.mode": "'off'"}), weights_dir=tmp_path)
    home = hash_state(pipeline.matcher.state_dict())
    pipeline.save_weights("garage")
    with torch.no_grad():
        next(pipeline.matcher.parameters()).add_(0.01)
    other = hash_state(pipeline.matcher.state_dict())
    text = pipeline.load_weights("garage")
    assert hash_state(pipeline.matcher.state_dict()) == home
    status = pipeline.learning_status()
    assert (
        status.weights_hash == home
        and text.endswith(f"version {status.weights_version}")
        and status.weights_version > 0
    )
    pipeline.load_weights("previous")
    assert hash_state(pipeline.matcher.state_dict()) == other
    with pytest.raises(WeightsError):
        pipeline.load_weights("cellar")
    assert hash_state(pipeline.matcher.state_dict()) == other
    pipeline.close()


def test_lost_tracking_after_deployment_rolls_back(make_sample):
    events = []
    learner = Learner(create_matcher(CONFIG.matcher), CONFIG.with_values({"learning.guard": True}), events.append)
    home, sample = hash_state(learner.active.state_dict()), make_sample(landmarks=40)
    candidate = learner.stepper.ema_matcher()
    with torch.no_grad():
        next(candidate.parameters()).add_(0.01)
    promotion = learner.promote(candidate, sample.stamp_ns, Verdict("better", "for the test", 1.0, 0.9, 5))
    assert promotion.snapshot.hash != home and not promotion.rollback
    assert learner.tracking_lost(0, 7) is None, "what happened before the promotion says nothing of the new weights"
    rollback = learner.tracking_lost(promotion.snapshot.version, 7)
    assert rollback.rollback and rollback.snapshot.hash == home
    assert rollback.snapshot.version > promotion.snapshot.version
    assert [e["event"] for e in events] == ["promotion", "rollback"] and "tracking" in events[-1]["reason"]
    assert learner.status.rollbacks == 1
    assert learner.tracking_lost(learner.version, 8) is None  # only once


@pytest.mark.parametrize("mode", ["sync", "thread"])
@pytest.mark.parametrize("ended_by", ["switched off", "lost"])
def test_unconfirmed_weights_leave_with_their_validation(frames, make_sample, mode, ended_by):
    events = []
    pipeline = Pipeline(CONFIG.with_values({"learning.mode": mode, "learning.guard": True}), events.append)
    home = hash_state(pipeline.matcher.state_dict())
    learner = pipeline.weights.learning.learner
    candidate = learner.stepper.ema_matcher()
    with torch.no_grad():
        next(candidate.parameters()).add_(0.01)
    pipeline.weights.learning.offer(
        learner.promote(candidate, make_sample(landmarks=40).stamp_ns, Verdict("better", "for the test", 1.0, 0.9, 5))
    )
    pipeline.process(frames[0])
    assert hash_state(pipeline.matcher.state_dict()) != home
    if ended_by == "switched off":
        pipeline.set_learning(False)
    else:
        # As after a frame that could not be located.
        pipeline.odometry.state = Lost(failing_version=pipeline.matcher.weights_version)
        for k in range(1, 200):
            stamp_ns = frames[0].stamp_ns + k * 10_000_000
            pipeline.process(dataclasses.replace(frames[k % 2], id=k, stamp_ns=stamp_ns))
            if hash_state(pipeline.matcher.state_dict()) == home:
                break
            pipeline.odometry.state = Lost(failing_version=pipeline.matcher.weights_version)
    assert hash_state(pipeline.matcher.state_dict()) == home
    pipeline.close()
    assert sum(e["event"] == "rollback" for e in events) == 1


@pytest.mark.parametrize("mode", ["sync", "thread"])
def test_settings_that_may_change_reach_the_learner(mode):
    pipeline = Pipeline(CONFIG.with_values({"learning.mode": mode}))
    pipeline.configure(pipeline.config.with_values({"learning.learning_rate": 1e-5, "learning.budget": 0.25}))
    assert pipeline.weights.learning.learner.stepper.config.learning_rate == 1e-5
    assert pipeline.weights.learning.learner.settings.budget == 0.25
    pipeline.close()


def test_learning_continues_after_a_frame_that_fails(frames):
    """A learning thread rests while odometry processes a frame; a frame that fails ends too."""
    pipeline = Pipeline(Config().with_values({"odometry.mode": "stereo", "learning.mode": "thread"}))
    rested = []
    begin, end = pipeline.weights.learning.begin_frame, pipeline.weights.learning.end_frame
    pipeline.weights.learning.begin_frame = lambda behind: (rested.append(True), begin(behind))
    pipeline.weights.learning.end_frame = lambda: (rested.append(False), end())
    with pytest.raises(SourceError, match="right image"):
        pipeline.process(frames[0])
    assert rested == [True, False]
    pipeline.close()
