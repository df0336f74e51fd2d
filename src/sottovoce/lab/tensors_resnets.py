"""Names and shapes of the tensors of networks whose layers are maps: ResNets and what came of them."""

from __future__ import annotations

from collections.abc import Sequence

from sottovoce.lab.tensors_parts import (
    NOTHING,
    Named,
    attention,
    convolution,
    gate,
    linear,
    module,
    norm,
    sequence,
    shortcut,
    stages,
    two_convolutions,
)

GEMINI_ROWS = 16  # mels over the rows that Gemini-DF-ResNet pools
STRIDES = (1, 2, 2, 2)  # of the stages of a ResNet
FUSED = {  # ERes2Net's: stage that is brought to the next one's shape, that convolution, the fusion
    "all": (
        (1, "layer1_downsample", "fuse_mode12"),
        (2, "layer2_downsample", "fuse_mode123"),
        (3, "layer3_downsample", "fuse_mode1234"),
    ),
    "last": ((3, "layer3_ds", "fuse34"),),
}


def resnet(
    blocks: Sequence[int] = (3, 4, 6, 3),
    width: int = 32,
    block: str = "basic",
    two_layers: bool = False,
    mels: int = 80,
    dim: int = 256,
) -> Named:
    """networks.resnet.Encoder."""

    def basic(inputs: int, channels: int, stride: int, _: int) -> Named:
        return two_convolutions(inputs, channels, stride, shortcut=shortcut(inputs, channels, stride))

    def bottleneck(inputs: int, channels: int, stride: int, _: int) -> Named:
        return module(
            conv1=convolution(inputs, channels, 1, 1),
            bn1=norm(channels),
            conv2=convolution(channels, channels, 3, 3),
            bn2=norm(channels),
            conv3=convolution(channels, 4 * channels, 1, 1),
            bn3=norm(4 * channels),
            shortcut=shortcut(inputs, 4 * channels, stride),
        )

    part, expansion = (bottleneck, 4) if block == "bottleneck" else (basic, 1)
    layers, outputs = stages(part, blocks, [width * 2**stage for stage in range(4)], width, STRIDES, expansion)
    return module(
        conv1=convolution(1, width, 3, 3),
        bn1=norm(width),
        **layers,
        seg_1=linear(2 * outputs * -(-mels // 8), dim),
        seg_bn_1=norm(dim, affine=False) if two_layers else NOTHING,
        seg_2=linear(dim, dim) if two_layers else NOTHING,
    )


def dfresnet(
    depths: Sequence[int] = (3, 3, 9, 3),
    dims: Sequence[int] = (32, 32, 64, 128, 256),
    mels: int = 80,
    dim: int = 256,
) -> Named:
    """networks.dfresnet.Encoder with Gemini's strides."""

    def inverted(channels: int) -> Named:
        inner = 4 * channels
        return module(
            conv1=convolution(channels, inner, 1, 1),
            bn1=norm(inner),
            conv2=convolution(inner, inner, 3, 3, groups=inner),
            bn2=norm(inner),
            conv3=convolution(inner, channels, 1, 1),
            bn3=norm(channels),
        )

    downs = zip((1, *dims), dims, strict=False)
    parts = zip(dims[1:], depths, strict=True)
    return module(
        downsample_layers=sequence(*(sequence(convolution(i, o, 3, 3), norm(o)) for i, o in downs)),
        stages=sequence(*(sequence(*(inverted(channels) for _ in range(depth))) for channels, depth in parts)),
        seg_1=linear(2 * dims[-1] * -(-mels // GEMINI_ROWS), dim),
    )


def simam(blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64, mels: int = 80, dim: int = 256) -> Named:
    """networks.simam.Encoder."""

    def block(inputs: int, channels: int, stride: int, _: int) -> Named:
        return two_convolutions(inputs, channels, stride, downsample=shortcut(inputs, channels, stride))

    layers, outputs = stages(block, _filled(blocks), [width * 2**stage for stage in range(4)], width, STRIDES)
    channels = outputs * -(-mels // 8)
    return module(
        front=module(conv1=convolution(1, width, 3, 3), bn1=norm(width), **layers),
        pooling=module(attention=attention(channels)),
        bottleneck=linear(2 * channels, dim),
    )


def eres2net(
    blocks: Sequence[int] = (3, 4, 6, 3),
    width: int = 32,
    base: int = 32,
    scale: int = 2,
    expansion: int = 2,
    fused: str = "all",
    mels: int = 80,
    dim: int = 512,
) -> Named:
    """networks.eres2net.Encoder."""

    def fusion(channels: int) -> Named:
        inner = channels // 4
        narrow = (convolution(2 * channels, inner, 1, 1, bias=True), norm(inner))
        wide = (convolution(inner, channels, 1, 1, bias=True), norm(channels))
        return module(local_att=sequence(*narrow, NOTHING, *wide))

    def block(inputs: int, channels: int, stride: int, stage: int) -> Named:
        part, outputs = channels * base // 64, expansion * channels
        inner = part * scale
        fuses = stage >= 2
        return module(
            conv1=convolution(inputs, inner, 1, 1),
            bn1=norm(inner),
            convs=sequence(*(convolution(part, part, 3, 3) for _ in range(scale))),
            bns=sequence(*(norm(part) for _ in range(scale))),
            fuse_models=sequence(*(fusion(part) for _ in range(scale - 1))) if fuses else NOTHING,
            conv3=convolution(inner, outputs, 1, 1),
            bn3=norm(outputs),
            shortcut=shortcut(inputs, outputs, stride),
        )

    layers, outputs = stages(block, blocks, [width * 2**stage for stage in range(4)], width, STRIDES, expansion)
    fusions: dict[str, Named] = {}
    for stage, down, name in FUSED[fused]:
        channels = expansion * width * 2**stage
        fusions |= {down: convolution(channels // 2, channels, 3, 3), name: fusion(channels)}
    last = linear(2 * outputs * -(-mels // 8), dim)
    return module(conv1=convolution(1, width, 3, 3), bn1=norm(width), **layers, **fusions, seg_1=last)


def sbresnet(
    blocks: Sequence[int] = (3, 4, 6, 3),
    widths: Sequence[int] = (128, 128, 256, 256),
    gated: int = 2,
    mels: int = 80,
    dim: int = 256,
) -> Named:
    """networks.sbresnet.Encoder."""

    def block(inputs: int, channels: int, stride: int, stage: int) -> Named:
        return module(
            bn1=norm(inputs),
            conv1=convolution(inputs, channels, 3, 3),
            bn2=norm(channels),
            conv2=convolution(channels, channels, 3, 3),
            bn3=norm(channels),
            conv3=convolution(channels, channels, 1, 1),
            se=gate(channels, channels) if stage < gated else NOTHING,
            downsample=shortcut(inputs, channels, stride),
        )

    layers, outputs = stages(block, _filled(blocks), widths, widths[0], STRIDES)
    channels = outputs * -(-mels // 8)
    return module(
        conv1=convolution(1, widths[0], 3, 3),
        bn1=norm(widths[0]),
        **layers,
        attention=attention(channels),
        norm_stats=norm(2 * channels),
        fc_embed=linear(2 * channels, dim),
        norm_embed=norm(dim),
    )


def resnetse(
    blocks: Sequence[int] = (3, 4, 6, 3),
    widths: Sequence[int] = (16, 32, 64, 128),
    lite: bool = True,
    deviations: bool = False,
    mels: int = 40,
    dim: int = 512,
) -> Named:
    """networks.resnetse.Encoder; the mels show in no tensor of L."""

    def block(inputs: int, channels: int, stride: int, _: int) -> Named:
        rest = {"se": gate(channels, channels // 8), "downsample": shortcut(inputs, channels, stride)}
        return two_convolutions(inputs, channels, stride, **rest)

    strides = (1, 2, 2, 1) if lite else STRIDES
    layers, pooled = stages(block, _filled(blocks), widths, widths[0], strides)
    if lite:
        yield "attention", (pooled, 1)
        stem, pooling = convolution(1, widths[0], 7, 7), {"sap_linear": linear(pooled, pooled)}
    else:
        pooled *= -(-mels // 8)
        stem, pooling = convolution(1, widths[0], 3, 3, bias=True), {"attention": attention(pooled)}
    last = linear(pooled * (2 if deviations else 1), dim)
    yield from module(conv1=stem, bn1=norm(widths[0]), **layers, **pooling, fc=last)


def _filled(blocks: Sequence[int]) -> list[int]:
    """Blocks of networks whose stages have one at least."""
    return [max(1, count) for count in blocks]
