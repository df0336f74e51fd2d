"""Names and shapes of the tensors of networks with layers over time: ECAPA-TDNN, CAM++, ReDimNet."""

from __future__ import annotations

from collections.abc import Sequence

from sottovoce.lab.tensors_parts import (
    NOTHING,
    Named,
    attentive_pool,
    convolution,
    linear,
    module,
    norm,
    scales,
    sequence,
    shortcut,
    two_convolutions,
)

HEADS = 4  # of ReDimNet's attention
KERNELS = (7, 19, 31, 59)  # of ReDimNet's convolutions over time


def ecapa(
    width: int = 512,
    context: bool = True,
    mels: int = 80,
    dim: int = 192,
    aggregate: int = 1536,
    scale: int = 8,
    attention: int = 128,
    attention_norm: bool = False,
    dim_norm: bool = False,
    aggregate_norm: bool = False,
    statistics: str = "",  # how they are computed shows in no tensor
) -> Named:
    """networks.ecapa.Encoder."""

    def layer(inputs: int, kernel: int) -> Named:
        return module(conv=convolution(inputs, width, kernel, bias=True), bn=norm(width))

    def block() -> Named:
        part = width // scale
        convolutions = (convolution(part, part, 3, bias=True) for _ in range(scale - 1))
        split = module(convs=sequence(*convolutions), bns=sequence(*(norm(part) for _ in range(scale - 1))))
        excite = module(linear1=linear(width, 128), linear2=linear(128, width))
        return module(se_res2block=sequence(layer(width, 1), split, layer(width, 1), excite))

    return module(
        layer1=layer(mels, 5),
        layer2=block(),
        layer3=block(),
        layer4=block(),
        conv=convolution(3 * width, aggregate, 1, bias=True),
        conv_bn=norm(aggregate) if aggregate_norm else NOTHING,
        pool=attentive_pool(aggregate, attention, context, attention_norm),
        bn=norm(2 * aggregate),
        linear=linear(2 * aggregate, dim),
        bn2=norm(dim) if dim_norm else NOTHING,
    )


def campplus(
    layers: Sequence[int] = (12, 24, 16),
    head: int = 32,
    width: int = 128,
    growth: int = 32,
    bottleneck: int = 4,
    mels: int = 80,
    dim: int = 512,
) -> Named:
    """networks.campplus.Encoder."""

    def residual(stride: int) -> Named:
        return two_convolutions(head, head, stride, shortcut=shortcut(head, head, stride))

    def normed(channels: int, affine: bool = True) -> Named:
        return module(batchnorm=norm(channels, affine))

    def dense(inputs: int) -> Named:
        inner = bottleneck * growth
        mask = module(
            linear_local=convolution(inner, growth, 3),
            linear1=convolution(inner, inner // 2, 1, bias=True),
            linear2=convolution(inner // 2, growth, 1, bias=True),
        )
        first = convolution(inputs, inner, 1)
        return module(nonlinear1=normed(inputs), linear1=first, nonlinear2=normed(inner), cam_layer=mask)

    first, last = convolution(1, head, 3, 3), convolution(head, head, 3, 3)
    layer1, layer2 = (sequence(residual(2), residual(1)) for _ in range(2))
    front = module(conv1=first, bn1=norm(head), layer1=layer1, layer2=layer2, conv2=last, bn2=norm(head))
    parts = {"tdnn": module(linear=convolution(head * -(-mels // 8), width, 5), nonlinear=normed(width))}
    channels = width
    for block, count in enumerate(layers, start=1):
        names = {f"tdnnd{index + 1}": dense(channels + index * growth) for index in range(count)}
        parts[f"block{block}"] = module(**names)
        channels += count * growth
        narrow = convolution(channels, channels // 2, 1)
        parts[f"transit{block}"] = module(nonlinear=normed(channels), linear=narrow)
        channels //= 2
    parts["out_nonlinear"] = normed(channels)
    parts["dense"] = module(linear=convolution(2 * channels, dim, 1), nonlinear=normed(dim, affine=False))
    return module(head=front, xvector=module(**parts))


def redimnet(
    stages: Sequence[tuple[int, int, int, int]] = ((1, 2, 1, 12), (2, 2, 1, 12), (2, 4, 1, 8)),
    width: int = 16,
    block: str = "convnext",
    group: int = 4,
    context: bool = True,
    mels: int = 72,
    dim: int = 192,
) -> Named:
    """networks.redimnet.Encoder."""
    size, channels, rows = width * mels, width, mels
    parts: dict[str, Named] = {"stem": sequence(convolution(1, width, 3, 3, bias=True), scales(width))}
    for index, (stride, count, expansion, reduction) in enumerate(stages):
        if rows % stride:
            raise ValueError(f"{rows} rows do not divide by {stride}")
        outputs, rows = stride * channels, rows // stride
        wide = outputs * expansion
        blocks = [module(conv_block=_map_block(block, wide, group, rows)) for _ in range(count)]
        narrowing = [_narrowing(wide, outputs, group)] if expansion > 1 else []
        over_time = [_time_block(size, size // reduction)] if reduction else []
        first = convolution(channels, wide, stride, 1, bias=True)
        parts[f"stage{index}"] = sequence(first, *blocks, *narrowing, NOTHING, *over_time)
        channels = outputs
    weights = ((str(count), (1, count + 1, size if count else 1, 1)) for count in range(len(stages) + 1))
    return module(
        backbone=module(**parts, inputs_weights=weights),
        pool=attentive_pool(size, 128, context),
        seg_1=linear(2 * size, dim),
    )


def _map_block(kind: str, channels: int, group: int, rows: int) -> Named:
    """networks.redimnet.MapBlock without its outer name."""
    groups = channels // group
    if kind == "convnext":
        return _convnext(channels, groups, 3, 3)
    inner = min(64, max(channels, 32))
    gated = module(squeeze=linear(rows, inner), exitation=linear(inner, rows))  # spelled as in the checkpoints
    return module(
        conv1=convolution(channels, channels, 3, 3, groups=groups),
        conv1pw=convolution(channels, channels, 1, 1, bias=True),
        bn1=norm(channels),
        conv2=convolution(channels, channels, 3, 3, groups=groups),
        conv2pw=convolution(channels, channels, 1, 1, bias=True),
        bn2=norm(channels),
        se=gated if kind == "gated" else NOTHING,
    )


def _convnext(channels: int, groups: int, *kernel: int) -> Named:
    """networks.redimnet.ConvNextBlock."""
    grouped = convolution(channels, channels, *kernel, groups=groups, bias=True)
    pointwise = convolution(channels, channels, *[1] * len(kernel), bias=True)
    return module(dwconvs=sequence(grouped), norm=norm(channels), pwconv1=pointwise)


def _narrowing(inputs: int, outputs: int, group: int) -> Named:
    """Back to the channels that a stage gives."""
    first = convolution(inputs, outputs, 3, 3, groups=outputs // group, bias=True)
    return sequence(first, norm(outputs), NOTHING, convolution(outputs, outputs, 1, 1, bias=True))


def _time_block(channels: int, inner: int) -> Named:
    """networks.redimnet.TimeBlock."""
    if inner % HEADS:
        raise ValueError(f"{inner} channels do not divide into {HEADS} heads")
    heads = module(**{f"{name}_proj": linear(inner, inner) for name in ("k", "v", "q", "out")})
    forward = module(intermediate_dense=linear(inner, inner), output_dense=linear(inner, inner))
    last = module(attention=heads, layer_norm=scales(inner), feed_forward=forward, final_layer_norm=scales(inner))
    return module(
        red_dim_conv=sequence(convolution(channels, inner, 1, bias=True), scales(inner)),
        tcm=sequence(*(_convnext(inner, inner, kernel) for kernel in KERNELS), last),
        exp_dim_conv=convolution(inner, channels, 1, bias=True),
    )
