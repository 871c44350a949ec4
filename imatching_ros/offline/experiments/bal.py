"""Bundle Adjustment in the Large: reads its text format into a window with the intrinsics held fixed.

Format: Agarwal et al., Bundle Adjustment in the Large, ECCV 2010; cameras are angle-axis, translation, f, k1, k2 and look
along -z.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...core import geometry
from ...camera.model import Camera
from ...core.types import ObservationKind, WindowSnapshot
from ...core.errors import SourceError


def read_bal(path: str | Path) -> WindowSnapshot:
    """A mono window, first pose fixed, sigma 1 px of each camera's own focal length.

    Distortion is taken out of the observations with each camera's k1 and k2; cameras of another focal length than the first
    see the first one's image, with a sigma scaled to match.
    """
    path = Path(path)
    try:
        words = path.read_text().split()
        M, P, count = (int(w) for w in words[:3])
        numbers = torch.tensor([float(w) for w in words[3:]], dtype=torch.float64)
        if len(numbers) != 4 * count + 9 * M + 3 * P:
            raise ValueError(f"{len(numbers)} numbers after the header, expected {4 * count + 9 * M + 3 * P}")
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read the BAL problem {path}: {error}") from None
    rows = numbers[: 4 * count].view(count, 4)
    kf_idx, pt_idx, measured = rows[:, 0].long(), rows[:, 1].long(), rows[:, 2:]
    cameras = numbers[4 * count : 4 * count + 9 * M].view(M, 9)
    points = numbers[4 * count + 9 * M :].view(P, 3)

    f, k1, k2 = (cameras[kf_idx, i] for i in (6, 7, 8))
    distorted = measured / f[:, None]
    p = distorted.clone()
    for _ in range(50):
        r2 = (p * p).sum(1)
        p = distorted / (1 + k1 * r2 + k2 * r2 * r2)[:, None]
    T_CW = torch.cat([cameras[:, 3:6], geometry.exp_so3(cameras[:, :3])], 1)
    half_turn = torch.tensor([0.0, 0, 0, 1, 0, 0, 0], dtype=torch.float64)  # about x: y down, z forward
    T_WC = geometry.inverse(geometry.compose(half_turn.expand(M, 7), T_CW))
    focal = float(cameras[0, 6])
    camera = Camera(2 * round(focal), 2 * round(focal), focal, focal, focal, focal)
    uv = p * torch.tensor([1.0, -1.0]) * focal + focal
    sigma = (focal / f)[:, None].expand(count, 3).contiguous()
    fixed = torch.zeros(M, dtype=torch.bool)
    fixed[0] = True
    kind = torch.full((count,), int(ObservationKind.MONO))
    obs = torch.cat([uv, torch.zeros(count, 1, dtype=torch.float64)], 1)
    return WindowSnapshot(camera, T_WC, points, kf_idx, pt_idx, obs, kind, sigma, fixed)
