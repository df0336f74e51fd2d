"""ResNet for speaker embeddings (He 2016; r-vector, Zeinali 2019, arXiv 1910.12592), tensor names as in WeSpeaker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.networks.layers import StatisticsPool


@dataclass(frozen=True)
class Config:
    """Depth and width of a ResNet with basic blocks."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 32
    mels: int = 80
    dim: int = 256


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: (batch, in, mel, frames) → (batch, out, mel / stride, frames / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + self.shortcut(x))


class Encoder(nn.Module):
    """Features → embedding: (batch, mels, frames) → (batch, dim). Frames must be at least `min_frames`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        width = config.width
        self.conv1 = nn.Conv2d(1, width, 3, 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(config.blocks, start=1):
            outputs = width * 2 ** (stage - 1)
            strides = [1 if stage == 1 else 2] + [1] * (count - 1)
            blocks = [BasicBlock(inputs if i == 0 else outputs, outputs, s) for i, s in enumerate(strides)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            inputs = outputs
        reduction = 2 ** (len(config.blocks) - 1)
        rows = -(-config.mels // reduction)
        self.min_frames = reduction + 1  # two frames must be left for a standard deviation
        self.pool = StatisticsPool()
        self.seg_1 = nn.Linear(2 * inputs * rows, config.dim)

    def forward(self, features: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(features.unsqueeze(1))))
        for stage in range(1, len(self.config.blocks) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.seg_1(self.pool(x))


PRESETS: dict[str, Config] = {
    "resnet18": Config((2, 2, 2, 2)),
    "resnet34": Config((3, 4, 6, 3)),
}
