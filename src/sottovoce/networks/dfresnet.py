"""DF-ResNet (Liu 2022, depth before width) and Gemini (Liu 2024, strides before both), tensor names as in WeSpeaker."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.errors import BadInput
from sottovoce.networks.layers import StatisticsPool

GEMINI = ((2, 1), (2, 2), (2, 1), (2, 1))  # (mel, frames): the golden ratio of the Gemini paper, mel / 16, frames / 2
EQUAL = ((1, 1), (2, 2), (2, 2), (2, 2))  # our reading: the strides of DF-ResNet are published nowhere we can see


@dataclass(frozen=True)
class Config:
    """Depth and width of a DF-ResNet: blocks a stage, channels of the stem and of each stage, strides before it."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    dims: tuple[int, ...] = (32, 32, 64, 128, 256)
    strides: tuple[tuple[int, int], ...] = GEMINI  # (mel, frames)
    expansion: int = 4
    mels: int = 80
    dim: int = 256


class InvertedBlock(nn.Module):
    """1×1 to more channels → depthwise 3×3 → 1×1 back, and the identity: (batch, channels, mel, frames) → same."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * channels
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(x + self.bn3(self.conv3(wide)))


def _convolution(inputs: int, outputs: int, stride: tuple[int, int]) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)]


class Encoder(nn.Module):
    """Features → embedding: (batch, mels, frames) → (batch, dim). Frames must be at least `min_frames`.

    Raises BadInput when depths, dims and strides do not belong together.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        stages = len(config.depths)
        if len(config.dims) != stages + 1 or len(config.strides) != stages:
            raise BadInput(
                f"network dfresnet: {stages} depths need {stages + 1} dims (the stem's first) and {stages} strides, "
                f"found {len(config.dims)} and {len(config.strides)}"
            )
        self.config = config
        self.dim = config.dim
        downs = [nn.Sequential(*_convolution(1, config.dims[0], (1, 1)), nn.ReLU())]
        for inputs, outputs, stride in zip(config.dims, config.dims[1:], config.strides, strict=False):
            downs.append(nn.Sequential(*_convolution(inputs, outputs, stride)))
        self.downsample_layers = nn.ModuleList(downs)
        self.stages = nn.ModuleList(
            nn.Sequential(*(InvertedBlock(channels, config.expansion) for _ in range(depth)))
            for channels, depth in zip(config.dims[1:], config.depths, strict=True)
        )
        rows = -(-config.mels // math.prod(mel for mel, _ in config.strides))
        self.min_frames = math.prod(frames for _, frames in config.strides) + 1  # two are left for a deviation
        self.pool = StatisticsPool()
        self.seg_1 = nn.Linear(2 * config.dims[-1] * rows, config.dim)

    def forward(self, features: Tensor) -> Tensor:
        stem, *downs = self.downsample_layers
        x = stem(features.unsqueeze(1))
        for down, stage in zip(downs, self.stages, strict=True):
            x = stage(down(x))
        return self.seg_1(self.pool(x))


DEPTHS = {56: (3, 3, 9, 3), 110: (3, 3, 27, 3), 179: (3, 8, 45, 3), 233: (3, 8, 63, 3)}
PRESETS: dict[str, Config] = {
    **{f"dfresnet{layers}": Config(depths, strides=EQUAL) for layers, depths in DEPTHS.items()},
    **{f"gemini{layers + 4}": Config(depths) for layers, depths in DEPTHS.items()},
}
