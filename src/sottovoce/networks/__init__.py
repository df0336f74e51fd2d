"""Waveform → features → embedding, in torch. Nothing here has heard of quantization."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from torch import nn

from sottovoce.errors import BadInput
from sottovoce.networks import campplus, dfresnet, ecapa, eres2net, redimnet, resnet, resnetse, sbresnet, simam

KINDS: dict[str, tuple[type, Callable[[Any], nn.Module]]] = {
    "ecapa": (ecapa.Config, ecapa.Encoder),
    "resnet": (resnet.Config, resnet.Encoder),
    "dfresnet": (dfresnet.Config, dfresnet.Encoder),
    "campplus": (campplus.Config, campplus.Encoder),
    "simam": (simam.Config, simam.Encoder),
    "eres2net": (eres2net.Config, eres2net.Encoder),
    "sbresnet": (sbresnet.Config, sbresnet.Encoder),
    "redimnet": (redimnet.Config, redimnet.Encoder),
    "resnetse": (resnetse.Config, resnetse.Encoder),
}
PRESETS: dict[str, Any] = {
    **resnet.PRESETS,
    **ecapa.PRESETS,
    **dfresnet.PRESETS,
    **campplus.PRESETS,
    **simam.PRESETS,
    **eres2net.PRESETS,
    **sbresnet.PRESETS,
    **redimnet.PRESETS,
    **resnetse.PRESETS,
}


def build(kind: str, **settings: Any) -> nn.Module:
    """Build an encoder from a kind or a preset name and the fields of its Config.

    Example: build("resnet", blocks=(2, 2, 2, 2), width=16), build("ecapa512", context=False).
    Raises BadInput with the nearest known name.
    """
    if kind in PRESETS:
        config = PRESETS[kind]
        kind = next(name for name, (cls, _) in KINDS.items() if isinstance(config, cls))
    elif kind in KINDS:
        config = KINDS[kind][0]()
    else:
        known = [*KINDS, *PRESETS]
        near = difflib.get_close_matches(kind, known, 1)
        raise BadInput(f"network {kind!r} is unknown; {f'did you mean {near[0]!r}?' if near else f'known: {known}'}")
    names = [entry.name for entry in fields(config)]
    for name in settings:
        if name not in names:
            raise BadInput(f"network {kind}: unknown setting {name!r}; known: {', '.join(names)}")
    return KINDS[kind][1](replace(config, **{name: _frozen(value) for name, value in settings.items()}))


def _frozen(value: Any) -> Any:
    """Lists, also inside lists, as tuples."""
    return tuple(_frozen(entry) for entry in value) if isinstance(value, (list, tuple)) else value
