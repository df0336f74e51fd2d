"""ECAPA-TDNN (Desplanques 2020, arXiv 2005.07143, section 3), with the tensor names of WeSpeaker.

The switches of Config make it SpeechBrain's and TaoRuijie's as well; what their tensors are called there stands in
`lab.layouts`. SpeechBrain leaves the first part of a Res2 convolution as it is and we the last: the same network with
the channels before and behind it in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.errors import BadInput
from sottovoce.networks.layers import STATISTICS, AttentivePool, SqueezeExcite

DILATIONS = (2, 3, 4)  # of the blocks


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
    aggregate_norm: bool = False  # batch norm behind the aggregation
    padding: str = "zeros"  # or "reflect": what a convolution sees beyond the recording
    statistics: str = "wespeaker"  # a name in layers.STATISTICS: how deviations are computed


def _convolution(inputs: int, outputs: int, kernel: int, dilation: int, padding: str) -> nn.Conv1d:
    """As many frames out as in."""
    beyond = dilation * (kernel // 2)
    mode = padding if beyond else "zeros"
    return nn.Conv1d(inputs, outputs, kernel, padding=beyond, dilation=dilation, padding_mode=mode)


class ConvReluNorm(nn.Module):
    """Convolution → ReLU → batch norm, in this order: (batch, in, frames) → (batch, out, frames)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, padding: str) -> None:
        super().__init__()
        self.conv = _convolution(inputs, outputs, kernel, 1, padding)
        self.bn = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.relu(self.conv(x)))


class Res2Conv(nn.Module):
    """Res2Net convolution: all parts but the last are convolved, each after adding the result of the one before it."""

    def __init__(self, channels: int, kernel: int, dilation: int, scale: int, padding: str) -> None:
        super().__init__()
        self.width = channels // scale
        self.convs = nn.ModuleList(
            _convolution(self.width, self.width, kernel, dilation, padding) for _ in range(scale - 1)
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

    def __init__(self, channels: int, dilation: int, scale: int, padding: str) -> None:
        super().__init__()
        self.se_res2block = nn.Sequential(
            ConvReluNorm(channels, channels, 1, padding),
            Res2Conv(channels, 3, dilation, scale, padding),
            ConvReluNorm(channels, channels, 1, padding),
            SqueezeExcite(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se_res2block(x)


class Encoder(nn.Module):
    """Features → embedding: (batch, mels, frames) → (batch, dim). Frames must be at least `min_frames`.

    Raises BadInput for a padding or statistics that there are not.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.dim = config.dim
        # a standard deviation needs two; a mirror as many as it shows and the one in its middle
        self.min_frames = 1 + DILATIONS[-1] if config.padding == "reflect" else 2
        self.layer1 = ConvReluNorm(config.mels, config.width, 5, config.padding)
        for index, dilation in enumerate(DILATIONS, start=2):
            self.add_module(f"layer{index}", SERes2Block(config.width, dilation, config.scale, config.padding))
        self.conv = nn.Conv1d(3 * config.width, config.aggregate, kernel_size=1)
        context = int(config.context) + int(config.context and config.context_std)
        self.conv_bn = nn.BatchNorm1d(config.aggregate) if config.aggregate_norm else nn.Identity()
        self.pool = AttentivePool(config.aggregate, config.attention, context, config.attention_norm, config.statistics)
        self.bn = nn.BatchNorm1d(2 * config.aggregate)
        self.linear = nn.Linear(2 * config.aggregate, config.dim)
        self.bn2 = nn.BatchNorm1d(config.dim) if config.dim_norm else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        read = self.layer1(features)
        blocks: list[Tensor] = []
        for index in range(len(DILATIONS)):
            blocks.append(self.get_submodule(f"layer{index + 2}")(read))
            read = read + blocks[-1] if self.config.dense else blocks[-1]
        x = self.conv_bn(torch.relu(self.conv(torch.cat(blocks, dim=1))))
        return self.bn2(self.linear(self.bn(self.pool(x))))


def _check(config: Config) -> None:
    for value, known in ((config.padding, ("zeros", "reflect")), (config.statistics, tuple(STATISTICS))):
        if value not in known:
            raise BadInput(f"network ecapa: {value!r} is unknown; known: {', '.join(known)}")


def _paper_a(width: int) -> Config:
    """Hong 2024 (arXiv 2407.08991), after the reimplementation by Tao Ruijie: 15,444,544 parameters at width 1024."""
    return Config(width, attention=256, attention_norm=True, dense=True, dim_norm=True)


def _speechbrain(width: int) -> Config:
    """speechbrain.lobes.models.ECAPA_TDNN: 20,767,552 parameters at width 1024."""
    return Config(
        width,
        aggregate=3 * width,
        attention_norm=True,
        aggregate_norm=True,
        padding="reflect",
        statistics="speechbrain",
    )


def _paper_c(width: int) -> Config:
    """Li 2023 (arXiv 2210.17326): 64 mels. That the attention sees the mean is our reading of its parameter counts."""
    return Config(width, context_std=False, mels=64)


PRESETS: dict[str, Config] = {
    **{f"ecapa{width}": Config(width) for width in (256, 512, 1024)},
    **{f"ecapa{width}-speechbrain": _speechbrain(width) for width in (512, 1024)},
    **{f"ecapa{width}-a": _paper_a(width) for width in (512, 1024)},
    **{f"ecapa{width}-c": _paper_c(width) for width in (256, 512, 1024)},
}
