"""Data-aware rounding of a whole network, layer after layer, in one forward pass that carries two networks at once.

Half of the batch is seen by the float weights, half by what is rounded so far. A layer is rounded the moment both
inputs reach it, against the output of its float twin; its mean output is corrected by a bias (DFQ, Nagel 2019,
arXiv 1906.04721, section 4.2, here on data), so that the embedding of the float network is what is aimed at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from sottovoce.errors import BadInput
from sottovoce.quant.attach import _attached
from sottovoce.quant.gains import pairs
from sottovoce.quant.quantizers import Quantized
from sottovoce.quant.rounding import (
    DAMPING,
    Rounded,
    corrected_target,
    damped,
    round_to_data,
    taken,
    windows,
)

CHUNK = 2048  # positions whose products are summed at a time
POSITIONS = 4096  # rows of the im2col matrix that a layer is judged on, at least (where it has them)
ROUGH = 256  # positions that a rough mean is taken over
PER_COLUMN = 4  # positions for each column, at least
WIDEST = 8  # formats of this many bits keep their nearest levels
SCARCE = 1.0  # damping grows by this times columns / positions: fewer inputs are trusted less


@dataclass
class Followed:
    """What the pass did: layers in order of their visit, layers it could not judge, and corrections of the means."""

    rounded: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # nearest levels: wide formats, rules that say more than nearest
    again: list[str] = field(default_factory=list)  # visited more than once: judged on their first visit
    unvisited: list[str] = field(default_factory=list)  # nearest levels: the pass never came


@torch.no_grad()
def round_network(
    network: nn.Module,
    features: Tensor,
    *,
    rounding: bool = True,
    correction: bool = True,
    seed: int = 0,
    each: Callable[[str], None] = lambda name: None,
) -> Followed:
    """Round every attached layer so that its output on `features` stays near that of its float weight.

    network: float weights, a plan attached, in evaluation mode   features: (batch, ...), its input   rounding: off
    keeps the nearest levels   correction: lets biases, or running means of norms that follow, take up the mean change.
    each: told the name of every layer that is done. Weights, scales, levels, biases and running means are replaced.
    """
    layers = {name: (layer, quantized) for name, layer, quantized in _attached(network)}
    norms = {id(layer): norm for layer, norm in pairs(network, features[:1])}
    done = Followed()
    floats: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}

    def visit(name: str, x: Tensor) -> Tensor:
        layer, quantized = layers[name]
        x_float, x_seen = x.chunk(2)
        first = name not in floats
        if first:
            floats[name] = layer.parametrizations.weight.original.detach().clone()
        elif name not in done.again:
            done.again.append(name)
        weight, movable = floats[name], correction and (layer.bias is not None or id(layer) in norms)
        if first:
            generator = torch.Generator().manual_seed(seed + len(floats))
            rounded = (
                rounding
                and quantized.spec.bits < WIDEST
                and round_layer(layer, quantized, x_float, x_seen, centred=movable, generator=generator)
            )
            (done.rounded if rounded else done.kept).append(name)
        out_float, out_seen = _apply(layer, x_float, weight), _apply(layer, x_seen, layer.weight)
        if first and movable:
            channel = 1 if out_seen.dim() > 2 and not isinstance(layer, nn.Linear) else out_seen.dim() - 1
            others = [axis for axis in range(out_seen.dim()) if axis != channel]
            shifts[name] = (out_float.double().mean(dim=others) - out_seen.double().mean(dim=others)).float()
        if name in shifts:
            shape = [1, -1, *[1] * (out_seen.dim() - 2)] if not isinstance(layer, nn.Linear) else [-1]
            out_seen = out_seen + shifts[name].reshape(shape)
        if first:
            each(name)
        return torch.cat([out_float, out_seen])

    try:
        for name, (layer, _) in layers.items():
            layer.forward = partial(visit, name)
        network(torch.cat([features, features]))
    finally:
        for layer, _ in layers.values():
            del layer.forward
    for name, shift in shifts.items():
        layer = layers[name][0]
        if layer.bias is not None:
            layer.bias += shift
        else:
            norms[id(layer)].running_mean -= shift
    done.unvisited = [name for name in layers if name not in floats]
    return done


def round_layer(
    layer: nn.Module,
    quantized: Quantized,
    x_float: Tensor,
    x_seen: Tensor,
    *,
    centred: bool,
    generator: torch.Generator,
) -> bool:
    """Round one layer on its inputs in the float network and in the network rounded so far; both of one shape.

    centred: a bias takes up the mean of the output, so only the change around it counts. returns: False where the
    rule of the layer's spec derives codes from more than the nearest level, so that nothing was changed.
    """
    original = layer.parametrizations.weight.original
    groups = getattr(layer, "groups", 1)
    target = original.detach().reshape(groups, original.shape[0] // groups, -1)
    moment, drift, count = moments(layer, x_float, x_seen, target.shape[2], centred, generator)
    moment = damped(moment, DAMPING + SCARCE * target.shape[2] / count)
    start = _parts(quantized, original, groups)
    wanted = corrected_target(target, moment, drift)
    found = round_to_data(wanted, moment, start, quantized.free)
    return _taken(quantized, original, found)


def _taken(quantized: Quantized, original: Tensor, found: Rounded) -> bool:
    """Write codes, scale and levels into a layer; False, and nothing changed, where its rule would not keep them."""
    before, weight = {k: v.clone() for k, v in quantized.state_dict().items()}, original.clone()
    original.copy_(found.decode().reshape(original.shape))
    levels = found.levels.reshape(-1, found.levels.shape[-1])
    try:
        quantized.place(original, found.scale.reshape(-1, 1), levels if quantized.levels().dim() == 2 else levels[0])
        if torch.equal(quantized.encode(original)[0].long().reshape(-1), found.codes.reshape(-1)):
            return True
    except BadInput:
        pass
    quantized.load_state_dict(before)
    original.copy_(weight)
    return False


def moments(
    layer: nn.Module, x_float: Tensor, x_seen: Tensor, columns: int, centred: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor, int]:
    """H = XᵀX / n of the inputs seen and (X_float - X)ᵀ X / n, at n positions drawn from all; both (groups, c, c)."""
    total = _positions(layer, x_seen)
    wanted = max(POSITIONS, PER_COLUMN * columns)
    drawn = torch.randperm(total, generator=generator)[:wanted].to(x_seen.device).sort().values
    groups = getattr(layer, "groups", 1)
    moment, cross = (torch.zeros(groups, columns, columns, device=x_seen.device) for _ in range(2))
    sums = [torch.zeros(groups, columns, 1, device=x_seen.device, dtype=torch.float64) for _ in range(2)]
    view, view_float = windows(layer, x_seen), windows(layer, x_float)
    middle = taken(layer, view, drawn[:: len(drawn) // ROUGH + 1]).mean(dim=1, keepdim=True) if centred else 0.0
    for some in drawn.split(CHUNK):
        seen = taken(layer, view, some) - middle  # near zero mean, so that little cancels below
        moved = taken(layer, view_float, some) - middle - seen
        moment += seen.mT @ seen
        cross += moved.mT @ seen
        sums[0] += seen.double().sum(dim=1)[..., None]
        sums[1] += moved.double().sum(dim=1)[..., None]
    count = len(drawn)
    if centred:
        moment -= (sums[0] @ sums[0].mT / count).float()
        cross -= (sums[1] @ sums[0].mT / count).float()
    return moment / count, cross / count, count


def _positions(layer: nn.Module, x: Tensor) -> int:
    """Number of output positions over batch and space."""
    if isinstance(layer, nn.Linear):
        return x.numel() // x.shape[-1]
    count = x.shape[0]
    for axis in range(x.dim() - 2):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        count *= (x.shape[2 + axis] + 2 * layer.padding[axis] - reach) // layer.stride[axis] + 1
    return count


def _apply(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, layer.bias)
    convolve = nn.functional.conv1d if isinstance(layer, nn.Conv1d) else nn.functional.conv2d
    return convolve(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _parts(quantized: Quantized, weight: Tensor, groups: int) -> Rounded:
    """What the layer sees now, in the shapes of `rounding`."""
    codes, levels, scale = quantized.encode(weight.detach())
    rows = weight.shape[0] // groups
    per_row = len(scale) > 1 or weight.shape[0] == 1
    return Rounded(
        codes.reshape(groups, rows, -1).long(),
        scale.reshape(groups, rows, 1) if per_row else scale.reshape(1, 1, 1),
        levels.float().reshape(groups, rows, -1) if levels.dim() == 2 else levels.float().reshape(1, 1, -1),
    )
