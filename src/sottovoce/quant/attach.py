"""Put a Plan on a network, take it off, read its codes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from sottovoce.bits.formats import Coded
from sottovoce.bits.plan import Plan, Spec
from sottovoce.errors import BadInput
from sottovoce.quant.quantizers import Quantized

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def quantizable(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Layer name → weight shape of every convolution and linear layer, in network order; attached or not."""
    return {name: tuple(stored(layer).shape) for name, layer in network.named_modules() if isinstance(layer, LAYERS)}


def attach(network: nn.Module, plan: Plan) -> dict[str, Spec | None]:
    """Let every layer see its weight as the plan's format stores it; scales and codebooks start from the weights.

    returns: the spec of each layer, None for float. Raises BadPlan when the plan does not fit the network, BadInput
    when a plan is attached already.
    """
    if any(True for _ in _attached(network)):
        raise BadInput("the network has a plan attached already; detach it first")
    specs = plan.resolve(quantizable(network))
    for name, spec in specs.items():
        if spec is not None:
            layer = network.get_submodule(name)
            quantized = Quantized(stored(layer), spec)
            parametrize.register_parametrization(layer, "weight", quantized, unsafe=True)  # it keeps shape and type
    return specs


def detach(network: nn.Module) -> None:
    """Take the plan off; the decoded weights stay as plain parameters."""
    for _, layer, _ in list(_attached(network)):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def coded(network: nn.Module) -> dict[str, Coded]:
    """The weights of an attached network as stored; decoded they equal those of its forward pass bit for bit."""
    return {name: _coded(quantized, stored(layer)) for name, layer, quantized in _attached(network)}


def scales(network: nn.Module) -> list[nn.Parameter]:
    """The learnable gains of the scales, around 1 (uniform: the clip); without weight decay, like `codebooks`."""
    return [quantized.gain for _, _, quantized in _attached(network) if quantized.gain.requires_grad]


def codebooks(network: nn.Module) -> list[nn.Parameter]:
    """What else quantizers learn, around 0: shifts of codebooks (1 is the outermost level), thresholds (in units)."""
    found = [(quantized.shift, quantized.threshold) for _, _, quantized in _attached(network)]
    return [parameter for both in found for parameter in both if isinstance(parameter, nn.Parameter)]


def refresh(network: nn.Module) -> None:
    """Move the codebooks towards the present weights; call it at the end of an epoch."""
    for _, layer, quantized in _attached(network):
        quantized.refresh(stored(layer))


def hold(network: nn.Module, held: bool = True) -> None:
    """Keep the codes that the present weights have, until the next call; False: assign them in every pass, as at first.

    Held codes are part of the state: hold a fresh network before it loads such a state.
    """
    for _, layer, quantized in _attached(network):
        quantized.hold(stored(layer), held)


def attached(network: nn.Module) -> dict[str, Quantized]:
    """Layer name → its parametrization, for every layer that a plan is attached to."""
    return {name: quantized for name, _, quantized in _attached(network)}


def stored(layer: nn.Module) -> torch.Tensor:
    """The float weight behind a layer, attached or not, without computing what the layer sees."""
    if parametrize.is_parametrized(layer, "weight"):
        return layer.parametrizations.weight.original
    return layer.weight


def _attached(network: nn.Module) -> Iterator[tuple[str, nn.Module, Quantized]]:
    for name, layer in network.named_modules():
        if isinstance(layer, LAYERS) and parametrize.is_parametrized(layer, "weight"):
            quantized = layer.parametrizations.weight[0]
            if isinstance(quantized, Quantized):
                yield name, layer, quantized


def _coded(quantized: Quantized, weight: torch.Tensor) -> Coded:
    codes, levels, scale = (part.cpu().numpy() for part in quantized.encode(weight.detach()))
    return Coded(quantized.spec, tuple(weight.shape), codes, levels, scale)
