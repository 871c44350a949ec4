"""SIFT keypoints and descriptors (Lowe 2004) by OpenCV, matched by the ratio of distances and mutual agreement."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from ..core.config import MatcherConfig
from .base import Features, Matcher, Prediction, Queries

KEYPOINTS = 2000
SNAP_PX = 2.0  # a query this close to a keypoint takes its descriptor
RATIO = 0.85
DISTANCE = 0.7  # farther is no match, however lonely the candidate
SIGMA_PX = 0.7


class SiftMatcher(Matcher):
    """Features are keypoints and root descriptors (Arandjelovic 2012); a query is matched to one of the target's keypoints."""

    name = "sift"
    trainable = False
    wide_baseline = True

    def __init__(self, config: MatcherConfig | None = None) -> None:
        super().__init__()
        self._sift = cv2.SIFT_create(nfeatures=KEYPOINTS)

    def extract(self, images: Tensor) -> list[Features]:
        """(B, 1, H, W) float32 in 0..1 -> B features."""
        self.check(images)
        return [self.observe(image) for image in (images * 255).round().clamp(0, 255).to(torch.uint8)]

    @torch.no_grad()
    def observe(self, image: Tensor) -> Features:
        """(1, H, W) uint8 -> features, without the detour over float."""
        self.check(image[None])
        grey = np.ascontiguousarray(image[0].cpu().numpy())
        keypoints, descriptors = self._sift.detectAndCompute(grey, None)
        uv = cv2.KeyPoint_convert(keypoints) if keypoints else np.zeros((0, 2), np.float32)
        maps = {"uv": torch.from_numpy(uv.reshape(-1, 2)), "descriptors": _root(descriptors), "image": image.cpu()}
        return Features(maps, image.shape[-2], image.shape[-1], self.weights_version)

    def points(self, features: Features) -> Tensor:
        """The keypoints of the image, (K, 2) px: the points at which SIFT can be queried with success."""
        return features.maps["uv"]

    def describe(self, features: Features, uv: Tensor) -> Queries:
        """Points (N, 2) raw px -> N queries: the keypoint's descriptor where there is one near, else one of a fixed small size."""
        uv = uv.float().cpu()
        descriptors = torch.zeros(len(uv), 128)
        near = torch.zeros(len(uv), dtype=torch.bool)
        keypoints = features.maps["uv"]
        if len(keypoints) and len(uv):
            distance, index = torch.cdist(uv, keypoints).min(1)
            near = distance <= SNAP_PX
            descriptors[near] = features.maps["descriptors"][index[near]]
        rows = (~near).nonzero()[:, 0]
        if len(rows):
            # `compute` drops keypoints at the border, so each carries its row as class_id.
            free = [cv2.KeyPoint(float(u), float(v), 8.0, 0.0, 0.0, 0, int(r)) for r, (u, v) in zip(rows, uv[rows])]
            kept, values = self._sift.compute(features.maps["image"][0].numpy(), free)
            if kept:
                descriptors[[k.class_id for k in kept]] = _root(values)
        return Queries(uv, {"descriptors": descriptors}, self.weights_version)

    def match(
        self,
        queries: Queries,
        targets: Sequence[Features],
        predicted: Tensor | None = None,
        radius_px: Tensor | float | None = None,
        *,
        differentiable: bool = False,
    ) -> Prediction:
        """Nearest descriptor within the radius; the score falls with the ratio of distances, and is 0 beyond the ratio test."""
        uv = queries.uv.cpu()[None].repeat(len(targets), 1, 1)
        score = torch.zeros(len(targets), len(queries))
        for t, target in enumerate(targets):
            if len(queries) == 0 or len(target.maps["uv"]) < 2:
                continue
            distance = (2 - 2 * queries.data["descriptors"] @ target.maps["descriptors"].T).clamp_min(0).sqrt()
            if predicted is not None:
                away = torch.cdist(predicted[t].float().cpu(), target.maps["uv"])
                radius = torch.as_tensor(
                    torch.inf if radius_px is None else radius_px[t] if isinstance(radius_px, Tensor) else radius_px
                )
                # NaN compares False: searched everywhere.
                distance = distance.masked_fill(away > radius.reshape(-1, 1), 2.0)
            best, index = distance.topk(2, 1, largest=False)
            ratio = best[:, 0] / best[:, 1].clamp_min(1e-6)
            mutual = distance.argmin(0)[index[:, 0]] == torch.arange(len(queries))
            good = (ratio < RATIO) & (best[:, 0] < DISTANCE) & mutual & (queries.data["descriptors"].abs().sum(1) > 0)
            uv[t] = torch.where(good[:, None], target.maps["uv"][index[:, 0]], uv[t])
            score[t] = torch.where(good, 1 - ratio.square(), 0.0)
        return Prediction(uv, score, torch.full(score.shape, SIGMA_PX))


def _root(descriptors: np.ndarray | None) -> Tensor:
    """(N, 128) SIFT histograms -> unit vectors (N, 128) float32 whose distance is the Hellinger distance."""
    if descriptors is None:
        return torch.zeros(0, 128)
    values = torch.from_numpy(descriptors)
    return (values / values.sum(1, keepdim=True).clamp_min(1e-6)).sqrt()
