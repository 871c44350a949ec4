"""What a score measures: weights whose errors are known must be given just these."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from imatching_ros.core.config import BundleConfig, LearningConfig
from imatching_ros.core.types import ObservationKind
from imatching_ros.learning.rematching import expected_uv
from imatching_ros.learning.validation import score
from imatching_ros.matching.base import Features, Matcher, Prediction, Queries

CONFIG = LearningConfig(error_cap_px=8.0)
BLIND = 0.4  # part of the queries that a blind matcher does not find


class KnownMatcher(Matcher):
    """Finds every point where it is predicted, or where it stays, and errs by a given distance."""

    name = "told"

    def __init__(self, distance_px=0.0, sigma_px=1.0, blind=0.0):
        super().__init__()
        self.distance_px, self.sigma_px, self.blind = distance_px, sigma_px, blind

    def extract(self, images):
        return [Features({}, *image.shape[-2:], 0) for image in images]

    def describe(self, features, uv):
        return Queries(uv.float(), {}, 0)

    def match(self, queries, targets, predicted=None, radius_px=None, *, differentiable=False):
        uv = queries.uv.expand(len(targets), -1, -1) if predicted is None else predicted
        angle = 1e3 * uv.sum(-1)  # another direction for every point, but the same in every call
        uv = uv + self.distance_px * torch.stack([angle.cos(), angle.sin()], -1)
        seen = (1e2 * uv[..., 0]).frac().abs() >= self.blind
        return Prediction(uv, seen.float(), torch.full(uv.shape[:-1], self.sigma_px))


class Affine(KnownMatcher):
    """Estimates one homography between two images by ECC (OpenCV), then errs by a given distance along x, and by a part of the flow."""

    def __init__(self, distance_px=0.0, shortens=0.0):
        super().__init__(distance_px)
        self.shortens = shortens

    def extract(self, images):
        return [Features({"image": image[0]}, *image.shape[-2:], 0) for image in images]

    def describe(self, features, uv):
        return Queries(uv.float(), {}, 0, (features,), torch.zeros(len(uv), dtype=torch.long))

    def match(self, queries, targets, predicted=None, radius_px=None, *, differentiable=False):
        found = []
        for target in targets:
            _, H = cv2.findTransformECC(
                queries.sources[0].maps["image"].numpy(),
                target.maps["image"].numpy(),
                np.eye(3, dtype=np.float32),
                cv2.MOTION_HOMOGRAPHY,
                (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-6),
                None,
                5,
            )
            to = torch.from_numpy(cv2.perspectiveTransform(queries.uv[None].numpy(), H)[0])
            found.append(to - self.shortens * (to - queries.uv))
        uv = torch.stack(found) + torch.tensor([self.distance_px, 0.0])
        return Prediction(uv, torch.ones(uv.shape[:-1]), torch.ones(uv.shape[:-1]))


@pytest.fixture(scope="module")
def sample(make_sample):
    """Landmarks of six keyframes, almost without noise, at the optimum; textured images of the camera's size, the same in all keyframes."""
    sample = make_sample(6, 400, noise_px=0.02)
    camera, rng = sample.window.camera, np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.uniform(0, 255, (camera.height, camera.width)).astype(np.float32), (0, 0), 6)
    image = torch.from_numpy(cv2.normalize(image, None, 30, 220, cv2.NORM_MINMAX).astype(np.uint8))[None]
    return dataclasses.replace(sample, images=(image,) * 6)


def scored(sample, matcher):
    return score(matcher, sample, CONFIG, BundleConfig(), 0)


def test_exact_matches_have_no_error(sample):
    exact = scored(sample, KnownMatcher())
    assert exact.has_held_out and exact.held_out_px < 0.05 and exact.forward_backward_px == 0
    assert exact.matches == len(sample.window.obs) and exact.within_sigma == 1


@pytest.mark.parametrize("distance", (0.5, 1.5))
def test_held_out_error_is_that_of_the_matches(sample, distance):
    # The landmark comes from other views, which err as well: not less than the distance, not much more.
    assert distance < scored(sample, KnownMatcher(distance)).held_out_px < 1.4 * distance


def test_no_error_counts_for_more_than_the_cap(sample):
    wild = scored(sample, KnownMatcher(300.0))
    assert 0.9 * CONFIG.error_cap_px < wild.held_out_px <= CONFIG.error_cap_px
    assert wild.forward_backward_px <= CONFIG.error_cap_px


def test_a_missing_match_counts_as_the_cap(sample):
    seeing, blind = scored(sample, KnownMatcher()), scored(sample, KnownMatcher(blind=BLIND))
    assert blind.held_out_px == pytest.approx(BLIND * CONFIG.error_cap_px, rel=0.25)
    detected = len(sample.host_obs)  # anchors are not matched
    assert blind.matches - detected == pytest.approx((1 - BLIND) * (seeing.matches - detected), rel=0.1)
    assert blind.coverage < seeing.coverage


def test_forward_backward_error_is_both_ways(sample):
    one_way = KnownMatcher(1.0)
    uv = torch.rand(1000, 2) * 200
    there = one_way.estimate(Queries(uv, {}, 0), [None]).uv[0]
    back = one_way.estimate(Queries(there, {}, 0), [None]).uv[0]
    assert scored(sample, one_way).forward_backward_px == pytest.approx(
        float((back - uv).norm(dim=-1).mean()), rel=0.15
    )


@pytest.mark.parametrize("sigma, within", ((0.05, 0.05), (5.0, 1.0)))
def test_calibration_is_the_share_of_errors_within_sigma(sample, sigma, within):
    assert scored(sample, KnownMatcher(1.0, sigma)).within_sigma == pytest.approx(within, abs=0.06)


def test_warp_error_is_that_of_finding_a_known_warp_again(sample):
    exact, off = scored(sample, Affine()), scored(sample, Affine(2.0))
    assert exact.warp_px < 0.3 and exact.common_px < 0.1 and abs(exact.along_flow_px) < 0.1
    assert off.warp_px == pytest.approx(2.0, abs=0.2)
    assert off.common_px == pytest.approx(2.0, abs=0.2), "all of an image's matches err by the same"


def test_matches_that_fall_short_of_the_flow_have_a_negative_bias(sample):
    exact, short = scored(sample, Affine()), scored(sample, Affine(shortens=0.05))
    assert abs(exact.along_flow_px) < 0.1 and short.along_flow_px < exact.along_flow_px - 0.1


class FallsShort(KnownMatcher):
    """Finds every point where it is predicted, less a part of the way from the query."""

    def match(self, queries, targets, predicted=None, radius_px=None, *, differentiable=False):
        found = super().match(queries, targets, predicted)
        return dataclasses.replace(found, uv=found.uv - self.distance_px * (found.uv - queries.uv))


@pytest.mark.parametrize("kind", (ObservationKind.STEREO, ObservationKind.DEPTH))
def test_matches_that_fall_short_shorten_the_motion_from_measured_depth(make_sample, kind):
    sample = make_sample(6, 400, noise_px=0.02, kind=kind, step_m=0.2)
    assert scored(sample, FallsShort()).translation_ratio == pytest.approx(1.0, abs=0.01)
    assert scored(sample, FallsShort(0.1)).translation_ratio == pytest.approx(0.9, abs=0.03)


def test_without_measured_depth_there_is_no_translation_ratio(make_sample):
    mono, depth = (make_sample(6, 200, kind=kind) for kind in (ObservationKind.MONO, ObservationKind.DEPTH))
    expected = dataclasses.replace(depth, window=dataclasses.replace(depth.window, expected_depth=True))
    assert np.isnan([scored(sample, KnownMatcher()).translation_ratio for sample in (mono, expected)]).all()


def test_landmarks_that_were_not_found_count_too(sample):
    """All observations are successes of the weights in use: those who find more must be able to win."""
    expected = expected_uv(sample)
    keep = torch.ones(len(sample.window.obs), dtype=torch.bool)
    w = sample.window
    inside = ((expected > 8) & (expected < torch.tensor([w.camera.width, w.camera.height]) - 9)).all(-1)
    many = torch.bincount(w.pt_idx, minlength=len(w.points_W)) >= 6
    lost = many[w.pt_idx] & inside[w.kf_idx, w.pt_idx] & (w.kf_idx == 3)
    lost[sample.host_obs] = False
    keep[lost] = False
    index = torch.cumsum(keep, 0) - 1
    part = dataclasses.replace(
        w, **{name: getattr(w, name)[keep] for name in ("kf_idx", "pt_idx", "obs", "kind", "sigma")}
    )
    fewer = dataclasses.replace(
        sample,
        window=part,
        uv_px=sample.uv_px[keep],
        held_out=torch.zeros(int(keep.sum()), dtype=torch.bool),
        host_obs=index[sample.host_obs],
    )
    assert lost.sum() > 20
    finds, errs = scored(fewer, KnownMatcher()), scored(fewer, KnownMatcher(1.0))
    assert finds.has_held_out and finds.held_out_px < 0.05 and errs.held_out_px > 0.9


def test_a_window_without_anything_held_out_has_no_held_out_error(make_sample):
    short = make_sample(3, 100, noise_px=0.02)  # no landmark has four views
    short = dataclasses.replace(
        short,
        held_out=torch.zeros_like(short.held_out),
        images=tuple(torch.zeros(1, 64, 96, dtype=torch.uint8) for _ in range(3)),
    )
    assert not scored(short, KnownMatcher()).has_held_out
