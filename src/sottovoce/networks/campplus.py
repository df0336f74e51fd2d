"""CAM++ (Wang 2023, arXiv 2303.00332), tensor names as in WeSpeaker and in 3D-Speaker, where they are the same."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.networks.layers import StatisticsPool, check_frames


@dataclass(frozen=True)
class Config:
    """Depth and width of a CAM++."""

    layers: tuple[int, ...] = (12, 24, 16)  # of each dense block
    dilations: tuple[int, ...] = (1, 2, 2)
    head: int = 32  # channels of the residual blocks in front
    width: int = 128  # channels that the first dense block reads
    growth: int = 32  # channels that a dense layer adds
    bottleneck: int = 4  # channels inside a dense layer, as a multiple of `growth`
    segment: int = 100  # frames, at half the rate of the features, that share one mask
    floor: float = 1e-7  # added to the variance before its root; 3D-Speaker adds nothing
    mels: int = 80
    dim: int = 512


class HeadBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; the stride is one of mel rows only."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, (stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(channels, channels, 1, (stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + self.shortcut(x))


class Head(nn.Module):
    """Residual blocks on the features as a map: (batch, mels, frames) → (batch, channels · mels / 8, frames)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(HeadBlock(channels, 2), HeadBlock(channels, 1))
        self.layer2 = nn.Sequential(HeadBlock(channels, 2), HeadBlock(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, (2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(features.unsqueeze(1))))
        return torch.relu(self.bn2(self.conv2(self.layer2(self.layer1(x))))).flatten(1, 2)


def _norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU()))


class ContextMask(nn.Module):
    """Convolution whose channels are masked by the context (section 2.2): (batch, in, frames) → (batch, out, frames).

    The context of a frame is the mean of the recording plus that of the frame's segment. It is the same throughout a
    segment, so the mask is computed once for each of them and repeated, which changes no value.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int, segment: int) -> None:
        super().__init__()
        self.segment = segment
        self.linear_local = nn.Conv1d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(inputs, inputs // 2, 1)
        self.linear2 = nn.Conv1d(inputs // 2, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        # no padding is counted: engines disagree on how many frames the last, shorter segment else has
        means = nn.functional.avg_pool1d(x, self.segment, self.segment, ceil_mode=True, count_include_pad=False)
        context = x.mean(dim=-1, keepdim=True) + means
        mask = torch.sigmoid(self.linear2(torch.relu(self.linear1(context))))
        repeated = nn.functional.interpolate(mask, scale_factor=float(self.segment), mode="nearest")
        return self.linear_local(x) * repeated[..., : x.shape[-1]]


class DenseLayer(nn.Module):
    """Norm, ReLU and 1×1 convolution, twice the same with a masked convolution: (batch, in, frames) → (…, out, …)."""

    def __init__(self, inputs: int, config: Config, dilation: int) -> None:
        super().__init__()
        inner = config.bottleneck * config.growth
        self.nonlinear1 = _norm_relu(inputs)
        self.linear1 = nn.Conv1d(inputs, inner, 1, bias=False)
        self.nonlinear2 = _norm_relu(inner)
        self.cam_layer = ContextMask(inner, config.growth, dilation, config.segment)

    def forward(self, x: Tensor) -> Tensor:
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))


class DenseBlock(nn.Module):
    """Dense layers, each of which reads the input and what all layers before it made, channels side by side."""

    def __init__(self, inputs: int, layers: int, config: Config, dilation: int) -> None:
        super().__init__()
        for index in range(layers):
            self.add_module(f"tdnnd{index + 1}", DenseLayer(inputs + index * config.growth, config, dilation))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], dim=1)
        return x


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Encoder(nn.Module):
    """Features → embedding: (batch, mels, frames) → (batch, dim). Raises BadInput below `min_frames`."""

    min_frames = 3  # of which every second is left, and a standard deviation needs two

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.head = Head(config.head)
        rows = -(-config.mels // 8)
        channels = config.width
        parts: dict[str, nn.Module] = {
            "tdnn": nn.Sequential(
                OrderedDict(linear=_convolution(config.head * rows, channels, 5, 2), nonlinear=_norm_relu(channels))
            )
        }
        for index, (layers, dilation) in enumerate(zip(config.layers, config.dilations, strict=True), start=1):
            parts[f"block{index}"] = DenseBlock(channels, layers, config, dilation)
            channels += layers * config.growth
            parts[f"transit{index}"] = nn.Sequential(
                OrderedDict(nonlinear=_norm_relu(channels), linear=_convolution(channels, channels // 2))
            )
            channels //= 2
        parts["out_nonlinear"] = _norm_relu(channels)
        parts["stats"] = StatisticsPool(config.floor)
        norm = nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(config.dim, affine=False)))
        parts["dense"] = nn.Sequential(OrderedDict(linear=_convolution(2 * channels, config.dim), nonlinear=norm))
        self.xvector = nn.Sequential(OrderedDict(parts))

    def forward(self, features: Tensor) -> Tensor:
        check_frames(features, self.min_frames)
        *parts, dense = self.xvector
        x = self.head(features)
        for part in parts:
            x = part(x)
        return dense(x.unsqueeze(2)).squeeze(2)


PRESETS: dict[str, Config] = {
    "campplus": Config(),
    "campplus-3dspeaker": Config(floor=1e-16, dim=192),  # nearly nothing: the root of nothing has no gradient
}
