"""The small convolutional backbones of our matcher families.

U-shaped networks on one grey image, with a coarse descriptor map at 1/8 and a fine one at 1/2. Pixel unshuffle at the stem keeps the
full resolution's detail in the channels. `Backbone` convolves at half resolution and below. `FastBackbone` convolves at a quarter and
below: a convolution at 1/2 costs four times one at 1/4. They are trained with batch normalisation, which `fold_batch_norm` then merges
into the convolutions: the network that drives on the robot is plain convolutions with biases, so there are no statistics that could
drift while it learns.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COARSE_STRIDE = 8
FINE_STRIDE = 2
COARSE_CHANNELS = 64
FINE_CHANNELS = 16
MIN_SIDE_PX = 32  # the deepest map has stride 32
STEM = 4  # stride of the first map of the fast network
SHUFFLE = STEM // FINE_STRIDE

Network = TypeVar("Network", bound=nn.Module)


class ConvBlock(nn.Sequential):
    """3x3 convolution, optional batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, batch_norm: bool = False) -> None:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not batch_norm)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        super().__init__(conv, *([nn.BatchNorm2d(outputs)] if batch_norm else []), nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity (He et al., CVPR 2016); begins close to the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        nn.init.normal_(self.second.weight, std=1e-3)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.second(torch.relu(self.first(x)))


class Backbone(nn.Module):
    """Grey image (B, 1, H, W) in 0..1 -> coarse (B, 64, ceil(H/8), ceil(W/8)) and fine (B, 16, ceil(H/2), ceil(W/2))."""

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, stride: int, depth: int) -> nn.Sequential:
            return nn.Sequential(
                ConvBlock(inputs, outputs, stride, batch_norm),
                *(ConvBlock(outputs, outputs, 1, batch_norm) for _ in range(depth - 1)),
            )

        self.encode2 = stage(4, 16, 1, 2)
        self.encode4 = stage(16, 32, 2, 2)
        self.encode8 = stage(32, 64, 2, 3)
        self.encode16 = stage(64, 96, 2, 3)
        self.encode32 = stage(96, 128, 2, 3)
        self.lateral16 = nn.Conv2d(128, 96, 1)
        self.decode16 = ConvBlock(96, 96, 1, batch_norm)
        self.lateral8 = nn.Conv2d(96, 64, 1)
        self.decode8 = ConvBlock(64, 64, 1, batch_norm)
        self.lateral4 = nn.Conv2d(64, 32, 1)
        self.decode4 = ConvBlock(32, 32, 1, batch_norm)
        self.lateral2 = nn.Conv2d(32, 16, 1)
        self.decode2 = ConvBlock(16, 16, 1, batch_norm)
        self.coarse_head = nn.Conv2d(64, COARSE_CHANNELS, 1)
        self.fine_head = nn.Conv2d(16, FINE_CHANNELS, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) float in 0..1 -> coarse and fine descriptors of unit length along the channels, float32."""
        height, width = image.shape[-2:]
        # Exposure and contrast differ between cameras and moments: each image is brought to zero mean and unit deviation.
        mean = image.mean((-2, -1), keepdim=True)
        image = (image - mean) / (image.std((-2, -1), keepdim=True) + 1e-3)
        image = F.pad(image, (0, -width % 32, 0, -height % 32), mode="replicate")

        x2 = self.encode2(F.pixel_unshuffle(image, 2))
        x4 = self.encode4(x2)
        x8 = self.encode8(x4)
        x16 = self.encode16(x8)
        x32 = self.encode32(x16)
        x16 = self.decode16(x16 + _enlarge(self.lateral16(x32)))
        x8 = self.decode8(x8 + _enlarge(self.lateral8(x16)))
        x4 = self.decode4(x4 + _enlarge(self.lateral4(x8)))
        x2 = self.decode2(x2 + _enlarge(self.lateral2(x4)))

        coarse = self.coarse_head(x8)[..., : -(-height // 8), : -(-width // 8)]
        fine = self.fine_head(x2)[..., : -(-height // 2), : -(-width // 2)]
        return F.normalize(coarse.float(), dim=1), F.normalize(fine.float(), dim=1)


class FastBackbone(nn.Module):
    """The same maps with half of the work; the four fine descriptors of a cell at 1/4 come by pixel shuffle (Shi et al., CVPR 2016)."""

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                ConvBlock(inputs, outputs, stride, batch_norm), ConvBlock(outputs, outputs, 1, batch_norm)
            )

        self.encode4 = stage(STEM**2, 32, 1)
        self.encode8 = stage(32, 48, 2)
        # Context is cheap where the maps are small: these two blocks are an eighth of the work.
        self.encode16 = stage(48, 64, 2).append(ResidualBlock(64))
        self.encode32 = stage(64, 96, 2).append(ResidualBlock(96))
        self.lateral16 = nn.Conv2d(96, 64, 1)
        self.decode16 = ConvBlock(64, 64, 1, batch_norm)
        self.lateral8 = nn.Conv2d(64, 48, 1)
        self.decode8 = ConvBlock(48, 48, 1, batch_norm)
        self.lateral4 = nn.Conv2d(48, 32, 1)
        self.decode4 = ConvBlock(32, 48, 1, batch_norm)
        self.coarse_head = nn.Conv2d(48, COARSE_CHANNELS, 1)
        self.fine_head = nn.Conv2d(48, SHUFFLE**2 * FINE_CHANNELS, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) float in 0..1 -> coarse and fine descriptors of unit length along the channels, float32."""
        height, width = image.shape[-2:]
        # Exposure and contrast differ between cameras and moments: each image is brought to zero mean and unit deviation.
        image = image - image.mean((-2, -1), keepdim=True)
        deviation = torch.linalg.vector_norm(image, dim=(-2, -1), keepdim=True) / (height * width) ** 0.5
        image = image / (deviation + 1e-3)
        if height % 32 or width % 32:
            image = F.pad(image, (0, -width % 32, 0, -height % 32), mode="replicate")

        x4 = self.encode4(_unshuffle(image))
        x8 = self.encode8(x4)
        x16 = self.encode16(x8)
        x32 = self.encode32(x16)
        x16 = self.decode16(_enlarge(self.lateral16(x32)).add_(x16))
        x8 = self.decode8(_enlarge(self.lateral8(x16)).add_(x8))
        x4 = self.decode4(_enlarge(self.lateral4(x8)).add_(x4))

        coarse = _unit_length(self.coarse_head(x8).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        fine = _shuffle(
            _unit_length(self.fine_head(x4).permute(0, 2, 3, 1).unflatten(-1, (SHUFFLE, SHUFFLE, FINE_CHANNELS)))
        )
        return coarse[..., : -(-height // 8), : -(-width // 8)], fine[..., : -(-height // 2), : -(-width // 2)]


def _unshuffle(image: Tensor) -> Tensor:
    """`pixel_unshuffle` of (B, 1, H, W) straight into the channels-last layout."""
    cells = image.unflatten(-1, (-1, STEM)).unflatten(2, (-1, STEM))[:, 0]  # (B, H/4, 4, W/4, 4)
    return cells.transpose(2, 3).flatten(3).permute(0, 3, 1, 2)


def _shuffle(cells: Tensor) -> Tensor:
    """(B, h, w, 2, 2, C) -> (B, C, 2h, 2w) in the channels-last layout. A descriptor's numbers stay side by side."""
    return cells.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _unit_length(cells: Tensor) -> Tensor:
    """Descriptors (..., C) of length 1, in float32."""
    cells = cells.float()
    scale = torch.linalg.vector_norm(cells, dim=-1, keepdim=True).clamp_min(1e-6).reciprocal()
    # A fresh map of this size costs more than the product.
    return cells * scale if torch.is_grad_enabled() else cells.mul_(scale)


def _enlarge(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def fold_batch_norm(trained: Network) -> Network:
    """The same function of the image without batch norm layers (evaluation mode)."""
    folded = type(trained)()
    source, target = dict(trained.named_modules()), dict(folded.named_modules())
    for name, module in target.items():
        if isinstance(module, nn.Conv2d):
            conv = source[name]
            parent, _, index = name.rpartition(".")
            norm = source[parent][1] if index == "0" and isinstance(source[parent], ConvBlock) else None
            if isinstance(norm, nn.BatchNorm2d):
                conv = nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
            module.load_state_dict(conv.state_dict())
    return folded


def sample_map(feature_map: Tensor, uv: Tensor, stride: int) -> Tensor:
    """Bilinear look-up of (B, C, h, w) maps at (B, N, 2) raw px -> (B, N, C).

    Cell i of a map of stride s is centred at pixel s*i + (s-1)/2.
    """
    height, width = feature_map.shape[-2:]
    cell = (uv - (stride - 1) / 2) / stride
    grid = 2 * cell / cell.new_tensor([max(width - 1, 1), max(height - 1, 1)]) - 1
    sampled = F.grid_sample(feature_map, grid[:, None].to(feature_map.dtype), align_corners=True, padding_mode="border")
    return sampled[:, :, 0].transpose(1, 2).contiguous()  # what follows multiplies descriptors, row by row
