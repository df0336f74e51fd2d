"""Groups of layers that are quantized together: the stages of a network, or what a user names.

Hong, Chung and Kang (arXiv 2407.08991) switch 8 bits on in one part of ECAPA-TDNN at a time; a group is such a part.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from sottovoce import quant
from sottovoce.bits.plan import Plan, Spec
from sottovoce.errors import BadPlan

W8 = Spec("uniform8", "channel", "absmax")  # 8 bits per output channel, the largest weight on the outermost level
STAGES: tuple[Mapping[str, str], ...] = (  # of known networks: group → pattern; others are split by their modules
    {
        "conv1": "layer1.*",
        "block1": "layer2.*",
        "block2": "layer3.*",
        "block3": "layer4.*",
        "mfa": "conv",
        "attention": "pool.*",
        "fc": "linear",
    },
)


@dataclass(frozen=True)
class Group:
    """Layers that are quantized together."""

    name: str
    patterns: tuple[str, ...]  # of layer names, as in a plan
    layers: tuple[str, ...]


def stages(network: nn.Module) -> list[Group]:
    """The groups of a network: the seven parts of an ECAPA-TDNN, else its top-level modules, module lists opened."""
    layers = list(quant.quantizable(network))
    for table in STAGES:
        if all(sum(fnmatchcase(layer, pattern) for pattern in table.values()) == 1 for layer in layers):
            return make_groups({name: [pattern] for name, pattern in table.items()}, layers)
    parts: dict[str, list[str]] = {}
    for layer in layers:
        parts.setdefault(_part(network, layer), []).append(layer)
    return [Group(part, _patterns(part, inside), tuple(inside)) for part, inside in parts.items()]


def parse_groups(text: str, layers: Collection[str]) -> list[Group]:
    """Read `name=pattern pattern; name=pattern`; layers in no group stay float. Raises BadPlan."""
    named: dict[str, list[str]] = {}
    for entry in filter(str.strip, text.split(";")):
        name, sign, patterns = (part.strip() for part in entry.partition("="))
        if not (name and sign and patterns) or name in named:
            raise BadPlan(f"group {entry.strip()!r}: write name=pattern pattern, each name once, as in 'fc=linear'")
        named[name] = patterns.split()
    if not named:
        raise BadPlan("no groups are named; write name=pattern, as in 'early=layer1.* layer2.*; fc=linear'")
    return make_groups(named, layers)


def make_groups(named: Mapping[str, Sequence[str]], layers: Collection[str]) -> list[Group]:
    """Patterns by group → groups. Raises BadPlan for a pattern that fits no layer, and for a layer in two groups."""
    groups, owner = [], dict[str, str]()
    for name, patterns in named.items():
        inside = [layer for layer in layers if any(fnmatchcase(layer, pattern) for pattern in patterns)]
        for pattern in patterns:
            if not any(fnmatchcase(layer, pattern) for layer in layers):
                raise BadPlan(f"group {name!r}: pattern {pattern!r} fits no layer; {_nearest(pattern, layers)}")
        for layer in inside:
            if layer in owner:
                raise BadPlan(f"layer {layer!r} is in the groups {owner[layer]!r} and {name!r}; keep it in one")
            owner[layer] = name
        groups.append(Group(name, tuple(patterns), tuple(inside)))
    return groups


def plan_of(groups: Iterable[Group], spec: Spec = W8) -> Plan:
    """The plan that stores the layers of these groups as `spec` and keeps all others in float."""
    entries = [(pattern, spec) for group in groups for pattern in group.patterns]
    return Plan((*entries, ("*", None)))


def _part(network: nn.Module, layer: str) -> str:
    first, _, rest = layer.partition(".")
    opened = isinstance(network.get_submodule(first), nn.ModuleList)
    return f"{first}.{rest.partition('.')[0]}" if opened else first


def _patterns(part: str, layers: Sequence[str]) -> tuple[str, ...]:
    return (part,) if list(layers) == [part] else (f"{part}.*",)


def _nearest(pattern: str, layers: Collection[str]) -> str:
    near = difflib.get_close_matches(pattern, list(layers), 1, cutoff=0.0)
    return f"did you mean {near[0]!r}?" if near else "the network has none"
