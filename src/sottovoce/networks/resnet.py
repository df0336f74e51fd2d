"""ResNet for speaker embeddings (He 2016; r-vector, Zeinali 2019, arXiv 1910.12592), tensor names as in WeSpeaker."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.errors import BadInput
from sottovoce.networks.layers import AttentivePool, SqueezeExcite, StatisticsPool


@dataclass(frozen=True)
class Config:
    """Depth, width and parts of a ResNet."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 32
    growth: tuple[int, ...] = (1, 2, 4, 8)  # channels of each stage, as a multiple of `width`
    block: str = "basic"  # a name in BLOCKS
    excited: int = 0  # the first so many stages have squeeze-and-excitation
    silu: bool = False  # SiLU instead of ReLU after the stem
    attention: int = 0  # channels inside attentive pooling; 0: plain statistics
    norms: bool = False  # batch norms before and on the embedding
    two_layers: bool = False  # ReLU, batch norm and a second linear layer behind the first; the embedding is that one's
    mels: int = 80
    dim: int = 256


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _excite(channels: int, excited: bool) -> nn.Module:
    """Gains from as many hidden channels as there are channels, through SiLU (Kiwano); nothing when not excited."""
    return SqueezeExcite(channels, channels, nn.SiLU) if excited else nn.Identity()


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: (batch, in, mel, frames) → (batch, out, mel / stride, frames / stride)."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, excited: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = _excite(channels, excited)
        self.shortcut = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(self.se(inner) + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1×1, 3×3 and 1×1 to four times the channels, and a shortcut; shapes as BasicBlock's with out = 4 · channels."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, excited: bool) -> None:
        super().__init__()
        outputs = self.expansion * channels
        self.conv1 = _convolution(inputs, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _convolution(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _convolution(channels, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.se = _excite(outputs, excited)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(self.se(self.bn3(self.conv3(inner))) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """Batch norm and SiLU before each of 3×3, 3×3 and 1×1, none after the sum (Kiwano's ResNet-200); as BasicBlock.

    That the shortcut reads what no batch norm has changed is our reading.
    """

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, excited: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _convolution(inputs, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = _convolution(channels, channels, 3)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = _convolution(channels, channels, 1)
        self.se = _excite(channels, excited)
        self.shortcut = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        silu = nn.functional.silu
        inner = self.conv2(silu(self.bn2(self.conv1(silu(self.bn1(x))))))
        return self.se(self.conv3(silu(self.bn3(inner)))) + self.shortcut(x)


BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock, "preactivation": PreActivationBlock}


class Encoder(nn.Module):
    """Features → embedding: (batch, mels, frames) → (batch, dim). Frames must be at least `min_frames`.

    Raises BadInput for an unknown block, naming the nearest, and for more stages than `growth` has.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.dim = config.dim
        self.conv1 = _convolution(1, config.width, 3)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.activation = nn.SiLU() if config.silu else nn.ReLU()
        block = BLOCKS[config.block]
        inputs = config.width
        for stage, count in enumerate(config.blocks, start=1):
            channels = config.width * config.growth[stage - 1]
            blocks: list[nn.Module] = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(block(inputs, channels, stride, stage <= config.excited))
                inputs = channels * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        reduction = 2 ** (len(config.blocks) - 1)
        channels = inputs * -(-config.mels // reduction)
        self.min_frames = reduction + 1  # two frames must be left for a standard deviation
        self.pool = AttentivePool(channels, config.attention) if config.attention else StatisticsPool()
        self.bn2 = nn.BatchNorm1d(2 * channels) if config.norms else nn.Identity()
        self.seg_1 = nn.Linear(2 * channels, config.dim)
        self.bn3 = nn.BatchNorm1d(config.dim) if config.norms else nn.Identity()
        self.seg_bn_1 = nn.BatchNorm1d(config.dim, affine=False) if config.two_layers else nn.Identity()
        self.seg_2 = nn.Linear(config.dim, config.dim) if config.two_layers else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.conv1(features.unsqueeze(1))))
        for stage in range(1, len(self.config.blocks) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        embedding = self.bn3(self.seg_1(self.bn2(self.pool(x))))
        return self.seg_2(self.seg_bn_1(torch.relu(embedding))) if self.config.two_layers else embedding


def _check(config: Config) -> None:
    if config.block not in BLOCKS:
        near = (difflib.get_close_matches(config.block, BLOCKS, 1) or list(BLOCKS))[0]
        raise BadInput(f"network resnet: block {config.block!r} is unknown; did you mean {near!r}?")
    if len(config.growth) < len(config.blocks):
        raise BadInput(f"network resnet: {len(config.blocks)} stages need as many numbers in growth: {config.growth}")


def _paper_d(blocks: tuple[int, ...], block: str) -> Config:
    """Leguillier 2026 (arXiv 2606.08078), after the Kiwano toolkit: 80 mels and the energy, 81 rows."""
    parts = {"excited": 2, "silu": True, "attention": 128, "norms": True}
    return Config(blocks, 128, (1, 1, 2, 2), block, **parts, mels=81)  # type: ignore[arg-type]


BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 221: (6, 16, 48, 3), 293: (10, 20, 64, 3)}
PRESETS: dict[str, Config] = {
    **{f"resnet{layers}": Config(blocks) for layers, blocks in BASIC.items()},
    **{f"resnet{layers}": Config(blocks, block="bottleneck") for layers, blocks in BOTTLENECK.items()},
    **{f"resnet{layers}x{width}": Config(BASIC[layers], width) for layers in BASIC for width in (8, 16)},
    # Li 2023 (arXiv 2210.17326); 64 mels, attentive pooling through 128 channels
    **{f"resnet{layers}-c": Config(blocks, attention=128, mels=64) for layers, blocks in BASIC.items()},
    "resnet36-d": _paper_d((3, 4, 6, 3), "basic"),
    "resnet200-d": _paper_d((3, 24, 36, 3), "preactivation"),
}
