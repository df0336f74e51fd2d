"""Weights → codes, in torch. Nothing here has heard of an architecture."""

from __future__ import annotations

from sottovoce.quant.attach import attach, attached, codebooks, coded, detach, hold, quantizable, refresh, scales
from sottovoce.quant.change import change
from sottovoce.quant.damping import damping_loss
from sottovoce.quant.gains import clamp_gains, positive_gains
from sottovoce.quant.sequential import round_network

__all__ = [
    "attach",
    "attached",
    "change",
    "clamp_gains",
    "codebooks",
    "coded",
    "damping_loss",
    "detach",
    "hold",
    "positive_gains",
    "quantizable",
    "refresh",
    "round_network",
    "scales",
]
