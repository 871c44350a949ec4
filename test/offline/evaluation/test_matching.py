"""Matching scores of matchers whose errors are known."""

import cv2
import numpy as np
import pytest
import torch

from imatching_ros.core import geometry
from imatching_ros.camera.model import Camera
from imatching_ros.core.types import Frame
from imatching_ros.offline.cli.match_eval import table
from imatching_ros.offline.evaluation.baselines import Chained, PairMatcher, OwnKeypoints, SiftCorners
from imatching_ros.offline.evaluation.match_images import middle_pairs
from imatching_ros.offline.evaluation.matching import (
    count_pairs,
    evaluate,
    evaluate_matcher,
    iterate_pairs,
    reliability,
)
from imatching_ros.offline.evaluation.relative_pose import auc, pose_error_deg, translation_ratio
from imatching_ros.matching.base import Features, Matcher, Prediction, Queries
from imatching_ros.matching.klt import KltMatcher
from imatching_ros.matching.sift import SiftMatcher
from imatching_ros.offline.recordings.base import Source, SourceOptions
from imatching_ros.offline.recordings.truth import Trajectory

H, W = 120, 160
DEPTH = 2.0
STEP_PX = 4.0
CAMERA = Camera(W, H, 100.0, 100.0, 79.5, 59.5)


class SlidingWall(Source):
    """A textured wall in front of a camera that slides right: every point moves left by STEP_PX per frame."""

    def __init__(self, count=8, depth=True, truth=True):
        super().__init__()
        self.name, self.mode, self.camera, self.options = "wall", "rgbd" if depth else "mono", CAMERA, SourceOptions()
        self.count, self.depth, self.truth = count, depth, truth
        noise = torch.rand(1, 1, H // 4, (W + 200) // 4, generator=torch.Generator().manual_seed(0))
        self.wall = (torch.nn.functional.interpolate(noise, scale_factor=4, mode="bicubic")[0].clamp(0, 1) * 255).to(
            torch.uint8
        )

    @property
    def length(self):
        return self.count

    def read(self):
        for k in range(self.count):
            start = int(k * STEP_PX)
            depth = torch.full((H, W), DEPTH) if self.depth else None
            yield Frame(k, k * 100_000_000, self.wall[:, :, start : start + W].contiguous(), CAMERA, depth)

    def groundtruth(self):
        if not self.truth:
            return None
        T = np.tile([0, 0, 0, 0, 0, 0, 1.0], (self.count, 1))
        T[:, 0] = np.arange(self.count) * STEP_PX * DEPTH / CAMERA.fx
        return Trajectory(np.arange(self.count) * 100_000_000, T)


class Oracle(Matcher):
    """Knows how the wall slides, and errs by a known amount."""

    name = "oracle"
    trainable = False

    def __init__(self, noise_px=0.0, missing=0.0, gap=1):
        super().__init__()
        self.noise_px, self.missing, self.gap = noise_px, missing, gap
        self.generator = torch.Generator().manual_seed(1)

    def extract(self, images):
        return [Features({}, H, W, 0) for _ in images]

    def describe(self, features, uv):
        return Queries(uv, {}, 0)

    def match(self, queries, targets, predicted=None, radius_px=None, *, keep_logits=False):
        n = len(queries)
        noise = torch.randn(1, n, 2, generator=self.generator) * self.noise_px
        uv = queries.uv[None] - torch.tensor([STEP_PX * self.gap, 0.0]) + noise
        score = (torch.rand(1, n, generator=self.generator) >= self.missing).float()
        return Prediction(uv, score, torch.full((1, n), max(self.noise_px, 0.01)))


class FallingShort(Oracle):
    """All of its matches lack the same half pixel of the way."""

    def match(self, *args, **options):
        found = super().match(*args, **options)
        return Prediction(found.uv + torch.tensor([0.5, 0.0]), found.score, found.sigma_px)


def test_error_common_to_an_image_and_the_motion_it_takes_away_are_measured():
    right, short = (evaluate_matcher(m, SlidingWall(), gaps=(1,))["gaps"]["1"] for m in (Oracle(), FallingShort()))
    assert right["common_px"] < 1e-3 and right["translation_ratio"] == pytest.approx(1, abs=0.02)
    assert short["common_px"] == pytest.approx(0.5, abs=1e-3)
    assert evaluate_matcher(Oracle(), SlidingWall(depth=False), gaps=(1,))["gaps"]["1"]["translation_ratio"] is None


def test_translation_ratio_is_the_share_of_the_true_motion():
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.uniform([-1, -1, 2], [1, 1, 4], (80, 3)))
    T_ij = torch.tensor([0.3, 0, 0.1, 0, 0, 0, 1.0], dtype=torch.float64)
    for share in (1.0, 0.8):
        T_moved = torch.cat([share * T_ij[:3], T_ij[3:]])
        uv = CAMERA.project(geometry.act(geometry.inverse(T_moved), points))
        assert translation_ratio(points, CAMERA, uv, T_ij) == pytest.approx(share, abs=1e-3)
    assert translation_ratio(points[:5], CAMERA, uv[:5], T_ij) is None


def test_a_perfect_matcher_scores_one():
    result = evaluate_matcher(Oracle(), SlidingWall(), gaps=(1,))["gaps"]["1"]
    assert result["mma"] == {"1": 1.0, "3": 1.0, "5": 1.0} and result["coverage"] == 1.0 and result["pairs"] == 7
    assert result["sampson_px"]["median"] < 1e-6 and result["precision_3px"] == 1.0


def test_noise_and_missing_matches_cost_what_they_must():
    """With sigma s per coordinate, the distance is Rayleigh: within r with probability 1 - exp(-r^2 / 2 s^2)."""
    result = evaluate_matcher(Oracle(noise_px=1.0, missing=0.25), SlidingWall(), gaps=(1,), pose=False)["gaps"]["1"]
    assert result["mma"]["1"] == pytest.approx(0.75 * (1 - np.exp(-0.5)), abs=0.04)
    assert result["mma"]["3"] == pytest.approx(0.75 * (1 - np.exp(-4.5)), abs=0.04)
    assert result["delivered"] == pytest.approx(0.75, abs=0.03)
    low, high = result["mma_interval"]["1"]
    assert low < result["mma"]["1"] < high < low + 0.1
    assert result["sigma"]["within_1"] == pytest.approx(0.683, abs=0.03) and result["sigma"][
        "within_2"
    ] == pytest.approx(0.954, abs=0.02)


def test_a_distance_that_is_infinite_is_printed_as_such():
    """Where no geometry agrees with the other half of the matches."""
    source = SlidingWall(truth=False, depth=False)
    result = evaluate_matcher(Oracle(missing=0.97), source, gaps=(1,))
    distance = result["gaps"]["1"]["self_consistency"]["held_out_sampson_px"]
    assert distance["median"] == np.inf
    assert "| inf 0." in table([result])


def test_reliability_sees_overconfidence():
    generator = torch.Generator().manual_seed(0)
    sigma = torch.rand(2000, generator=generator) + 0.5
    errors = torch.randn(2000, 2, generator=generator) * sigma[:, None]
    good, bold = reliability(errors, sigma), reliability(errors, sigma / 2)
    assert abs(good["within_1"] - 0.683) < 0.02 and bold["within_1"] < 0.45
    assert [row["sigma_px"] for row in good["table"]] == sorted(row["sigma_px"] for row in good["table"])
    assert reliability(errors[:5], sigma[:5]) is None


def test_klt_direct_and_chained_and_sift_on_the_wall():
    klt, sift = KltMatcher(), SiftMatcher()
    matchers = [
        PairMatcher("klt", klt),
        Chained("klt-chained", klt),
        SiftCorners("sift-corners", sift),
        OwnKeypoints("sift-own", sift, 200),
    ]
    results = {r["matcher"]: r["gaps"] for r in evaluate(matchers, SlidingWall(), (1, 5), pose=False)}
    assert results["klt"]["1"]["mma"]["1"] > 0.9 and results["klt-chained"]["5"]["mma"]["3"] > 0.8
    assert results["sift-corners"]["1"]["mma"]["3"] > 0.5
    assert results["sift-own"]["1"]["correct_per_pair"]["3"] > 5


def test_without_truth_only_self_consistency_remains():
    result = evaluate_matcher(Oracle(noise_px=0.2), SlidingWall(truth=False, depth=False), gaps=(1,))["gaps"]["1"]
    assert result["mma"] is None and result["pose_auc"] is None and result["sampson_px"] is None
    assert result["self_consistency"]["held_out_sampson_px"]["median"] < 0.5


def test_pairs_are_spread_and_complete():
    pairs = [(frames[0].id, frames[-1].id, len(frames)) for frames, _ in iterate_pairs(SlidingWall(20), (1, 5), 4)]
    assert [p for p in pairs if p[2] == 6] == [(0, 5, 6), (5, 10, 6), (9, 14, 6), (14, 19, 6)]
    assert len([p for p in pairs if p[2] == 2]) == 4


def test_pairs_are_spread_also_where_the_length_is_not_known_before():
    """A bag in a time range, or one that was cut off."""

    class Stream(SlidingWall):
        length = None

    def pairs(kind):
        return [(frames[0].id, frames[-1].id) for frames, _ in iterate_pairs(kind(20), (1, 5), 4)]

    assert pairs(Stream) == pairs(SlidingWall) and count_pairs(Stream(20), (1, 5), 4) == 8
    assert [(frames[0].id, len(frames)) for frames, _ in middle_pairs(Stream(20), (1, 18))] == [(9, 2), (1, 19)]


def scene(count=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, generator=generator, dtype=torch.float64) * torch.tensor(
        [4.0, 3.0, 4.0]
    ) - torch.tensor([2, 1.5, -3])
    T_ij = torch.cat([torch.tensor([0.4, 0.1, 0.2]), geometry.exp_so3(torch.tensor([0.02, 0.05, -0.03]))]).double()
    uv_i, uv_j = CAMERA.project(points), CAMERA.project(geometry.act(geometry.inverse(T_ij), points))
    return T_ij, uv_i, uv_j


def test_pose_error_of_good_matches_is_small_and_of_wrong_ones_large():
    T_ij, uv_i, uv_j = scene()
    assert pose_error_deg(CAMERA, CAMERA, uv_i, uv_j, T_ij, True) < 0.1
    turned = geometry.compose(T_ij, torch.cat([torch.zeros(3), geometry.exp_so3(torch.tensor([0.0, 0.1, 0]))]).double())
    assert pose_error_deg(CAMERA, CAMERA, uv_i, uv_j, turned, False) == pytest.approx(np.degrees(0.1), abs=0.2)
    assert pose_error_deg(CAMERA, CAMERA, uv_i[:5], uv_j[:5], T_ij, True) == 180


def test_auc_by_hand():
    """One of two pairs has no error, the other fails: recall is one half at every threshold."""
    assert auc([0.0, 180.0], (5, 10)) == {"5": pytest.approx(0.5), "10": pytest.approx(0.5)}
    # Errors of 5 in all pairs: recall rises on a line from 0 to 1 at 5, then stays.
    assert auc([5.0], (10,))["10"] == pytest.approx(0.75)


@pytest.mark.data
def test_klt_on_real_depth(data_folder):
    """The tracker's accuracy on this sequence is known: a wrong truth would ruin it."""
    from imatching_ros.offline.recordings import open_source

    result = evaluate_matcher(KltMatcher(), open_source(data_folder / "tartanair_hospital"), (1,), 8, pose=False)[
        "gaps"
    ]["1"]
    assert 0.35 < result["mma"]["1"] < 0.65 and result["sampson_px"]["median"] < 0.3


def test_a_mask_of_the_recording_leaves_matches_out(tmp_path):
    wall = SlidingWall(count=3)
    mask = np.zeros((H, W), np.uint8)
    mask[:, : W // 2] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    (whole,) = evaluate([PairMatcher("klt", KltMatcher())], wall, [1], pose=False)
    wall.options = SourceOptions(mask=tmp_path / "mask.png")
    assert all(frame.mask.equal(torch.from_numpy(mask > 0)) for frame in wall)
    (half,) = evaluate([PairMatcher("klt", KltMatcher())], wall, [1], pose=False)
    right = [r["gaps"]["1"]["correct_per_pair"]["3"] for r in (whole, half)]
    assert 0 < right[1] < 0.6 * right[0]
