"""ResNetSE34L (Chung 2020, arXiv 2003.11982) and ResNetSE34V2 (Heo 2020, arXiv 2009.14153), names: voxceleb_trainer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.networks.layers import ChannelGate, attention, check_frames, weighted_statistics

REDUCTION = 8  # channels over those inside squeeze-and-excitation


@dataclass(frozen=True)
class Config:
    """Depth, width and pooling of a ResNetSE34."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (16, 32, 64, 128)
    lite: bool = True  # 7×7 stem, one stride less, rows averaged before pooling (L); False: V2
    deviations: bool = False  # standard deviations beside the means (ASP, not SAP)
    mels: int = 40
    dim: int = 512


class Block(nn.Module):
    """Two 3×3 convolutions, squeeze-and-excitation, a shortcut; ReLU comes before the first batch norm.

    (batch, in, mel, frames) → (batch, out, mel / stride, frames / stride).
    """

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = ChannelGate(channels, channels // REDUCTION)
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != channels:
            self.downsample.append(nn.Conv2d(inputs, channels, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(torch.relu(self.conv1(x)))))
        return torch.relu(self.se(inner) + self.downsample(x))


class Encoder(nn.Module):
    """Features → embedding: (batch, mels, frames) → (batch, dim). Raises BadInput below `min_frames`.

    Every mel is brought to mean 0 and variance 1 over the recording first: that is part of this network.
    """

    min_frames = 2  # a variance needs two

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.instancenorm = nn.InstanceNorm1d(config.mels)
        inputs = config.widths[0]
        self.conv1 = (
            nn.Conv2d(1, inputs, 7, (2, 1), padding=3, bias=False)
            if config.lite
            else nn.Conv2d(1, inputs, 3, padding=1)
        )
        self.bn1 = nn.BatchNorm2d(inputs)
        strides = (1, 2, 2, 1 if config.lite else 2)
        for stage, (count, channels, stride) in enumerate(zip(config.blocks, config.widths, strides, strict=True)):
            blocks = [Block(inputs, channels, stride)]
            blocks += [Block(channels, channels, 1) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = channels
        if config.lite:
            self.sap_linear = nn.Linear(inputs, inputs)
            self.attention = nn.Parameter(nn.init.xavier_normal_(torch.empty(inputs, 1)))
        else:
            inputs *= -(-config.mels // 8)
            self.attention = attention(inputs)
        self.fc = nn.Linear(inputs * (1 + config.deviations), config.dim)

    def forward(self, features: Tensor) -> Tensor:
        check_frames(features, self.min_frames)
        x = self.conv1(self.instancenorm(features).unsqueeze(1))
        x = torch.relu(self.bn1(x)) if self.config.lite else self.bn1(torch.relu(x))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        x = x.mean(dim=2) if self.config.lite else x.flatten(1, 2)
        return self.fc(self._pooled(x, self._weights(x)))

    def _weights(self, x: Tensor) -> Tensor:
        """Weights of frames, of sum 1: (batch, channels, frames) → (batch, 1 or channels, frames)."""
        if not self.config.lite:
            return self.attention(x)
        hidden = torch.tanh(self.sap_linear(x.transpose(1, 2)))
        return torch.softmax(hidden @ self.attention, dim=1).transpose(1, 2)

    def _pooled(self, x: Tensor, weight: Tensor) -> Tensor:
        return weighted_statistics(x, weight, 1e-5) if self.config.deviations else (x * weight).sum(dim=2)


PRESETS: dict[str, Config] = {
    "resnetse34l": Config(),
    "resnetse34v2": Config(widths=(32, 64, 128, 256), lite=False, deviations=True, mels=64),
}
