"""Channels that are joined before a batch norm: their codes are joined, and the norm decodes them.

    norm([s_i · (q_i - z_i)]) = (s · gain) · [q_i] + (shift - s · gain · z)        s, z (channels,): each part's own

Dense blocks (CAM++; DenseNet, arXiv 1608.06993) norm what all layers before have written, joined, again in every layer.
As codes it is a quarter of the bytes, and what was one decoding for each part is one for all, which is the norm's
multiplication too. Scales and zero points of the parts are put side by side by nodes that engines compute at loading.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from sottovoce.export.graph import Array, Graph, attributes

AXIS = 1  # of channels
KEEP_CHANNELS = ("Mul", "Add", "Relu", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Norm:
    """Multiplication by a gain and addition of a shift, each a constant (channels, 1 ...)."""

    product: NodeProto
    sum: NodeProto


@dataclass(frozen=True)
class _Codes:
    """A tensor of codes, and for each of its channels scale and zero point: names of tensors, (channels,) float32."""

    codes: str
    scales: str
    zeros: str


def joins(graph: Graph) -> dict[str, list[Norm]]:
    """The Concat nodes over channels that only norms and other such nodes read: their norms, by name of the output."""
    readers = _readers(graph)
    found = {node.output[0] for node in graph.nodes if node.op_type == "Concat" and attributes(node)["axis"] == AXIS}
    norms = {name: [_norm(graph, readers, reader) for reader in readers.get(name, [])] for name in found}
    while others := [name for name in found if not _is_join(norms[name], readers.get(name, []), found)]:
        found.difference_update(others)
    return {name: [norm for norm in norms[name] if norm] for name in norms if name in found}


def parts(graph: Graph, found: dict[str, list[Norm]]) -> list[str]:
    """The tensors that are joined, but for those that are themselves joined of others."""
    makers = {node.output[0]: node for node in graph.nodes if node.op_type == "Concat"}
    return [name for join in found for name in makers[join].input if name not in found]


def join_codes(graph: Graph) -> None:
    """Join codes instead of values wherever every part is rounded, and give the norms behind them the decoding."""
    found = joins(graph)
    known: dict[str, _Codes] = {}
    for node in [node for node in graph.sorted() if node.output[0] in found]:
        sides = [known.get(name) or _rounded(graph, name) for name in node.input]
        if all(sides):
            known[node.output[0]] = _join(graph, [side for side in sides if side])
    for name, codes in known.items():
        for norm in found[name]:
            _decode(graph, codes, norm)
    graph.prune()


def part_codes(graph: Graph) -> None:
    """Take back `join_codes`: parts are decoded, then joined, then normed."""
    values: dict[str, str] = {}
    for node in graph.sorted():
        if node.op_type == "Concat" and all(_is_code(graph, name, values) for name in node.input):
            sides = [values.get(name) or _decoded(graph, name) for name in node.input]
            values[node.output[0]] = graph.add("Concat", *sides, axis=AXIS)
    for node in [node for node in graph.nodes if node.op_type == "DequantizeLinear"]:
        turn = graph.producer(node.input[0])
        codes = turn.input[0] if turn is not None and turn.op_type == "Reshape" else node.input[0]
        if codes in values:
            _norm_again(graph, node, values[codes])
    graph.prune()


def _readers(graph: Graph) -> dict[str, list[NodeProto]]:
    found: dict[str, list[NodeProto]] = {}
    for node in graph.nodes:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def _norm(graph: Graph, readers: dict[str, list[NodeProto]], product: NodeProto) -> Norm | None:
    """The norm that begins with a node."""
    if product.op_type != "Mul" or not _by_channel(graph, product.input[1]):
        return None
    after = readers.get(product.output[0], [])
    whole = len(after) == 1 and after[0].op_type == "Add" and _by_channel(graph, after[0].input[1])
    return Norm(product, after[0]) if whole else None


def _by_channel(graph: Graph, name: str) -> bool:
    array = graph.constants.get(name)
    return array is not None and array.ndim > 1 and array.size == len(array) > 1


def _is_join(norms: list[Norm | None], readers: list[NodeProto], found: set[str]) -> bool:
    return bool(readers) and all(
        norm is not None or reader.output[0] in found for norm, reader in zip(norms, readers, strict=True)
    )


def _rounded(graph: Graph, tensor: str) -> _Codes | None:
    """Codes of a tensor that is decoded from one grid; None where it is not, or of unknown channels."""
    node, count = graph.producer(tensor), _channels(graph, tensor)
    if node is None or node.op_type != "DequantizeLinear" or not count or graph.constants[node.input[1]].ndim:
        return None
    channels = graph.constant(np.array([count], dtype=np.int64))
    zero = graph.constant(graph.constants[node.input[2]].astype(np.float32))
    return _Codes(node.input[0], graph.add("Expand", node.input[1], channels), graph.add("Expand", zero, channels))


def _channels(graph: Graph, tensor: str) -> int:
    """Number of channels, that of the convolution a tensor comes from; 0 where nobody can tell."""
    node = graph.producer(tensor)
    if node is None:
        return 0
    if node.op_type == "Conv":
        return len(graph.constants[node.input[1]]) if node.input[1] in graph.constants else 0
    return max(_channels(graph, name) for name in node.input) if node.op_type in KEEP_CHANNELS else 0


def _join(graph: Graph, sides: list[_Codes]) -> _Codes:
    return _Codes(
        graph.add("Concat", *[side.codes for side in sides], axis=AXIS),
        graph.add("Concat", *[side.scales for side in sides], axis=0),
        graph.add("Concat", *[side.zeros for side in sides], axis=0),
    )


def _decode(graph: Graph, codes: _Codes, norm: Norm) -> None:
    """Let a norm read codes: its product is their decoding, its sum takes the zero points."""
    gain, shift = (graph.constants[node.input[1]] for node in (norm.product, norm.sum))
    scale = graph.add("Mul", codes.scales, graph.constant(gain.reshape(-1)))
    moved = graph.add("Sub", graph.constant(shift.reshape(-1)), graph.add("Mul", scale, codes.zeros))
    shape = graph.constant(np.array([-1, *gain.shape[1:]], dtype=np.int64))
    norm.sum.input[:] = [
        graph.add("DequantizeLinear", codes.codes, scale, axis=AXIS),
        graph.add("Reshape", moved, shape),
    ]


def _is_code(graph: Graph, tensor: str, joined: dict[str, str]) -> bool:
    node = graph.producer(tensor)
    return tensor in joined or (node is not None and node.op_type == "QuantizeLinear")


def _decoded(graph: Graph, codes: str) -> str:
    rounding = graph.producer(codes)
    assert rounding is not None
    return graph.add("DequantizeLinear", codes, *rounding.input[1:])


def _norm_again(graph: Graph, decoding: NodeProto, value: str) -> None:
    """Write the norm that `_decode` merged with a decoding."""
    gain = _constant(graph, decoding.input[1], 1)
    (total,) = graph.consumers(decoding.output[0])
    place = graph.producer(total.input[1])
    assert place is not None
    shift, shape = _constant(graph, place.input[0], 0), graph.constants[place.input[1]]
    total.input[:] = [
        graph.add("Mul", value, graph.constant(gain.reshape(shape))),
        graph.constant(shift.reshape(shape)),
    ]


def _constant(graph: Graph, tensor: str, index: int) -> Array:
    """The constant that the node which computes a tensor reads at a place."""
    node = graph.producer(tensor)
    assert node is not None
    return graph.constants[node.input[index]]
