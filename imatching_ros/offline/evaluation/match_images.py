"""Matches drawn on the middle pair of a recording, one image per matcher and gap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ...core import geometry
from ...core.types import Frame, as_grey
from ..recordings.base import Source
from .baselines import PairMatcher, PairMatches
from .matching import MIN_SCORE, iterate_pairs
from .pairs import PairTruth, find_truth, sample_queries


def write_match_images(
    folder: Path, matchers: Sequence[PairMatcher], source: Source, gaps: Sequence[int]
) -> list[Path]:
    """Draws the matches of every matcher on the middle pair of each gap; returns the files."""
    files = []
    names = _file_names([matcher.name for matcher in matchers])
    for frames, (T_WC_i, T_WC_j) in middle_pairs(source, gaps):
        pair, gap = (frames[0], frames[-1]), len(frames) - 1
        uv = sample_queries(frames[0].image, mask=frames[0].mask)
        for matcher, name in zip(matchers, names):
            matches = matcher.match(frames, uv)
            error_px, kind = match_error(matches, find_truth(*pair, T_WC_i, T_WC_j, matches.uv_i), *pair)
            used = matches.score >= MIN_SCORE
            known = used & error_px.isfinite()
            within = float((error_px[known] <= 3).float().mean()) if known.any() else float("nan")
            title = f"{matcher.name}, gap {gap}: {int(used.sum())} matches, {100 * within:.0f} % within 3 px ({kind})"
            image = draw_matches(pair, matches.uv_i[used], matches.uv_j[used], error_px[used], title)
            files.append(folder / f"gap{gap:02d}_{name}.jpg")
            cv2.imwrite(str(files[-1]), image, [cv2.IMWRITE_JPEG_QUALITY, 85])
            matcher.forget(frames[-1].id + 1)
    return files


def middle_pairs(source: Source, gaps: Sequence[int]) -> list[tuple[list[Frame], tuple]]:
    """One pair per gap, from the middle of the recording."""
    length = source.count_frames()
    found: dict[int, tuple[list[Frame], tuple]] = {}
    for frames, T_WC in iterate_pairs(source, gaps, 1 << 30):
        gap = len(frames) - 1
        if gap not in found and frames[0].id >= (length - gap) // 2:
            found[gap] = frames, T_WC
        if len(found) == len(gaps):
            break
    return [found[gap] for gap in gaps if gap in found]


def match_error(matches: PairMatches, truth: PairTruth, i: Frame, j: Frame) -> tuple[Tensor, str]:
    """(N,) px from the true place, or from the true epipolar line where there is no depth; NaN where nothing is known."""
    if truth.visible.any():
        error = (matches.uv_j.double() - truth.uv_j).norm(dim=1)
        return torch.where(truth.uv_j.isfinite().all(1), error, torch.nan), "of the true place"
    if truth.T_ij is not None:
        ideal = (i.camera.undistort(matches.uv_i.double()), j.camera.undistort(matches.uv_j.double()))
        return geometry.sampson(i.camera, j.camera, truth.T_ij, *ideal), "of the epipolar line"
    return torch.full((len(matches.uv_i),), torch.nan), "unknown"


def draw_matches(frames: tuple[Frame, Frame], uv_i: Tensor, uv_j: Tensor, error_px: Tensor, title: str) -> np.ndarray:
    """Both images side by side, or wide ones above each other, with a line for at most about 150 matches.

    Blue is an error within 1 px, yellow within 3, vermilion beyond, grey an unknown one (NaN): distinguishable with colour
    blindness (Okabe and Ito).

    Args:
        uv_i, uv_j: (N, 2) raw px. error_px: (N,).

    Returns:
        (H, W, 3) uint8 BGR.
    """
    good, fair, bad, unknown = (178, 114, 0), (66, 228, 240), (0, 94, 213), (170, 170, 170)  # BGR
    top, bottom = (cv2.cvtColor(as_grey(f.image)[0].numpy(), cv2.COLOR_GRAY2BGR) for f in frames)
    wide = top.shape[1] > 1.6 * top.shape[0]
    image = np.concatenate([top, bottom], 0 if wide else 1) // 2 + 64
    shift = np.array([0, top.shape[0]] if wide else [top.shape[1], 0])
    step = max(len(uv_i) // 150, 1)
    for a, b, e in zip(uv_i.numpy()[::step], uv_j.numpy()[::step], error_px.numpy()[::step]):
        colour = unknown if np.isnan(e) else good if e <= 1 else fair if e <= 3 else bad
        p, q = tuple(np.round(a).astype(int).tolist()), tuple(np.round(b + shift).astype(int).tolist())
        cv2.line(image, p, q, colour, 1, cv2.LINE_AA)
        cv2.circle(image, p, 2, colour, -1, cv2.LINE_AA)
        cv2.circle(image, q, 2, colour, -1, cv2.LINE_AA)
    cv2.rectangle(image, (0, 0), (image.shape[1], 22), (30, 30, 30), -1)
    cv2.putText(image, title, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.48, (255, 255, 255), 1, cv2.LINE_AA)
    return image


def _file_names(names: Sequence[str]) -> list[str]:
    """File names of matchers, whose names may hold whole paths: all different, none too long for a file system."""
    safe = ["".join(c if c.isalnum() or c in "-_" else "_" for c in name)[-150:] for name in names]
    return [name if safe.count(name) == 1 else f"{name}_{k}" for k, name in enumerate(safe)]
