"""The ResNet before the patches of a hybrid (Section 3.1, "Hybrid Architecture"; `models_resnet.py` of its code).

A ResNet of bottleneck units whose filters are standardised and whose normalisation is by groups, as in "Big Transfer",
with padding like TensorFlow's: as much as the output needs, the odd pixel at the end.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_vit import ViTConfig


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose every filter is shifted and scaled to mean 0 and standard deviation 1."""

    def __init__(self, config: ViTConfig, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False)
        self.numerics = config.resnet_numerics

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        filters = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)).flatten(1)
        if self.numerics == "paper":
            deviation, mean = torch.std_mean(filters, dim=1, correction=0, keepdim=True)
            filters = (filters - mean) / (deviation + 1e-5)
        else:
            filters = F.batch_norm(filters[None], None, None, training=True, momentum=0.0, eps=1e-8)
        weight = filters.view_as(self.weight).to(input.dtype)
        return F.conv2d(_pad_same(input, self.kernel_size[0], self.stride[0], 0.0), weight, stride=self.stride)


class ResidualGroupNorm(nn.GroupNorm):
    """The last normalisation of a unit's branch; its scale starts at 0, so that the unit starts as its shortcut."""


class ResNetRoot(nn.Module):
    """7x7 convolution and 3x3 maximum, each with stride 2."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.conv = StandardizedConv2d(config, config.num_channels, config.resnet_width, 7, stride=2)
        self.norm = nn.GroupNorm(32, config.resnet_width, _group_norm_eps(config))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = F.relu(self.norm(self.conv(pixel_values)))
        return F.max_pool2d(_pad_same(features, 3, 2, float("-inf")), 3, stride=2)


class ResNetShortcut(nn.Module):
    """1x1 convolution for a unit whose output has another shape than its input."""

    def __init__(self, config: ViTConfig, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = StandardizedConv2d(config, in_channels, out_channels, 1, stride)
        self.norm = nn.GroupNorm(32, out_channels, _group_norm_eps(config))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(features))


class ResNetUnit(nn.Module):
    """Bottleneck: 1x1, 3x3 with the stride, 1x1 to four times the channels."""

    def __init__(self, config: ViTConfig, in_channels: int, channels: int, stride: int):
        super().__init__()
        eps = _group_norm_eps(config)
        self.conv1 = StandardizedConv2d(config, in_channels, channels, 1)
        self.norm1 = nn.GroupNorm(32, channels, eps)
        self.conv2 = StandardizedConv2d(config, channels, channels, 3, stride)
        self.norm2 = nn.GroupNorm(32, channels, eps)
        self.conv3 = StandardizedConv2d(config, channels, 4 * channels, 1)
        self.norm3 = ResidualGroupNorm(32, 4 * channels, eps)
        keeps_shape = stride == 1 and in_channels == 4 * channels
        self.shortcut = nn.Identity() if keeps_shape else ResNetShortcut(config, in_channels, 4 * channels, stride)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        branch = F.relu(self.norm1(self.conv1(features)))
        branch = F.relu(self.norm2(self.conv2(branch)))
        return F.relu(self.shortcut(features) + self.norm3(self.conv3(branch)))


class ResNet(nn.Module):
    """Images to a feature map, (B, C, H, W) -> (B, `out_channels`, H / stride, W / stride)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.root = ResNetRoot(config)
        self.stages = nn.ModuleList()
        in_channels = config.resnet_width
        for stage, depth in enumerate(cast("list[int]", config.resnet_depths)):
            channels = config.resnet_width * 2**stage
            units = nn.Sequential()
            for unit in range(depth):
                units.append(ResNetUnit(config, in_channels, channels, stride=2 if stage and not unit else 1))
                in_channels = 4 * channels
            self.stages.append(units)
        self.out_channels = in_channels

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.root(pixel_values)
        for stage in self.stages:
            features = stage(features)
        return features


def _group_norm_eps(config: ViTConfig) -> float:
    return 1e-6 if config.resnet_numerics == "paper" else 1e-5


def _pad_same(features: torch.Tensor, kernel_size: int, stride: int, value: float) -> torch.Tensor:
    height, width = (max((-(-side // stride) - 1) * stride + kernel_size - side, 0) for side in features.shape[-2:])
    return F.pad(features, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)
