"""The small convolutional backbone that both of our matcher families share.

A U-shaped network on one grey image: strides 2 to 32, with a coarse descriptor map at 1/8 and a fine one at 1/2. Pixel
unshuffle at the stem keeps the full resolution's detail in the channels while every convolution runs at half of it or less.
It is trained with batch normalisation, which `fold_batch_norm` then merges into the convolutions: the network that drives on
the robot is plain convolutions with biases, so there are no statistics that could drift while it learns.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

COARSE_STRIDE = 8
FINE_STRIDE = 2
COARSE_CHANNELS = 64
FINE_CHANNELS = 16
MIN_SIDE_PX = 32  # the deepest map has stride 32


class ConvBlock(nn.Sequential):
    """3x3 convolution, optional batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, batch_norm: bool = False) -> None:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not batch_norm)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        super().__init__(conv, *([nn.BatchNorm2d(outputs)] if batch_norm else []), nn.ReLU(inplace=True))


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


def _enlarge(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def fold_batch_norm(trained: Backbone) -> Backbone:
    """The same function of the image without batch norm layers (evaluation mode)."""
    folded = Backbone()
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
