"""Settings that change between two frames: they act at once, the map stays, and what cannot change is refused."""

from dataclasses import replace

import pytest
import torch

from imatching_ros.core.config import Config, walk
from imatching_ros.core.types import TrackingState
from imatching_ros.core.errors import ConfigError
from imatching_ros.learning.learner import Learner
from imatching_ros.matching import create_matcher
from imatching_ros.pipeline import Pipeline
from imatching_ros.offline.simulation.sequence import SimulatedSequence
from odometry_scenes import configure


@pytest.fixture(scope="module")
def clip():
    walk = SimulatedSequence(kind="clutter", frames=18, seed=1, width=320, height=240, supersample=1, speed_mps=1.2)
    return [frame for frame, _ in walk.read()]


def test_settings_act_from_the_next_frame_on(clip):
    config = configure(odometry__keyframe_parallax=0.002)
    pipeline = Pipeline(config)
    for frame in clip[:12]:
        assert pipeline.process(frame).state is TrackingState.TRACKING
    assert len(pipeline.window.keyframes) > 4
    pipeline.configure(
        config.with_values(
            {"odometry.window_keyframes": 4, "odometry.verified_inliers": 1000, "odometry.stored_keyframes": 1}
        )
    )
    after = [pipeline.process(frame) for frame in clip[12:15]]
    assert all(o.state is TrackingState.UNVERIFIED and o.T_WC is not None for o in after) and any(
        o.is_keyframe for o in after
    )
    assert len(pipeline.window.keyframes) == 4 and len(pipeline.odometry._database) == 1
    pipeline.configure(config.with_values({"odometry.min_inliers": 1000}))
    assert pipeline.process(clip[15]).state is TrackingState.LOST
    pipeline.configure(config)
    assert pipeline.process(clip[16]).state is TrackingState.TRACKING


def test_the_same_settings_change_nothing(clip):
    config = configure()
    one, other = Pipeline(config), Pipeline(config)
    for frame in clip:
        other.configure(Config.from_dict(config.to_dict()))
        assert torch.equal(one.process(frame).T_WC, other.process(frame).T_WC)


def test_a_mono_start_keeps_its_views(clip):
    config = configure()
    pipeline, plain = Pipeline(config), Pipeline(config)
    states = []
    for frame in clip:
        frame = replace(frame, depth=None)
        pipeline.configure(config)
        states.append((pipeline.process(frame).state, plain.process(frame).state))
    assert states[-1][0] is TrackingState.TRACKING and all(a is b for a, b in states)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("matcher.name", "sift"),
        ("bundle.kernel", "cauchy"),
        ("odometry.first_baseline_m", 1.0),
        ("external_odometry.use", "both"),
        ("learning.confidence", 0.9),
        ("seed", 3),
    ],
)
def test_what_cannot_change_is_refused_with_the_reason(clip, key, value):
    config = configure()
    pipeline = Pipeline(config)
    changed = config.with_values({key: value, "odometry.min_inliers": 30})
    with pytest.raises(ConfigError, match=f"{key} is .* and cannot become .* while running"):
        pipeline.configure(changed)
    assert pipeline.config is config and pipeline.odometry.config is config


def test_the_learner_takes_settings_over():
    config = Config()
    learner = Learner(create_matcher(config.matcher), config, lambda _: None)
    learner.configure(config.with_values({"learning.clip_norm": 0.5, "bundle.max_iterations": 7}))
    assert learner.stepper.config.clip_norm == 0.5 and learner.stepper.bundle.max_iterations == 21


def test_most_settings_of_odometry_may_change():
    may = {path for path, _, meta in walk(Config()) if meta["live"]}
    odometry = {path for path, _, _ in walk(Config()) if path.startswith("odometry.")}
    assert odometry - may == {"odometry.mode", "odometry.first_baseline_m"}
    # What defines the residual that both levels share, and the rules of a validation, stay for the whole run.
    assert not may & {
        "bundle.kernel",
        "bundle.kernel_width",
        "bundle.precision",
        "learning.validation_windows",
        "learning.confidence",
    }
