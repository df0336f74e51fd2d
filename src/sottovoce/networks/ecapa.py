"""ECAPA-TDNN (Desplanques 2020, arXiv 2005.07143, section 3), with the choices and tensor names of WeSpeaker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.networks.layers import AttentivePool, SqueezeExcite


@dataclass(frozen=True)
class Config:
    """Width of an ECAPA-TDNN and what sets its published variants apart."""

    width: int = 512
    context: bool = True  # the attention also sees mean and standard deviation of the recording (GLOB)
    context_std: bool = True  # False: of the two only the mean
    mels: int = 80
    dim: int = 192
    aggregate: int = 1536  # channels before pooling
    scale: int = 8  # parts of a Res2 convolution
    attention: int = 128  # channels inside the attention
    attention_norm: bool = False  # ReLU and batch norm before its tanh
    dense: bool = False  # a block reads the sum of all outputs before it, not the last
    dim_norm: bool = False  # batch norm on the embedding


class ConvReluNorm(nn.Module):
    """Convolution → ReLU → batch norm, in this order: (batch, in, frames) → (batch, out, frames)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.relu(self.conv(x)))


class Res2Conv(nn.Module):
    """Res2Net convolution: all parts but the last are convolved, each after adding the result of the one before it."""

    def __init__(self, channels: int, kernel: int, dilation: int, scale: int) -> None:
        super().__init__()
        self.width = channels // scale
        padding = dilation * (kernel // 2)
        self.convs = nn.ModuleList(
            nn.Conv1d(self.width, self.width, kernel, padding=padding, dilation=dilation) for _ in range(scale - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm1d(self.width) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        *parts, last = torch.split(x, self.width, dim=1)
        done: list[Tensor] = []
        for part, conv, bn in zip(parts, self.convs, self.bns, strict=True):
            done.append(bn(torch.relu(conv(part + done[-1] if done else part))))
        return torch.cat([*done, last], dim=1)


class SERes2Block(nn.Module):
    """1×1 → Res2 → 1×1 → SE with a residual connection around it."""

    def __init__(self, channels: int, dilation: int, scale: int) -> None:
        super().__init__()
        self.se_res2block = nn.Sequential(
            ConvReluNorm(channels, channels, 1),
            Res2Conv(channels, 3, dilation, scale),
            ConvReluNorm(channels, channels, 1),
            SqueezeExcite(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se_res2block(x)


class Encoder(nn.Module):
    """Features → embedding: (batch, mels, frames) → (batch, dim). Frames must be at least `min_frames`."""

    min_frames = 2  # a standard deviation needs two

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.layer1 = ConvReluNorm(config.mels, config.width, 5)
        self.layer2 = SERes2Block(config.width, 2, config.scale)
        self.layer3 = SERes2Block(config.width, 3, config.scale)
        self.layer4 = SERes2Block(config.width, 4, config.scale)
        self.conv = nn.Conv1d(3 * config.width, config.aggregate, kernel_size=1)
        context = int(config.context) + int(config.context and config.context_std)
        self.pool = AttentivePool(config.aggregate, config.attention, context, config.attention_norm)
        self.bn = nn.BatchNorm1d(2 * config.aggregate)
        self.linear = nn.Linear(2 * config.aggregate, config.dim)
        self.bn2 = nn.BatchNorm1d(config.dim) if config.dim_norm else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        read = self.layer1(features)
        blocks: list[Tensor] = []
        for layer in (self.layer2, self.layer3, self.layer4):
            blocks.append(layer(read))
            read = read + blocks[-1] if self.config.dense else blocks[-1]
        x = torch.relu(self.conv(torch.cat(blocks, dim=1)))
        return self.bn2(self.linear(self.bn(self.pool(x))))


def _paper_a(width: int) -> Config:
    """Hong 2024 (arXiv 2407.08991), after the reimplementation by Tao Ruijie: 15,444,544 parameters at width 1024."""
    return Config(width, attention=256, attention_norm=True, dense=True, dim_norm=True)


def _paper_c(width: int) -> Config:
    """Li 2023 (arXiv 2210.17326): 64 mels. That the attention sees the mean is our reading of its parameter counts."""
    return Config(width, context_std=False, mels=64)


PRESETS: dict[str, Config] = {
    **{f"ecapa{width}": Config(width) for width in (256, 512, 1024)},
    **{f"ecapa{width}-a": _paper_a(width) for width in (512, 1024)},
    **{f"ecapa{width}-c": _paper_c(width) for width in (256, 512, 1024)},
}
