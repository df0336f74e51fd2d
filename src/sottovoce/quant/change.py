"""From one plan to the next in the middle of a training."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from sottovoce.bits.plan import Plan
from sottovoce.quant.attach import attached, quantizable, stored
from sottovoce.quant.quantizers import Quantized


def change(network: nn.Module, plan: Plan) -> None:
    """Put `plan` in the place of the plan that the network has, if any.

    Layers whose spec stays keep scale and codebook. The others start anew from their float weights, which go on as they
    were trained. Raises BadPlan when the plan does not fit the network.
    """
    present = {name: quantized.spec for name, quantized in attached(network).items()}
    for name, spec in plan.resolve(quantizable(network)).items():
        layer = network.get_submodule(name)
        if present.get(name) == spec:
            continue
        if name in present:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        if spec is not None:
            parametrize.register_parametrization(layer, "weight", Quantized(stored(layer), spec), unsafe=True)
