"""A batch norm behind a ReLU, folded: relu(y) · gain + shift = max(y · gain + shift, shift).

Gain and inner shift go into the convolution before the ReLU. All channels then leave it in the unit behind the norm, as
one grid for all of them needs, and one rounding does where there were two: before and behind the norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from sottovoce.export.graph import Array, Graph


@dataclass(frozen=True)
class _Chain:
    """Conv → Relu → Mul → Add, the last two by constants for each channel, (rows, 1 ...)."""

    conv: NodeProto
    gain: Array
    shift: Array
    output: str


def fold_norms_behind_relu(graph: Graph, gains: dict[str, Array]) -> None:
    """Replace Conv → Relu → Mul → Add by Conv → Max wherever all factors are positive.

    graph: with the other norms folded (`fold_norms`).   gains: (rows,) float32 by weight name, to which those found are
    added: each multiplies its row of the weight, as that of a norm directly behind a convolution does.
    """
    for chain in [chain for node in graph.nodes if (chain := _chain(graph, node))]:
        gain, shift = chain.gain.reshape(-1), chain.shift.reshape(-1)
        name = chain.conv.input[1]
        weight = graph.constants[name]
        graph.constants[name] = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
        gains[name] = (gains.get(name, np.float32(1)) * gain).astype(np.float32)
        bias = graph.constants[chain.conv.input[2]] if len(chain.conv.input) > 2 else np.float32(0)
        named = graph.constant((bias * gain + shift).astype(np.float32), f"{name.removesuffix('.weight')}.bias")
        chain.conv.input[:] = [chain.conv.input[0], name, named]
        last = graph.producer(chain.output)
        assert last is not None
        graph.remove(last)
        graph.add("Max", chain.conv.output[0], graph.constant(chain.shift), output=chain.output)
    graph.prune()


def _chain(graph: Graph, last: NodeProto) -> _Chain | None:
    """The chain that ends in a node, when no step of it has another reader and all factors are positive."""
    product = _only(graph, last.input[0], "Mul") if last.op_type == "Add" else None
    relu = _only(graph, product.input[0], "Relu") if product is not None else None
    conv = _only(graph, relu.input[0], "Conv") if relu is not None else None
    if product is None or conv is None:
        return None
    weight, gain, shift = (graph.constants.get(name) for name in (conv.input[1], product.input[1], last.input[1]))
    if weight is None or gain is None or shift is None or len(graph.consumers(conv.input[1])) > 1:
        return None
    rows = (len(weight), *[1] * (weight.ndim - 2))
    return _Chain(conv, gain, shift, last.output[0]) if gain.shape == shift.shape == rows and (gain > 0).all() else None


def _only(graph: Graph, tensor: str, op: str) -> NodeProto | None:
    """The node of a kind that computes a tensor which only one node reads."""
    node = graph.producer(tensor)
    return node if node is not None and node.op_type == op and len(graph.consumers(tensor)) == 1 else None
