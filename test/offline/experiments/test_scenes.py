"""The rendered scenes of the experiments."""

from dataclasses import replace

import pytest

from imatching_ros.offline.experiments.division import shows_new_place
from imatching_ros.offline.experiments.scenes import BRIEF, CLEAN, FULL, SCENES, TUNING, Extent, open_scene
from imatching_ros.offline.simulation.shifts import SHIFTS


def test_scenes_for_judging_and_for_tuning_are_different():
    assert not {s.seed for s in SCENES.values()} & {s.seed for s in TUNING.values()}


def test_every_scene_has_another_kind_of_shift():
    shifts = [scene.shift for scene in SCENES.values()]
    assert len(set(shifts)) == len(shifts) >= 10 and set(shifts) <= set(SHIFTS)


@pytest.mark.parametrize(
    ("scene", "extent"),
    [(SCENES["vignette"], FULL), (SCENES["rain"], FULL), (CLEAN, FULL), (TUNING["tuning_none"], BRIEF)],
)
def test_new_places_overlap_with_nothing_learned_and_revisits_do(scene, extent):
    sequences = {"learned": extent.learned(scene), **extent.scored(scene)}
    whole = replace(sequences["learned"], texture_size=32).scene()
    poses = {name: sequence.trajectory(whole) for name, sequence in sequences.items() if name != "other scene"}
    assert shows_new_place(poses["new place"], poses["learned"]).all()
    assert not shows_new_place(poses["revisit"], poses["learned"]).any()


def test_an_opened_scene_hides_depth_from_learning_and_has_it_for_scoring(tmp_path):
    division = open_scene("small", SCENES["thermal"], Extent(0.5, 2, 64, 48), tmp_path)
    assert [frame.depth is None for frame in division.learning] == 3 * [True]
    assert all(frame.depth is not None for frame in division.learning_truth)
    assert list(division.scored) == ["revisit", "new place", "other scene"]
    for column, source in division.scored.items():
        assert [frame.depth is not None for frame in source] == 2 * [True]
        assert all(frame.depth is None for frame in division.for_odometry(column))
