"""Pairs to train on: where the correspondences of a window, of its augmented pairs and of its warps lie."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from imatching_ros.learning import pseudo_truth
from imatching_ros.learning.pseudo_truth import CROP, MIN_TRUSTED_VIEWS, augment_pair, draw_pairs, draw_warp
from imatching_ros.learning.rematching import expected_uv
from learning_samples import roll_shutter


@pytest.fixture
def sample(make_sample):
    """A window whose images, of the camera's size, show one smooth texture each."""
    made = make_sample(6, 150)
    camera = made.window.camera
    images = []
    for k in range(len(made.images)):
        coarse = np.random.default_rng(k).uniform(40, 200, (12, 16)).astype(np.float32)
        image = cv2.resize(coarse, (camera.width, camera.height), interpolation=cv2.INTER_CUBIC)
        images.append(torch.from_numpy(image.clip(0, 255).astype(np.uint8))[None])
    return dataclasses.replace(made, images=tuple(images))


@pytest.fixture
def whole(monkeypatch):
    """Images are not divided: coordinates of pairs are those of keyframes."""
    monkeypatch.setattr(pseudo_truth, "CROP", (10_000, 10_000))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def brightness(image, uv):
    return cv2.remap(image[0].numpy(), uv[None].numpy().astype(np.float32), None, cv2.INTER_LINEAR)[0]


def keyframe_of(sample, image):
    return next(k for k, own in enumerate(sample.images) if torch.equal(own.float() / 255, image))


def test_pairs_hold_the_reprojections_of_landmarks_in_both_keyframes(sample, whole):
    pairs = draw_pairs(sample, 30, generator())
    uv = expected_uv(sample)
    hosts = sample.window.kf_idx[sample.host_obs]
    uv[hosts, torch.arange(len(hosts))] = sample.uv_px[sample.host_obs]
    spans = set()
    for pair in pairs:
        a, b = (keyframe_of(sample, image) for image in (pair.image_a, pair.image_b))
        spans.add(abs(a - b))
        point = (uv[a][None] - pair.uv_a[:, None]).norm(dim=-1).argmin(1)
        assert torch.equal(uv[a, point], pair.uv_a) and torch.equal(uv[b, point], pair.uv_b)
    assert len(pairs) == 30 and max(spans) >= 4, "wide pairs too"


def test_pairs_of_a_rolling_shutter_lie_where_the_rows_saw_the_landmarks(sample, make_sample, whole):
    """With hardly any noise, so that the solution is where landmarks were seen; the shutter has shifted them by pixels."""
    exact = dataclasses.replace(make_sample(6, 150, noise_px=0.05), images=sample.images)
    rolled, window = roll_shutter(exact), exact.window
    seen = torch.full((len(exact.images), len(window.points_W), 2), torch.nan)
    seen[window.kf_idx, window.pt_idx] = rolled.uv_px
    assert float((rolled.uv_px - exact.uv_px).norm(dim=1).median()) > 2
    errors = []
    for pair in draw_pairs(rolled, 30, generator()):
        a, b = (keyframe_of(rolled, image) for image in (pair.image_a, pair.image_b))
        point = (expected_uv(rolled)[a][None] - pair.uv_a[:, None]).norm(dim=-1).nan_to_num(1e9).argmin(1)
        errors += [(pair.uv_a - seen[a, point]).norm(dim=-1), (pair.uv_b - seen[b, point]).norm(dim=-1)]
    errors = torch.cat(errors)
    errors = errors[errors.isfinite()]
    assert len(errors) > 1000 and float(errors.max()) < 0.5


def test_landmark_is_also_to_be_found_where_its_match_was_wrong(sample, whole):
    """The hard case: the kernel of the residual gives the wrong match no weight, pseudo-truth tells where it should have been."""
    weight, window = sample.result.weight.clone(), sample.window
    views = torch.bincount(window.pt_idx[weight > 0.5], minlength=len(window.points_W))
    plenty = views[window.pt_idx] > MIN_TRUSTED_VIEWS
    middle = (window.kf_idx > 0) & (window.kf_idx < 5)
    plenty[sample.host_obs] = False
    wrong = int(torch.nonzero(plenty & middle & ~sample.held_out)[0])
    weight[wrong] = 0
    disturbed = dataclasses.replace(sample, result=dataclasses.replace(sample.result, weight=weight))
    k, point = int(window.kf_idx[wrong]), int(window.pt_idx[wrong])
    there = expected_uv(sample)[k, point]
    found = asked = False
    for pair in draw_pairs(disturbed, 30, generator()):
        found |= bool(torch.equal(pair.image_b, sample.images[k].float() / 255) and (pair.uv_b == there).all(-1).any())
        asked |= bool(torch.equal(pair.image_a, sample.images[k].float() / 255) and (pair.uv_a == there).all(-1).any())
    assert found and not asked


def test_weakly_seen_landmarks_are_left_out(sample, whole):
    """Twenty landmarks of whose observations all but two have lost their weight."""
    window, weight = sample.window, sample.result.weight.clone()
    for point in range(20):
        weight[torch.nonzero(window.pt_idx == point)[2:, 0]] = 0
    weak_sample = dataclasses.replace(sample, result=dataclasses.replace(sample.result, weight=weight))
    uv = expected_uv(sample)
    hosts = window.kf_idx[sample.host_obs]
    uv[hosts, torch.arange(len(hosts))] = sample.uv_px[sample.host_obs]
    weak = uv[:, :20].reshape(-1, 2)

    def shows_weak(pair):
        return (pair.uv_a[:, None] == weak[None]).all(-1).any() or (pair.uv_b[:, None] == weak[None]).all(-1).any()

    assert any(shows_weak(pair) for pair in draw_pairs(sample, 30, generator()))
    assert not any(shows_weak(pair) for pair in draw_pairs(weak_sample, 30, generator()))


def test_pairs_of_large_images_are_the_parts_around_common_landmarks(sample, monkeypatch):
    """Every pair drawn from parts is, moved by the parts' origins, one of the whole images."""
    parts = draw_pairs(sample, 10, generator(3))
    monkeypatch.setattr(pseudo_truth, "CROP", (10_000, 10_000))
    wholes = draw_pairs(sample, 10, generator(3))
    height, width = wholes[0].image_a.shape[-2:]
    assert (height, width) > CROP
    for part, whole in zip(parts, wholes):
        assert part.image_a.shape == part.image_b.shape == (1, *CROP) and 1 <= len(part.uv_a) < len(whole.uv_a)
        for image, uv, image_of, uv_of in (
            (part.image_a, part.uv_a, whole.image_a, whole.uv_a),
            (part.image_b, part.uv_b, whole.image_b, whole.uv_b),
        ):
            (x, y) = (uv_of[0] - uv[0]).round().long().tolist()
            assert x % 8 == y % 8 == 0, "the blocks of JPEG stay where they are expected"
            assert torch.equal(image_of[:, y : y + CROP[0], x : x + CROP[1]], image)
            size = torch.tensor([CROP[1], CROP[0]])
            assert ((uv >= 0) & (uv <= size - 1)).all()


def test_augmented_pair_keeps_its_correspondences(sample):
    """A point's brightness before and after: equal up to what light, noise and blur change."""
    (pair,) = draw_pairs(sample, 1, generator())
    moved = 0
    for seed in range(6):
        augmented = augment_pair(pair, generator(seed))
        moved += not torch.equal(augmented.uv_a, pair.uv_a)
        assert not torch.equal(augmented.image_a, pair.image_a)
        if len(augmented.uv_a) == len(pair.uv_a):
            for before, after, uv, new in (
                (pair.image_a, augmented.image_a, pair.uv_a, augmented.uv_a),
                (pair.image_b, augmented.image_b, pair.uv_b, augmented.uv_b),
            ):
                assert np.corrcoef(brightness(before, uv), brightness(after, new))[0, 1] > 0.5
    assert 1 <= moved <= 5, "some pass through homographies, some do not"


def test_warp_shows_the_same_points_and_none_outside(sample):
    for seed in range(4):
        pair = draw_warp(sample, generator(seed))
        size = torch.tensor([pair.image_b.shape[-1], pair.image_b.shape[-2]])
        assert len(pair.uv_b) > 20 and ((pair.uv_b >= 0) & (pair.uv_b <= size - 1)).all()
        inside = ((pair.uv_a > 2) & (pair.uv_a < size - 3) & (pair.uv_b > 2) & (pair.uv_b < size - 3)).all(-1)
        a, b = brightness(pair.image_a, pair.uv_a[inside]), brightness(pair.image_b, pair.uv_b[inside])
        assert np.corrcoef(a, b)[0, 1] > 0.95


def test_one_seed_draws_one_pair(sample):
    for draw in (lambda g: draw_pairs(sample, 2, g)[1], lambda g: draw_warp(sample, g)):
        one, two = draw(generator(5)), draw(generator(5))
        assert torch.equal(one.uv_b, two.uv_b) and torch.equal(one.image_b, two.image_b)
