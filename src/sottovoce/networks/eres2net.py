"""ERes2Net (Chen 2023, arXiv 2305.12838) and ERes2NetV2 (Chen 2024, arXiv 2406.02167), names as in 3D-Speaker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.errors import BadInput
from sottovoce.networks.layers import StatisticsPool, check_frames

CEILING = 20.0  # of the ReLU inside the blocks
REDUCTION = 4  # channels of a fusion over those inside it


@dataclass(frozen=True)
class Config:
    """Depth and width of an ERes2Net, and which of its stages are fused."""

    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 32
    base: int = 32  # channels of a part of a convolution, for 64 of its stage
    scale: int = 2  # parts of a convolution
    expansion: int = 2
    fused: str = "all"  # a name in FUSED
    floor: float = 1e-8  # added to the variance before its root
    mels: int = 80
    dim: int = 192


class Fusion(nn.Module):
    """Attentive feature fusion: x · (1 + a) + y · (1 - a), a from both; all (batch, channels, rows, frames)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // REDUCTION
        self.local_att = nn.Sequential(
            nn.Conv2d(2 * channels, inner, 1),
            nn.BatchNorm2d(inner),
            nn.SiLU(),
            nn.Conv2d(inner, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        share = torch.tanh(self.local_att(torch.cat([x, y], dim=1)))
        return x * (1 + share) + y * (1 - share)


def _clipped(x: Tensor) -> Tensor:
    return nn.functional.hardtanh(x, 0.0, CEILING)


class Block(nn.Module):
    """1×1 → Res2 3×3 in parts → 1×1, and a shortcut; a part reads its share and the part before, added or fused.

    (batch, in, rows, frames) → (batch, expansion · channels, rows / stride, frames / stride).
    """

    def __init__(self, inputs: int, channels: int, stride: int, config: Config, fuses: bool) -> None:
        super().__init__()
        outputs, self.part = config.expansion * channels, channels * config.base // 64
        inner = self.part * config.scale
        self.conv1 = nn.Conv2d(inputs, inner, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.convs = nn.ModuleList(
            nn.Conv2d(self.part, self.part, 3, padding=1, bias=False) for _ in range(config.scale)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(self.part) for _ in range(config.scale))
        if fuses:
            self.fuse_models = nn.ModuleList(Fusion(self.part) for _ in range(config.scale - 1))
        self.fuses = fuses
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(_clipped(self.bn1(self.conv1(x))), self.part, dim=1)
        done: list[Tensor] = []
        for index, (part, conv, bn) in enumerate(zip(parts, self.convs, self.bns, strict=True)):
            read = part if index == 0 else self._joined(index, done[-1], part)
            done.append(_clipped(bn(conv(read))))
        return _clipped(self.bn3(self.conv3(torch.cat(done, dim=1))) + self.shortcut(x))

    def _joined(self, index: int, before: Tensor, part: Tensor) -> Tensor:
        return self.fuse_models[index - 1](before, part) if self.fuses else before + part


FUSED = {  # stage that is brought to the next one's shape: names of that convolution and of the fusion
    "all": {
        1: ("layer1_downsample", "fuse_mode12"),
        2: ("layer2_downsample", "fuse_mode123"),
        3: ("layer3_downsample", "fuse_mode1234"),
    },
    "last": {3: ("layer3_ds", "fuse34")},
}


class Encoder(nn.Module):
    """Features → embedding: (batch, mels, frames) → (batch, dim). Raises BadInput below `min_frames`.

    Raises BadInput for a name that is not in FUSED.
    """

    min_frames = 9  # of which an eighth is left, rounded up, and a standard deviation needs two

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.fused not in FUSED:
            raise BadInput(f"network eres2net: fused {config.fused!r} is unknown; known: {', '.join(FUSED)}")
        self.config = config
        self.dim = config.dim
        self.conv1 = nn.Conv2d(1, config.width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        inputs = config.width
        for stage, count in enumerate(config.blocks):
            channels = config.width * 2**stage
            blocks: list[nn.Module] = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(Block(inputs, channels, stride, config, fuses=stage >= 2))
                inputs = config.expansion * channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        for stage, (down, fusion) in FUSED[config.fused].items():
            channels = config.expansion * config.width * 2**stage
            self.add_module(down, nn.Conv2d(channels // 2, channels, 3, 2, padding=1, bias=False))
            self.add_module(fusion, Fusion(channels))
        self.pool = StatisticsPool(config.floor)
        self.seg_1 = nn.Linear(2 * inputs * -(-config.mels // 8), config.dim)

    def forward(self, features: Tensor) -> Tensor:
        check_frames(features, self.min_frames)
        x = torch.relu(self.bn1(self.conv1(features.unsqueeze(1))))
        fused = x = self.get_submodule("layer1")(x)
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            if stage in FUSED[self.config.fused]:
                down, fusion = FUSED[self.config.fused][stage]
                fused = self.get_submodule(fusion)(x, self.get_submodule(down)(fused))
            else:
                fused = x
        return self.seg_1(self.pool(fused))


PRESETS: dict[str, Config] = {
    "eres2net": Config(dim=512),
    "eres2netv2": Config(width=64, base=26, fused="last"),
}
