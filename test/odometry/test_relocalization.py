"""The keyframe database is bounded, and finds a keyframe again under other light."""

import torch

from imatching_ros.core import geometry
from imatching_ros.odometry.relocalization import StoredKeyframe, KeyframeDatabase, is_blank, thumbnail
from imatching_ros.odometry.local_map import Keyframe, Window
from odometry_scenes import CAMERA, speckle


def stored(number: int) -> StoredKeyframe:
    image = torch.from_numpy(speckle(number, (240, 320)))[None]
    return StoredKeyframe(
        number, number, image, geometry.identity(), torch.zeros(0, 2), torch.zeros(0, 3), thumbnail(image)
    )


def test_memory_is_bounded_and_finds_the_place_again():
    database = KeyframeDatabase(5)
    for number in range(12):
        database.add(stored(number))
    assert len(database) == 5
    newest = stored(11).image
    darker = (newest.float() * 0.5 + 10).to(torch.uint8)
    assert database.most_similar(darker, 2, Window())[0].id == 11
    database.clear()
    assert database.most_similar(darker, 2, Window()) == []


def test_a_place_that_comes_again_takes_the_place_of_the_old():
    database = KeyframeDatabase(5)
    for number in (1, 2, 1):
        database.add(stored(number))
    assert len(database) == 2 and [p.id for p in database.most_similar(stored(1).image, 2, Window())] == [1, 2]


def test_a_place_in_the_window_is_asked_as_it_is_there():
    database, window = KeyframeDatabase(5), Window()
    for number in (1, 2):
        database.add(stored(number))
    window.add_keyframe(Keyframe(1, 1, stored(1).image, None), geometry.identity())
    window.set_positions(window.add_landmarks(0, torch.tensor([[5.0, 5.0]]), None), torch.ones(1, 3))
    window.observe(CAMERA, 0, torch.tensor([0]), torch.tensor([[5.0, 5.0]]), torch.ones(1))
    found = database.most_similar(stored(1).image, 3, window)
    assert [p.id for p in found] == [1, 2] and len(found[0].uv) == 1


def test_no_memory_when_none_is_wanted():
    database = KeyframeDatabase(0)
    database.add(stored(1))
    assert len(database) == 0


def test_dark_and_covered_images_show_nothing():
    assert is_blank(torch.zeros(1, 240, 320, dtype=torch.uint8))
    noise = torch.randn(1, 240, 320, generator=torch.Generator().manual_seed(0)) * 2 + 15
    assert is_blank(noise.to(torch.uint8))
    assert not is_blank(stored(0).image)
