"""Depth at points: looked up, refused at edges and gaps, matched along the rows of a stereo pair."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from imatching_ros.core.config import OdometryConfig
from imatching_ros.core.types import Frame, ObservationKind
from imatching_ros.odometry.measurements import measure, resolve_mode
from imatching_ros.core.errors import CameraError, SourceError
from odometry_scenes import CAMERA, speckle

CONFIG = OdometryConfig()
IMAGE = torch.from_numpy(speckle(0, (240, 320)))[None]


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
