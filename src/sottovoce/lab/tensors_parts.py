"""Parts of networks as the names and shapes of their tensors: what the other tensors_*.py put together.

Each is named for the module of torch, or of `sottovoce.networks.layers`, whose tensors it lists in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Named = Iterable[tuple[str, tuple[int, ...]]]
Block = Callable[[int, int, int, int], Named]  # of channels read, channels, stride and stage, counted from 0

NOTHING: Named = ()  # of an activation, or of a part that is left out


def module(**parts: Named) -> Named:
    """Parts, under their names."""
    for name, part in parts.items():
        yield from ((f"{name}.{inside}", shape) for inside, shape in part)


def sequence(*parts: Named) -> Named:
    """Parts, under their numbers."""
    return module(**{str(index): part for index, part in enumerate(parts)})


def convolution(inputs: int, outputs: int, *kernel: int, groups: int = 1, bias: bool = False) -> Named:
    """A convolution over as many axes as its kernel has."""
    if groups < 1 or inputs % groups or outputs % groups:
        raise ValueError(f"{inputs} and {outputs} channels do not divide into {groups} groups")
    yield "weight", (outputs, inputs // groups, *kernel)
    if bias:
        yield "bias", (outputs,)


def linear(inputs: int, outputs: int) -> Named:
    """A linear layer."""
    return (("weight", (outputs, inputs)), ("bias", (outputs,)))


def scales(channels: int) -> Named:
    """A factor and an addend a channel: a layer norm."""
    return (("weight", (channels,)), ("bias", (channels,)))


def norm(channels: int, affine: bool = True) -> Named:
    """A batch norm."""
    yield from scales(channels) if affine else ()
    yield from (("running_mean", (channels,)), ("running_var", (channels,)), ("num_batches_tracked", ()))


def stages(
    block: Block, counts: Sequence[int], widths: Sequence[int], inputs: int, strides: Sequence[int], expansion: int = 1
) -> tuple[dict[str, Named], int]:
    """layer1 and on, whose first blocks change stride and channels; and the channels that leave the last of them."""
    made: dict[str, Named] = {}
    for stage, (count, channels, stride) in enumerate(zip(counts, widths, strides, strict=True)):
        blocks = []
        for index in range(count):
            blocks.append(block(inputs, channels, 1 if index else stride, stage))
            inputs = expansion * channels
        made[f"layer{stage + 1}"] = sequence(*blocks)
    return made, inputs


def shortcut(inputs: int, outputs: int, stride: int) -> Named:
    """A 1×1 convolution and a batch norm, where a block changes the shape."""
    if stride == 1 and inputs == outputs:
        return NOTHING
    return sequence(convolution(inputs, outputs, 1, 1), norm(outputs))


def attention(channels: int, bottleneck: int = 128) -> Named:
    """networks.layers.attention."""
    narrow, wide = convolution(channels, bottleneck, 1, bias=True), convolution(bottleneck, channels, 1, bias=True)
    return sequence(narrow, NOTHING, norm(bottleneck), wide)


def attentive_pool(channels: int, bottleneck: int, context: bool, normed: bool = False) -> Named:
    """networks.layers.AttentivePool; with context it reads mean and deviation too."""
    return module(
        linear1=convolution(channels * (3 if context else 1), bottleneck, 1, bias=True),
        hidden=sequence(NOTHING, norm(bottleneck)) if normed else NOTHING,
        linear2=convolution(bottleneck, channels, 1, bias=True),
    )


def gate(channels: int, bottleneck: int) -> Named:
    """networks.layers.ChannelGate."""
    return module(fc=sequence(linear(channels, bottleneck), NOTHING, linear(bottleneck, channels)))


def two_convolutions(inputs: int, channels: int, stride: int, **rest: Named) -> Named:
    """Two 3×3 convolutions, a batch norm behind each, and what follows them."""
    first, second = convolution(inputs, channels, 3, 3), convolution(channels, channels, 3, 3)
    return module(conv1=first, bn1=norm(channels), conv2=second, bn2=norm(channels), **rest)
