"""Positive gains of the batch norms that follow a layer, so that folding them leaves every scale above 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sottovoce.errors import BadInput
from sottovoce.quant.attach import LAYERS

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
FLOOR = 1e-5  # smallest gain; a channel this quiet is as good as silent


def positive_gains(network: nn.Module, features: Tensor) -> None:
    """Flip rows of weight and bias, and the norm's gain and running mean, wherever that gain is negative.

    Pairs of layer and batch norm are found by running `network(features)`. The output does not change, but for gains
    below 1e-5, which are raised to it. Raises BadInput when a plan is attached: flipped rows need other levels.
    """
    if any(parametrize.is_parametrized(layer) for layer in network.modules()):
        raise BadInput("gains are made positive on a float network; detach its plan first")
    learned = [(layer, norm) for layer, norm in pairs(network, features) if norm.weight is not None]
    for layer, norm in learned:
        _flip(layer, norm)
        norm.gain_floor = FLOOR  # clamp_gains looks for it


@torch.no_grad()
def clamp_gains(network: nn.Module) -> None:
    """Keep gains positive that `positive_gains` made so; call it after every step of an optimiser."""
    gains = [norm.weight for norm in network.modules() if isinstance(norm, NORMS) and hasattr(norm, "gain_floor")]
    if gains:
        torch._foreach_clamp_min_(gains, FLOOR)


@torch.no_grad()
def pairs(network: nn.Module, features: Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """Layers whose output goes into a batch norm as it is: [(layer, norm)], each used once in a pass."""
    made: dict[int, tuple[nn.Module, Tensor, int]] = {}  # holds the tensors, so that no id is given away twice
    calls: list[nn.Module] = []
    found: list[tuple[nn.Module, nn.Module]] = []

    def after(layer: nn.Module, _: Any, output: Tensor) -> None:
        calls.append(layer)
        made[id(output)] = layer, output, output._version

    def before(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls.append(norm)
        layer, output, version = made.get(id(inputs[0]), (None, inputs[0], -1))
        if layer is not None and output._version == version:  # not changed in place since
            found.append((layer, norm))

    _run(network, features, after, before)
    return [(layer, norm) for layer, norm in found if calls.count(layer) == 1 and calls.count(norm) == 1]


def _run(network: nn.Module, features: Tensor, after: Callable[..., None], before: Callable[..., None]) -> None:
    """One pass in evaluation mode with a hook on every layer and norm; modes are as before afterwards."""
    modes = {module: module.training for module in network.modules()}
    hooks = [m.register_forward_hook(after) for m in modes if isinstance(m, LAYERS)]
    hooks += [m.register_forward_pre_hook(before) for m in modes if isinstance(m, NORMS)]
    try:
        network.eval()(features)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def _flip(layer: nn.Module, norm: nn.Module) -> None:
    sign = torch.where(norm.weight < 0, -1.0, 1.0).to(norm.weight.dtype)
    layer.weight.mul_(sign.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    for vector in (layer.bias, norm.weight, norm.running_mean):
        if vector is not None:
            vector.mul_(sign)
    norm.weight.clamp_(min=FLOOR)
