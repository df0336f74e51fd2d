"""Where activations are rounded to uint8.

Every tensor that an integer operator reads or writes gets one QuantizeLinear → DequantizeLinear pair; engines fuse the
pairs with the operators between them.

Convolutions with coded weights, additions of two such tensors, and what only moves values (Split, Concat, Reshape,
Transpose, a mirroring Pad) become integer operators. What is joined before norms is rounded as well, to be joined as
codes (`joins`). All else (pooling, softmax, gates, matrix products after pooling) stays in float.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from sottovoce.export.graph import Array, Graph
from sottovoce.export.joins import joins, parts

MOVES = ("Split", "Reshape", "Transpose")  # operators whose outputs are the input's values in other places


@dataclass(frozen=True)
class Region:
    """What is to be rounded."""

    groups: list[list[str]]  # tensors that share one grid
    relus: list[NodeProto]  # which the rounding replaces
    floors: list[NodeProto]  # Max with a constant, behind a convolution: what it reads takes the step of its output
    last: set[int]  # places in `groups` of those that the embedding is computed from with no rounding in between


def find_region(graph: Graph, coded: set[str]) -> Region:
    """Find the tensors to round in a float graph; coded: names of quantized weights."""
    convs = [node for node in graph.nodes if node.op_type == "Conv" and node.input[1] in coded]
    links: dict[str, str] = {}
    for conv in convs:
        _enter(links, conv.input[0])
        _enter(links, _bounded(graph, conv.output[0]))
    while _grow(graph, links):
        pass
    for tensor in _joined(graph, links):
        _enter(links, tensor)
    groups: dict[str, list[str]] = {}
    for tensor in links:
        groups.setdefault(_root(links, tensor), []).append(tensor)
    last = _last(graph, set(links))
    makers = [node for tensor in links if (node := graph.producer(tensor)) is not None]
    written = {conv.output[0] for conv in convs}
    return Region(
        list(groups.values()),
        [node for node in makers if _is_relu(graph, node)],
        [node for node in makers if node.op_type == "Max" and node.input[0] in written],
        {index for index, group in enumerate(groups.values()) if last.intersection(group)},
    )


def _last(graph: Graph, rounded: set[str]) -> set[str]:
    """The rounded tensors from which a way leads to an output past no other."""
    found: set[str] = set()
    waiting, known = list(graph.outputs), set(graph.outputs)
    while waiting:
        tensor = waiting.pop()
        maker = graph.producer(tensor)
        if tensor in rounded:
            found.add(tensor)
        elif maker is not None:
            waiting += set(maker.input) - known
            known |= set(maker.input)
    return found


def _bounded(graph: Graph, tensor: str) -> str:
    """The tensor itself, or the output of its only reader where that is a ReLU or a Max with a constant.

    A Clip at zero and above is a ReLU: a grid over what was observed behind it ends where it ends.
    """
    readers = graph.consumers(tensor)
    if len(readers) != 1:
        return tensor
    (reader,) = readers
    bounds = _is_relu(graph, reader) or (reader.op_type == "Max" and reader.input[1] in graph.constants)
    return str(reader.output[0]) if bounds else tensor


def _is_relu(graph: Graph, node: NodeProto) -> bool:
    clips = node.op_type == "Clip" and len(node.input) > 1 and node.input[1] in graph.constants
    return node.op_type == "Relu" or (clips and not graph.constants[node.input[1]].any())


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
        if _moves(node) and any(name in links for name in node.output):
            changed |= _join(links, [node.input[0], *node.output])
        elif node.op_type == "Concat" and node.output[0] in links:
            for name in node.input:  # each on its own grid: one for all would be that of the loudest
                changed |= _enter(links, name)
        elif node.op_type == "Add" and all(name in links for name in node.input):
            changed |= _enter(links, _bounded(graph, node.output[0]))
    return changed


def _joined(graph: Graph, links: dict[str, str]) -> list[str]:
    """Tensors that are joined before norms, of which an integer operator reads at least one: see `joins`."""
    found = joins(graph)
    read = any(_bounded(graph, norm.sum.output[0]) in links for norms in found.values() for norm in norms)
    return parts(graph, found) if read else []


def _moves(node: NodeProto) -> bool:
    """Whether every value that a node writes is one that it reads, and each of those is written."""
    mirrors = node.op_type == "Pad" and any(entry.s == b"reflect" for entry in node.attribute)
    return node.op_type in MOVES or mirrors


def round_tensors(
    graph: Graph, region: Region, grids: list[tuple[np.float32, np.uint8]], settled: bool = False
) -> dict[str, str]:
    """Insert the pairs; returns the name of the scale behind every rounded tensor's dequantized name.

    settled: whether the bounds of `region.floors` are moved onto the grid, which moves means: see `mean_shifts`.
    Without it they stay where they are, and in float.
    """
    scales: dict[str, str] = {}
    for group, (scale, zero) in zip(region.groups, grids, strict=True):
        step, origin = graph.constant(np.float32(scale)), graph.constant(np.uint8(zero))
        for floor in [node for node in region.floors if node.output[0] in group]:
            lowest = _lift(graph, floor, scale, zero, (step, origin)) if settled else origin
            scales[_round(graph, floor.input[0], step, lowest)] = step
        for tensor in group:
            scales[_round(graph, tensor, step, origin)] = step
    for relu in region.relus:
        graph.remove(relu)
        graph.redirect(relu.output[0], relu.input[0])
    for pad in [node for node in graph.nodes if node.op_type == "Pad"]:
        _move_codes(graph, pad)
    return scales


def _move_codes(graph: Graph, mover: NodeProto) -> None:
    """Let a node between two roundings on one grid move codes instead of values, which engines do not see of Pad."""
    before, readers = graph.producer(mover.input[0]), graph.consumers(mover.output[0])
    if before is None or len(readers) != 1 or not _moves(mover):
        return
    (after,) = readers
    if (before.op_type, after.op_type) == ("DequantizeLinear", "QuantizeLinear") and before.input[1:] == after.input[
        1:
    ]:
        mover.input[0], mover.output[0] = before.input[0], after.output[0]
        graph.remove(after)


def _lift(graph: Graph, floor: NodeProto, scale: np.float32, zero: np.uint8, grid: tuple[str, str]) -> str:
    """Compute max(y, bound) as relu(y - bound) + bound: in integers, where Max is not; returns the zero of that ReLU.

    What is added back is the bound moved onto the grid. So every value moves alike, by less than a step, which the
    layers behind can undo. Else only those at the bound would move, and how many they are is another number in each
    recording.   grid: scale and zero point of the output, by name.
    """
    bound, layer = graph.constants[floor.input[1]], graph.producer(floor.input[0])
    assert layer is not None
    codes = np.clip(np.rint(bound / scale) + np.float32(zero), 0, 255).astype(np.uint8)
    add_to_bias(graph, layer, -bound.reshape(-1))
    floor.op_type = "Add"
    floor.input[1] = graph.add("DequantizeLinear", graph.constant(codes), *grid)
    return graph.constant(np.uint8(0))


def add_to_bias(graph: Graph, layer: NodeProto, values: Array) -> None:
    """Add (rows,) to the bias of a convolution or matrix product; one without a bias gets it."""
    bias = graph.constants[layer.input[2]] if len(layer.input) > 2 else np.float32(0)
    named = f"{layer.input[1].removesuffix('.weight')}.bias"
    layer.input[:] = [*layer.input[:2], graph.constant((bias + values).astype(np.float32), named)]


def _round(graph: Graph, tensor: str, step: str, origin: str) -> str:
    """Let all readers of a tensor read it rounded; returns the name of that."""
    rounded = graph.fresh()
    graph.redirect(tensor, rounded)
    graph.add("QuantizeLinear", tensor, step, origin, output=f"{rounded}q")
    graph.add("DequantizeLinear", f"{rounded}q", step, origin, output=rounded)
    return rounded
