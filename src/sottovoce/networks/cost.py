"""What a network costs to run, in multiplications with addition (MACs)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COUNTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


def macs(network: nn.Module, rows: int, frames: int) -> dict[str, int]:
    """MACs of every convolution and linear layer for one input (1, rows, frames), by layer name.

    One forward pass in evaluation mode, which may be on the device "meta"; the mode is put back. Biases, batch norms,
    pooling and the front end are not counted, as in the papers' tables.
    """
    counted: dict[str, int] = {}

    def count(name: str, layer: nn.Module, output: Tensor) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        counted[name] = counted.get(name, 0) + output.numel() * (weight.numel() // len(weight))

    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, COUNTED)}
    hooks = [
        layer.register_forward_hook(lambda module, _, output, name=name: count(name, module, output))
        for name, layer in layers.items()
    ]
    training, device = network.training, next(network.parameters()).device
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, rows, frames, device=device))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return counted
