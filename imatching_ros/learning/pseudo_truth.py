"""Pairs of images with correspondences to train on: pseudo-truth of bundle adjustment, and warps of live images.

Pseudo-truth: a landmark that three or more trusted views have fixed reprojects into every keyframe of the window, also where the matcher
found it elsewhere or not at all. These hard cases are what the robust kernel of the residual hides from it. It is no gradient of what
bundle adjustment minimizes; as in self-training (Lee, ICML Workshops 2013), the labels are the system's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from ..core.types import LearningSample
from .augmentation import augment
from .compression import BLOCK_PX
from .rematching import expected_uv
from .warps import draw_pair, draw_view_homography

QUERIES = 192  # of a pair; evaluation asks for 512 in an image of four times as many pixels
# Height and width of the parts of larger images that are trained on: a step costs the same for every camera.
CROP = 240, 320
FEWEST = 16  # correspondences of a pair worth its two images
MIN_TRUSTED_VIEWS = 3  # two views of a landmark constrain nothing along the epipolar line
MIN_WEIGHT = 0.25  # of the robust kernel: the observation is trusted
MARGIN_PX = 4.0  # nearer to the edge a landmark may lie outside
WARPED_SHARE = 0.5  # of the augmented pairs that also pass through random homographies


@dataclass(frozen=True)
class TrainingPair:
    """Two images and Q correspondences between them."""

    image_a: Tensor  # (1, H, W) float32, 0..1
    image_b: Tensor
    uv_a: Tensor  # (Q, 2) float32 raw px
    uv_b: Tensor


def count_views(sample: LearningSample, weight: Tensor) -> Tensor:
    """(P,) int64: trusted observations of every landmark, by the kernel's weights (O,) of a solution."""
    views = torch.zeros(len(sample.window.points_W), dtype=torch.long)
    return views.index_add_(0, sample.window.pt_idx, (weight > MIN_WEIGHT).long())


def draw_pairs(sample: LearningSample, count: int, generator: torch.Generator) -> list[TrainingPair]:
    """At most `count` random pairs of a window's keyframes, near or far apart, with the pseudo-truth of its bundle adjustment."""
    pairs: list[TrainingPair] = []
    if count == 0:
        return pairs
    uv, queried, expected = _pseudo_truth(sample)
    keyframes = len(sample.images)
    for number in torch.randperm(keyframes * (keyframes - 1), generator=generator).tolist():
        a, b = divmod(number, keyframes - 1)
        b += b >= a
        common = torch.nonzero(queried[a] & expected[b])[:, 0]
        if len(common) < FEWEST:
            continue
        common = common[torch.randperm(len(common), generator=generator)]
        pairs.append(_crop(sample.images[a], sample.images[b], uv[a, common], uv[b, common]))
        if len(pairs) == count:
            break
    return pairs


def _crop(image_a: Tensor, image_b: Tensor, uv_a: Tensor, uv_b: Tensor) -> TrainingPair:
    """The part of each image (1, H, W) uint8 around the first correspondence, and the first QUERIES of those that both parts show."""
    (part_a, origin_a), (part_b, origin_b) = (_part(i, uv[0]) for i, uv in ((image_a, uv_a), (image_b, uv_b)))
    uv_a, uv_b = uv_a - origin_a, uv_b - origin_b
    size = uv_a.new_tensor([part_a.shape[-1] - 1, part_a.shape[-2] - 1])
    inside = torch.stack([((uv >= 0) & (uv <= size)).all(-1) for uv in (uv_a, uv_b)]).all(0)
    return TrainingPair(_as_float(part_a), _as_float(part_b), uv_a[inside][:QUERIES], uv_b[inside][:QUERIES])


def _part(image: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """About the part of CROP of an image (1, H, W) nearest to a point (2,) px, and its first pixel (2,), on the grid of JPEG's blocks."""
    size = torch.tensor([image.shape[-1], image.shape[-2]])
    part = torch.minimum(size, torch.tensor([CROP[1], CROP[0]]))
    origin = torch.minimum((centre - part / 2).round().long().clamp_min(0), size - part) // BLOCK_PX * BLOCK_PX
    (x, y), (width, height) = origin.tolist(), part.tolist()
    return image[:, y : y + height, x : x + width], origin.float()


def _pseudo_truth(sample: LearningSample) -> tuple[Tensor, Tensor, Tensor]:
    """Raw px (M, P, 2) of the landmarks in the keyframes; which may be asked for there, and which are to be found there (M, P) bool.

    Asked for where it was observed. To be found also where no match was right, if it reprojects into the image and a neighbour between
    the first and the last view shows it, so that it is hardly hidden.
    """
    window, weight = sample.window, sample.result.weight
    uv = expected_uv(sample)
    hosts = window.kf_idx[sample.host_obs]
    uv[hosts, torch.arange(len(hosts))] = sample.uv_px[sample.host_obs]
    shape = (len(sample.images), len(window.points_W))
    observed = torch.zeros(shape, dtype=torch.bool)
    trusted = weight > MIN_WEIGHT
    observed[window.kf_idx[trusted], window.pt_idx[trusted]] = True
    size = uv.new_tensor([window.camera.width, window.camera.height])
    usable = ((uv > MARGIN_PX) & (uv < size - 1 - MARGIN_PX)).all(-1)
    usable &= count_views(sample, weight) >= MIN_TRUSTED_VIEWS
    seen = observed.clone()
    seen[1:] |= observed[:-1]
    seen[:-1] |= observed[1:]
    between = (observed.cumsum(0) > 0) & (observed.flip(0).cumsum(0).flip(0) > 0)
    return uv, observed & usable, (seen | between) & usable


def draw_warp(sample: LearningSample, generator: torch.Generator) -> TrainingPair:
    """The part of a keyframe around a random observation and a homography of it, at landmarks' pixels and some anywhere."""
    rng = _rng(generator)
    chosen = int(rng.integers(len(sample.uv_px)))
    k = int(sample.window.kf_idx[chosen])
    observed = sample.uv_px[sample.window.kf_idx == k]
    part, origin = _part(sample.images[k], sample.uv_px[chosen])
    image = part[0].cpu().numpy()
    height, width = image.shape
    warped = draw_pair(image, rng, draw_view_homography((height, width), rng))
    corners = (observed - origin).numpy()
    corners = corners[((corners >= 0) & (corners <= [width - 1, height - 1])).all(1)]
    corners = corners[rng.permutation(len(corners))[: QUERIES * 3 // 4]]
    anywhere = rng.random((QUERIES - len(corners), 2)) * [width - 1, height - 1]
    uv = np.concatenate([corners, anywhere])
    truth, inside = warped.truth(uv)
    uv_a, uv_b = (torch.from_numpy(points[inside]).float() for points in (uv, truth))
    image_a, image_b = (_as_float(torch.from_numpy(view)[None]) for view in (warped.image_a, warped.image_b))
    return TrainingPair(image_a, image_b, uv_a, uv_b)


def augment_pair(pair: TrainingPair, generator: torch.Generator) -> TrainingPair:
    """Other light, noise and blur for each image; for a share of the pairs, also another view of both images as if they were planes.

    One homography for both, half of the time a further one for B: scale, rotation and perspective that the robot's path did not show.
    """
    rng = _rng(generator)
    if rng.random() < WARPED_SHARE:
        pair = _warp_pair(pair, rng)
    images = augment(torch.stack([pair.image_a, pair.image_b]), int(rng.integers(2**31)))
    return TrainingPair(images[0], images[1], pair.uv_a, pair.uv_b)


def _warp_pair(pair: TrainingPair, rng: Generator) -> TrainingPair:
    height, width = pair.image_a.shape[-2:]
    H_A = draw_view_homography((height, width), rng)
    H_B = draw_view_homography((height, width), rng) @ H_A if rng.random() < 0.5 else H_A
    images, points = [], []
    for image, uv, H in ((pair.image_a, pair.uv_a, H_A), (pair.image_b, pair.uv_b, H_B)):
        warped = cv2.warpPerspective(image[0].numpy(), H, (width, height), borderMode=cv2.BORDER_REFLECT)
        images.append(torch.from_numpy(warped)[None])
        points.append(torch.from_numpy(cv2.perspectiveTransform(uv[None].double().numpy(), H)[0]).float())
    size = points[0].new_tensor([width - 1, height - 1])
    inside = torch.stack([((uv >= 0) & (uv <= size)).all(-1) for uv in points]).all(0)
    if int(inside.sum()) < FEWEST:
        return pair
    return TrainingPair(images[0], images[1], points[0][inside], points[1][inside])


def _as_float(image: Tensor) -> Tensor:
    return image.cpu().float() / 255


def _rng(generator: torch.Generator) -> Generator:
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
