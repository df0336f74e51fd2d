"""Weights → codes, in torch. Nothing here has heard of an architecture."""

from __future__ import annotations

from sottovoce.quant.attach import attach, coded, detach, quantizable, refresh, scales
from sottovoce.quant.gains import clamp_gains, positive_gains

__all__ = [
    "attach",
    "clamp_gains",
    "coded",
    "detach",
    "positive_gains",
    "quantizable",
    "refresh",
    "scales",
]
