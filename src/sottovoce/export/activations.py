"""Where activations are rounded to uint8.

Every tensor that an integer operator reads or writes gets one QuantizeLinear → DequantizeLinear pair; engines fuse the
pairs with the operators between them.

Convolutions with coded weights, additions of two such tensors, and what only moves values (Split, Concat) become
integer operators; all else (pooling, softmax, gates, matrix products after pooling) stays in float.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from sottovoce.export.graph import Graph


@dataclass(frozen=True)
class Region:
    """What is to be rounded: groups of tensors that share one grid, and the ReLU nodes that the rounding replaces."""

    groups: list[list[str]]
    relus: list[NodeProto]


def find_region(graph: Graph, coded: set[str]) -> Region:
    """Find the tensors to round in a float graph; coded: names of quantized weights."""
    convs = [node for node in graph.nodes if node.op_type == "Conv" and node.input[1] in coded]
    links: dict[str, str] = {}
    for conv in convs:
        _enter(links, conv.input[0])
        _enter(links, _after_relu(graph, conv.output[0]))
    while _grow(graph, links):
        pass
    groups: dict[str, list[str]] = {}
    for tensor in links:
        groups.setdefault(_root(links, tensor), []).append(tensor)
    producers = (graph.producer(tensor) for tensor in links)
    return Region(list(groups.values()), [node for node in producers if node is not None and node.op_type == "Relu"])


def _after_relu(graph: Graph, tensor: str) -> str:
    """The tensor itself, or the output of the ReLU that is its only reader."""
    readers = graph.consumers(tensor)
    if len(readers) == 1 and readers[0].op_type == "Relu":
        return str(readers[0].output[0])
    return tensor


def _enter(links: dict[str, str], tensor: str) -> bool:
    known = tensor in links
    links.setdefault(tensor, tensor)
    return not known


def _root(links: dict[str, str], tensor: str) -> str:
    while links[tensor] != tensor:
        tensor = links[tensor]
    return tensor


def _join(links: dict[str, str], tensors: list[str]) -> bool:
    """Put tensors on one grid; True when this is news."""
    entered = [_enter(links, tensor) for tensor in tensors]
    roots = {_root(links, tensor) for tensor in tensors}
    first = min(roots)
    for root in roots:
        links[root] = first
    return any(entered) or len(roots) > 1


def _grow(graph: Graph, links: dict[str, str]) -> bool:
    """One round of carrying integer tensors through operators that can compute on them; True when something was new."""
    changed = False
    for node in graph.nodes:
        moved = _moved(node)
        if moved and any(name in links for name in node.output):
            changed |= _join(links, [*moved, *node.output])
        elif node.op_type == "Add" and all(name in links for name in node.input):
            changed |= _enter(links, _after_relu(graph, node.output[0]))
    return changed


def _moved(node: NodeProto) -> list[str]:
    """The inputs whose values a node only moves about."""
    if node.op_type == "Concat":
        return list(node.input)
    return [node.input[0]] if node.op_type == "Split" else []


def round_tensors(graph: Graph, region: Region, grids: list[tuple[np.float32, np.uint8]]) -> dict[str, str]:
    """Insert the pairs; returns the name of the scale behind every rounded tensor's dequantized name."""
    scales: dict[str, str] = {}
    for group, (scale, zero) in zip(region.groups, grids, strict=True):
        step, origin = graph.constant(np.float32(scale)), graph.constant(np.uint8(zero))
        for tensor in group:
            rounded = graph.fresh()
            graph.redirect(tensor, rounded)
            graph.add("QuantizeLinear", tensor, step, origin, output=f"{rounded}q")
            graph.add("DequantizeLinear", f"{rounded}q", step, origin, output=rounded)
            scales[rounded] = step
    for relu in region.relus:
        graph.remove(relu)
        graph.redirect(relu.output[0], relu.input[0])
    return scales
