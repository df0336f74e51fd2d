"""The ResNet of SpeechBrain (Rouvier 2021, "Review of different robust x-vector extractors"), names as there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.networks.layers import ChannelGate, attention, check_frames, weighted_statistics


@dataclass(frozen=True)
class Config:
    """Depth and width of a ResNet whose blocks begin with their batch norms."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (128, 128, 256, 256)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    gated: int = 2  # the first so many stages have squeeze-and-excitation
    mels: int = 80
    dim: int = 256


class Block(nn.Module):
    """Batch norm and ReLU before each of 3×3, 3×3 and 1×1, none after the sum: (batch, in, frames, mel) → (…, out, …).

    Frames come before mels, as the tensors of its checkpoints have it.
    """

    def __init__(self, inputs: int, channels: int, stride: int, gated: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)
        self.se = ChannelGate(channels, channels) if gated else nn.Identity()
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != channels:
            self.downsample.append(nn.Conv2d(inputs, channels, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(torch.relu(self.bn1(x)))
        inner = self.conv2(torch.relu(self.bn2(inner)))
        inner = self.conv3(torch.relu(self.bn3(inner)))
        return self.se(inner) + self.downsample(x)


class Encoder(nn.Module):
    """Features → embedding: (batch, mels, frames) → (batch, dim). Raises BadInput below `min_frames`."""

    min_frames = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        inputs = config.widths[0]
        self.conv1 = nn.Conv2d(1, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        stages = zip(config.blocks, config.widths, config.strides, strict=True)
        for stage, (count, channels, stride) in enumerate(stages, start=1):
            gated = stage <= config.gated
            blocks = [Block(inputs, channels, stride, gated)]
            blocks += [Block(channels, channels, 1, gated) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            inputs = channels
        channels = inputs * -(-config.mels // math.prod(config.strides))
        self.attention = attention(channels)
        self.norm_stats = nn.BatchNorm1d(2 * channels)
        self.fc_embed = nn.Linear(2 * channels, config.dim)
        self.norm_embed = nn.BatchNorm1d(config.dim)

    def forward(self, features: Tensor) -> Tensor:
        check_frames(features, self.min_frames)
        x = torch.relu(self.bn1(self.conv1(features.transpose(1, 2).unsqueeze(1))))
        for stage in range(1, len(self.config.blocks) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        x = x.transpose(2, 3).flatten(1, 2)
        pooled = weighted_statistics(x, self.attention(x), 1e-5)
        return self.norm_embed(self.fc_embed(self.norm_stats(pooled)))


PRESETS: dict[str, Config] = {"resnet-speechbrain": Config()}
