"""Damping of oscillation: float weights that sit on the border of two levels are drawn to the middle of their bin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sottovoce.quant.attach import attached, stored
from sottovoce.quant.quantizers import Quantized


def damping_loss(network: nn.Module) -> Tensor:
    """Σ (decoded - clip(weight))² over all layers with a plan: the dampening of Nagel 2022, arXiv 2203.08711.

    The decoded weight is a constant to the gradient; a weight beyond the outermost level adds nothing, as the clip in
    the paper has it. returns: a scalar, 0 for a float network.
    """
    pairs = [(stored(network.get_submodule(name)), quantized) for name, quantized in attached(network).items()]
    return torch.stack([_distance(*pair) for pair in pairs]).sum() if pairs else torch.zeros(())


def _distance(weight: Tensor, quantized: Quantized) -> Tensor:
    """One layer's part; a bin's middle lies off the decoded weight where the quantizer takes the mean off first."""
    codes, levels, scale = quantized.encode(weight.detach())
    rows, codes = weight.reshape(len(weight), -1), codes.reshape(len(weight), -1).long()
    centre, _ = quantized._units(rows.detach())
    middles = levels.float().expand(len(rows), -1).gather(1, codes) * scale.reshape(-1, 1)
    middles = middles if centre is None else middles + centre
    beyond = ((codes == 0) & (rows < middles)) | ((codes == levels.shape[-1] - 1) & (rows > middles))
    return (middles - rows).masked_fill(beyond, 0.0).square().sum()
