"""ReDimNet (Yakovlev 2024, arXiv 2407.18223), sizes and tensor names as in WeSpeaker."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.errors import BadInput
from sottovoce.networks.layers import AttentivePool, check_frames

EPSILON = 1e-6  # of norms over channels
KERNELS = (7, 19, 31, 59)  # frames, of the convolutions before the attention over time
HEADS = 4


@dataclass(frozen=True)
class Stage:
    """Stride over rows, blocks of maps, their expansion, channels over those of the block over time (0: no such)."""

    stride: int
    blocks: int
    expansion: int = 1
    reduction: int = 0


@dataclass(frozen=True)
class Config:
    """Width and stages of a ReDimNet; channels × rows is the same number throughout."""

    stages: tuple[tuple[int, int, int, int], ...] = ((1, 2, 1, 12), (2, 2, 1, 12), (2, 4, 1, 8))  # fields of Stage
    width: int = 16  # channels of the stem
    block: str = "convnext"  # a name in BLOCKS
    group: int = 4  # channels in a group of a 3×3 convolution
    context: bool = True  # the attention of the pooling also sees mean and standard deviation of the recording
    mels: int = 72
    dim: int = 192


class ChannelNorm(nn.Module):
    """Layer norm over channels, axis 1, at every other position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        normed = centred / torch.sqrt((centred * centred).mean(dim=1, keepdim=True) + EPSILON)
        shape = (1, -1, *[1] * (x.ndim - 2))
        return normed * self.weight.reshape(shape) + self.bias.reshape(shape)


def _convolution(axes: int) -> type[nn.Conv1d] | type[nn.Conv2d]:
    return nn.Conv1d if axes == 1 else nn.Conv2d


class ConvNextBlock(nn.Module):
    """Grouped convolution, batch norm, GELU, 1×1 convolution, and the identity; the shape stays."""

    def __init__(self, channels: int, group: int, kernel: int = 3, axes: int = 2) -> None:
        super().__init__()
        convolution = _convolution(axes)
        norm = nn.BatchNorm1d if axes == 1 else nn.BatchNorm2d
        grouped = convolution(channels, channels, kernel, padding=kernel // 2, groups=channels // group)
        self.dwconvs = nn.ModuleList([grouped])
        self.norm = norm(channels)
        self.pwconv1 = convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pwconv1(nn.functional.gelu(self.norm(self.dwconvs[0](x))))


class RowGate(nn.Module):
    """Squeeze-and-excitation of rows instead of channels: (batch, channels, rows, frames) → same shape."""

    def __init__(self, rows: int, bottleneck: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(rows, bottleneck)
        self.exitation = nn.Linear(bottleneck, rows)  # spelled as in the checkpoints

    def forward(self, x: Tensor) -> Tensor:
        gain = torch.sigmoid(self.exitation(torch.relu(self.squeeze(x.mean(dim=(1, 3))))))
        return x * gain[:, None, :, None]


class BasicBlock(nn.Module):
    """Two pairs of a grouped 3×3 and a 1×1 convolution, and the identity; the shape stays."""

    def __init__(self, channels: int, group: int, rows: int, gated: bool) -> None:
        super().__init__()
        groups = channels // group
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.conv1pw = nn.Conv2d(channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.conv2pw = nn.Conv2d(channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = RowGate(rows, min(64, max(channels, 32))) if gated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn1(torch.relu(self.conv1pw(self.conv1(x))))
        inner = self.se(self.bn2(self.conv2pw(self.conv2(inner))))
        return torch.relu(inner + x)


BLOCKS = ("convnext", "basic", "gated")


class MapBlock(nn.Module):
    """A block of maps of the kind named: (batch, channels, rows, frames) → same shape."""

    def __init__(self, kind: str, channels: int, group: int, rows: int) -> None:
        super().__init__()
        convnext = kind == "convnext"
        self.conv_block = (
            ConvNextBlock(channels, group) if convnext else BasicBlock(channels, group, rows, kind == "gated")
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_block(x)


class SelfAttention(nn.Module):
    """Multi-head attention over frames: (batch, frames, channels) → same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % HEADS:
            raise BadInput(f"network redimnet: {channels} channels of attention do not divide into {HEADS} heads")
        self.channels = channels
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._heads(part(x)) for part in (self.q_proj, self.k_proj, self.v_proj))
        weight = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(self.channels // HEADS), dim=-1)
        return self.out_proj((weight @ value).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, frames, channels) → (batch, heads, frames, channels / heads)."""
        return x.unflatten(2, (HEADS, self.channels // HEADS)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a GELU, by its tanh approximation, between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(channels, channels)
        self.output_dense = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(nn.functional.gelu(self.intermediate_dense(x), approximate="tanh"))


class Transformer(nn.Module):
    """Attention and feed-forward layers, each added to what it reads: (batch, channels, frames) → same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = SelfAttention(channels)
        self.layer_norm = nn.LayerNorm(channels, eps=EPSILON)
        self.feed_forward = FeedForward(channels)
        self.final_layer_norm = nn.LayerNorm(channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        x = self.layer_norm(x + self.attention(x))
        return self.final_layer_norm(x + self.feed_forward(x)).transpose(1, 2)


class TimeBlock(nn.Module):
    """Convolutions and attention over time on fewer channels, and the identity: (batch, channels, frames) → same."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.red_dim_conv = nn.Sequential(nn.Conv1d(channels, inner, 1), ChannelNorm(inner))
        blocks = [ConvNextBlock(inner, 1, kernel, axes=1) for kernel in KERNELS]
        self.tcm = nn.Sequential(*blocks, Transformer(inner))
        self.exp_dim_conv = nn.Conv1d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.exp_dim_conv(self.tcm(self.red_dim_conv(x)))


class Rows(nn.Module):
    """Maps as rows of one axis, channels of a mel row side by side: (batch, c, f, frames) → (batch, f · c, frames)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(1, 2)


def _narrowing(inputs: int, outputs: int, group: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, groups=outputs // group),
        nn.BatchNorm2d(outputs, eps=EPSILON),
        nn.GELU(),
        nn.Conv2d(outputs, outputs, 1),
    )


def _stage(stage: Stage, channels: int, rows: int, config: Config) -> nn.Sequential:
    """Layers of a stage that reads (batch, channels, rows, frames); returns (batch, channels · rows, frames)."""
    outputs = stage.stride * channels
    wide, stride = outputs * stage.expansion, (stage.stride, 1)
    layers: list[nn.Module] = [nn.Conv2d(channels, wide, stride, stride)]
    layers += [MapBlock(config.block, wide, config.group, rows // stage.stride) for _ in range(stage.blocks)]
    if stage.expansion > 1:
        layers.append(_narrowing(wide, outputs, config.group))
    layers.append(Rows())
    if stage.reduction:
        size = config.width * config.mels
        layers.append(TimeBlock(size, size // stage.reduction))
    return nn.Sequential(*layers)


class Backbone(nn.Module):
    """Stem and stages, each of which reads a weighted sum of all outputs before it.

    (batch, mels, frames) → (batch, width · mels, frames).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int]] = []  # channels and rows that each stage reads
        channels, rows = config.width, config.mels
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), ChannelNorm(channels))
        for index, stage in enumerate(Stage(*numbers) for numbers in config.stages):
            if rows % stage.stride:
                raise BadInput(f"network redimnet: {rows} rows before stage {index} do not divide by {stage.stride}")
            self.shapes.append((channels, rows))
            self.add_module(f"stage{index}", _stage(stage, channels, rows, config))
            channels, rows = channels * stage.stride, rows // stage.stride
        size = config.width * config.mels
        counts = range(2, len(config.stages) + 2)
        alone = nn.Parameter(torch.ones(1, 1, 1, 1), requires_grad=False)  # the weight of one is one
        self.inputs_weights = nn.ParameterList([alone, *(nn.Parameter(torch.zeros(1, n, size, 1)) for n in counts)])

    def forward(self, features: Tensor) -> Tensor:
        outputs = [self.stem(features.unsqueeze(1)).transpose(1, 2).flatten(1, 2)]
        for index, (channels, rows) in enumerate(self.shapes):
            maps = self._weighted(outputs).unflatten(1, (rows, channels)).transpose(1, 2)
            outputs.append(self.get_submodule(f"stage{index}")(maps))
        return self._weighted(outputs)

    def _weighted(self, outputs: list[Tensor]) -> Tensor:
        if len(outputs) == 1:
            return outputs[0]
        weights = torch.softmax(self.inputs_weights[len(outputs) - 1], dim=1).unbind(dim=1)
        first, *rest = (weight * output for weight, output in zip(weights, outputs, strict=True))
        return sum(rest, first)


class Encoder(nn.Module):
    """Features → embedding: (batch, mels, frames) → (batch, dim). Raises BadInput below `min_frames`.

    Raises BadInput for an unknown block, and where rows do not divide by a stride or channels of attention by heads.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.block not in BLOCKS:
            raise BadInput(f"network redimnet: block {config.block!r} is unknown; known: {', '.join(BLOCKS)}")
        self.config = config
        self.dim = config.dim
        self.min_frames = 2 if config.context else 1  # a standard deviation needs two
        size = config.width * config.mels
        self.backbone = Backbone(config)
        self.pool = AttentivePool(size, context=2 * config.context)
        self.seg_1 = nn.Linear(2 * size, config.dim)

    def forward(self, features: Tensor) -> Tensor:
        check_frames(features, self.min_frames)
        return self.seg_1(self.pool(self.backbone(features)))


MIDDLE = ((1, 4, 2, 48), (2, 4, 2, 48), (1, 6, 2, 48), (2, 6, 1, 32), (1, 8, 1, 24), (2, 4, 1, 16))
SIZES = (
    Config(((1, 2, 1, 30), (2, 3, 2, 30), (1, 3, 3, 30), (2, 4, 2, 10), (1, 3, 1, 10)), 10, "basic", 1, mels=60),
    Config(((1, 2, 1, 0), (2, 3, 1, 0), (3, 4, 1, 12), (2, 5, 1, 12), (2, 3, 1, 8)), 12, "convnext", 8),
    Config(((1, 2, 1, 12), (2, 2, 1, 12), (1, 3, 1, 12), (2, 4, 1, 8), (1, 4, 1, 8), (2, 4, 1, 4)), 16, "convnext", 4),
    Config(
        ((1, 6, 4, 32), (2, 6, 2, 32), (1, 8, 2, 32), (2, 10, 2, 16), (1, 10, 1, 16), (2, 8, 1, 16)), 16, "gated", 1
    ),
    Config(MIDDLE, 32, "gated", 1),
    Config(MIDDLE, 32, "gated", 16),
    Config(((1, 4, 4, 32), (2, 6, 2, 32), (1, 6, 2, 24), (3, 8, 1, 24), (1, 8, 1, 16), (2, 8, 1, 16)), 32, "basic", 32),
)
PRESETS: dict[str, Config] = {f"redimnet-b{size}": config for size, config in enumerate(SIZES)}
