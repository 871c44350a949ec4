"""Corners away from those taken, and depths: looked up, refused at edges and gaps, matched along the rows of a stereo pair."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from imatching_ros.core.config import OdometryConfig
from imatching_ros.core.errors import CameraError, SourceError
from imatching_ros.core.types import Frame, ObservationKind
from imatching_ros.matching.klt import KltMatcher
from imatching_ros.matching.sift import SiftMatcher
from imatching_ros.odometry.measurements import detect, explain_few, measure, resolve_mode, spread_evenly
from odometry_scenes import CAMERA, speckle

CONFIG = OdometryConfig()
IMAGE = torch.from_numpy(speckle(0, (240, 320)))[None]
APART = OdometryConfig(corner_distance=12 / 640)


def test_new_corners_keep_their_distance():
    image = torch.from_numpy(speckle())[None]
    taken = torch.tensor([[100.0, 100.0], [320.0, 240.0], [600.0, 450.0], [-5.0, 9000.0]])
    for matcher in (KltMatcher(), SiftMatcher()):
        uv = detect(matcher, matcher.observe(image), image, taken, 200, APART)
        assert 50 < len(uv) <= 200
        assert torch.cdist(uv, taken).min() > 11
    uv = detect(KltMatcher(), KltMatcher().observe(image), image, torch.zeros(0, 2), 200, APART)
    apart = torch.cdist(uv, uv) + 1e6 * torch.eye(len(uv))
    assert apart.min() > 8


@pytest.mark.parametrize("matcher", (KltMatcher(), SiftMatcher()), ids=("klt", "sift"))
def test_no_corner_is_detected_under_a_mask(matcher):
    mask = torch.zeros(240, 320, dtype=torch.bool)
    mask[:, :200] = True
    uv = detect(matcher, matcher.observe(IMAGE), IMAGE, torch.zeros(0, 2), 200, CONFIG, mask)
    assert len(uv) > 20 and float(uv[:, 0].min()) > 198.5  # corners are refined by a pixel or less


def test_a_blank_image_has_none():
    image = torch.full((1, 240, 320), 128, dtype=torch.uint8)
    assert detect(KltMatcher(), KltMatcher().observe(image), image, torch.zeros(0, 2), 50, CONFIG).shape == (0, 2)


def test_spread_is_even_and_prefers_low_rank():
    generator = torch.Generator().manual_seed(0)
    crowd = torch.rand(900, 2, generator=generator) * 60
    rest = torch.rand(100, 2, generator=generator) * torch.tensor([640.0, 480.0])
    uv = torch.cat([crowd, rest])
    rank = torch.arange(1000.0)
    chosen = spread_evenly(uv, rank, 120, 640, 480)
    assert len(chosen) == 120 == len(chosen.unique())
    assert (
        chosen >= 900
    ).float().mean() > 0.7  # nine tenths of the points are in one corner, most of the chosen are not
    in_crowd = chosen[chosen < 900]
    cell = (640 * 480 / 120 * 4) ** 0.5
    first = [int(c) for c in range(900) if (crowd[c] < cell).all()][:1]
    assert first[0] in in_crowd.tolist()


def test_depth_is_refused_where_it_is_unknown_at_an_edge_or_out_of_range():
    depth = torch.full((240, 320), 2.0)
    depth[:, 160:] = 4.0  # an edge between columns 159 and 160
    depth[50, 50] = 0.0
    depth[100, 100] = torch.nan
    depth[200:, 300:] = 500.0
    frame = Frame(0, 0, IMAGE, CAMERA, depth)
    uv = torch.tensor(
        [
            [20.4, 20.4],
            [300.0, 20.0],
            [159.6, 80.0],
            [50.0, 50.0],
            [51.0, 51.0],
            [100.0, 100.0],
            [310.0, 220.0],
            [0.0, 0.0],
        ]
    )
    found = measure(frame, "rgbd", uv, CONFIG)
    assert found.kind is ObservationKind.DEPTH
    assert torch.allclose(found.depth[[0, 1, 7]], torch.tensor([2.0, 4.0, 2.0], dtype=torch.float64))
    assert torch.allclose(found.measured[:2], torch.tensor([0.5, 0.25], dtype=torch.float64))
    assert found.depth[2:7].isnan().all()


def test_disparity_of_a_plane_to_a_fifth_of_a_pixel():
    wide = speckle(5, (240, 420))
    camera = replace(CAMERA, baseline_m=0.2)
    for shift in (5, 22, 41):
        left, right = wide[:, 50:370], wide[:, 50 + shift : 370 + shift]
        frame = Frame(
            0,
            0,
            torch.from_numpy(np.ascontiguousarray(left))[None],
            camera,
            right=torch.from_numpy(np.ascontiguousarray(right))[None],
        )
        rng = np.random.default_rng(0)
        uv = torch.from_numpy(rng.uniform((60, 20), (300, 220), (80, 2)).astype(np.float32))
        found = measure(frame, "stereo", uv, CONFIG, far=True)
        good = found.measured.isfinite()
        assert good.float().mean() > 0.6
        assert (uv[good, 0].double() - found.measured[good] - shift).abs().max() < 0.2
        assert torch.allclose(found.depth[good], 256.0 * 0.2 / (uv[good, 0].double() - found.measured[good]))
        near = measure(frame, "stereo", uv, CONFIG)
        assert near.depth.nan_to_num(0.0).max() <= CONFIG.stereo_far * 0.2
        assert bool(near.measured.isfinite().any()) == (256.0 / shift < CONFIG.stereo_far)


def test_mode_is_what_the_frame_carries_and_is_refused_where_it_does_not():
    mono = Frame(0, 0, IMAGE, CAMERA)
    rgbd = replace(mono, depth=torch.ones(240, 320))
    pair = replace(mono, right=IMAGE)
    stereo = replace(pair, camera=replace(CAMERA, baseline_m=0.1))
    assert [resolve_mode(f, "auto") for f in (mono, rgbd, pair, stereo)] == ["mono", "rgbd", "mono", "stereo"]
    assert resolve_mode(rgbd, "mono") == "mono" and measure(rgbd, "mono", torch.zeros(3, 2), CONFIG) is None
    with pytest.raises(SourceError, match="no depth image"):
        resolve_mode(mono, "rgbd")
    with pytest.raises(SourceError, match="no right image"):
        resolve_mode(mono, "stereo")
    with pytest.raises(CameraError, match="no baseline"):
        resolve_mode(pair, "stereo")
    # A later frame without its partner is no error: nothing is measured in it.
    assert (
        measure(mono, "rgbd", torch.zeros(3, 2), CONFIG) is None
        and measure(rgbd, "stereo", torch.zeros(3, 2), CONFIG) is None
    )
    small = replace(stereo, right=IMAGE[:, :100])
    with pytest.raises(SourceError, match="320 x 100"):
        measure(small, "stereo", torch.zeros(1, 2), CONFIG)


def test_why_few_corners_have_a_depth():
    grid = torch.stack(torch.meshgrid(torch.arange(40.0, 280, 20), torch.arange(20.0, 220, 20), indexing="xy"), -1)
    uv = grid.reshape(-1, 2)
    right = torch.roll(IMAGE, -12, 2)
    pair = Frame(0, 0, IMAGE, replace(CAMERA, width=320, height=240, baseline_m=0.2), right=right)
    assert explain_few(pair, "stereo", uv, CONFIG) == ""
    exchanged = replace(pair, image=right, right=IMAGE)
    assert "left and right exchanged" in explain_few(exchanged, "stereo", uv, CONFIG)
    depth = torch.full((240, 320), 2.0)
    for factor, complaint in ((0.0, ""), (1000.0, "100 % of the depths .* unit"), (1.0, "")):
        explained = explain_few(replace(pair, right=None, depth=depth * factor), "rgbd", uv, CONFIG)
        assert re.search(complaint, explained) if complaint else explained == ""
