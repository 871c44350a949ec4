"""The memory of places: bounded, and it knows a place again under other light."""

import torch

from imatching_ros.core import geometry
from imatching_ros.odometry.relocalization import Place, Places, shows_nothing, thumbnail
from imatching_ros.odometry.local_map import Keyframe, Window
from odometry_scenes import CAMERA, speckle


def place(number: int) -> Place:
    image = torch.from_numpy(speckle(number, (240, 320)))[None]
    return Place(number, number, image, geometry.identity(), torch.zeros(0, 2), torch.zeros(0, 3), thumbnail(image))


def test_memory_is_bounded_and_finds_the_place_again():
    places = Places(5)
    for number in range(12):
        places.remember(place(number))
    assert len(places) == 5
    newest = place(11).image
    darker = (newest.float() * 0.5 + 10).to(torch.uint8)
    assert places.most_alike(darker, 2, Window())[0].id == 11
    places.clear()
    assert places.most_alike(darker, 2, Window()) == []


def test_a_place_that_comes_again_takes_the_place_of_the_old():
    places = Places(5)
    for number in (1, 2, 1):
        places.remember(place(number))
    assert len(places) == 2 and [p.id for p in places.most_alike(place(1).image, 2, Window())] == [1, 2]


def test_a_place_in_the_window_is_asked_as_it_is_there():
    places, window = Places(5), Window()
    for number in (1, 2):
        places.remember(place(number))
    window.add_keyframe(Keyframe(1, 1, place(1).image, None), geometry.identity())
    window.place(window.add_landmarks(0, torch.tensor([[5.0, 5.0]]), None), torch.ones(1, 3))
    window.observe(CAMERA, 0, torch.tensor([0]), torch.tensor([[5.0, 5.0]]), torch.ones(1))
    found = places.most_alike(place(1).image, 3, window)
    assert [p.id for p in found] == [1, 2] and len(found[0].uv) == 1


def test_no_memory_when_none_is_wanted():
    places = Places(0)
    places.remember(place(1))
    assert len(places) == 0


def test_dark_and_covered_images_show_nothing():
    assert shows_nothing(torch.zeros(1, 240, 320, dtype=torch.uint8))
    noise = torch.randn(1, 240, 320, generator=torch.Generator().manual_seed(0)) * 2 + 15
    assert shows_nothing(noise.to(torch.uint8))
    assert shows_nothing(place(0).image) == ""
