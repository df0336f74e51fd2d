"""Names and shapes of the tensors of every kind of network that is imported, worked out without torch.

So a checkpoint is told from a known network, or refused with the nearest, before torch is loaded. What stands here is
the tree of modules of `sottovoce.networks`, as far as the settings in shapes.py reach; tests/lab/test_tensors.py holds
each against the network itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sottovoce.lab.tensors_parts import Named
from sottovoce.lab.tensors_resnets import dfresnet, eres2net, resnet, resnetse, sbresnet, simam
from sottovoce.lab.tensors_time import campplus, ecapa, redimnet

B2 = ((1, 2, 1, 12), (2, 2, 1, 12), (1, 3, 1, 12), (2, 4, 1, 8), (1, 4, 1, 8), (2, 4, 1, 4))
WIDE = (32, 64, 128, 256)
KINDS: dict[str, Callable[..., Named]] = {  # those that shapes.py names, with the settings their names stand for
    "resnet": resnet,
    "resnet34": resnet,
    "ecapa": ecapa,
    "ecapa512": ecapa,
    "ecapa1024-speechbrain": partial(ecapa, width=1024, aggregate=3072, attention_norm=True, aggregate_norm=True),
    "ecapa1024-a": partial(ecapa, width=1024, attention=256, attention_norm=True, dim_norm=True),
    "dfresnet": dfresnet,
    "gemini60": dfresnet,
    "campplus": campplus,
    "simam": simam,
    "simam34": simam,
    "eres2net": eres2net,
    "sbresnet": sbresnet,
    "resnet-speechbrain": sbresnet,
    "redimnet": redimnet,
    "redimnet-b2": partial(redimnet, stages=B2),
    "resnetse": resnetse,
    "resnetse34v2": partial(resnetse, widths=WIDE, lite=False, deviations=True, mels=64),
}


def shapes_of(kind: str, **settings: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that networks.build(kind, **settings) has, by name, in its order.

    Raises KeyError for a kind that no layout names, ValueError or ZeroDivisionError where the network cannot be built.
    """
    return dict(KINDS[kind](**settings))
