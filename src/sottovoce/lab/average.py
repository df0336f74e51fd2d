"""The exponential moving average of a network's tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average:
    """Moving average of all floating-point tensors of a network, quantizer scales, codebooks and batch norm included.

    Float weights are averaged, not codes: put into the network they are quantized anew. The share kept in a step is
    `decay`, at first less, (1 + n) / (10 + n) after n steps, so that the start is soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.clone() for name, tensor in _floats(network).items()}

    @torch.no_grad()
    def update(self, network: nn.Module, count: int) -> None:
        """Move towards the network as it is now; `count` steps were averaged before."""
        kept = min(self.decay, (1 + count) / (10 + count))
        live = _floats(network)
        torch._foreach_lerp_(list(self.tensors.values()), [live[name] for name in self.tensors], 1 - kept)

    @torch.no_grad()
    def put_into(self, network: nn.Module) -> None:
        """Give the network the average in place of its own tensors."""
        for name, tensor in _floats(network).items():
            tensor.copy_(self.tensors[name])


def _floats(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
