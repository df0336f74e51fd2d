"""SimAM-ResNet (Qin 2022, "Simple attention module based speaker verification"; Yang 2021), names as in WeSpeaker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.networks.layers import attention, check_frames, weighted_statistics

LAMBDA = 1e-4  # added to the variance (Yang 2021, equation 5)


@dataclass(frozen=True)
class Config:
    """Depth and width of a SimAM-ResNet."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64  # channels of the first stage; each stage has twice those of the one before
    mels: int = 80
    dim: int = 256


def weigh_by_energy(x: Tensor) -> Tensor:
    """SimAM without a parameter: values that stand out from their channel's map weigh more (Yang 2021, equation 5).

    x: (batch, channels, rows, columns)   returns: the same shape.
    """
    distance = (x - x.mean(dim=(2, 3), keepdim=True)).square()
    variance = distance.sum(dim=(2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
    return x * torch.sigmoid(distance / (4 * (variance + LAMBDA)) + 0.5)


class Block(nn.Module):
    """Two 3×3 convolutions, SimAM, a shortcut: (batch, in, mel, frames) → (batch, out, mel and frames / stride)."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != channels:
            self.downsample.append(nn.Conv2d(inputs, channels, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(weigh_by_energy(inner) + self.downsample(x))


class Front(nn.Module):
    """Stem and stages: (batch, 1, mels, frames) → (batch, channels, mels / 8, frames / 8)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, config.width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        inputs = config.width
        for stage, count in enumerate(config.blocks):
            channels = config.width * 2**stage
            blocks = [Block(inputs, channels, 2 if stage else 1)]
            blocks += [Block(channels, channels, 1) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = channels

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        for name, stage in self.named_children():
            if name.startswith("layer"):
                x = stage(x)
        return x


class Pooling(nn.Module):
    """Attentive statistics of frames whose rows are channels: (batch, channels, mel, frames) → (batch, features)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2)
        return weighted_statistics(x, self.attention(x), 1e-5)


class Encoder(nn.Module):
    """Features → embedding: (batch, mels, frames) → (batch, dim). Raises BadInput below `min_frames`."""

    min_frames = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        reduction = 2 ** (len(config.blocks) - 1)
        channels = config.width * reduction * -(-config.mels // reduction)
        self.front = Front(config)
        self.pooling = Pooling(channels)
        self.bottleneck = nn.Linear(2 * channels, config.dim)

    def forward(self, features: Tensor) -> Tensor:
        check_frames(features, self.min_frames)
        return self.bottleneck(self.pooling(self.front(features.unsqueeze(1))))


PRESETS: dict[str, Config] = {
    "simam34": Config(),
    "simam100": Config((6, 16, 24, 3)),
}
