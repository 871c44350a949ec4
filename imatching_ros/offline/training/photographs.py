"""Pairs made from photographs by random homographies, and the photographs that Python dependencies bring along."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...learning.warps import draw_view_homography

# Photographs in the wheels of scikit-image (BSD-3-Clause; most images public domain or CC0) and scikit-learn
# (BSD-3-Clause; the two images CC BY 2.0). Drawings, fonts and medical plates are left out.
SHIPPED = {
    "skimage": [
        "data/astronaut.png",
        "data/brick.png",
        "data/camera.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/coins.png",
        "data/grass.png",
        "data/gravel.png",
        "data/hubble_deep_field.jpg",
        "data/motorcycle_left.png",
        "data/page.png",
        "data/rocket.jpg",
        "data/text.png",
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}


def load_photographs(folders: list[Path]) -> tuple[list[Tensor], list[str]]:
    """Colour photographs (3, H, W) float32 in 0..1, longest side at most 1280, and where each came from.

    The shipped ones of the packages that are installed, then every image below `folders`.
    """
    paths: list[tuple[Path, str]] = []
    for package, names in SHIPPED.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            paths += [(Path(spec.origin).parent / name, f"{package}/{Path(name).name}") for name in names]
    for folder in folders:
        paths += [(p, f"{folder.name}/{p.name}") for p in sorted(folder.rglob("*")) if p.suffix in (".jpg", ".png")]
    photographs, names = [], []
    for path, name in paths:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
        if image is None or min(image.shape[:2]) < 128:
            continue
        scale = min(1.0, 1280 / max(image.shape[:2]))
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        photographs.append(torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1).float() / 255)
        names.append(name)
    return photographs, names


class HomographyPairs:
    """Draws pairs of views of photographs, related by known homographies."""

    def __init__(self, photographs: list[Tensor], device: torch.device) -> None:
        # Each photograph at several sizes, so that no view enlarges or shrinks it by much (aliasing would be learned).
        self.levels: list[list[Tensor]] = []
        for photograph in photographs:
            grey = (photograph * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)[None]
            sizes = [s for s in (1.5, 1.0, 0.7, 0.5, 0.35) if min(grey.shape[-2:]) * s >= 160]
            self.levels.append(
                [F.interpolate(grey, scale_factor=s, mode="bilinear", antialias=True)[0].to(device) for s in sizes]
            )
        self.device = device

    def draw(self, count: int, size: tuple[int, int], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` pairs of (height, width): image_A, image_B (N, 1, H, W) and H_BA (N, 3, 3), px of A -> px of B."""
        height, width = size
        images_a, images_b, homographies = [], [], []
        for _ in range(count):
            levels = self.levels[rng.integers(len(self.levels))]
            image = levels[rng.integers(len(levels))]
            H_PA = self._view(image, size, rng)
            H_BA = draw_view_homography(size, rng)
            images_a.append(self._sample(image, H_PA, size))
            images_b.append(self._sample(image, H_PA @ np.linalg.inv(H_BA), size))
            homographies.append(H_BA)
        H = torch.from_numpy(np.stack(homographies)).float().to(self.device)
        return torch.stack(images_a), torch.stack(images_b), H

    @staticmethod
    def _view(image: Tensor, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """A similarity from view pixels into the photograph, near unit scale."""
        height, width = size
        scale = rng.uniform(0.8, 1.2)
        angle = rng.normal(0, 0.15)
        c, s = scale * np.cos(angle), scale * np.sin(angle)
        centre = np.array([rng.uniform(0.25, 0.75) * image.shape[2], rng.uniform(0.25, 0.75) * image.shape[1]])
        rotation = np.array([[c, -s], [s, c]])
        return np.vstack([np.c_[rotation, centre - rotation @ [width / 2, height / 2]], [0, 0, 1]])

    def _sample(self, image: Tensor, H_PV: np.ndarray, size: tuple[int, int]) -> Tensor:
        height, width = size
        y, x = torch.meshgrid(
            torch.arange(height, device=self.device), torch.arange(width, device=self.device), indexing="ij"
        )
        pixels = torch.stack([x, y, torch.ones_like(x)], -1).float()
        mapped = pixels @ torch.from_numpy(H_PV).float().to(self.device).T
        xy = mapped[..., :2] / mapped[..., 2:].clamp_min(1e-3)
        grid = 2 * xy / xy.new_tensor([image.shape[2] - 1, image.shape[1] - 1]) - 1
        # Mirrored beyond the border: still a textured plane, so correspondences stay true everywhere.
        return F.grid_sample(image[None], grid[None], align_corners=True, padding_mode="reflection")[0]


def warp_homography(H_BA: Tensor, uv: Tensor) -> Tensor:
    """(N, 3, 3) on (N, Q, 2) px -> (N, Q, 2) px."""
    mapped = torch.cat([uv, torch.ones_like(uv[..., :1])], -1) @ H_BA.transpose(1, 2)
    return mapped[..., :2] / mapped[..., 2:].clamp_min(1e-3)
