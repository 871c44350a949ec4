"""Matches drawn on pictures."""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from ..datatypes import Frame, as_grey

# Right to wrong, readable to people who cannot tell red from green: blue, yellow, vermilion (Okabe and Ito), as BGR.
_GOOD, _FAIR, _BAD, _UNKNOWN = (178, 114, 0), (66, 228, 240), (0, 94, 213), (170, 170, 170)


def draw_matches(i: Frame, j: Frame, uv_i: Tensor, uv_j: Tensor, error_px: Tensor, title: str, most: int = 150) -> np.ndarray:
    """Both pictures above each other, a line per match: blue within 1 px, yellow within 3, vermilion beyond, grey unknown (NaN).

    Args:
        uv_i, uv_j: (N, 2) raw px. error_px: (N,).

    Returns:
        (H, W, 3) uint8 BGR.
    """
    top, bottom = (cv2.cvtColor(as_grey(f.image)[0].numpy(), cv2.COLOR_GRAY2BGR) for f in (i, j))
    wide = top.shape[1] > 1.6 * top.shape[0]
    picture = np.concatenate([top, bottom], 0 if wide else 1) // 2 + 64
    shift = np.array([0, top.shape[0]] if wide else [top.shape[1], 0])
    step = max(len(uv_i) // most, 1)
    for a, b, e in zip(uv_i.numpy()[::step], uv_j.numpy()[::step], error_px.numpy()[::step]):
        colour = _UNKNOWN if np.isnan(e) else _GOOD if e <= 1 else _FAIR if e <= 3 else _BAD
        p, q = tuple(np.round(a).astype(int).tolist()), tuple(np.round(b + shift).astype(int).tolist())
        cv2.line(picture, p, q, colour, 1, cv2.LINE_AA)
        cv2.circle(picture, p, 2, colour, -1, cv2.LINE_AA)
        cv2.circle(picture, q, 2, colour, -1, cv2.LINE_AA)
    cv2.rectangle(picture, (0, 0), (picture.shape[1], 22), (30, 30, 30), -1)
    cv2.putText(picture, title, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.48, (255, 255, 255), 1, cv2.LINE_AA)
    return picture
